"""Near-duplicates of pictures, within a job and over the jobs with a label."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from services.api import dependencies, pagination, parameters
from services.api.authentication import Tenant
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.core.jobs import near_duplicates
from services.core.jobs.near_duplicates import Found, Place
from services.core.model import ids

router = APIRouter(route_class=TenantRoute)
_SHOWN = 100  # images of one group


class AlikeImage(BaseModel):
    job_id: str
    index: int
    url: str


class AlikeGroup(BaseModel):
    """Images that look alike, each like another one of the group: `total` of them, the first hundred in `images`."""

    total: int
    images: list[AlikeImage]


class AlikePage(BaseModel):
    """Groups among the next `looked_at` images, of which `hashed` have a perceptual hash. There are more images to look
    at while `next_cursor` is not null."""

    looked_at: int
    hashed: int
    data: list[AlikeGroup]
    next_cursor: str | None


@router.get("/jobs/{job_id}/near-duplicates", response_model=AlikePage)
def list_near_duplicates(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    job_id: str,
    distance: parameters.Distance = near_duplicates.USUAL_BITS,
    cursor: parameters.Cursor = None,
) -> Any:
    """Groups of the job's done images that look alike: their perceptual hashes differ in at most `distance` of 64 bits.
    A call looks at 20,000 images."""
    number = ids.parse_job(job_id)
    listing = f"alike/{tenant}/{number}/{distance}"
    _, after = _place(context, listing, cursor) or (number, -1)
    with context.database.read(tenant) as connection:
        found = near_duplicates.of_job(connection, tenant, number, distance, after=after)
    return _answer(request, context, listing, found)


@router.get("/near-duplicates", response_model=AlikePage)
def find_near_duplicates(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    label: parameters.NeededLabel,
    distance: parameters.Distance = near_duplicates.USUAL_BITS,
    cursor: parameters.Cursor = None,
) -> Any:
    """As of one job, among the images of all jobs with the label, the newest job first."""
    name, _, value = label.partition(":")
    listing = f"alike/{tenant}/{label}/{distance}"
    after = _place(context, listing, cursor)
    with context.database.read(tenant) as connection:
        found = near_duplicates.of_label(connection, tenant, (name, value), distance, after=after)
    return _answer(request, context, listing, found)


def _place(context: Context, listing: str, cursor: str | None) -> Place | None:
    if cursor is None:
        return None
    job_id, index = pagination.decode_place(context.settings.secrets, listing, cursor)
    return int(job_id), int(index)


def _answer(request: Request, context: Context, listing: str, found: Found) -> AlikePage:
    numbers = {number for group in found.groups for number, _ in group[:_SHOWN]}
    links = {number: dependencies.linker(context, request, number) for number in numbers}
    more = None
    if found.reached is not None:
        job_id, index = found.reached
        more = pagination.encode_place(context.settings.secret, listing, (str(job_id), str(index)))
    return AlikePage(
        looked_at=found.looked_at,
        hashed=found.hashed,
        data=[AlikeGroup(total=len(group), images=_images(group[:_SHOWN], links)) for group in found.groups],
        next_cursor=more,
    )


def _images(places: list[Place], links: dict[int, Any]) -> list[AlikeImage]:
    return [
        AlikeImage(job_id=ids.public_job(number), index=index, url=links[number](index)) for number, index in places
    ]
