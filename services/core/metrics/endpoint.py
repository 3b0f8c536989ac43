"""The port on which a program without an HTTP server of its own shows its metrics."""

import logging
import os
import socket
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.registry import CollectorRegistry

from services.core.model.errors import SettingsError
from services.core.settings import Settings

log = logging.getLogger(__name__)
AT_ONCE = 8
PATIENCE_SECONDS = 5.0
LAST_PORT = 65_535


class Endpoint(ThreadingMixIn, WSGIServer):
    """Answers AT_ONCE requests at a time, and closes further connections at once. Whoever sends or reads nothing for
    PATIENCE_SECONDS is left."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of this host's full name, which can take as long as a name server is away."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self._places = threading.Semaphore(AT_ONCE)
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or was too slow."""
        del request
        log.info("metrics not read", extra={"client": client_address[0]})

    def start(self) -> None:
        """Answers until the process ends, on a thread of its own."""
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    def leave(self) -> None:
        """In a process that was forked: leaves the port to its parent."""
        self.socket.close()


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is no event."""


def ports(first: int, programs: int) -> list[int]:
    """Where programs that start together show their metrics: on `first` and the next ports, or with 0 nowhere. Raises
    SettingsError if there are not so many."""
    if first and first + programs - 1 > LAST_PORT:
        raise SettingsError("PRESSWORK_METRICS_PORT is too high: each worker takes one of the ports behind it.")
    return [first and first + number for number in range(programs)]


def listen(settings: Settings, registry: CollectorRegistry) -> Endpoint:
    """Takes PRESSWORK_METRICS_PORT, which is set. Call `start` then. Raises SettingsError."""
    host, port = settings.metrics_host, settings.metrics_port
    server = type("Server", (Endpoint,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    try:
        return make_server(host, port, make_wsgi_app(registry), server_class=server, handler_class=_Handler)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and number > 0 else "there is no such address"
        raise SettingsError(
            f"Metrics cannot be shown on {host} port {port} ({reason}): set PRESSWORK_METRICS_PORT to a free port or "
            "to 0, or PRESSWORK_METRICS_HOST to an address of this machine."
        ) from None
