"""Forms: their bodies, read with a limit, and the token that shows that a page of ours made them.

A token is the HMAC of a cookie that only this server and the browser know. Another site can make the browser send the
cookie, but it cannot read it.
"""

import hmac
from typing import Annotated
from urllib.parse import parse_qsl

from fastapi import Depends, Request

from services.api.errors import ApiError

FIELD = "csrf"
_MOST_BYTES = 64 << 10
_MOST_FIELDS = 100
Form = dict[str, str]


def token(cookie: str) -> str:
    return hmac.digest(cookie.encode("utf-8", "replace"), b"presswork form", "sha256").hex()


def check(form: Form, cookie: str) -> None:
    """Raises ApiError: 403, no page of ours that this browser was shown has made the form."""
    if not cookie or not hmac.compare_digest(form.get(FIELD, "").encode(), token(cookie).encode()):
        raise ApiError(403, "stale_form", "This form is out of date: go back, load the page again, and send it again.")


async def read(request: Request, most_bytes: int = _MOST_BYTES) -> Form:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            raise ApiError(413, "body_too_long", f"A form may have up to {most_bytes:,} bytes.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise ApiError(400, "invalid_form", "The form cannot be read: it must be URL-encoded UTF-8.") from None


async def _posted(request: Request) -> Form:
    return await read(request)


Posted = Annotated[Form, Depends(_posted)]
