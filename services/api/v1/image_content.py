"""An image's bytes: a link that is valid as long as the image, and redirects to a URL that is valid for minutes."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse

from services.api import authentication, parameters
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.core.jobs import queries
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.model.file_names import EXTENSIONS
from services.core.model.states import ImageState
from services.core.storage import signed_urls

router = APIRouter(route_class=TenantRoute)
Signature = Annotated[str | None, Query(max_length=64, description="the signature that the image's url carries")]


@router.get("/jobs/{job_id}/images/{index}/content", status_code=307, response_class=RedirectResponse)
def show_content(request: Request, context: ContextDep, job_id: str, index: str, signature: Signature = None) -> Any:
    """Redirects to the stored image. The signed `url` needs no key; without the signature a key is needed."""
    tenant = authentication.authenticate(request, context) if signature is None else None
    number = ids.parse_job(job_id)
    if not parameters.is_whole(index):
        raise NotFound("There is no such image.")
    if signature is not None and not signed_urls.is_genuine(context.settings.secrets, number, int(index), signature):
        raise NotFound("There is no such image.")
    return _redirect(context, tenant, number, int(index))


def _redirect(context: Context, tenant: int | None, number: int, index: int) -> RedirectResponse:
    database = context.database
    # As the system where a signature takes the place of the key: the link names the image and no tenant.
    with database.begin_system() if tenant is None else database.begin(tenant) as connection:
        image = queries.image(connection, tenant, number, index)
    if image is None:
        raise NotFound("There is no such image.")
    if image.state is not ImageState.DONE or image.object_key is None:
        raise ApiError(409, "not_done", f"The image is {image.state.word}; it can be fetched once it is done.")
    payload = image.payload
    name = payload.custom_id or f"{ids.public_job(number)}-{index:06d}"  # both are safe in a header and as a file name
    place = f"~{index - payload.index}" if payload.custom_id and payload.n > 1 else ""
    filename = f"{name}{place}.{EXTENSIONS[payload.output_format]}"
    return RedirectResponse(
        context.store.presign(image.object_key, context.settings.url_seconds, filename), status_code=307
    )
