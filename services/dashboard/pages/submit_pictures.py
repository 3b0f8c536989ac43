"""Pictures to redraw, for the form of a submission: one is uploaded, and one that is named is shown small."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.api import dependencies, representations
from services.api.body import multipart
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.openai import files
from services.core.files import pictures
from services.core.files.pictures import InvalidPicture
from services.core.model import requests
from services.core.model.errors import NotFound, ObjectMissing, Problem
from services.dashboard import access, forms, thumbnails
from services.dashboard.pages import submit
from services.dashboard.pages.pictures import answer, kept
from services.dashboard.pages.submit import Outcome
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_MOST_FIELDS = 4


@router.post("/submit/picture")
async def upload(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    """Stores a picture as a file, as POST /v1/files does, and shows the form with its id."""
    visitor.require("submit", "submitting")
    form: forms.Form = {}
    outcome, status = None, 200
    async with multipart.received(request, "picture", context.settings.max_input_bytes, _MOST_FIELDS) as received:
        forms.check(received.fields, request.cookies.get(access.COOKIE, ""))
        form["kind"] = received.fields.get("kind", "")
        store = partial(files.store, context, visitor.tenant, received, "vision", None, None)
        try:
            form["image"] = (await context.transfers.run(visitor.tenant, store)).id
        except ApiError as error:
            outcome, status = Outcome([Problem(error.code, str(error), "image")]), error.status
    known = await context.requests.run(visitor.tenant, submit.registry, context, visitor.tenant)
    return submit.page(request, visitor, known, form, outcome, status=status)


@router.get("/submit/picture")
async def show_picture(
    request: Request, context: ContextDep, visitor: access.Signed, image: str, size: str = ""
) -> Response:  # fmt: skip
    return await context.transfers.run(visitor.tenant, _picture, request, context, visitor, image, size)


def _picture(request: Request, context: Context, visitor: access.Visitor, image: str, size: str) -> Response:
    """Small, and cropped to a size that a model has."""
    visitor.require("submit", "submitting")
    known = submit.registry(context, visitor.tenant)
    sizes = {f"{width}x{height}": (width, height) for model in known.values() for width, height in model.sizes}
    if not requests.is_picture_id(image) or size not in sizes:
        raise NotFound("There is no such picture.")
    found = dependencies.pictures(context, visitor.tenant).find([image]).get(image)
    if found is None:
        raise NotFound("There is no such picture.")
    tag = f"{found.sha256.hex()}-{size}"
    if (unchanged := representations.unchanged(request, tag)) is not None:
        return unchanged

    def make() -> bytes:
        data = context.store.read(found.object_key)
        return thumbnails.shrunk(pictures.decode(data, sizes[size], context.settings.max_input_pixels))

    try:
        return answer(kept.get(tag, make), tag, thumbnails.MEDIA_TYPE)
    except (ObjectMissing, InvalidPicture):
        raise NotFound("The picture was deleted.") from None
