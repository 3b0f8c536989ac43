"""Public links to the published pictures of catalogues: they take no key, and a cache in front of them may keep them.

The bytes are streamed from here, so a link works wherever this server is reached. What a link shows changes when
another version is published: a cache keeps a copy for a minute, and then asks whether it is still the one.
"""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from services.api import stored
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.api.v1 import catalogue_items
from services.api.v1.schemas import ErrorBody
from services.core.catalogues import catalogues, entries, names
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.entries import Entry
from services.core.model.errors import NotFound

router = APIRouter(route_class=TenantRoute)
CACHED = "public, max-age=60, stale-while-revalidate=300, stale-if-error=86400"
_ABSENT = {"Cache-Control": "public, max-age=10"}  # what is missing now may be published in a moment


@router.get(
    "/c/{public_id}/{variant}/{item}",
    response_class=StreamingResponse,
    responses={
        206: {"description": "The part that Range asks for."},
        304: {"description": "The client has it: If-None-Match or If-Modified-Since say so."},
        "4XX": {"model": ErrorBody, "description": "No such picture is published, or not for everybody."},
    },
)
async def read_public_item(request: Request, context: ContextDep, public_id: str, variant: str, item: str) -> Any:
    """The published picture of an item, if its catalogue is public (`publish.public`). The last part is the item's id,
    or `~` and base64url of an id that has other characters than letters, digits, `-`, `_` and inner dots."""
    catalogue, entry = await context.requests.run(None, _find, context, public_id, variant, item)
    headers = {"Cache-Control": CACHED, "Cross-Origin-Resource-Policy": "cross-origin"} | _last_modified(catalogue)
    picture = catalogue_items.picture(entry)
    # The very moment, not a later one: a client may send the time at which it got another picture.
    known = request.headers.get("if-modified-since", "") == headers.get("Last-Modified")
    if known and "if-none-match" not in request.headers:
        return Response(status_code=304, headers=headers | {"ETag": f'"{picture.sha256}"'})
    return await stored.answer(request, context, None, picture, headers)


def _last_modified(catalogue: Catalogue) -> dict[str, str]:
    """The second after the one in which another version was published last. Until then there is none: a date that has
    not come is refused, and clients that saw the picture before in that second must not take this one for it."""
    if catalogue.moved_at is None:
        return {}
    moment = catalogue.moved_at.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
    return {"Last-Modified": format_datetime(moment, usegmt=True)} if moment <= datetime.now(UTC) else {}


def _find(context: Context, public_id: str, variant: str, name: str) -> tuple[Catalogue, Entry]:
    item = names.item(name)
    catalogue = found = None
    if item is not None and "\0" not in public_id + variant:
        # As the system: the link names the catalogue and no tenant.
        with context.database.read_system() as connection:
            with suppress(NotFound):
                catalogue = catalogues.of_public_id(connection, public_id)
            is_public = catalogue is not None and catalogue.definition.get("publish", {}).get("public", False)
            if catalogue is not None and is_public and catalogue.published is not None:
                found = entries.find(connection, catalogue.id, catalogue.published, item, variant)
    if catalogue is None or found is None:
        raise ApiError(404, "not_found", "There is no such picture.", headers=_ABSENT)
    return catalogue, found
