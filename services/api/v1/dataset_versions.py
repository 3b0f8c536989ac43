"""Versions of datasets: asked for, shown, compared, and their files. A background task of the scheduler writes them."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from services.api import dependencies, openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.datasets import comparison, dataset_records, datasets, definition, version_removal
from services.core.datasets.definition import VersionRequest
from services.core.model.strict_json import describe
from services.core.storage import signed_urls

router = APIRouter(route_class=TenantRoute)
_PAST_THE_NEWEST = 2**31 - 1
Split = Annotated[str | None, Query(max_length=32, pattern="^[a-z][a-z0-9_]*$", description="only files of this split")]


class SplitSize(BaseModel):
    shards: int
    images: int


class VersionCounts(BaseModel):
    """`total` images are written for this version, and `done` of them so far; the others stand in shards that it
    keeps."""

    total: int
    done: int


class DatasetVersion(BaseModel):
    """`base` is the version that it was made from: `rewritten` of its shards were written again, without the `removed`
    images. `bytes` were stored for this version alone; its files have `total_bytes`: null until it is complete, and
    where an older release wrote it. `error` says why it failed or, while it is being written, what holds it up."""

    object: Literal["dataset.version"] = "dataset.version"
    dataset: str
    version: int
    status: str
    while_running: bool
    base: int | None
    images: int
    counts: VersionCounts
    splits: dict[str, SplitSize]
    rewritten: int
    removed: int
    bytes: int
    total_bytes: int | None
    created_at: schemas.Moment
    finished_at: schemas.Moment | None
    error: str | None


class DatasetVersionPage(BaseModel):
    data: list[DatasetVersion]
    next_cursor: str | None


class DatasetVersionDeleted(BaseModel):
    dataset: str
    version: int
    object: Literal["dataset.version"] = "dataset.version"
    deleted: Literal[True] = True


class DatasetFile(BaseModel):
    """`split` is null for a file that describes the version. `url` is signed and valid as long as the dataset: it needs
    no key, and redirects to the store."""

    path: str
    split: str | None
    bytes: int
    sha256: str
    images: int
    url: str


class DatasetFilePage(BaseModel):
    data: list[DatasetFile]
    next_cursor: str | None


class ImageDifference(BaseModel):
    """`why` an image is not there any more: rejected, deleted (with its job), filtered, or no source (any more)."""

    change: Literal["added", "removed"]
    job_id: str
    index: int
    why: str | None


class DatasetComparison(BaseModel):
    """`images` are the first ones, by job and index; `added` and `removed` count all."""

    added: int
    removed: int
    shards_added: int
    shards_removed: int
    images: list[ImageDifference]


@router.post(
    "/datasets/{dataset}/versions",
    status_code=202,
    response_model=DatasetVersion,
    openapi_extra=openapi.body(VersionRequest, required=False),
)
def export_dataset(
    request: Request,
    response: Response,
    context: ContextDep,
    tenant: Tenant,
    dataset: str,
    body: json_object.SmallOrNone,
) -> Any:
    """Asks for the next version: shards that are written are kept, new images go to new shards, and shards that lose
    images are written again."""
    asked = json_object.parse(VersionRequest, body, definition.ALLOWED)
    base_url = dependencies.base_url(context.settings, request)
    with context.database.begin(tenant) as connection:
        number = datasets.export(connection, tenant, dataset, while_running=asked.while_running, base_url=base_url)
        found = dataset_records.version(connection, dataset_records.find(connection, tenant, dataset), number)
    response.headers.update(dependencies.location(context, request, f"/v1/datasets/{dataset}/versions/{number}"))
    return _shown(found)


@router.get("/datasets/{dataset}/versions", response_model=DatasetVersionPage)
def list_dataset_versions(
    context: ContextDep, tenant: Tenant, dataset: str, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The dataset's versions, the newest first."""
    listing = f"dataset_versions/{tenant}/{dataset}"
    before = _PAST_THE_NEWEST if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = dataset_records.find(connection, tenant, dataset)
        page = dataset_records.versions(connection, found, before=before, limit=limit + 1)
    more = None
    if len(page) > limit:
        more = pagination.encode_cursor(context.settings.secret, listing, page[limit - 1].number)
    return DatasetVersionPage(data=[_shown(one) for one in page[:limit]], next_cursor=more)


@router.get("/datasets/{dataset}/versions/{version}", response_model=DatasetVersion)
def show_dataset_version(context: ContextDep, tenant: Tenant, dataset: str, version: str) -> Any:
    """One version with its progress."""
    with context.database.read(tenant) as connection:
        found = dataset_records.find(connection, tenant, dataset)
        return _shown(dataset_records.version(connection, found, parameters.number(version)))


