"""The bytes of the pictures of a catalogue's versions for pages, sent by this server: small or as they are."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from services.api import parameters, representations
from services.api.dependencies import Context, ContextDep
from services.core.catalogues import catalogues, entries, versions
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.entries import Entry
from services.core.model.errors import NotFound
from services.dashboard import access, thumbnails
from services.dashboard.pages import pictures
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
Item = Annotated[str, Query(alias="id", min_length=1, max_length=2_000)]


@router.get("/catalogues/{name}/versions/{version}/{variant}/thumbnail")
async def show_thumbnail(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, version: str, variant: str, item: Item
) -> Response:
    place = (name, version, item, variant)
    return await context.transfers.run(visitor.tenant, _thumbnail, request, context, visitor, *place)


@router.get("/catalogues/{name}/versions/{version}/{variant}/picture")
async def show_picture(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, version: str, variant: str, item: Item
) -> Response:
    place = (name, version, item, variant)
    return await context.transfers.run(visitor.tenant, _picture, request, context, visitor, *place)


def _thumbnail(request: Request, context: Context, visitor: access.Visitor, *place: str) -> Response:
    catalogue, entry = _entry(context, visitor, *place)
    sha256 = entry.sha256.hex()
    if (unchanged := representations.unchanged(request, sha256)) is not None:
        return unchanged

    def is_wanted() -> bool:
        try:
            return _entry(context, visitor, *place)[1].object_key == entry.object_key
        except NotFound:
            return False

    name = catalogue.thumbnail_of(entry.object_key)
    small = pictures.kept.get(sha256, lambda: thumbnails.stored(context.store, entry.object_key, name, is_wanted))
    return pictures.answer(small, sha256, thumbnails.MEDIA_TYPE)


def _picture(request: Request, context: Context, visitor: access.Visitor, *place: str) -> Response:
    _, entry = _entry(context, visitor, *place)
    sha256 = entry.sha256.hex()
    if (unchanged := representations.unchanged(request, sha256)) is not None:
        return unchanged
    media_type = f"image/{entry.request.get('output_format') or 'png'}"
    return pictures.answer(context.store.read(entry.object_key), sha256, media_type)


def _entry(
    context: Context, visitor: access.Visitor, name: str, version: str, item: str, variant: str
) -> tuple[Catalogue, Entry]:
    """Raises NotFound."""
    visitor.require("view")
    if parameters.is_whole(version) and "\0" not in item + variant:
        with context.database.read(visitor.tenant) as connection:
            catalogue = catalogues.find(connection, visitor.tenant, name)
            number = versions.find(connection, catalogue.id, int(version)).version
            found = entries.find(connection, catalogue.id, number, item, variant)
        if found is not None:
            return catalogue, found
    raise NotFound("There is no such picture.")
