"""Runs of catalogues: beginning and cancelling one, and what it found and did."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from services.api import dependencies, openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object, streaming
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.api.v1 import catalogue_items, catalogues, estimation, jobs, schemas
from services.api.v1.catalogues import CatalogueDestination
from services.core.catalogues import asked, changes, destinations, looks, redrawing
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues as core
from services.core.catalogues.asked import RedrawRequest, RunRequest
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.catalogues.looks import Looks
from services.core.crash_points import crash_point
from services.core.fleet import models
from services.core.jobs import idempotency, queries, submissions
from services.core.jobs.estimates import WorkTally
from services.core.marks.asked import Mark
from services.core.model import ids
from services.core.policy import policies
from services.core.policy.refusals import Door

router = APIRouter(route_class=TenantRoute)
_PAST_THE_NEWEST = 2**63 - 1
Kind = Annotated[changes.Kind | None, Query(description=f"one of {', '.join(get_args(changes.Kind))}")]
Troubled = Annotated[
    Literal["true", "false"] | None, Query(description="true: only those of which something went wrong; or false")
]


class RunCounts(BaseModel):
    """Pictures, an item's variant being one: what the plan found (new to broken), what came of it (done to rejected),
    how many wait for a person, and how many the version has."""

    new: int = 0
    changed: int = 0
    model: int = 0
    retried: int = 0
    unchanged: int = 0
    removed: int = 0
    broken: int = 0
    done: int = 0
    failed: int = 0
    rejected: int = 0
    to_review: int = 0
    images: int = 0


class RunSource(BaseModel):
    """What was read: its name, sha256 and bytes, and how many items it had; null where it is not known."""

    title: str | None
    sha256: str | None
    bytes: int | None
    items: int | None


class RunSeconds(BaseModel):
    """How long the run planned, rendered (with the review) and wrote, and took in all; null until it came to that."""

    planning: float | None
    rendering: float | None
    writing: float | None
    total: float | None


class CatalogueRun(BaseModel):
    """A run. It compares the source with the version `base` (0: with nothing) and makes `version`; `error` says why
    that is not published, `causes` how many changes have which error's code. `device_seconds` is what its jobs have
    used of accelerators. `destination` says how far its version (of a plan: the base) is copied elsewhere, if none is
    newer there."""

    id: str
    object: Literal["catalogue.run"] = "catalogue.run"
    catalogue: str
    state: runs.State
    plan_only: bool
    accept_removed: bool
    counts: RunCounts
    source: RunSource
    error: schemas.ImageError | None
    causes: dict[str, int]
    base: int
    version: int | None
    job_id: str | None
    device_seconds: float | None
    destination: CatalogueDestination | None
    seconds: RunSeconds
    deadline: schemas.Moment | None
    cancel_requested_at: schemas.Moment | None
    created_at: schemas.Moment
    planned_at: schemas.Moment | None
    rendered_at: schemas.Moment | None
    finished_at: schemas.Moment | None


class CatalogueRunPage(BaseModel):
    data: list[CatalogueRun]
    next_cursor: str | None


class CatalogueChange(BaseModel):
    """One picture that differs. `line` is the item's in the source, `index` the image's in the run's job. The picture
    that can be marked is the image `image_index` of the job `image_job_id`: another one after a redraw. `redraws`: how
    often its seed was exchanged, in this run and before. `outcome` is null until the version is written. `before` and
    `after` are links to the pictures, where there are any; those to `/v1/catalogues/` take a key."""

    item: str
    variant: str
    kind: changes.Kind
    line: int | None
    index: int | None
    image_job_id: str | None
    image_index: int | None
    redraws: int
    mark: Mark | None
    prompt: str | None
    outcome: changes.Outcome | None
    error: schemas.ImageError | None
    before: str | None
    after: str | None


class CatalogueChangePage(BaseModel):
    data: list[CatalogueChange]
    next_cursor: str | None


@router.post(
    "/catalogues/{catalogue}/runs",
    status_code=202,
    response_model=CatalogueRun,
    openapi_extra=openapi.body(RunRequest, required=False) | openapi.IDEMPOTENT,
)
def run_catalogue(
    request: Request, response: Response, context: ContextDep, tenant: Tenant, catalogue: str,
    body: json_object.SmallOrNone,
) -> Any:  # fmt: skip
    """Begins a run: it reads the source, renders what is new or changed, and publishes the whole as a new version if
    the catalogue's rules allow it. One run goes on at a time, besides those that only plan."""
    wanted = json_object.parse(RunRequest, body, RunRequest.ALLOWED)
    key = streaming.idempotency_key(request)
    run_id, replayed = ids.new(), None
    deadline = None if wanted.deadline is None else asked.moment(wanted.deadline)
    with context.database.begin(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        if key is not None:
            digest = idempotency.digest("run", catalogue, wanted.plan_only, wanted.accept_removed, wanted.deadline)
            replayed = idempotency.remember(connection, tenant, key, sha256=digest, thing=run_id, kind="run")
        if replayed is None:
            runs.begin(
                connection, found, plan_only=wanted.plan_only, accept_removed=wanted.accept_removed,
                deadline=deadline, run_id=run_id,
            )  # fmt: skip
        else:
            run_id, response.headers["Idempotent-Replayed"] = replayed, "true"
        made = runs.find(connection, found.id, run_id)
    crash_point("run.begun")
    answer = _shown(context, tenant, found, [made])[0]
    path = f"/v1/catalogues/{catalogue}/runs/{answer.id}"
    response.headers.update(dependencies.location(context, request, path))
    return answer


@router.get("/catalogues/{catalogue}/runs", response_model=CatalogueRunPage)
def list_runs(
    context: ContextDep, tenant: Tenant, catalogue: str, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The catalogue's runs, newest first."""
    with context.database.read(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        listing = f"runs/{tenant}/{found.id}"
        before = _PAST_THE_NEWEST
        if cursor is not None:
            before = pagination.decode_cursor(context.settings.secrets, listing, cursor)
        page = runs.page(connection, found.id, before=before, limit=limit + 1)
    data = _shown(context, tenant, found, page[:limit])
    more = pagination.encode_cursor(context.settings.secret, listing, page[limit - 1].id) if len(page) > limit else None
    return CatalogueRunPage(data=data, next_cursor=more)


@router.get("/catalogues/{catalogue}/runs/{run_id}", response_model=CatalogueRun)
def show_run(context: ContextDep, tenant: Tenant, catalogue: str, run_id: str) -> Any:
    """The report of a run."""
    number = runs.parse_id(run_id)
    with context.database.read(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        run = runs.find(connection, found.id, number)
    return _shown(context, tenant, found, [run])[0]


@router.post("/catalogues/{catalogue}/runs/{run_id}/cancel", response_model=CatalogueRun)
def cancel_run(context: ContextDep, tenant: Tenant, catalogue: str, run_id: str) -> Any:
    """Cancels a run and its job. What is published stays. Repeating this is not an error."""
    number = runs.parse_id(run_id)
    with context.database.begin(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        runs.cancel(connection, found.id, number)
        run = runs.find(connection, found.id, number)
    return _shown(context, tenant, found, [run])[0]


@router.post(
    "/catalogues/{catalogue}/runs/{run_id}/redraw",
    status_code=202,
    response_model=schemas.Job,
    openapi_extra=openapi.body(RedrawRequest) | openapi.IDEMPOTENT,
)
def redraw_changes(
    request: Request, response: Response, context: ContextDep, tenant: Tenant, catalogue: str, run_id: str,
    body: json_object.Small,
) -> Any:  # fmt: skip
    """Draws changed pictures of a review again, each with its next seed, all in one job. The review waits for them, and
    they take the places of those before, without a mark."""
    wanted = json_object.parse(RedrawRequest, body, RedrawRequest.ALLOWED)
    key, number = streaming.idempotency_key(request), runs.parse_id(run_id)
    with context.database.begin(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        runs.find(connection, found.id, number)
        policy = policies.at(context.settings, connection, Door("redraw", tenant))
        receipt = redrawing.redraw(connection, found, number, wanted.indexes, policy=policy, idempotency_key=key)
    crash_point("redraw.committed")
    for model in receipt.models:  # if it is lost, the workers' timers find the job within seconds
        context.notifier.notify(model)
    if receipt.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    answer = jobs.shown(context, tenant, receipt.job_id)
    response.headers.update(dependencies.location(context, request, f"/v1/jobs/{answer.id}"))
    return answer


@router.get("/catalogues/{catalogue}/runs/{run_id}/estimate", response_model=estimation.Estimate)
def estimate_run(context: ContextDep, tenant: Tenant, catalogue: str, run_id: str) -> Any:
    """Estimates the accelerator-seconds of all that a planned run renders, and the time until it would be finished if
    it were submitted now."""
    number = runs.parse_id(run_id)
    with context.database.read(tenant) as connection:
        runs.find(connection, core.find(connection, tenant, catalogue).id, number)
        known = models.registry(connection)
        shapes = changes.shapes(connection, number, limit=submissions.MAX_SHAPES)
    with WorkTally(context.settings, known, defaults={}) as tally:
        for place, shape in enumerate(shapes):
            tally.add_shape(place, shape)
    return estimation.estimated(context, tally, "normal", counted=None)


@router.get("/catalogues/{catalogue}/runs/{run_id}/changes", response_model=CatalogueChangePage)
def list_changes(
    request: Request, context: ContextDep, tenant: Tenant, catalogue: str, run_id: str, kind: Kind = None,
    troubled: Troubled = None, limit: parameters.Limit = 100, cursor: parameters.Cursor = None,
) -> Any:  # fmt: skip
    """What a run found to differ, with what came of it: all, those of one kind, or those of which something went
    wrong. Those that are rendered come first."""
    number, only_troubled = runs.parse_id(run_id), troubled == "true"
    if kind is not None and only_troubled:
        raise ApiError(422, "invalid_parameter", "Give either kind or troubled=true.", param="troubled")
    listing = f"changes/{tenant}/{number}/{kind}/{only_troubled}"
    after = -1 if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        run = runs.find(connection, found.id, number)
        page = changes.page(connection, number, first=after + 1, limit=limit + 1, kind=kind, troubled=only_troubled)
        pictures = looks.of_changes(connection, found, run, page[:limit])
    links = _Links(context, request, found, run, pictures)
    more = None
    if len(page) > limit:
        more = pagination.encode_cursor(context.settings.secret, listing, page[limit - 1].position)
    return CatalogueChangePage(data=[_change(one, links) for one in page[:limit]], next_cursor=more)


class _Links:
    """Links to the pictures of a run's changes: before, as they are in its base, and after, as they are in its version
    or, until that is written, in its job."""

    def __init__(self, context: Context, request: Request, catalogue: Catalogue, run: runs.Run, found: Looks) -> None:
        self._base_url, self._catalogue, self._run = dependencies.base_url(context.settings, request), catalogue, run
        self._looks, self._context, self._request = found, context, request

    def place(self, change: Change) -> tuple[int, int] | None:
        return change.image(self._run.job_id)

    def mark(self, change: Change) -> Mark | None:
        image = self._looks.drawn.get(change.position)
        return None if image is None else image.mark

    def before(self, change: Change) -> str | None:
        return self._of_item(change, self._run.base) if (change.item, change.variant) in self._looks.before else None

    def after(self, change: Change) -> str | None:
        if change.outcome == "done" and (change.item, change.variant) in self._looks.after:
            return self._of_item(change, self._run.version or 0)
        image = self._looks.drawn.get(change.position)
        if image is None:
            return None
        return dependencies.linker(self._context, self._request, image.job_id)(image.index)

    def _of_item(self, change: Change, version: int) -> str:
        return catalogue_items.link(self._base_url, self._catalogue, version, change.item, change.variant)


def _change(found: Change, links: _Links) -> CatalogueChange:
    error, place = None, links.place(found)
    if found.code is not None:
        error = schemas.ImageError(code=found.code, message=found.message or "")
    return CatalogueChange(
        item=found.item,
        variant=found.variant,
        kind=found.kind,
        line=found.line,
        index=found.position if found.position < changes.ASIDE else None,
        image_job_id=None if place is None else ids.public_job(place[0]),
        image_index=None if place is None else place[1],
        redraws=found.redraws,
        mark=links.mark(found),
        prompt=(found.request or {}).get("prompt"),
        outcome=found.outcome,
        error=error,
        before=links.before(found),
        after=links.after(found),
    )


def _shown(context: Context, tenant: int, catalogue: Catalogue, page: list[runs.Run]) -> list[CatalogueRun]:
    wanted = [job_id for run in page for job_id in (run.job_id, *run.redraw_jobs) if job_id is not None]
    with context.database.read(tenant) as connection:
        seconds = (
            {job.id: job.device_seconds for job in queries.these_jobs(connection, tenant, wanted)} if wanted else {}
        )
        copied = destinations.find(connection, catalogue.id)
    return [_run(catalogue, run, seconds, copied) for run in page]


def _run(
    catalogue: Catalogue, run: runs.Run, seconds: Mapping[int, float], copied: destinations.Destination | None
) -> CatalogueRun:
    used = [seconds[job_id] for job_id in (run.job_id or 0, *run.redraw_jobs) if job_id in seconds]
    is_copied = copied is not None and copied.version == (run.base if run.plan_only else run.version)
    return CatalogueRun(
        id=runs.public_id(run.id),
        catalogue=catalogue.name,
        state=run.state,
        plan_only=run.plan_only,
        accept_removed=run.accept_removed,
        counts=RunCounts(**{name: run.counts[name] for name in RunCounts.model_fields if name in run.counts}),
        source=RunSource(**{name: run.source.get(name) for name in RunSource.model_fields}),
        error=None if run.error is None else schemas.ImageError(**run.error),
        causes=run.causes,
        base=run.base,
        version=run.version,
        job_id=None if run.job_id is None else ids.public_job(run.job_id),
        device_seconds=round(sum(used), 3) if used else None,
        destination=catalogues.destination(copied) if is_copied else None,
        seconds=RunSeconds(
            planning=_between(run.created_at, run.planned_at),
            rendering=_between(run.planned_at, run.rendered_at),
            writing=_between(run.rendered_at, run.finished_at),
            total=_between(run.created_at, run.finished_at),
        ),
        deadline=run.deadline,
        cancel_requested_at=run.cancel_requested_at,
        created_at=run.created_at,
        planned_at=run.planned_at,
        rendered_at=run.rendered_at,
        finished_at=run.finished_at,
    )


def _between(begin: datetime | None, end: datetime | None) -> float | None:
    return None if begin is None or end is None else round((end - begin).total_seconds(), 3)
