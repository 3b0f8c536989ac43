"""Reading and cancelling jobs. Every handler works in the tenant's own transaction, so others' things are not there."""

from typing import Any

from fastapi import APIRouter, Request

from services.api import context, cursors, queries, schemas
from services.api.auth import Tenant
from services.api.context import Context, Here
from services.api.errors import Refused
from services.core import jobs, links, upkeep, views
from services.core.errors import Conflict, NotFound

router = APIRouter()
_PAST_THE_NEWEST = 2**63 - 1


@router.get("/jobs", response_model=schemas.JobPage)
def list_jobs(here: Here, tenant: Tenant, limit: queries.Limit = 100, cursor: queries.Cursor = None) -> Any:
    """The tenant's jobs, newest first."""
    listing = f"jobs/{tenant}"
    before = _PAST_THE_NEWEST if cursor is None else cursors.unseal(here.settings.secret, listing, cursor)
    with here.database.begin(tenant) as connection:
        found = views.jobs(connection, tenant, before=before, limit=limit + 1)
    page = found[:limit]
    more = cursors.seal(here.settings.secret, listing, page[-1].id) if len(found) > limit else None
    return schemas.JobPage(data=[schemas.job(view) for view in page], next_cursor=more)


@router.get("/jobs/{job_id}", response_model=schemas.Job)
def show_job(here: Here, tenant: Tenant, job_id: str) -> Any:
    """One job with its counts."""
    return _job(here, tenant, jobs.parse_id(job_id))


@router.get("/jobs/{job_id}/images", response_model=schemas.ImagePage)
def list_images(
    request: Request,
    here: Here,
    tenant: Tenant,
    job_id: str,
    status: queries.Status = None,
    limit: queries.Limit = 100,
    cursor: queries.Cursor = None,
) -> Any:
    """The job's images in order, all or those of one status."""
    number = jobs.parse_id(job_id)
    listing = f"images/{tenant}/{number}/{status}"
    after = -1 if cursor is None else cursors.unseal(here.settings.secret, listing, cursor)
    with here.database.begin(tenant) as connection:
        found = views.images(
            connection, tenant, number, state=queries.image_state(status), after=after, limit=limit + 1
        )
    if found is None:
        raise NotFound("There is no such job.")
    page = found[:limit]
    more = cursors.seal(here.settings.secret, listing, page[-1].index) if len(found) > limit else None
    base_url, secret = context.base_url(here.settings, request), here.settings.secret
    data = [schemas.image(view, links.image_url(base_url, secret, number, view.index)) for view in page]
    return schemas.ImagePage(data=data, next_cursor=more)


@router.post("/jobs/{job_id}/cancel", response_model=schemas.Job)
def cancel_job(here: Here, tenant: Tenant, job_id: str) -> Any:
    """Cancels a job. Once this answers, nothing more of it is claimed or turns done; asking again is no error."""
    number = jobs.parse_id(job_id)
    try:
        with here.database.begin(tenant) as connection:
            jobs.cancel(connection, tenant, number)
    except Conflict as error:
        raise Refused(409, "job_finished", str(error)) from None
    with here.database.begin() as connection:  # a first sweep, so that small jobs need not wait for the duty
        upkeep.sweep_cancelled(connection)
    return _job(here, tenant, number)


def _job(here: Context, tenant: int, number: int) -> schemas.Job:
    with here.database.begin(tenant) as connection:
        view = views.job(connection, tenant, number)
    if view is None:
        raise NotFound("There is no such job.")
    return schemas.job(view)
