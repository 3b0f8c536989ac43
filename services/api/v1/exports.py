"""Creates, shows, lists, cancels and deletes exports. A background task of the scheduler writes them."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from services.api import dependencies, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object, streaming
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.crash_points import crash_point
from services.core.exports import exports, options, records
from services.core.model import ids
from services.core.model.errors import InvalidSubmission
from services.core.storage import signed_urls

router = APIRouter(route_class=TenantRoute)
_PAST_THE_NEWEST = 2**63 - 1
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "Names this export. If it is sent again with the same body, the answer is the first export.",
}


class ExportCounts(BaseModel):
    total: int
    done: int


class Export(BaseModel):
    """`bytes` have been stored so far. The files are deleted at `expires_at`."""

    id: str
    object: Literal["export"] = "export"
    job_id: str
    format: str
    options: options.Options
    status: str
    counts: ExportCounts
    bytes: int
    created_at: schemas.Moment
    finished_at: schemas.Moment | None
    expires_at: schemas.Moment | None
    error: str | None


class ExportPage(BaseModel):
    data: list[Export]
    next_cursor: str | None


class ExportFile(BaseModel):
    """`url` is signed and valid as long as the export: it needs no key, and redirects to the store."""

    path: str
    bytes: int
    sha256: str
    images: int
    url: str


class ExportFilePage(BaseModel):
    data: list[ExportFile]
    next_cursor: str | None


@router.post(
    "/jobs/{job_id}/exports",
    status_code=202,
    response_model=Export,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": options.ExportRequest.model_json_schema()}},
        },
        "parameters": [_KEY],
    },
)
def create_export(
    request: Request, response: Response, context: ContextDep, tenant: Tenant, job_id: str, body: json_object.Small
) -> Any:
    """Creates an export of a finished job's images; it is committed when this answers."""
    number = ids.parse_job(job_id)
    key = streaming.idempotency_key(request)
    order = _order(body)
    base_url = dependencies.base_url(context.settings, request)
    with context.database.begin(tenant) as connection:
        export_id, replayed = exports.create(connection, tenant, number, order, base_url=base_url, key=key)
        found = records.find(connection, tenant, export_id)
    crash_point("export.ordered")
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    response.headers.update(dependencies.location(context, request, f"/v1/exports/{records.public_id(export_id)}"))
    return _shown(found)


@router.get("/jobs/{job_id}/exports", response_model=ExportPage)
def list_exports(
    context: ContextDep, tenant: Tenant, job_id: str, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The job's exports, newest first."""
    number = ids.parse_job(job_id)
    listing = f"exports/{tenant}/{number}"
    before = _PAST_THE_NEWEST if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = records.of_job(connection, tenant, number, before=before, limit=limit + 1)
    more = (
        pagination.encode_cursor(context.settings.secret, listing, found[limit - 1].id) if len(found) > limit else None
    )
    return ExportPage(data=[_shown(export) for export in found[:limit]], next_cursor=more)


@router.get("/exports/{export_id}", response_model=Export)
def show_export(context: ContextDep, tenant: Tenant, export_id: str) -> Any:
    """One export with its progress."""
    return _shown(_find(context, tenant, export_id))


@router.get("/exports/{export_id}/files", response_model=ExportFilePage)
def list_export_files(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    export_id: str,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The files of a completed export by path, each with a signed URL."""
    export = _find(context, tenant, export_id)
    if export.state != "completed":
        raise ApiError(409, "export_not_completed", f"The export is {export.state}; it has files once it is completed.")
    listing = f"export_files/{tenant}/{export.id}"
    after = "" if cursor is None else pagination.decode_name(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = records.files(connection, export.id, after=after, limit=limit + 1)
    more = None
    if len(found) > limit:
        more = pagination.encode_name(context.settings.secret, listing, found[limit - 1].path)
    base = dependencies.base_url(context.settings, request)
    return ExportFilePage(data=[_file(context, base, export.id, file) for file in found[:limit]], next_cursor=more)


@router.post("/exports/{export_id}/cancel", response_model=Export)
def cancel_export(context: ContextDep, tenant: Tenant, export_id: str) -> Any:
    """Stops an export and deletes what it stored. Repeating this is not an error."""
    number = records.parse_id(export_id)
    with context.database.begin(tenant) as connection:
        exports.cancel(connection, tenant, number)
    return _shown(_find(context, tenant, export_id))


@router.delete("/exports/{export_id}", status_code=204, response_class=Response)
def delete_export(context: ContextDep, tenant: Tenant, export_id: str) -> Response:
    """Deletes the export; its objects are deleted soon after. The job and its images stay."""
    number = records.parse_id(export_id)
    with context.database.begin(tenant) as connection:
        exports.remove(connection, tenant, number)
    return Response(status_code=204)


def _order(body: bytes) -> options.ExportRequest:
    try:
        return options.parse(json_object.read(body, "format"))
    except InvalidSubmission as error:
        first = error.problems[0]
        raise ApiError(422, first.code, first.message, param=first.param) from None


def _find(context: Context, tenant: int, export_id: str) -> records.Export:
    number = records.parse_id(export_id)
    with context.database.read(tenant) as connection:
        return records.find(connection, tenant, number)


def _shown(export: records.Export) -> Export:
    return Export(
        id=records.public_id(export.id),
        job_id=ids.public_job(export.job_id),
        format=export.format,
        options=export.options,
        status=export.state,
        counts=ExportCounts(total=export.images_total, done=export.images_done),
        bytes=export.bytes,
        created_at=export.created_at,
        finished_at=export.finished_at,
        expires_at=export.expires_at,
        error=export.error,
    )


def _file(context: Context, base_url: str, number: int, file: records.File) -> ExportFile:
    url = signed_urls.export_file_url(base_url, context.settings.secret, number, records.public_id(number), file.path)
    return ExportFile(path=file.path, bytes=file.bytes, sha256=file.sha256.hex(), images=file.images, url=url)
