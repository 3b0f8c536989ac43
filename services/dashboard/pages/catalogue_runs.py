"""A run of a catalogue: its report, each change with the picture before and after, and cancelling it."""

from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import pagination, parameters
from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues as core
from services.core.catalogues import changes, looks, needs, reviewing
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.catalogues.looks import Looks
from services.core.db.database import Connection
from services.core.jobs import queries
from services.core.jobs.queries import ImageView
from services.core.marks.asked import Mark
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.model.states import FINAL_IMAGE_STATES, ImageState
from services.dashboard import access, catalogue_words, forms, reading, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
PER_PAGE = 24
_EXAMPLES = 3  # of each cause
_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Pair:
    """A change with the addresses of its pictures before and after, without `/thumbnail` or `/picture`; empty: there is
    none. `place` is its own page. `missing` says why there is no picture after."""

    change: Change
    before: str
    after: str
    place: str
    mark: Mark | None
    missing: str


@router.get("/catalogues/{name}/runs/{run_id}")
def show_run(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str, kind: str = "",
    cause: str = "", cursor: str = "",
) -> Any:  # fmt: skip
    """The report. `kind` or `cause`: which changes."""
    visitor.require("view")
    kept = _chosen(kind, cause)
    listing = f"pages/changes/{visitor.tenant}/{run_id}{kept}"
    after = pagination.decode_cursor(context.settings.secrets, listing, cursor) if cursor else -1
    with context.database.read(visitor.tenant) as connection:
        found, run = find(connection, visitor, name, run_id)
        page = changes.page(
            connection, run.id, first=after + 1, limit=PER_PAGE + 1, kind=kind or None, code=cause or None  # type: ignore[arg-type]
        )  # fmt: skip
        seen = looks.of_changes(connection, found, run, page[:PER_PAGE])
        failed = changes.examples(connection, run.id, _EXAMPLES)
        jobs = queries.these_jobs(connection, visitor.tenant, [run.job_id]) if run.job_id is not None else []
        marked = reviewing.counts(connection, run) if run.state == "reviewing" and jobs else {}
    more = None
    if len(page) > PER_PAGE:
        more = pagination.encode_cursor(context.settings.secret, listing, page[PER_PAGE - 1].position)
    here = f"/catalogues/{name}/runs/{run_id}"
    join = "&" if kept else "?"
    return rendering.page(
        request,
        "catalogue_run.html",
        visitor=visitor,
        catalogue=found,
        run=run,
        run_id=run_id,
        job=reading.Shown(jobs[0]) if jobs else None,
        why=catalogue_words.why(run),
        kinds=catalogue_words.KINDS,
        is_needed=needs.is_needed(run, found.published),
        causes=sorted(failed.items(), key=lambda one: -run.causes.get(one[0], 0)),
        problems=run.source.get("problems", [])[:_PROBLEMS],
        seconds=_seconds(run),
        marked=reviewing.done(run, marked, left=1) if marked else 0,
        pairs=[pair(found, run, one, seen) for one in page[:PER_PAGE]],
        chips=[one for one in get_args(changes.Kind) if run.counts.get(one)],
        kind=kind,
        cause=cause,
        is_first=not cursor,
        place=here,
        here=here + kept + (f"{join}{urlencode({'cursor': cursor})}" if cursor else ""),
        first_page=here + kept,
        next_page=more and f"{here}{kept}{join}{urlencode({'cursor': more})}#changes",
    )


@router.get("/catalogues/{name}/runs/{run_id}/changes/{position}")
def show_change(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str, position: str
) -> Any:
    """One change: the pictures before and after, large, with what each was made from, and the mark of the new one."""
    visitor.require("view")
    if not parameters.is_index(position):
        raise NotFound("There is no such change.")
    with context.database.read(visitor.tenant) as connection:
        found, run = find(connection, visitor, name, run_id)
        one = next(iter(changes.at(connection, run.id, [int(position)])), None)
        if one is None:
            raise NotFound("There is no such change.")
        seen = looks.of_changes(connection, found, run, [one])
    return rendering.page(
        request,
        "catalogue_change.html",
        visitor=visitor,
        catalogue=found,
        run=run,
        run_id=run_id,
        pair=pair(found, run, one, seen),
        before=seen.before.get((one.item, one.variant)),
        image=seen.drawn.get(one.position) or seen.undrawn.get(one.position),
        can_mark=is_reviewable(run, one),
        here=f"/catalogues/{name}/runs/{run_id}/changes/{position}",
        action=f"/catalogues/{name}/runs/{run_id}/review/marks",
        public_job=ids.public_job,
    )