@router.post("/datasets/{dataset}/versions/{version}/cancel", response_model=DatasetVersion)
def cancel_dataset_version(context: ContextDep, tenant: Tenant, dataset: str, version: str) -> Any:
    """Stops a version and deletes what was stored for it. Repeating this is not an error."""
    with context.database.begin(tenant) as connection:
        datasets.cancel(connection, tenant, dataset, parameters.number(version))
        found = dataset_records.find(connection, tenant, dataset)
        return _shown(dataset_records.version(connection, found, parameters.number(version)))


@router.delete("/datasets/{dataset}/versions/{version}", response_model=DatasetVersionDeleted)
def delete_dataset_version(context: ContextDep, tenant: Tenant, dataset: str, version: str) -> Any:
    """Deletes one version that is not being written. Its files cannot be read any more at once; what no other version
    holds is deleted soon after. Its number is not given again; after the last one, the next is made from the one
    before."""
    number = parameters.number(version)
    with context.database.begin(tenant) as connection:
        version_removal.remove(connection, tenant, dataset, number)
    return DatasetVersionDeleted(dataset=dataset, version=number)


@router.get("/datasets/{dataset}/versions/{version}/files", response_model=DatasetFilePage)
def list_dataset_files(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    dataset: str,
    version: str,
    split: Split = None,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The files of a complete version by path, each with a signed URL."""
    listing = f"dataset_files/{tenant}/{dataset}/{version}/{split}"
    after = "" if cursor is None else pagination.decode_name(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = dataset_records.completed(
            connection, dataset_records.find(connection, tenant, dataset), parameters.number(version)
        )
        _assert_split(found.definition.split, split)
        of = found.dataset.id, found.number
        page = dataset_records.files(connection, *of, after=after, split=split, limit=limit + 1)
    more = None
    if len(page) > limit:
        more = pagination.encode_name(context.settings.secret, listing, page[limit - 1].path)
    base = dependencies.base_url(context.settings, request)

    def shown(file: dataset_records.DatasetFile) -> DatasetFile:
        url = signed_urls.dataset_file_url(base, context.settings.secret, *of, file.path)
        return DatasetFile(
            path=file.path, split=file.split, bytes=file.bytes, sha256=file.sha256.hex(), images=file.images, url=url
        )

    return DatasetFilePage(data=[shown(file) for file in page[:limit]], next_cursor=more)


def _assert_split(there: Iterable[str], asked: str | None) -> None:
    """Raises ApiError: a split that the dataset has not would be an empty answer, and look like a complete one."""
    if asked is not None and asked not in there:
        message = f"The dataset has no split {describe(asked)}; it has {', '.join(there)}."
        raise ApiError(422, "invalid_parameter", message, param="split")


@router.get("/datasets/{dataset}/diff", response_model=DatasetComparison)
def compare_dataset_versions(
    context: ContextDep,
    tenant: Tenant,
    dataset: str,
    before: Annotated[int, parameters.WHOLE, parameters.version(" that the other is compared with")],
    after: Annotated[int, parameters.WHOLE, parameters.version(" that is compared")],
    limit: parameters.Limit = 100,
) -> Any:
    """The images that one of two complete versions holds and the other does not."""
    with context.database.read(tenant) as connection:
        found = dataset_records.find(connection, tenant, dataset)
        left = dataset_records.completed(connection, found, before)
        right = dataset_records.completed(connection, found, after)
        compared = comparison.compare(connection, left, right, limit=limit)
    return DatasetComparison(
        added=compared.added,
        removed=compared.removed,
        shards_added=compared.shards_added,
        shards_removed=compared.shards_removed,
        images=[
            ImageDifference(change=one.change, job_id=one.job_id, index=one.index, why=one.why)  # type: ignore[arg-type]
            for one in compared.images
        ],
    )


def _shown(version: dataset_records.Version) -> DatasetVersion:
    plan = version.plan
    splits = {} if plan is None else plan.counted.splits
    return DatasetVersion(
        dataset=version.dataset.name,
        version=version.number,
        status=version.state,
        while_running=version.while_running,
        base=version.base or None,
        images=version.images,
        counts=VersionCounts(total=version.images_to_write, done=version.images_written),
        splits={name: SplitSize(shards=shards, images=images) for name, (shards, images) in splits.items()},
        rewritten=0 if plan is None else plan.rewritten,
        removed=0 if plan is None else plan.removed,
        bytes=version.bytes,
        total_bytes=version.total_bytes,
        created_at=version.created_at,
        finished_at=version.finished_at,
        error=version.error,
    )
