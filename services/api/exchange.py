"""One request and its answer, as the outermost layer sees them: their id, and what every answer has."""

import re
import time
from typing import Any

import anyio
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from services.core.model import ids

DRAIN_SECONDS = 1.0
DRAIN_BYTES = 8 << 20
SMALL_BYTES = 64 << 10  # a body up to this length that nobody wants is taken, so that the connection can be kept
PIECE = 64 << 10
REQUEST_ID = "X-Request-Id"
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)


class Exchange:
    """`trusted`: the request comes from a trusted proxy, whose X-Request-Id is taken."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, trusted: bool) -> None:
        self.status = 0
        self.method = scope["method"]
        self._scope, self._receive, self._send = scope, receive, send
        self._began = time.monotonic()
        self.first_byte_seconds: float | None = None  # until the answer began
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self.id = given if trusted and _REQUEST_ID.fullmatch(given) else new_id()
        length = headers.get(b"content-length", b"0")
        self._unread = length != b"0" or b"transfer-encoding" in headers
        is_short = length.isdigit() and len(length) <= len(str(SMALL_BYTES)) and int(length) <= SMALL_BYTES
        self._is_small = is_short and b"expect" not in headers  # to read on would ask for what is not wanted

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.first_byte_seconds = time.monotonic() - self._began
            await self._take_small_body()
            self._add_headers(MutableHeaders(scope=message))
        elif self._unread and not message.get("more_body", False):
            await self._send_pieces({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body"}
        await self._send_pieces(message)

    @property
    def seconds(self) -> float:
        """Since the request's head."""
        return time.monotonic() - self._began

    def log_fields(self) -> dict[str, Any]:
        return {
            "method": self._scope["method"],
            "path": self._scope["path"][:200],
            "status": self.status,
            "seconds": round(self.seconds, 4),
        }

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers[REQUEST_ID] = self.id
        headers.update(self._scope.get("state", {}).get("rate_limit", {}))
        for name, value in SECURITY.items():
            headers.setdefault(name, value)
        if self._scope["path"].startswith("/v1/"):
            headers.setdefault("Cache-Control", "no-store")
        if self._unread:
            headers["Connection"] = "close"

    async def _take_small_body(self) -> None:
        """Takes what has arrived of a small body that the route did not read, without waiting for more."""
        taken = 0  # of a body in chunks nobody knows how long it is, and a fast sender is never waited for
        with anyio.move_on_after(0):
            while self._unread and self._is_small and taken <= SMALL_BYTES:
                taken += len((await self.receive()).get("body", b""))

    async def _send_pieces(self, message: Message) -> None:
        """Sends a large body piece by piece: a reader that does not read keeps one of them in memory, not a copy."""
        body = message.get("body", b"")
        last = max(0, len(body) - 1) // PIECE * PIECE
        for start in range(0, last, PIECE):
            await self._send({"type": message["type"], "body": body[start : start + PIECE], "more_body": True})
        await self._send({**message, "body": body[last:]} if last else message)

    async def _drain(self) -> None:
        """Reads on for a moment after an answer that came before the end of the body. If the server closed at once,
        a client that is still sending could see a reset connection instead of the answer."""
        taken = 0
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._unread and taken < DRAIN_BYTES:
                taken += len((await self.receive()).get("body", b""))


def new_id() -> str:
    """A new request id. Ids sort by time."""
    return ids.public("req_", ids.new())
