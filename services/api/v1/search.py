"""Search in a job's prompts and custom_ids, and for a custom_id in all jobs."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from services.api import dependencies, pagination, parameters
from services.api.authentication import Caller, Tenant
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.jobs import custom_ids, search
from services.core.jobs.custom_ids import Found, Place
from services.core.jobs.queries import ImageView
from services.core.model import ids

router = APIRouter(route_class=TenantRoute)


class FoundImages(BaseModel):
    """The first image of each request found, in order. `searched` of the job's `total` images have been looked at, on
    this page and those before; a page may be empty before the end."""

    data: list[schemas.Image]
    searched: int
    total: int
    next_cursor: str | None


class ImageOfJob(schemas.Image):
    """An image, and the job that it is of."""

    job_id: str


class ImagesOfJobs(BaseModel):
    """A page may hold fewer than `limit`: the list ends where `next_cursor` is null."""

    data: list[ImageOfJob]
    next_cursor: str | None


@router.get("/images", response_model=ImagesOfJobs)
def find_images(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    caller: Caller,
    custom_id: parameters.CustomId,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The images with that custom_id in all jobs, the newest job first: the first image of each request."""
    images, more = images_named(context, tenant, custom_id, limit=limit, cursor=cursor)
    data = []
    for view in images:
        found = schemas.image(view, dependencies.linker(context, request, view.job_id), caller)
        data.append(ImageOfJob(job_id=ids.public_job(view.job_id), **found.model_dump()))
    return ImagesOfJobs(data=data, next_cursor=more)


@router.get("/jobs/{job_id}/search", response_model=FoundImages)
def search_job(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    caller: Caller,
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
    with context.database.read(tenant) as connection:
        page = search.search(connection, tenant, number, text, start=start, limit=limit)
    more = None if page.reached is None else pagination.encode_cursor(context.settings.secret, listing, page.reached)
    link = dependencies.linker(context, request, number)
    return FoundImages(
        data=[schemas.image(view, link, caller) for view in page.images],
        searched=page.searched,
        total=page.total,
        next_cursor=more,
    )


def images_named(
    context: Context, tenant: int, custom_id: str, *, limit: int, cursor: str | None
) -> tuple[list[ImageView], str | None]:
    """A page of the images with that custom_id, and the cursor of the next one. Raises ApiError."""
    listing, place = f"images/{tenant}/{custom_id}", custom_ids.NEWEST
    if cursor is not None:
        job_id, _, index = pagination.decode_name(context.settings.secrets, listing, cursor).partition("/")
        place = Place(int(job_id), int(index))
    found = _found(context, tenant, custom_id, place, limit)
    with context.database.read(tenant) as connection:
        images = custom_ids.images(connection, found.places)
    if found.reached is None:
        return images, None
    reached = f"{found.reached.job_id}/{found.reached.index}"
    return images, pagination.encode_name(context.settings.secret, listing, reached)


def _found(context: Context, tenant: int, custom_id: str, place: Place, limit: int) -> Found:
    with context.database.read_system() as connection:  # as the system: other tenants' requests count as looked at
        return custom_ids.find(connection, tenant, custom_id, behind=place, limit=limit)
