"""Search in a job's prompts and custom_ids."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from services.api import dependencies, pagination, parameters
from services.api.authentication import Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.jobs import search
from services.core.model import ids

router = APIRouter(route_class=TenantRoute)


class FoundImages(BaseModel):
    """The first image of each request found, in order. `searched` of the job's `total` images have been looked at, on
    this page and those before; a page may be empty before the end."""

    data: list[schemas.Image]
    searched: int
    total: int
    next_cursor: str | None


@router.get("/jobs/{job_id}/search", response_model=FoundImages)
def search_job(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    job_id: str,
    text: parameters.SearchText,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The job's requests whose prompt or custom_id contains a text, whatever the case of its letters. A page looks at
    up to 20,000 requests and says how far it came: go on with `next_cursor` until it is null."""
    number = ids.parse_job(job_id)
    listing = f"search/{tenant}/{number}/{text}"
    start = 0 if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.begin(tenant) as connection:
        page = search.search(connection, tenant, number, text, start=start, limit=limit)
    more = None if page.reached is None else pagination.encode_cursor(context.settings.secret, listing, page.reached)
    link = dependencies.linker(context, request, number)
    return FoundImages(
        data=[schemas.image(view, link) for view in page.images],
        searched=page.searched,
        total=page.total,
        next_cursor=more,
    )
