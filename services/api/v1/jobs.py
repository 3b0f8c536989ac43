"""Reading and cancelling jobs, each in a transaction that sees only the tenant's rows."""

from typing import Any

from fastapi import APIRouter, Request

from services.api import dependencies, pagination, parameters
from services.api.authentication import Caller, Tenant
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.crash_points import crash_point
from services.core.jobs import by_metadata, job_query, lifecycle, listing, queries, remaining, scored, shapes
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound
from services.core.model.scopes import Principal
from services.core.model.scores import Wanted
from services.core.model.states import ImageState
from services.core.queue import segments
from services.core.tenants import usage

router = APIRouter(route_class=TenantRoute)
_AMONG_OTHERS = 1 << 32


@router.get("/jobs", response_model=schemas.JobPage)
def list_jobs(
    context: ContextDep,
    tenant: Tenant,
    status: parameters.JobStatus = None,
    label: parameters.JobOptions = None,
    q: parameters.JobText = None,
    model: parameters.JobModel = None,
    priority: parameters.JobPriority = None,
    who: parameters.JobWho = None,
    since: parameters.JobSince = None,
    until: parameters.JobUntil = None,
    sort: parameters.JobSort = "newest",
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The tenant's jobs, newest first or as `sort` says: all, or those that match all that is given, in the words of
    the dashboard's addresses. One answer looks at 10,000 jobs at most, so a page may hold fewer than `limit`: the list
    ends where `next_cursor` is null."""
    given = {"q": q, "model": model, "priority": priority, "who": who, "since": since, "until": until}
    words = {name: value for name, value in given.items() if value}
    wanted, order = job_query.understood(words | {"status": status or "", "label": label or "", "sort": sort})
    name = f"jobs/{tenant}" if status is label is None else f"jobs/{tenant}/{status}/{label}"
    if words or sort != "newest":
        name += f"/{words}/{sort}"
    place = None if cursor is None else pagination.decode_job_place(context.settings.secrets, name, cursor)
    with context.database.read(tenant) as connection:
        page = listing.page(connection, tenant, wanted, order=order, place=place, limit=limit)
    more = None if page.more is None else pagination.encode_job_place(context.settings.secret, name, page.more)
    return schemas.JobPage(data=described(context, page.jobs), next_cursor=more)


@router.get("/jobs/{job_id}", response_model=schemas.Job)
def show_job(context: ContextDep, tenant: Tenant, job_id: str) -> Any:
    """One job with its counts."""
    return shown(context, tenant, ids.parse_job(job_id))


@router.get("/jobs/{job_id}/images", response_model=schemas.ImagePage)
def list_images(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    caller: Caller,
    job_id: str,
    status: parameters.Status = None,
    cause: parameters.Cause = None,
    mark: parameters.Mark = None,
    score: parameters.Score = None,
    sort: parameters.Sort = None,
    metadata: parameters.Metadata = None,
    order: parameters.Order = "index",
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The job's images by index, or failed first: all, those of one status, those that failed for one cause, or those
    with one mark. With `score` or `sort`, the done images that have these scores, in the order of `sort`, or
    else of the first `score`, from the end that it asks for. With `metadata`, those that have it, by index. A page of
    those with several scores, or with metadata, may hold fewer than `limit`: the list ends where `next_cursor` is
    null."""
    number = ids.parse_job(job_id)
    if metadata is not None:
        if order != "index" or not cause is mark is score is sort is None:
            message = "metadata goes with status alone; leave order, cause, mark, score and sort out."
            raise ApiError(422, "invalid_parameter", message, param="metadata")
        return _images_by_metadata(request, context, caller, number, metadata, status, limit, cursor)
    if (wanted := parameters.scores(score, sort)) is not None:
        if status not in (None, "done") or order != "index" or not cause is mark is None:
            message = "score and sort are about done images; leave order, cause and mark out, or ask for status=done."
            raise ApiError(422, "invalid_parameter", message, param="score" if score else "sort")
        return _images_by_score(request, context, caller, number, wanted, limit, cursor)
    if cause is not None and (status not in (None, "failed") or mark is not None):
        message = "cause is about failed images; leave mark out, and status or ask for status=failed."
        raise ApiError(422, "invalid_parameter", message, param="cause")
    if mark is not None and status not in (None, "done"):
        message = "mark is about done images; leave status out, or ask for status=done."
        raise ApiError(422, "invalid_parameter", message, param="mark")
    if order == "failed_first" and status is cause is mark is None:
        return _images_failed_first(request, context, caller, number, limit, cursor)
    listing = f"images/{tenant}/{number}/{status}" + ("" if cause is mark is None else f"/{cause}/{mark}")
    after = -1 if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        if cause is not None:
            found = queries.images_of_cause(connection, tenant, number, cause, after=after, limit=limit + 1)
        elif mark is not None:
            found = queries.images_marked(connection, tenant, number, mark, after=after, limit=limit + 1)
        else:
            state = parameters.image_state(status)
            found = queries.images(connection, tenant, number, state=state, after=after, limit=limit + 1)
    if found is None:
        raise NotFound("There is no such job.")
    page = found[:limit]
    more = pagination.encode_cursor(context.settings.secret, listing, page[-1].index) if len(found) > limit else None
    link = dependencies.linker(context, request, number)
    return schemas.ImagePage(data=[schemas.image(view, link, caller) for view in page], next_cursor=more)


@router.post("/jobs/{job_id}/cancel", response_model=schemas.Job)
def cancel_job(context: ContextDep, tenant: Tenant, job_id: str) -> Any:
    """Cancels a job. After the answer no image of it is claimed or becomes done. Repeating this is not an error."""
    number = ids.parse_job(job_id)
    try:
        with context.database.begin(tenant) as connection:
            lifecycle.cancel(connection, tenant, number)
    except Conflict as error:
        raise ApiError(409, "job_finished", str(error)) from None
    crash_point("cancel.committed")
    # Cancels the images of a small job at once; what is left is for the periodic task.
    with context.database.begin(tenant) as connection:
        segments.sweep(connection, number)
    return shown(context, tenant, number)


def _images_failed_first(
    request: Request, context: Context, caller: Principal, number: int, limit: int, cursor: str | None
) -> schemas.ImagePage:
    """The lower 32 bits of a cursor are the last index of the page. Bit 32 is set once all failed ones are listed."""
    tenant = caller.tenant_id
    listing = f"images/{tenant}/{number}/failed_first"
    place = None if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    failed, after = (True, -1) if place is None else (place < _AMONG_OTHERS, place % _AMONG_OTHERS)
    with context.database.read(tenant) as connection:
        found = queries.images_failed_first(connection, tenant, number, failed=failed, after=after, limit=limit + 1)
    if found is None:
        raise NotFound("There is no such job.")
    more = None
    if len(found) > limit:
        last = found[limit - 1]
        among = 0 if last.state is ImageState.FAILED else _AMONG_OTHERS
        more = pagination.encode_cursor(context.settings.secret, listing, among + last.index)
    link = dependencies.linker(context, request, number)
    return schemas.ImagePage(data=[schemas.image(view, link, caller) for view in found[:limit]], next_cursor=more)


def _images_by_score(
    request: Request, context: Context, caller: Principal, number: int, wanted: Wanted, limit: int, cursor: str | None
) -> schemas.ImagePage:
    tenant, secret = caller.tenant_id, context.settings.secret
    listing = f"images/{tenant}/{number}/{wanted}"
    with context.database.read(tenant) as connection:
        after = pagination.decode_score(context.settings.secrets, listing, cursor)
        page = scored.page(connection, tenant, number, wanted, after=after, limit=limit)
    link = dependencies.linker(context, request, number)
    return schemas.ImagePage(
        data=[schemas.image(view, link, caller) for view in page.images],
        next_cursor=page.place and pagination.encode_score(secret, listing, page.place),
    )


def _images_by_metadata(
    request: Request, context: Context, caller: Principal, number: int, asked: str, status: str | None, limit: int,
    cursor: str | None,
) -> schemas.ImagePage:  # fmt: skip
    tenant, wanted = caller.tenant_id, parameters.metadata(asked)
    listing = f"images/{tenant}/{number}/{status}/metadata/{wanted}"
    after = -1 if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        page = by_metadata.page(
            connection, tenant, number, wanted, state=parameters.image_state(status), after=after, limit=limit
        )
    link = dependencies.linker(context, request, number)
    more = None if page.place is None else pagination.encode_cursor(context.settings.secret, listing, page.place)
    return schemas.ImagePage(data=[schemas.image(view, link, caller) for view in page.images], next_cursor=more)


def shown(context: Context, tenant: int, number: int) -> schemas.Job:
    """The job as it is now. Raises NotFound."""
    with context.database.read(tenant) as connection:
        view = queries.job(connection, tenant, number)
        waits = shapes.unserved(connection, number)
        refused = usage.waits(connection, tenant) if view is not None and view.stands_still else []
    if view is None:
        raise NotFound("There is no such job.")
    found = described(context, [view])[0]
    found.warnings += waits + refused
    if refused:  # nobody knows for how long
        found.eta_seconds = found.eta_low_seconds = found.eta_high_seconds = None
    return found


def described(context: Context, views: list[queries.JobView]) -> list[schemas.Job]:
    """The jobs as they are shown, each with the time that is left, if it is known."""
    if any(remaining.lacking(view) for view in views):
        with context.database.read_system() as connection:  # every tenant's queued images are ahead
            views = remaining.estimated(connection, views)
    return [schemas.job(view) for view in views]
