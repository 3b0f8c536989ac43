"""The pictures of a catalogue's versions: their list, and the bytes of each for whoever has a key."""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from services.api import dependencies, pagination, parameters, stored
from services.api.authentication import Tenant
from services.api.dependencies import Context, ContextDep
from services.api.stored import Stored
from services.api.turns import TenantRoute
from services.api.v1 import catalogues, schemas
from services.core.catalogues import catalogues as core
from services.core.catalogues import entries, names, versions
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.entries import Entry
from services.core.model import strict_json
from services.core.model.errors import NotFound

router = APIRouter(route_class=TenantRoute)
Item = Annotated[
    str,
    Query(alias="id", min_length=1, max_length=2_000, description="the item's id: 1 to 2,000 characters"),
]
Version = Annotated[
    int | None,
    parameters.WHOLE,
    parameters.version("; left out: the published one"),
]


class CatalogueItem(BaseModel):
    """The picture of an item's variant in a version. `version` is the one that it was made in; `stale`: another was
    asked for and could not be made. `url` takes a key. `public_url` does not, and leads to what is published."""

    item: str
    variant: str
    sha256: str
    bytes: int
    output_format: str
    size: str | None
    prompt: str | None
    seed: int | None
    seed_string: str | None
    model_revision: str
    reproducibility_class: str
    version: int
    stale: bool
    rendered_at: schemas.Moment
    url: str
    public_url: str | None


class CatalogueItemPage(BaseModel):
    """`version` is the one that is listed."""

    version: int
    data: list[CatalogueItem]
    next_cursor: str | None


@router.get("/catalogues/{catalogue}/items", response_model=CatalogueItemPage)
def list_items(
    request: Request, context: ContextDep, tenant: Tenant, catalogue: str, version: Version = None,
    limit: parameters.Limit = 100, cursor: parameters.PlaceCursor = None,
) -> Any:  # fmt: skip
    """The pictures of the published version or another kept one, by item and variant."""
    with context.database.read(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        number = versions.meant(connection, found, version)
        listing = f"items/{tenant}/{found.id}/{number}"
        after = pagination.decode_place(context.settings.secrets, listing, cursor)
        page = entries.page(connection, found.id, number, after=after, limit=limit + 1)
    more = None
    if len(page) > limit:
        last = page[limit - 1]
        more = pagination.encode_place(context.settings.secret, listing, (last.item, last.variant))
    base_url = dependencies.base_url(context.settings, request)
    data = [shown(base_url, found, number, entry) for entry in page[:limit]]
    return CatalogueItemPage(version=number, data=data, next_cursor=more)


@router.get(
    "/catalogues/{catalogue}/items/{variant}",
    response_class=StreamingResponse,
    responses={
        206: {"description": "The part that Range asks for."},
        304: {"description": "The client has it: If-None-Match names it."},
    },
)
async def read_item(
    request: Request, context: ContextDep, tenant: Tenant, catalogue: str, variant: str, item: Item,
    version: Version = None,
) -> Any:  # fmt: skip
    """The bytes of an item's picture, in the published version or another kept one."""
    found = await context.requests.run(tenant, _find, context, tenant, catalogue, variant, item, version)
    return await stored.answer(request, context, tenant, picture(found), {})


def picture(entry: Entry) -> Stored:
    """The stored bytes of an entry."""
    return Stored(entry.object_key, entry.sha256.hex(), entry.bytes, f"image/{_format(entry)}")


def link(base_url: str, catalogue: Catalogue, version: int, item: str, variant: str) -> str:
    """The address of an item's picture in a version, for whoever has a key."""
    place = f"{base_url}/v1/catalogues/{catalogue.name}/items/{variant}"
    return f"{place}?id={quote(item, safe='')}&version={version}"


def shown(base_url: str, catalogue: Catalogue, version: int, entry: Entry) -> CatalogueItem:
    seed = entry.request.get("seed")
    begin = catalogues.public_url(base_url, catalogue) if version == catalogue.published else None
    return CatalogueItem(
        item=entry.item,
        variant=entry.variant,
        sha256=entry.sha256.hex(),
        bytes=entry.bytes,
        output_format=_format(entry),
        size=entry.request.get("size"),
        prompt=entry.request.get("prompt"),
        seed=seed,
        seed_string=None if seed is None else str(seed),
        model_revision=entry.model_revision,
        reproducibility_class=entry.reproducibility_class,
        version=entry.from_version,
        stale=entry.is_stale_in(version),
        rendered_at=entry.rendered_at,
        url=link(base_url, catalogue, version, entry.item, entry.variant),
        public_url=None if begin is None else f"{begin}/{entry.variant}/{names.of_item(entry.item)}",
    )


def _find(context: Context, tenant: int, name: str, variant: str, item: str, version: int | None) -> Entry:
    with context.database.read(tenant) as connection:
        catalogue = core.find(connection, tenant, name)
        number = versions.meant(connection, catalogue, version)
        readable = "\0" not in variant + item
        found = entries.find(connection, catalogue.id, number, item, variant) if readable else None
    if found is None:
        what = f"picture {strict_json.describe(variant)} of the item {strict_json.describe(item)}"
        raise NotFound(f"There is no {what} in version {number}.")
    return found


def _format(entry: Entry) -> str:
    return str(entry.request.get("output_format") or "png")
