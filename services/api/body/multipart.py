"""Reading a multipart form with one file in it: streamed to disk, never more than the limits allow."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from services.api.body import streaming
from services.api.errors import ApiError

_ROOM = 64 << 10  # for everything around the file
_MAX_FIELDS = 8
_NAME = 255


@dataclass(frozen=True, slots=True)
class Form:
    """`size` of the file in bytes. `filename` is as its sender named it, without a path."""

    fields: dict[str, str]
    file: IO[bytes]
    filename: str
    size: int


@asynccontextmanager
async def received(request: Request, file_field: str, limit: int) -> AsyncIterator[Form]:
    """The form, with its file on a spool, rewound.

    Raises:
        ApiError: it is no such form (400, 415), too long (413), or came too slowly (408).
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "unsupported_media_type", "Content-Type must be multipart/form-data.")
    if request.headers.getlist("content-encoding"):
        raise ApiError(415, "unsupported_encoding", "The body must be sent as it is, without a Content-Encoding.")
    streaming.check_length(request, limit + _ROOM)
    parser = MultiPartParser(
        request.headers, _limited(request, limit + _ROOM), max_files=1, max_fields=_MAX_FIELDS, max_part_size=_ROOM
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(400, "invalid_form", f"The form cannot be read: {error.message}"[:200]) from None
    except OSError as error:
        raise streaming.no_room(error) from None
    except (KeyError, ValueError):
        raise ApiError(400, "invalid_form", "The form cannot be read.") from None
    try:
        yield _checked(form.multi_items(), file_field, limit)
    finally:
        await form.close()


async def _limited(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    taken = 0
    async for chunk in streaming.chunks(request):
        taken += len(chunk)
        if taken > limit:
            raise streaming.too_long(limit)
        yield chunk
    yield b""


def _checked(items: list[tuple[str, UploadFile | str]], file_field: str, limit: int) -> Form:
    fields: dict[str, str] = {}
    file: UploadFile | None = None
    for name, value in items:
        if name in fields or (name == file_field and file is not None):
            raise ApiError(400, "repeated_field", "A field of the form is given twice.", param=name[:80])
        if isinstance(value, UploadFile) and name == file_field:
            file = value
        elif isinstance(value, str) and name != file_field:
            fields[name] = value
        else:
            kind = "a file" if isinstance(value, str) else "no file"
            raise ApiError(400, "invalid_form", f"This field of the form must be {kind}.", param=name[:80])
    if file is None:
        raise ApiError(
            400, "missing_field", f"The form has no file; it must be the field {file_field}.", param=file_field
        )
    size = file.size or 0
    if size > limit:
        raise streaming.too_long(limit)
    filename = (file.filename or "").replace("\\", "/").rpartition("/")[2]
    printable = "".join(letter for letter in filename if letter.isprintable())[:_NAME]
    return Form(fields, file.file, printable or "file", size)
