"""The versions of a catalogue: which are kept, their manifests, where two differ, and which one readers see."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import RedirectResponse, Response

from services.api import dependencies, openapi, pagination, parameters, representations
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1 import catalogue_items, catalogues, schemas
from services.api.v1.catalogue_items import CatalogueItem
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues as core
from services.core.catalogues import destinations, differences, manifests, publishing, versions
from services.core.catalogues.asked import PublishRequest
from services.core.catalogues.differences import Difference
from services.core.model import file_names
from services.core.model.errors import NotFound

router = APIRouter(route_class=TenantRoute)
Format = Annotated[Literal["jsonl", "parquet"], Query(description="jsonl or parquet")]
From = Annotated[int, parameters.WHOLE, parameters.version("", alias="from")]
To = Annotated[
    int | None,
    parameters.WHOLE,
    parameters.version("; left out: the published one"),
]


class CatalogueVersion(BaseModel):
    """A version that is whole. `run_id` is the run that made it."""

    object: Literal["catalogue.version"] = "catalogue.version"
    version: int
    published: bool
    run_id: str
    images: int
    bytes: int
    created_at: schemas.Moment


class CatalogueVersionList(BaseModel):
    data: list[CatalogueVersion]


class CatalogueDifference(BaseModel):
    """An item's variant with another picture in one version than in the other. null: that version has none."""

    item: str
    variant: str
    kind: Literal["added", "changed", "removed"]
    before: CatalogueItem | None
    after: CatalogueItem | None


class CatalogueDifferencePage(BaseModel):
    data: list[CatalogueDifference]
    next_cursor: str | None


@router.get("/catalogues/{catalogue}/versions", response_model=CatalogueVersionList)
def list_versions(context: ContextDep, tenant: Tenant, catalogue: str) -> Any:
    """The versions that are kept, newest first: the catalogue's `keep` newest, and the published one."""
    with context.database.read(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        kept = versions.listed(connection, found.id)
    return CatalogueVersionList(data=[_version(found, one) for one in kept])


@router.get(
    "/catalogues/{catalogue}/versions/{version}/manifest",
    status_code=307,
    response_class=RedirectResponse,
    responses={304: {"description": "The client has it: If-None-Match names it."}},
)
def read_manifest(
    request: Request, context: ContextDep, tenant: Tenant, catalogue: str, version: str, format: Format = "jsonl"
) -> Any:
    """Redirects to the list of a version's pictures. A HEAD is answered here, with its size: the address in the store
    is signed for GET alone."""
    if not parameters.is_whole(version):
        raise NotFound("There is no such version.")
    with context.database.read(tenant) as connection:
        found = versions.find(connection, core.find(connection, tenant, catalogue).id, int(version))
    file = found.manifests[format]
    if (unchanged := representations.unchanged(request, file.sha256)) is not None:
        return unchanged
    name = f"{catalogue}-{version}.{format}"
    if request.state.is_head:
        described = {"Content-Length": str(file.bytes), "Content-Disposition": file_names.attachment(name)}
        headers = representations.headers(file.sha256) | described
        return Response(headers=headers, media_type=manifests.FILES[format][1])
    address = context.store.presign(file.object_key, context.settings.url_seconds, name)
    return RedirectResponse(address, 307, {"ETag": representations.headers(file.sha256)["ETag"]})


@router.get("/catalogues/{catalogue}/diff", response_model=CatalogueDifferencePage)
def list_differences(
    request: Request, context: ContextDep, tenant: Tenant, catalogue: str, before: From, to: To = None,
    limit: parameters.Limit = 100, cursor: parameters.PlaceCursor = None,
) -> Any:  # fmt: skip
    """Where the pictures of two kept versions differ, by item and variant. A page may hold fewer than `limit`: the list
    ends where `next_cursor` is null."""
    with context.database.read(tenant) as connection:
        found = core.find(connection, tenant, catalogue)
        pair = [versions.meant(connection, found, one) for one in (before, to)]
        listing = f"diff/{tenant}/{found.id}/{pair[0]}/{pair[1]}"
        behind = pagination.decode_place(context.settings.secrets, listing, cursor)
        page, reached = differences.page(connection, found.id, pair[0], pair[1], behind=behind, limit=limit)
    more = None if reached is None else pagination.encode_place(context.settings.secret, listing, reached)
    base_url = dependencies.base_url(context.settings, request)
    data = [_difference(base_url, found, pair, one) for one in page]
    return CatalogueDifferencePage(data=data, next_cursor=more)


@router.post(
    "/catalogues/{catalogue}/publish", response_model=catalogues.Catalogue, openapi_extra=openapi.body(PublishRequest)
)
def publish_version(
    request: Request, context: ContextDep, tenant: Tenant, catalogue: str, body: json_object.Small
) -> Any:
    """Publishes a kept version, newer or older than the one that readers see: they see all of it from the answer on.
    Repeating this is not an error."""
    wanted = json_object.parse(PublishRequest, body, PublishRequest.ALLOWED)
    with context.database.begin(tenant) as connection:
        found = publishing.publish(connection, tenant, catalogue, wanted.version)
        return catalogues.shown(context, request, found, destinations.find(connection, found.id))


def _version(catalogue: core.Catalogue, found: versions.Version) -> CatalogueVersion:
    return CatalogueVersion(
        version=found.version,
        published=found.version == catalogue.published,
        run_id=runs.public_id(found.run_id),
        images=found.images,
        bytes=found.bytes,
        created_at=found.created_at,
    )


def _difference(base_url: str, catalogue: core.Catalogue, pair: list[int], found: Difference) -> CatalogueDifference:
    before, after = (
        None if entry is None else catalogue_items.shown(base_url, catalogue, version, entry)
        for version, entry in zip(pair, (found.before, found.after), strict=True)
    )
    return CatalogueDifference(
        item=found.item,
        variant=found.variant,
        kind="added" if before is None else "removed" if after is None else "changed",
        before=before,
        after=after,
    )
