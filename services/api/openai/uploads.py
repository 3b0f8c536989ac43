"""Uploads of the OpenAI-shaped API: a large file in parts, sent concurrently and in any order."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from services.api.authentication import Tenant
from services.api.body import multipart
from services.api.body.multipart import Form
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.openai import bodies, files, schemas
from services.api.openai.bodies import Document
from services.api.turns import OpenAIRoute
from services.core.crash_points import crash_point
from services.core.files import files as core_files
from services.core.files import uploads
from services.core.model import ids
from services.core.model.errors import Conflict, NotAdmitted, NotFound
from services.core.tenants import admission

router = APIRouter(route_class=OpenAIRoute)
PART_LIMIT = 64 << 20
_PARTS = 10_000


class ExpiresAfter(Document):
    """When a file expires, counted from its creation."""

    anchor: Annotated[Literal["created_at"], Field(description='"created_at"')]
    seconds: Annotated[int, Field(ge=files.EXPIRY.start, le=files.EXPIRY.stop - 1)]


EXPIRES_AFTER = (
    f'an object with anchor "created_at" and seconds from {files.EXPIRY.start:,} to {files.EXPIRY.stop - 1:,}'
)


class NewUpload(Document):
    filename: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$",
                                   description="text of 1 to 255 characters")]  # fmt: skip
    purpose: Annotated[Literal["batch"], Field(description='"batch"')]
    bytes: Annotated[int, Field(ge=1, description="the size of the whole file in bytes")]
    mime_type: Annotated[str, Field(min_length=1, max_length=100, pattern="^[ -~]+$", description="a media type")]
    expires_after: Annotated[ExpiresAfter | None, Field(description=EXPIRES_AFTER)] = None


class Completion(Document):
    part_ids: Annotated[list[str], Field(min_length=1, max_length=_PARTS, description="the ids of all parts, in order")]
    md5: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{32}$", description="32 hexadecimal digits")] = None


_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["data"],
                "properties": {"data": {"type": "string", "format": "binary"}},
            }
        }
    },
}


@router.post("/uploads", response_model=schemas.Upload, openapi_extra={"requestBody": bodies.schema(NewUpload)})
async def create_upload(request: Request, context: ContextDep, tenant: Tenant) -> Any:
    """Begins an upload of that many bytes. Its parts are accepted for an hour."""
    asked = await bodies.read(request, context.settings, NewUpload)
    if asked.bytes > context.settings.max_file_bytes:
        raise ApiError(
            400, "file_too_long", f"bytes is {asked.bytes}; a file has at most {context.settings.max_file_bytes:,}.",
            param="bytes",
        )  # fmt: skip
    return await context.requests.run(tenant, _create, context, tenant, asked)


@router.post("/uploads/{upload_id}/parts", response_model=schemas.UploadPart, openapi_extra={"requestBody": _FORM})
async def add_part(request: Request, context: ContextDep, tenant: Tenant, upload_id: str) -> Any:
    """Stores one part of up to 64 MiB. Bytes that were sent before get the same id, so a part can be sent again."""
    number = uploads.parse_id(upload_id)
    async with multipart.received(request, "data", PART_LIMIT) as form:
        return await context.transfers.run(tenant, _add_part, context, tenant, number, form)


@router.post(
    "/uploads/{upload_id}/complete",
    response_model=schemas.Upload,
    openapi_extra={"requestBody": bodies.schema(Completion)},
)
async def complete_upload(request: Request, context: ContextDep, tenant: Tenant, upload_id: str) -> Any:
    """Joins the parts to a file, in the order of this list."""
    number = uploads.parse_id(upload_id)
    asked = await bodies.read(request, context.settings, Completion)
    return await context.transfers.run(tenant, _complete, context, tenant, number, asked)


@router.post("/uploads/{upload_id}/cancel", response_model=schemas.Upload)
def cancel_upload(context: ContextDep, tenant: Tenant, upload_id: str) -> Any:
    """Cancels the upload: no more parts are accepted."""
    with context.database.begin(tenant) as connection:
        return schemas.upload(uploads.cancel(connection, tenant, uploads.parse_id(upload_id)), None)


def _create(context: Context, tenant: int, asked: NewUpload) -> schemas.Upload:
    with context.database.begin(tenant) as connection:
        found = uploads.create(
            connection, tenant, purpose=asked.purpose, filename=asked.filename, size=asked.bytes,
            file_expires_seconds=None if asked.expires_after is None else asked.expires_after.seconds,
        )  # fmt: skip
    return schemas.upload(found, None)


def _add_part(context: Context, tenant: int, upload_id: int, form: Form) -> schemas.UploadPart:
    """Puts the object, then records it. If the process dies between the two, an object without a row is left."""
    if form.fields:
        raise ApiError(400, "unknown_field", "The form has the field data and no other.", param=next(iter(form.fields)))
    with context.database.begin(tenant) as connection:
        uploads.find(connection, tenant, upload_id)
        admission.look(connection, tenant, spooled=form.size)
    part, sha256 = ids.new(), files.digest(form.file)
    key = context.store.key(uploads.part_name(tenant, upload_id, part))
    context.store.put_file(key, form.file, "application/octet-stream")
    crash_point("part.stored")
    try:
        with context.database.begin(tenant) as connection:
            kept = uploads.add_part(connection, tenant, upload_id, part=part, size=form.size, sha256=sha256, key=key)
    except (uploads.InvalidParts, Conflict, NotAdmitted) as error:
        context.store.drop(key)
        if not isinstance(error, uploads.InvalidParts):
            raise
        raise ApiError(400, "parts_unfit", str(error)) from None
    crash_point("part.recorded")
    if kept != part:
        context.store.drop(key)
    return schemas.UploadPart(
        id=uploads.part_id(kept), created_at=ids.epoch(kept), upload_id=uploads.public_id(upload_id)
    )


def _complete(context: Context, tenant: int, upload_id: int, asked: Completion) -> schemas.Upload:
    try:
        found = uploads.complete(
            context.database, context.store, tenant, upload_id, parts=asked.part_ids, md5=asked.md5
        )
    except uploads.InvalidParts as error:
        raise ApiError(400, "parts_unfit", str(error)) from None
    crash_point("upload.completed")
    made = None
    if found.file_id is not None:
        with context.database.read(tenant) as connection:
            try:
                made = core_files.find(connection, tenant, found.file_id)
            except NotFound:  # completed before, and its file deleted since
                made = None
    return schemas.upload(found, made)