@router.get("/catalogues/{name}/runs/{run_id}/actions/cancel")
def ask_to_cancel(request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str) -> Any:
    visitor.require("operate", "cancelling a run")
    with context.database.read(visitor.tenant) as connection:
        found, run = find(connection, visitor, name, run_id)
    stays = f"Readers go on seeing version {found.published}" if found.published else "Nothing is published"
    return rendering.page(
        request,
        "confirm.html",
        visitor=visitor,
        title="Cancel this run?",
        sentence=f"Its job is cancelled, and what it has drawn is not used. {stays}. This is final.",
        refusal=f"The run has ended: it is {run.state}." if run.is_final else "",
        action=f"/catalogues/{name}/runs/{run_id}/actions/cancel",
        back=f"/catalogues/{name}/runs/{run_id}",
        button="Cancel the run",
        choice="",
        danger=True,
    )


@router.post("/catalogues/{name}/runs/{run_id}/actions/cancel")
def cancel(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str, form: forms.Posted
) -> Any:
    visitor.require("operate", "cancelling a run")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    with context.database.begin(visitor.tenant) as connection:
        found, run = find(connection, visitor, name, run_id)
        runs.cancel(connection, found.id, run.id)
    return RedirectResponse(rendering.address(request, f"/catalogues/{name}/runs/{run_id}"), 303)


def find(connection: Connection, visitor: access.Visitor, name: str, run_id: str) -> tuple[Catalogue, Run]:
    """Raises NotFound."""
    catalogue = core.find(connection, visitor.tenant, name)
    return catalogue, runs.find(connection, catalogue.id, runs.parse_id(run_id))


def is_reviewable(run: Run, change: Change) -> bool:
    """Whether a mark of the change's picture decides now."""
    return run.state == "reviewing" and change.kind in changes.REVIEWED


def pair(catalogue: Catalogue, run: Run, change: Change, seen: Looks) -> Pair:
    """The change's pictures: before, as they are in the run's base; after, as they are in its version or, until that is
    written, in its job."""
    place, image = (change.item, change.variant), seen.drawn.get(change.position)
    before = of_version(catalogue, run.base, *place) if place in seen.before else ""
    after = ""
    if change.outcome == "done" and place in seen.after:
        after = of_version(catalogue, run.version or 0, *place)
    elif image is not None:
        after = f"/jobs/{ids.public_job(image.job_id)}/images/{image.index}"
    own = f"/catalogues/{catalogue.name}/runs/{runs.public_id(run.id)}/changes/{change.position}"
    mark = image.mark if image and change.kind in changes.REVIEWED else None
    return Pair(change, before, after, own, mark, _missing(change, seen.undrawn.get(change.position)))


def _missing(change: Change, image: ImageView | None) -> str:
    if change.kind == "removed":
        return "removed"
    if change.code is not None:
        return change.code
    if image is not None and image.state is ImageState.FAILED:
        return image.error_code or "failed"
    is_redrawn = image is not None and change.job_id is not None and image.state not in FINAL_IMAGE_STATES
    return "being drawn again" if is_redrawn else "not yet"


def of_version(catalogue: Catalogue, version: int, item: str, variant: str) -> str:
    """The address of a version's picture, without `/thumbnail` or `/picture`."""
    return f"/catalogues/{catalogue.name}/versions/{version}/{variant}?id={quote(item, safe='')}"


def _chosen(kind: str, cause: str) -> str:
    """The part of the address behind the path that says which changes."""
    if kind and kind not in get_args(changes.Kind):
        known = ", ".join(get_args(changes.Kind))
        raise ApiError(400, "invalid_parameter", f"There is no such kind of change; there are {known}.")
    if kind and cause:
        raise ApiError(400, "invalid_parameter", "Give one of kind and cause: the other leaves it out.")
    if len(cause) > 64 or "\0" in cause:
        raise ApiError(400, "invalid_parameter", "cause must be the code of a cause, as the run's page lists them.")
    given = {"kind": kind} if kind else {"cause": cause} if cause else {}
    return f"?{urlencode(given)}" if given else ""


def _seconds(run: Run) -> list[tuple[str, float]]:
    """How long the run was at what, as far as it came."""
    spans = [
        ("Planning", run.created_at, run.planned_at),
        ("Rendering and review", run.planned_at, run.rendered_at),
        ("Writing", run.rendered_at, run.finished_at),
        ("In all", run.created_at, run.finished_at),
    ]
    return [(name, (end - begin).total_seconds()) for name, begin, end in spans if begin and end]
