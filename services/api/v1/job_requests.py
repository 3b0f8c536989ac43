"""A job's requests with their images, failed ones first."""

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from services.api import dependencies, pagination, parameters
from services.api.authentication import Caller, Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.jobs import request_queries
from services.core.jobs.request_queries import Place, RequestView
from services.core.model import ids
from services.core.model.scopes import Principal
from services.core.model.states import ImageState

router = APIRouter(route_class=TenantRoute)


class JobRequest(schemas.OfRequest):
    """One request; `index` is that of its first image. It is failed if any image failed, and done if all are done."""

    object: Literal["job.request"] = "job.request"
    prompt: str
    negative_prompt: str
    n: int
    status: str
    images: list[schemas.Image]


class RequestPage(BaseModel):
    """A page may hold fewer than `limit`: the list ends where `next_cursor` is null."""

    data: list[JobRequest]
    next_cursor: str | None


@router.get("/jobs/{job_id}/requests", response_model=RequestPage)
def list_requests(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    caller: Caller,
    job_id: str,
    status: parameters.Status = None,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The job's requests: failed ones first, then rendering, queued, cancelled and done; or those of one status."""
    number = ids.parse_job(job_id)
    listing = f"requests/{tenant}/{number}/{status}"
    place = None
    if cursor is not None:
        position = pagination.decode_cursor(context.settings.secrets, listing, cursor)
        place = Place(ImageState(position >> 32), position & 0xFFFFFFFF)
    with context.database.read(tenant) as connection:
        found, next_place = request_queries.page(
            connection, tenant, number, only=parameters.image_state(status), place=place, limit=limit
        )
    more = None
    if next_place is not None:
        more = pagination.encode_cursor(context.settings.secret, listing, next_place.state << 32 | next_place.index)
    link = dependencies.linker(context, request, number)
    return RequestPage(data=[_request(view, link, caller) for view in found], next_cursor=more)


def _request(view: RequestView, link: Callable[[int], str], caller: Principal) -> JobRequest:
    return JobRequest(
        **schemas.of_request(view.payload.index, view.payload),
        prompt=view.payload.prompt,
        negative_prompt=view.payload.negative_prompt,
        n=view.payload.n,
        status=view.state.word,
        images=[schemas.image(image, link, caller) for image in view.images],
    )
