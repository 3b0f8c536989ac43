"""Answers with the bytes of an object in the store: all of them or a part, unless the client has them already.

The bytes are passed on chunk by chunk, each read in a slot of the tenant, which is free while the client receives it.
"""

import itertools
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass

from fastapi import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from services.api import representations
from services.api.dependencies import Context
from services.api.errors import ApiError
from services.api.slots import Tenant
from services.core.model.errors import ObjectMissing


@dataclass(frozen=True, slots=True)
class Stored:
    """An object whose bytes never change."""

    object_key: str
    sha256: str
    bytes: int
    media_type: str = "application/octet-stream"


async def answer(
    request: Request, context: Context, tenant: Tenant, found: Stored, headers: Mapping[str, str]
) -> Response:
    """The object, or what the request's conditions make of it. `headers` come to the usual ones, and before them.

    Raises:
        ApiError: 416, or 410 if the object is not in the store any more.
    """
    if (unchanged := representations.unchanged(request, found.sha256)) is not None:
        unchanged.headers.update(headers)
        return unchanged
    part = representations.part(request, found.sha256, found.bytes)
    head = representations.headers(found.sha256) | dict(headers)
    if request.state.is_head:
        return Response(headers=head | {"Content-Length": str(found.bytes)}, media_type=found.media_type)
    first, last = part or (0, found.bytes - 1)
    head["Content-Length"] = str(last - first + 1)
    if part is not None:
        head["Content-Range"] = f"bytes {first}-{last}/{found.bytes}"
    begin, chunks = await context.transfers.run(tenant, _open, context, found, part)
    body = _in_turns(context, tenant, itertools.chain((begin,), chunks))
    return ClosedStream(body, chunks, head, 200 if part is None else 206, found.media_type)


class ClosedStream(StreamingResponse):
    """Closes what it is read from however the answer ends: left to garbage collection, a connection stays open."""

    def __init__(
        self, body: AsyncIterator[bytes], source: Iterator[bytes], headers: dict[str, str], status: int, media: str
    ) -> None:
        super().__init__(body, status, media_type=media, headers=headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if isinstance(self._source, Generator):
                self._source.close()


def _open(context: Context, found: Stored, part: tuple[int, int] | None) -> tuple[bytes, Iterator[bytes]]:
    """The first chunk and the others. One is read now, so that an object that cannot be read is an error answer."""
    try:
        chunks = context.store.stream(found.object_key, part)
        return next(chunks, b""), chunks
    except ObjectMissing:
        raise ApiError(410, "file_gone", "The file is not in the object store any more.") from None


async def _in_turns(context: Context, tenant: Tenant, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await context.transfers.run(tenant, _next, chunks, patient=True):
        yield chunk


def _next(chunks: Iterator[bytes]) -> bytes:
    return next(chunks, b"")
