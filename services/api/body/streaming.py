"""Reads a submission's body into a spooled temporary file, within limits on its length and on its lines.

A small body stays in memory and a larger one goes to disk, so the memory does not grow with the body.
"""

import logging
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import IO

import anyio
from fastapi import Request

from services.api.errors import RETRY_SECONDS, ApiError, SubmissionError
from services.core.files import pictures
from services.core.model.errors import InvalidSubmission, Problem
from services.core.settings import Settings

log = logging.getLogger(__name__)
JSON_LIMIT = 32 << 20
LINE_LIMIT = 64 << 10
MIN_RATE = 1 << 10  # bytes a second, once a body was waited for as long as for one chunk of it
_SPOOL_MEMORY = 1 << 20
_WRITE_BYTES = 1 << 20


class Format(StrEnum):
    JSON = "application/json"
    NDJSON = "application/x-ndjson"


# No name for one JSON object a line is registered, so each that is in use is taken.
_LINES = ("ndjson", "x-ndjson", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "json-lines", "x-json-lines")
_FORMATS = {Format.JSON: Format.JSON} | {f"application/{name}": Format.NDJSON for name in _LINES}


def body_format(request: Request) -> Format:
    """Raises ApiError with 415 for any other type, and for any content encoding."""
    if request.headers.getlist("content-encoding"):
        raise ApiError(415, "unsupported_encoding", "The body must be sent as it is, without a Content-Encoding.")
    given = request.headers.getlist("content-type")
    media, *parameters = [part.strip().lower() for part in given[0].split(";")] if len(given) == 1 else [""]
    charsets = {part.removeprefix("charset=").strip('"') for part in parameters if part.startswith("charset=")}
    if media not in _FORMATS or not charsets <= {"utf-8", "utf8"}:
        raise ApiError(
            415, "unsupported_media_type",
            "Content-Type must be application/json, or application/x-ndjson or application/jsonl for one object a "
            "line, in UTF-8.",
        )  # fmt: skip
    return _FORMATS[media]


def idempotency_key(request: Request) -> str | None:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = given[0]
    if len(given) > 1 or not 1 <= len(key) <= 255 or not all("!" <= letter <= "~" for letter in key):
        raise ApiError(
            400, "invalid_idempotency_key", "Idempotency-Key must be given once: 1 to 255 visible ASCII characters."
        )
    return key


@asynccontextmanager
async def received(
    request: Request, settings: Settings, form: Format, max_bytes: int | None = None
) -> AsyncIterator[IO[bytes]]:
    """The whole body in a spooled temporary file, rewound. `max_bytes` replaces the settings' limit.

    Raises:
        ApiError: the body is too long (413) or too slow (408), or the disk is full (503).
        SubmissionError: a line is too long, or there are more lines than a job may have images.
        ClientDisconnect: the client closed the connection.
    """
    limit = max_bytes or (
        settings.max_body_bytes if form is Format.NDJSON else min(JSON_LIMIT, settings.max_body_bytes)
    )
    check_length(request, limit)
    meter = LineMeter(settings.max_images_per_job) if form is Format.NDJSON else None
    with tempfile.SpooledTemporaryFile(_SPOOL_MEMORY) as spool:
        taken, waiting = 0, bytearray()
        async for chunk in chunks(request):
            taken += len(chunk)
            if taken > limit:
                raise too_long(limit)
            if meter is not None:
                meter.feed(chunk)
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                await _write(spool, waiting)
                waiting = bytearray()
        await _write(spool, waiting)
        spool.seek(0)
        yield spool


def lines(spool: IO[bytes]) -> Iterator[bytes]:
    """The lines without their line ends. LineMeter has refused any that is longer than LINE_LIMIT."""
    for line in spool:
        yield line.rstrip(b"\r\n")


@dataclass(slots=True)
class LineMeter:
    """Counts and measures lines while the body arrives in chunks. Raises SubmissionError past a limit."""

    max_lines: int
    number: int = 1  # of the current line
    length: int = field(default=0)  # of the current line, so far
    begin: bytes = b""  # of the current line

    def feed(self, chunk: bytes) -> None:
        ends = chunk.count(b"\n")
        if not ends:
            self.length += len(chunk)
            self.begin = (self.begin + chunk)[:LINE_LIMIT] if len(self.begin) < LINE_LIMIT else self.begin
        elif len(chunk) + self.length <= LINE_LIMIT:
            self.number += ends
            self._go_to(chunk[chunk.rfind(b"\n") + 1 :])
        else:
            self._walk(chunk)
        if self.length > LINE_LIMIT:
            self._refuse()
        if self.number - 1 > self.max_lines:
            problem = Problem(
                "too_many_images",
                f"A job has at most {self.max_lines:,} images; submit it in parts.",
                None,
                self.number,
            )
            raise SubmissionError(InvalidSubmission([problem]), "line")

    def _walk(self, chunk: bytes) -> None:
        first, *others = chunk.split(b"\n")
        self.length += len(first)
        self.begin += first[:LINE_LIMIT]
        for line in others:
            if self.length > LINE_LIMIT:
                self._refuse()
            self.number += 1
            self._go_to(line)

    def _go_to(self, line: bytes) -> None:
        self.length, self.begin = len(line), line[:LINE_LIMIT]

    def _refuse(self) -> None:
        problem = Problem(
            "line_too_long",
            f"The line is longer than {LINE_LIMIT:,} bytes, the limit for a line{pictures.instead(self.begin)}.",
            None,
            self.number,
        )
        raise SubmissionError(InvalidSubmission([problem]), "line", status=413)


def check_length(request: Request, limit: int) -> None:
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise too_long(limit)


def too_long(limit: int) -> ApiError:
    return ApiError(413, "body_too_long", f"The body is longer than {limit:,} bytes; submit it in parts.")


def out_of_space(error: OSError) -> ApiError:
    log.error("spool failed", extra={"error": str(error)})
    headers = {"Retry-After": RETRY_SECONDS}
    return ApiError(503, "no_room", "There is no space for the body right now; try again.", headers=headers)


async def chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises ApiError if nothing more comes for PRESSWORK_BODY_SECONDS, or next to nothing."""
    patience = request.app.state.context.settings.body_seconds
    stream = aiter(request.stream())
    waited, taken = 0.0, 0
    while True:
        began = time.monotonic()
        try:
            with anyio.fail_after(patience):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise ApiError(408, "body_too_slow", f"Nothing came for {patience:g} seconds.") from None
        if chunk is None:
            return
        waited += time.monotonic() - began
        taken += len(chunk)
        if waited > patience and taken < waited * MIN_RATE:
            raise ApiError(408, "body_too_slow", f"Fewer than {MIN_RATE:,} bytes came in a second.")
        yield chunk


async def _write(spool: IO[bytes], data: bytearray) -> None:
    try:
        await anyio.to_thread.run_sync(spool.write, data)
    except OSError as error:
        raise out_of_space(error) from None
