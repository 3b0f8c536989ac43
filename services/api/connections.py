"""Connections of the web server: uvicorn's protocol with what it lacks, which is deadlines and a limit.

A head must arrive within PRESSWORK_HEAD_SECONDS, and an answer must be read on within PRESSWORK_WRITE_SECONDS; the
readers of bodies have their own deadline (`body/streaming.py`). Which connections are taken decides `admission.py`.
What is answered here, before there is a request, looks like every other answer.
"""

import asyncio
import logging
import socket
import struct
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from services.api.errors import RETRY_SECONDS, envelope
from services.api.exchange import REQUEST_ID, SECURITY, new_id
from services.api.middleware import TOO_LONG_HEAD

if TYPE_CHECKING:
    from services.api.admission import Admission
    from services.core.settings import Settings

log = logging.getLogger(__name__)
WRITE_BUFFER = 64 << 10  # an answer waits once so many of its bytes are unsent
WRITE_PROGRESS = 16 << 10  # bytes: a reader that takes fewer before the deadline is not reading


class GuardedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], **more: Any) -> None:
        super().__init__(config, server_state, app_state, **more)
        state: Any = config.app.state  # type: ignore[union-attr]
        self._settings: Settings = state.context.settings
        self._admission: Admission = state.admission
        self._address: str | None = None  # None: the connection was not admitted
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unsent = 0  # bytes, when the write timer was set

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self._admission.admit(address):
            self.transport = transport
            message = "This server has as many connections as it takes; try again."
            request_id = self._refuse(503, "too_many_connections", message, ("Retry-After", RETRY_SECONDS))
            fields = {"address": address, "limit": self._admission.limit, "request_id": request_id}
            log.warning("connection refused", extra=fields)
            return
        self._address = address
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        if self._address is not None:
            self._admission.release(self._address)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_between_requests:
            self._expect_head()
        super().data_received(data)
        if self._head_timer is not None and not self._is_between_requests:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        """The answer to what h11 cannot read; uvicorn calls this where it has caught h11's exception."""
        error = sys.exception()
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        code, message = "invalid_http", f"The request is not valid HTTP/1.1: {str(error or msg).partition(':')[0]}."
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            code, message = "head_too_long", TOO_LONG_HEAD
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            request_id = self._refuse(status, code, message)
            log.info("request", extra={"status": status, "address": self._address, "request_id": request_id})
        else:
            self.transport.close()  # in the middle of an answer

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._expect_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def _refuse(self, status: int, code: str, message: str, *more: tuple[str, str]) -> str:
        """Answers and closes the connection. Returns the answer's request id."""
        body, request_id = bytes(envelope(status, code, message).body), new_id()
        headers = [
            ("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close"),
            (REQUEST_ID, request_id), *SECURITY.items(), *more,
        ]  # fmt: skip
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers)]
        self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()
        return request_id

    def shutdown(self) -> None:
        """The server stops: streams that go on end here."""
        state: Any = self.config.app.state  # type: ignore[union-attr]
        state.context.feed.close()
        super().shutdown()

    @property
    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._settings.head_seconds, self._give_up, "head too slow")

    def _expect_reading(self) -> None:
        if self._write_timer is None:
            self._unsent = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self._settings.write_seconds, self._check_reading)

    def _check_reading(self) -> None:
        """Ends the connection if next to nothing was read since the timer was set. While the buffer grows, the answer
        was not waiting for its reader."""
        self._write_timer = None
        left = self.transport.get_write_buffer_size()
        if left and self._unsent - WRITE_PROGRESS < left <= self._unsent:
            self._give_up("answer not read")
        elif left:
            self._expect_reading()

    def _give_up(self, reason: str) -> None:
        """Ends the connection at once; what the kernel still holds of it is dropped too."""
        log.warning("connection ended: %s", reason, extra={"address": self._address})
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
