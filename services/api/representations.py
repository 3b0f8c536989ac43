"""Reads of stored bytes that depend on what the client has already (RFC 9110): ETag with If-None-Match, and Range with
If-Range.

Stored bytes never change, so their sha256 is a strong validator, and a copy is valid for as long as the thing exists.
"""

import re

from fastapi import Request
from starlette.responses import Response

from services.api.errors import ApiError

_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.ASCII | re.IGNORECASE)


def headers(sha256: str) -> dict[str, str]:
    """A cache may keep the bytes, and asks each time whether they still exist."""
    return {"ETag": _tag(sha256), "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}


def unchanged(request: Request, sha256: str) -> Response | None:
    """A 304 if the client has these bytes already, by If-None-Match."""
    given = [tag.strip() for value in request.headers.getlist("if-none-match") for tag in value.split(",")]
    if not any(tag == "*" or tag.removeprefix("W/") == _tag(sha256) for tag in given):
        return None
    return Response(status_code=304, headers=headers(sha256))


def part(request: Request, sha256: str, size: int) -> tuple[int, int] | None:
    """The first and last byte that Range asks for; None for all of them, also if it asks for several ranges.

    Raises:
        ApiError: 416, the range begins behind the end.
    """
    given = _RANGE.fullmatch(request.headers.get("range", ""))
    condition = request.headers.get("if-range")
    if given is None or request.state.is_head or size == 0 or condition not in (None, _tag(sha256)):
        return None
    first, last = given.groups()
    if not first and not last:
        return None
    if not first:
        first, last = str(max(0, size - int(last))), ""
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        message = f"The range begins at byte {int(first):,}; there are {size:,}."
        raise ApiError(416, "range_not_satisfiable", message, headers={"Content-Range": f"bytes */{size}"})
    return int(first), min(int(last or size), size - 1)


def _tag(sha256: str) -> str:
    return f'"{sha256}"'
