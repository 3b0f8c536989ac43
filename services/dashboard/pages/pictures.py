"""The bytes of images for pages, sent by this server: a page asks no other host."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.api import parameters, representations
from services.api.dependencies import Context, ContextDep
from services.core.files import pictures
from services.core.files.pictures import InvalidPicture
from services.core.jobs import queries, resubmission
from services.core.model import ids
from services.core.model.errors import NotFound, ObjectMissing
from services.core.storage import keys
from services.dashboard import access, thumbnails
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
kept = thumbnails.Kept()  # of jobs and of catalogues
_DAY = "private, max-age=86400"


@router.get("/jobs/{job_id}/images/{index}/thumbnail")
async def show_thumbnail(
    request: Request, context: ContextDep, visitor: access.Signed, job_id: str, index: str
) -> Response:
    return await context.transfers.run(visitor.tenant, _thumbnail, request, context, visitor, job_id, index)


@router.get("/jobs/{job_id}/images/{index}/picture")
async def show_picture(
    request: Request, context: ContextDep, visitor: access.Signed, job_id: str, index: str
) -> Response:
    return await context.transfers.run(visitor.tenant, _picture, request, context, visitor, job_id, index)


@router.get("/jobs/{job_id}/images/{index}/input")
async def show_input(
    request: Request, context: ContextDep, visitor: access.Signed, job_id: str, index: str
) -> Response:
    return await context.transfers.run(visitor.tenant, _input, request, context, visitor, job_id, index)


def _input(request: Request, context: Context, visitor: access.Visitor, job_id: str, index: str) -> Response:
    """The picture that the image was drawn from, small, and cropped as the model got it."""
    visitor.require("view")
    number = ids.parse_job(job_id)
    found = None
    if parameters.is_whole(index):
        with context.database.read(visitor.tenant) as connection:
            if queries.image(connection, visitor.tenant, number, int(index)) is not None:
                found = resubmission.of_image(connection, number, int(index))
    if found is None or found.payload.image_key is None or found.payload.image_sha256 is None:
        raise NotFound("There is no such picture.")
    key, size, limit = found.payload.image_key, (found.width, found.height), context.settings.max_input_pixels
    tag = f"{bytes(found.payload.image_sha256).hex()}-{found.width}x{found.height}"
    if (unchanged := representations.unchanged(request, tag)) is not None:
        return unchanged
    try:
        picture = kept.get(tag, lambda: thumbnails.shrunk(pictures.decode(context.store.read(key), size, limit)))
    except (ObjectMissing, InvalidPicture):
        raise NotFound("The input picture was deleted.") from None
    return answer(picture, tag, thumbnails.MEDIA_TYPE)


def _thumbnail(request: Request, context: Context, visitor: access.Visitor, job_id: str, index: str) -> Response:
    key, sha256, _ = _stored(context, visitor, job_id, index)
    if (unchanged := representations.unchanged(request, sha256)) is not None:
        return unchanged
    name = keys.thumbnail_name(visitor.tenant, job_id, int(index), sha256)

    def is_wanted() -> bool:
        with context.database.read(visitor.tenant) as connection:
            return queries.exists(connection, visitor.tenant, ids.parse_job(job_id))

    picture = kept.get(sha256, lambda: thumbnails.stored(context.store, key, name, is_wanted))
    return answer(picture, sha256, thumbnails.MEDIA_TYPE)


def _picture(request: Request, context: Context, visitor: access.Visitor, job_id: str, index: str) -> Response:
    key, sha256, media_type = _stored(context, visitor, job_id, index)
    if (unchanged := representations.unchanged(request, sha256)) is not None:
        return unchanged
    return answer(context.store.read(key), sha256, media_type)


def answer(picture: bytes, sha256: str, media_type: str) -> Response:
    headers = {"ETag": representations.headers(sha256)["ETag"], "Cache-Control": _DAY}
    return Response(picture, headers=headers, media_type=media_type)


def _stored(context: Context, visitor: access.Visitor, job_id: str, index: str) -> tuple[str, str, Any]:
    """The object's key, its sha256 and its media type. Raises NotFound."""
    visitor.require("view")
    number = ids.parse_job(job_id)
    if parameters.is_whole(index):
        with context.database.read(visitor.tenant) as connection:
            image = queries.image(connection, visitor.tenant, number, int(index))
        if image is not None and image.object_key is not None and image.sha256 is not None:
            return image.object_key, image.sha256, f"image/{image.payload.output_format}"
    raise NotFound("There is no such picture.")
