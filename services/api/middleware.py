"""The outermost layer: what is refused before any route, one log line per request, and the answer to unexpected
exceptions."""

import logging
from contextlib import nullcontext
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from services.api import addresses, metrics
from services.api.admission import Admission
from services.api.errors import envelope
from services.api.exchange import Exchange
from services.core import logs, traces
from services.core.settings import Settings

log = logging.getLogger(__name__)
HEADERS = 100
HEAD_BYTES = 32 << 10
TOO_LONG_HEAD = f"Up to {HEADERS} headers and {HEAD_BYTES:,} bytes of them are taken."
MONITORING = frozenset({"/livez", "/readyz", "/metrics"})
CLIENT_DISCONNECTED = 499  # in the log only: nobody receives it


class RequestMiddleware:
    def __init__(self, app: ASGIApp, settings: Settings, admission: Admission) -> None:
        self._app, self._settings, self._admission = app, settings, admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        peer = scope["client"]
        trusted = addresses.believe_proxies(self._settings, scope)
        exchange = Exchange(scope, receive, send, trusted=trusted)
        logs.request_id.set(exchange.id)
        scope = _as_get(scope)
        traces.take(dict(scope["headers"]).get(b"traceparent", b"").decode("latin-1"))
        try:
            with _span(scope) as span:
                await self._answer(scope, exchange)
                if span is not None:
                    route = _route(scope)
                    span.update_name(f"{scope['method']} {route}".rstrip())
                    span.set_attributes({"http.route": route, "http.response.status_code": exchange.status})
        finally:
            first_byte = exchange.first_byte_seconds
            metrics.answered(
                _route(scope), exchange.method, exchange.status, exchange.seconds if first_byte is None else first_byte
            )
            if peer is not None and scope.get("state", {}).get("authenticated"):
                self._admission.remember(peer[0])

    async def _answer(self, scope: Scope, exchange: Exchange) -> None:
        try:
            await (_bad_head(scope) or self._bad_host(scope) or self._app)(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = CLIENT_DISCONNECTED
        except Exception:
            log.exception("request failed")
            if not exchange.status:
                message = f"Something went wrong in the server; it has been logged with the request id {exchange.id}."
                await envelope(500, "internal_error", message)(scope, exchange.receive, exchange.send)
        finally:
            log.info("request", extra=exchange.log_fields())

    def _bad_host(self, scope: Scope) -> ASGIApp | None:
        """The answer to a host that is not ours. What watches this process asks by its bare address."""
        if scope["path"] in MONITORING or addresses.is_served(self._settings, scope):
            return None
        return envelope(421, "unknown_host", "This server does not serve the host that the request names.")


def _span(scope: Scope) -> Any:
    """The span of a request, but for those of what watches this process."""
    if not traces.is_on() or scope["path"] in MONITORING:
        return nullcontext()
    return traces.span(scope["method"], kind="server", parent=traces.traceparent())


def _route(scope: Scope) -> str:
    """The address of the route that answered, with names in the place of ids."""
    path = str(getattr(scope.get("route"), "path", ""))
    return f"/v1{path}" if path and scope["path"].startswith("/v1/") and not path.startswith("/v1/") else path


def _as_get(scope: Scope) -> Scope:
    """A HEAD is answered like the GET of its address; the server leaves out the body. A route that would make a body
    with effort asks for `request.state.is_head`."""
    is_head = scope["method"] == "HEAD"
    scope.setdefault("state", {})["is_head"] = is_head
    return {**scope, "method": "GET"} if is_head else scope


def _bad_head(scope: Scope) -> ASGIApp | None:
    """The answer to a request head that h11 accepts and we refuse: too large, or with two body lengths."""
    names = [name for name, _ in scope["headers"]]
    if len(names) > HEADERS or sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
        return envelope(431, "head_too_long", TOO_LONG_HEAD)
    if b"content-length" in names and b"transfer-encoding" in names:
        return envelope(400, "two_lengths", "Content-Length and Transfer-Encoding exclude each other.")
    return None
