"""Files of the OpenAI-shaped API: upload, list, read, delete."""

import hashlib
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import StreamingResponse

from services.api import parameters, stored
from services.api.authentication import Tenant
from services.api.body import multipart, streaming
from services.api.body.multipart import Form
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.openai import schemas
from services.api.stored import Stored
from services.api.turns import OpenAIRoute
from services.core.crash_points import crash_point
from services.core.files import files, pictures
from services.core.files.files import File
from services.core.files.pictures import InvalidPicture
from services.core.jobs import idempotency
from services.core.model import file_names, ids
from services.core.model.errors import IdempotencyBusy, IdempotencyConflict, IdempotencyGone, NotAdmitted, NotFound
from services.core.tenants import admission

router = APIRouter(route_class=OpenAIRoute)
EXPIRY = range(3600, 2_592_001)
PURPOSES = ("batch", "vision")  # of files of requests, and of input pictures
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "Requests, one a line, as JSON; or a picture.",
                    },
                    "purpose": {"type": "string", "enum": list(PURPOSES)},
                    "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                    "expires_after[seconds]": {"type": "integer", "minimum": EXPIRY.start, "maximum": EXPIRY.stop - 1},
                },
            }
        }
    },
}

Order = Annotated[Literal["asc", "desc"], Query(description="asc or desc")]
Purpose = Annotated[str | None, Query(max_length=40, description="batch, batch_output or vision")]


@router.post("/files", response_model=schemas.File, openapi_extra={"requestBody": _FORM})
async def create_file(request: Request, context: ContextDep, tenant: Tenant) -> Any:
    """Stores a file of requests (purpose `batch`), or a PNG, JPEG or WebP for requests to draw from (`vision`)."""
    key = streaming.idempotency_key(request)
    async with multipart.received(request, "file", context.settings.max_file_bytes) as form:
        expires = _expiry(form.fields)
        purpose = form.fields["purpose"]
        return await context.transfers.run(tenant, store, context, tenant, form, purpose, expires, key)


@router.get("/files", response_model=schemas.FileList)
def list_files(
    context: ContextDep, tenant: Tenant, limit: parameters.FileLimit = 10_000, after: parameters.AfterId = None,
    order: Order = "desc",
    purpose: Purpose = None,
) -> Any:  # fmt: skip
    """The tenant's files, newest first unless asked otherwise."""
    number = parameters.after_id(after, files.parse_id)
    with context.database.read(tenant) as connection:
        found = files.page(
            connection, tenant, after=number, limit=limit + 1, newest_first=order == "desc", purpose=purpose
        )
    data = [schemas.file(entry) for entry in found[:limit]]
    return schemas.FileList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.get("/files/{file_id}", response_model=schemas.File)
def show_file(context: ContextDep, tenant: Tenant, file_id: str) -> Any:
    """One file."""
    return schemas.file(_find(context, tenant, files.parse_id(file_id)))


@router.get(
    "/files/{file_id}/content",
    response_class=StreamingResponse,
    responses={
        206: {"description": "The part that Range asks for."},
        304: {"description": "The client has it: If-None-Match names it."},
    },
)
async def read_file(request: Request, context: ContextDep, tenant: Tenant, file_id: str) -> Any:
    """The file's bytes, or a range of them."""
    found = await context.requests.run(tenant, _find, context, tenant, files.parse_id(file_id))
    headers = {"Content-Disposition": file_names.attachment(found.filename)}
    return await stored.answer(
        request, context, tenant, Stored(found.object_key, found.sha256.hex(), found.bytes), headers
    )


@router.delete("/files/{file_id}", response_model=schemas.FileDeleted)
def delete_file(context: ContextDep, tenant: Tenant, file_id: str) -> Any:
    """Deletes a file. Jobs that were made from it go on. A file that a catalogue reads, or that an unfinished job draws
    from, is kept: 409."""
    with context.database.begin(tenant) as connection:
        files.delete(connection, tenant, files.parse_id(file_id))
    return schemas.FileDeleted(id=file_id)


def _check_purpose(purpose: object) -> None:
    if purpose not in PURPOSES:
        rule = 'purpose must be "batch", for a file of requests, or "vision", for a picture.'
        raise ApiError(400, "invalid_value", rule, param="purpose")


def _expiry(fields: dict[str, str]) -> int | None:
    """Seconds from now, or None for a file that does not expire. Raises ApiError for a wrong or unknown field."""
    _check_purpose(fields.get("purpose"))
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if unknown := fields.keys() - {"purpose", "expires_after[anchor]", "expires_after[seconds]"}:
        raise ApiError(400, "unknown_field", "The form has a field that is not known.", param=min(unknown)[:80])
    if anchor is None and seconds is None:
        return None
    is_number = seconds is not None and parameters.is_whole(seconds)
    if anchor != "created_at" or not is_number or int(seconds or 0) not in EXPIRY:
        allowed = f"anchor created_at, and seconds from {EXPIRY.start:,} to {EXPIRY.stop - 1:,}"
        raise ApiError(400, "invalid_value", f"expires_after must have {allowed}.", param="expires_after")
    return int(seconds or 0)


def _media_type(context: Context, form: Form, purpose: str) -> str:
    """What the form's file is. Raises ApiError if it is to be a picture and is none."""
    settings = context.settings
    if purpose != "vision":
        return "application/jsonl"
    try:
        return pictures.check(form.file, settings.max_input_bytes, settings.max_input_pixels)
    except InvalidPicture as error:
        raise ApiError(400, "invalid_image", str(error), param="file") from None


def store(
    context: Context, tenant: int, form: Form, purpose: str, expires: int | None, key: str | None
) -> schemas.File:
    """Puts the object, then records it. If the process dies between the two, an object without a row is left."""
    media_type = _media_type(context, form, purpose)
    number, sha256 = ids.new(), digest(form.file)
    if key is None:  # with a key it may be here already
        with context.database.begin(tenant) as connection:
            admission.look(connection, tenant, spooled=form.size)
    object_key = context.store.key(files.object_name(tenant, number))
    context.store.put_file(object_key, form.file, media_type)
    crash_point("file.stored")
    known = None
    try:
        with context.database.begin(tenant) as connection:
            if key is not None:
                words = (sha256, form.filename, expires, *([purpose] if purpose != "batch" else []))
                asked = hashlib.sha256(repr(words).encode()).digest()
                known = idempotency.remember(connection, tenant, key, sha256=asked, thing=number, kind="file")
            if known is None:
                files.record(
                    connection, number, tenant_id=tenant, purpose=purpose, filename=form.filename, size=form.size,
                    sha256=sha256, key=object_key, expires_seconds=expires,
                )  # fmt: skip
            found = files.find(connection, tenant, number if known is None else known)
    except (
        IdempotencyConflict,
        IdempotencyGone,
        IdempotencyBusy,
        NotFound,
        NotAdmitted,
    ):  # of anything else it is not known what was committed
        context.store.drop(object_key)
        raise
    crash_point("file.committed")
    if known is not None:
        context.store.drop(object_key)
    return schemas.file(found)


def digest(file: IO[bytes]) -> bytes:
    """The sha256 of the file, which is rewound."""
    found = hashlib.sha256()
    while chunk := file.read(1 << 20):
        found.update(chunk)
    file.seek(0)
    return found.digest()


def _find(context: Context, tenant: int, file_id: int) -> File:
    with context.database.read(tenant) as connection:
        return files.find(connection, tenant, file_id)
