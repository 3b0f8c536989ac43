"""An image's bytes: a link that is valid as long as the image, and redirects to a URL that is valid for minutes."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from services.api import authentication, parameters, representations, stored
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.stored import Stored
from services.api.turns import TenantRoute
from services.core.jobs import queries
from services.core.model import file_names, ids
from services.core.model.errors import NotFound
from services.core.model.states import ImageState
from services.core.storage import members, signed_urls

router = APIRouter(route_class=TenantRoute)
Signature = Annotated[str | None, Query(max_length=64, description="the signature that the image's url carries")]


@dataclass(frozen=True, slots=True)
class InShard:
    """An image that has no address in the store: its bytes are passed on, in the tenant's turn."""

    tenant: int | None
    stored: Stored
    headers: dict[str, str]


@router.get(
    "/jobs/{job_id}/images/{index}/content",
    status_code=307,
    response_class=RedirectResponse,
    responses={
        200: {"description": "The bytes of an image that lies in a shard."},
        206: {"description": "The part of them that Range asks for."},
        304: {"description": "The client has it: If-None-Match names it."},
    },
)
async def read_image(
    request: Request, context: ContextDep, job_id: str, index: str, signature: Signature = None
) -> Any:
    """Redirects to the stored image; the bytes of one in a shard come from here. The signed `url` needs no key; without
    the signature a key is needed. A HEAD is answered here, with the image's size and type: the address in the store is
    signed for GET alone."""
    found = await context.requests.run(None, _answer, request, context, job_id, index, signature)
    if isinstance(found, InShard):
        return await stored.answer(request, context, found.tenant, found.stored, found.headers)
    return found


def _answer(request: Request, context: Context, job_id: str, index: str, signature: str | None) -> Response | InShard:
    tenant = authentication.authenticate(request, context).tenant_id if signature is None else None
    number = ids.parse_job(job_id)
    if not parameters.is_whole(index):
        raise NotFound("There is no such image.")
    if signature is not None and not signed_urls.is_genuine(context.settings.secrets, number, int(index), signature):
        raise NotFound("There is no such image.")
    image, owner = _done_image(context, tenant, number, int(index))
    assert image.object_key is not None
    assert image.sha256 is not None
    assert image.bytes is not None
    if (unchanged := representations.unchanged(request, image.sha256)) is not None:
        return unchanged
    filename, media_type = _filename(number, image), f"image/{image.payload.output_format}"
    disposition = {"Content-Disposition": file_names.attachment(filename)}
    if members.place(image.object_key) is not None:
        found = Stored(image.object_key, image.sha256, image.bytes, media_type)
        return InShard(owner, found, disposition)
    if request.state.is_head:
        described = {"Content-Length": str(image.bytes)} | disposition
        return Response(headers=representations.headers(image.sha256) | described, media_type=media_type)
    address = context.store.presign(image.object_key, context.settings.url_seconds, filename)
    return RedirectResponse(address, 307, {"ETag": representations.headers(image.sha256)["ETag"]})


def _done_image(context: Context, tenant: int | None, number: int, index: int) -> tuple[queries.ImageView, int | None]:
    """The image, and in whose turn it is sent: one tenant's links do not keep those of others waiting."""
    database = context.database
    # As the system where a signature takes the place of the key: the link names the image and no tenant.
    with database.read_system() if tenant is None else database.read(tenant) as connection:
        image = queries.image(connection, tenant, number, index)
        owner = queries.owner(connection, number) if tenant is None else tenant
    if image is None:
        raise NotFound("There is no such image.")
    if image.state is not ImageState.DONE or image.object_key is None or image.sha256 is None:
        raise ApiError(409, "not_done", f"The image is {image.state.word}; it can be fetched once it is done.")
    return image, owner


def _filename(number: int, image: queries.ImageView) -> str:
    """Safe in a header and as a file's name, as a custom_id is."""
    payload = image.payload
    name = payload.custom_id or f"{ids.public_job(number)}-{image.index:06d}"
    place = f"~{image.index - payload.index}" if payload.custom_id and payload.n > 1 else ""
    return f"{name}{place}.{file_names.EXTENSIONS[payload.output_format]}"
