"""Reads a multipart form with one file. The file is streamed to disk and its size is limited."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from services.api.body import streaming
from services.api.errors import ApiError

OVERHEAD_BYTES = 64 << 10  # the form without its file
_MAX_FIELDS = 8
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Form:
    """`size` is the file's, in bytes. `filename` is the sender's, without a path."""

    fields: dict[str, str]
    file: IO[bytes]
    filename: str
    size: int


@asynccontextmanager
async def received(
    request: Request, file_field: str, limit: int, most_fields: int = _MAX_FIELDS, most_files: int = 1,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Form]:  # fmt: skip
    """The form. Its file lies in a spooled temporary file, rewound. `file_field` may also be a list of one file.
    `refused`: fields that nobody may send, each with the reason.

    Raises:
        ApiError: the body is not such a form (400, 415), too long (413), or too slow (408); or the disk is full (503).
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "unsupported_media_type", "Content-Type must be multipart/form-data.")
    if request.headers.getlist("content-encoding"):
        raise ApiError(415, "unsupported_encoding", "The body must be sent as it is, without a Content-Encoding.")
    streaming.check_length(request, limit + OVERHEAD_BYTES)
    parser = MultiPartParser(
        request.headers,
        _limited(request, limit + OVERHEAD_BYTES),
        max_files=most_files,
        max_fields=most_fields,
        max_part_size=OVERHEAD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException:
        message = f"The form cannot be read; it may have one file and {most_fields} short fields."
        raise ApiError(400, "invalid_form", message) from None
    except OSError as error:
        raise streaming.out_of_space(error) from None
    except (KeyError, ValueError):
        raise ApiError(400, "invalid_form", "The form cannot be read.") from None
    try:
        yield _checked(form.multi_items(), file_field, limit, refused)
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


def _checked(
    items: list[tuple[str, UploadFile | str]], file_field: str, limit: int, refused: Mapping[str, str]
) -> Form:
    fields: dict[str, str] = {}
    file: UploadFile | None = None
    for given, value in items:
        name = file_field if given == f"{file_field}[]" else given
        if name in refused:
            raise ApiError(400, "unsupported_field", refused[name], param=name)
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
    printable = "".join(letter for letter in filename if letter.isprintable())[:_MAX_NAME]
    return Form(fields, file.file, printable or "file", size)
