"""Datasets: what they are made of. Their versions are in `dataset_versions`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from services.api import dependencies, openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.datasets import dataset_records, datasets, definition
from services.core.datasets.definition import DatasetChanges, DatasetRequest, DatasetSources, Definition
from services.core.model import ids
from services.core.model.errors import InvalidSubmission

router = APIRouter(route_class=TenantRoute)


class Dataset(BaseModel):
    """A named collection of images that grows. `version` is the last that is complete; null: there is none yet. The
    next one follows `definition` as it is then."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    format: str
    definition: dict[str, Any]
    version: int | None
    created_at: schemas.Moment
    updated_at: schemas.Moment


class DatasetPage(BaseModel):
    data: list[Dataset]
    next_cursor: str | None


class DatasetDeleted(BaseModel):
    name: str
    object: Literal["dataset"] = "dataset"
    deleted: Literal[True] = True


@router.post("/datasets", status_code=201, response_model=Dataset, openapi_extra=openapi.body(DatasetRequest))
def create_dataset(
    request: Request, response: Response, context: ContextDep, tenant: Tenant, body: json_object.Document
) -> Any:
    """Makes a dataset of jobs, by id or by label. Nothing is written until a version is asked for."""
    asked = json_object.parse(DatasetRequest, body, definition.ALLOWED)
    _check(asked)
    with context.database.begin(tenant) as connection:
        datasets.create(connection, tenant, asked)
    response.headers.update(dependencies.location(context, request, f"/v1/datasets/{asked.name}"))
    return _find(context, tenant, asked.name)


@router.get("/datasets", response_model=DatasetPage)
def list_datasets(
    context: ContextDep, tenant: Tenant, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The tenant's datasets, by name."""
    listing = f"datasets/{tenant}"
    after = "" if cursor is None else pagination.decode_name(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = dataset_records.listed(connection, tenant, after=after, limit=limit + 1)
    more = None
    if len(found) > limit:
        more = pagination.encode_name(context.settings.secret, listing, found[limit - 1].name)
    return DatasetPage(data=[_shown(one) for one in found[:limit]], next_cursor=more)


@router.get("/datasets/{dataset}", response_model=Dataset)
def show_dataset(context: ContextDep, tenant: Tenant, dataset: str) -> Any:
    """One dataset."""
    return _find(context, tenant, dataset)


@router.patch("/datasets/{dataset}", response_model=Dataset, openapi_extra=openapi.body(DatasetChanges))
def change_dataset(context: ContextDep, tenant: Tenant, dataset: str, body: json_object.Document) -> Any:
    """Sets other filters, or the names of metadata that are text. The next version follows them."""
    asked = json_object.parse(DatasetChanges, body, definition.ALLOWED)
    _check(asked)
    with context.database.begin(tenant) as connection:
        datasets.change(connection, tenant, dataset, asked)
    return _find(context, tenant, dataset)


@router.post("/datasets/{dataset}/sources", response_model=Dataset, openapi_extra=openapi.body(DatasetSources))
def add_sources(context: ContextDep, tenant: Tenant, dataset: str, body: json_object.Document) -> Any:
    """Adds jobs or labels. The next version follows them; a retry of a job need not be added."""
    asked = json_object.parse(DatasetSources, body, definition.ALLOWED)
    with _refusing(), context.database.begin(tenant) as connection:
        datasets.add(connection, tenant, dataset, asked)
    return _find(context, tenant, dataset)


@router.post("/datasets/{dataset}/sources/remove", response_model=Dataset, openapi_extra=openapi.body(DatasetSources))
def remove_sources(context: ContextDep, tenant: Tenant, dataset: str, body: json_object.Document) -> Any:
    """Takes jobs or labels out. The next version does without their images."""
    asked = json_object.parse(DatasetSources, body, definition.ALLOWED)
    with context.database.begin(tenant) as connection:
        datasets.add(connection, tenant, dataset, asked, remove=True)
    return _find(context, tenant, dataset)


@router.delete("/datasets/{dataset}", response_model=DatasetDeleted)
def delete_dataset(context: ContextDep, tenant: Tenant, dataset: str) -> Any:
    """Deletes the dataset with all its versions; their objects are deleted soon after. Jobs and images stay."""
    with context.database.begin(tenant) as connection:
        datasets.remove(connection, tenant, dataset)
    return DatasetDeleted(name=dataset)


def _check(asked: Definition | DatasetChanges) -> None:
    with _refusing():
        definition.check(asked)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except InvalidSubmission as error:
        first = error.problems[0]
        raise ApiError(422, first.code, first.message, param=first.param) from None


def _find(context: Context, tenant: int, name: str) -> Dataset:
    with context.database.read(tenant) as connection:
        return _shown(dataset_records.find(connection, tenant, name))


def _shown(found: dataset_records.Dataset) -> Dataset:
    return Dataset(
        id=ids.public(dataset_records.PREFIX, found.id),
        name=found.name,
        format=found.format,
        definition=found.definition.model_dump(mode="json", exclude_none=True),
        version=found.version or None,
        created_at=found.created_at,
        updated_at=found.updated_at,
    )
