"""An image's bytes: a link that is valid as long as the image, and redirects to a URL that is valid for minutes."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from services.api import authentication, parameters, representations
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.core.jobs import queries
from services.core.model import file_names, ids
from services.core.model.errors import NotFound
from services.core.model.states import ImageState
from services.core.storage import signed_urls

router = APIRouter(route_class=TenantRoute)
Signature = Annotated[str | None, Query(max_length=64, description="the signature that the image's url carries")]


@router.get(
    "/jobs/{job_id}/images/{index}/content",
    status_code=307,
    response_class=RedirectResponse,
    responses={304: {"description": "The client has it: If-None-Match names it."}},
)
def read_image(request: Request, context: ContextDep, job_id: str, index: str, signature: Signature = None) -> Any:
    """Redirects to the stored image. The signed `url` needs no key; without the signature a key is needed. A HEAD is
    answered here, with the image's size and type: the address in the store is signed for GET alone."""
    tenant = authentication.authenticate(request, context).tenant_id if signature is None else None
    number = ids.parse_job(job_id)
    if not parameters.is_whole(index):
        raise NotFound("There is no such image.")
    if signature is not None and not signed_urls.is_genuine(context.settings.secrets, number, int(index), signature):
        raise NotFound("There is no such image.")
    image = _done_image(context, tenant, number, int(index))
    assert image.object_key is not None
    assert image.sha256 is not None
    if (unchanged := representations.unchanged(request, image.sha256)) is not None:
        return unchanged
    filename = _filename(number, image)
    if request.state.is_head:
        described = {"Content-Length": str(image.bytes), "Content-Disposition": file_names.attachment(filename)}
        headers = representations.headers(image.sha256) | described
        return Response(headers=headers, media_type=f"image/{image.payload.output_format}")
    address = context.store.presign(image.object_key, context.settings.url_seconds, filename)
    return RedirectResponse(address, 307, {"ETag": representations.headers(image.sha256)["ETag"]})


def _done_image(context: Context, tenant: int | None, number: int, index: int) -> queries.ImageView:
    database = context.database
    # As the system where a signature takes the place of the key: the link names the image and no tenant.
    with database.begin_system() if tenant is None else database.begin(tenant) as connection:
        image = queries.image(connection, tenant, number, index)
    if image is None:
        raise NotFound("There is no such image.")
    if image.state is not ImageState.DONE or image.object_key is None or image.sha256 is None:
        raise ApiError(409, "not_done", f"The image is {image.state.word}; it can be fetched once it is done.")
    return image


def _filename(number: int, image: queries.ImageView) -> str:
    """Safe in a header and as a file's name, as a custom_id is."""
    payload = image.payload
    name = payload.custom_id or f"{ids.public_job(number)}-{image.index:06d}"
    place = f"~{image.index - payload.index}" if payload.custom_id and payload.n > 1 else ""
    return f"{name}{place}.{file_names.EXTENSIONS[payload.output_format]}"
