"""The outermost layer: security headers, one log line per request, and the answer to unexpected exceptions."""

import logging
import time
from typing import Any

import anyio
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api import addresses
from services.api.admission import Admission
from services.api.errors import envelope
from services.core.settings import Settings

log = logging.getLogger(__name__)
DRAIN_SECONDS = 1.0
DRAIN_BYTES = 8 << 20
PIECE = 64 << 10
HEADERS = 100
HEAD_BYTES = 32 << 10
MONITORING = frozenset({"/livez", "/readyz", "/metrics"})
CLIENT_DISCONNECTED = 499  # in the log only: nobody receives it

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class RequestMiddleware:
    def __init__(self, app: ASGIApp, settings: Settings, admission: Admission) -> None:
        self._app, self._settings, self._admission = app, settings, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer = scope["client"]
        addresses.believe_proxies(self._settings, scope)
        exchange = Exchange(scope, receive, send)
        try:
            await (_bad_head(scope) or self._bad_host(scope) or self._app)(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_DISCONNECTED
        except Exception:
            log.exception("request failed")
            if not exchange.status:
                answer = envelope(500, "internal_error", "Something went wrong in the server; it has been logged.")
                await answer(scope, exchange.receive, exchange.send)
        finally:
            if peer is not None and scope.get("state", {}).get("authenticated"):
                self._admission.remember(peer[0])
            exchange.write_log()

    def _bad_host(self, scope: Scope) -> ASGIApp | None:
        """The answer to a host that is not ours. What watches this process asks by its bare address."""
        if scope["path"] in MONITORING or addresses.is_served(self._settings, scope):
            return None
        return envelope(421, "unknown_host", "This server does not serve the host that the request names.")


def _bad_head(scope: Scope) -> ASGIApp | None:
    """The answer to a request head that h11 accepts and we refuse: too large, or with two body lengths."""
    names = [name for name, _ in scope["headers"]]
    if len(names) > HEADERS or sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
        return envelope(431, "head_too_long", f"Up to {HEADERS} headers and {HEAD_BYTES:,} bytes of them are taken.")
    if b"content-length" in names and b"transfer-encoding" in names:
        return envelope(400, "two_lengths", "Content-Length and Transfer-Encoding exclude each other.")
    return None


class Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.status = 0
        self._scope, self._receive, self._send = scope, receive, send
        self._began = time.monotonic()
        names = {name for name, _ in scope["headers"]}
        self._unread = b"content-length" in names or b"transfer-encoding" in names

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers[name] = value
            if self._scope["path"].startswith("/v1/"):
                headers["Cache-Control"] = "no-store"
            if self._unread:
                headers["Connection"] = "close"
        elif self._unread and not message.get("more_body", False):
            await self._send_pieces({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body"}
        await self._send_pieces(message)

    async def _send_pieces(self, message: Message) -> None:
        """Sends a large body piece by piece: a reader that does not read keeps one of them in memory, not a copy."""
        body = message.get("body", b"")
        last = max(0, len(body) - 1) // PIECE * PIECE
        for start in range(0, last, PIECE):
            await self._send({"type": message["type"], "body": body[start : start + PIECE], "more_body": True})
        await self._send({**message, "body": body[last:]} if last else message)

    def write_log(self) -> None:
        fields: dict[str, Any] = {
            "method": self._scope["method"],
            "path": self._scope["path"][:200],
            "status": self.status,
            "seconds": round(time.monotonic() - self._began, 4),
        }
        log.info("request", extra=fields)

    async def _drain(self) -> None:
        """Reads on for a moment after an answer that came before the end of the body. If the server closed at once,
        a client that is still sending could see a reset connection instead of the answer."""
        taken = 0
        with anyio.move_on_after(DRAIN_SECONDS):
            while self._unread and taken < DRAIN_BYTES:
                taken += len((await self.receive()).get("body", b""))
