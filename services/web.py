"""The composition root of the web process: one ASGI application, of API and dashboard, and the server that runs it.

Run `python -m services.web`, or `uvicorn --factory services.web:create` to use another server configuration.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import Any

import uvicorn

from services.api import admission, metrics
from services.api.app import create_app
from services.api.connections import GuardedProtocol
from services.core import environment, logs, traces
from services.core.db import database as databases
from services.core.model.errors import PressworkError, SettingsError, Unavailable
from services.core.policy import policies
from services.core.settings import Settings
from services.dashboard import app as dashboard

log = logging.getLogger(__name__)
EXIT_SETTINGS = 2
HEAD_BYTES = 32 << 10
KEEP_ALIVE_SECONDS = 30
SHUTDOWN_SECONDS = 10
BACKLOG = 2048


def create() -> Any:
    """The ASGI application. If it cannot be set up, the process ends with one sentence."""
    logs.configure("web")
    try:
        return _build(Settings.read())
    except PressworkError as error:
        print(f"web: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_SETTINGS) from None


def main() -> int:
    logs.configure("web")
    try:
        settings = Settings.read()
        admission.raise_file_limit()
        app = _build(settings)
        listener = _listen(settings)
    except PressworkError as error:
        print(f"web: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_SETTINGS
    # uvicorn handles SIGTERM first: it shuts down in order, then raises the signal again.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    log.info("listening", extra={"host": settings.host, "port": settings.port})
    try:
        asyncio.run(uvicorn.Server(server_config(app)).serve(sockets=[listener]))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def server_config(app: Any) -> uvicorn.Config:
    """h11, since it limits the size of a request's head, with deadlines. RequestMiddleware writes the request log."""
    return uvicorn.Config(
        app,
        http=GuardedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # api/addresses.py reads them
        h11_max_incomplete_event_size=HEAD_BYTES,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


def _build(settings: Settings) -> Any:
    if not settings.secret:
        raise SettingsError(
            "PRESSWORK_SECRET is not set; it must be a long random text, the same for every web server."
        )
    environment.check_temporary_folder()
    _check_database(settings)
    return application(settings)


def application(settings: Settings) -> Any:
    """The API, and the dashboard beside it. Connects to nothing yet."""
    traces.configure("web", settings.traces_endpoint, settings.traces_ratio)
    policies.check(settings)
    metrics.show()
    app = create_app(settings)
    dashboard.install(app)
    return app


def _check_database(settings: Settings) -> None:
    """Stops the start if the database is unsuitable, and not if it cannot be reached: it may be back for the first
    request."""
    database = databases.Database(settings.database_url, application="presswork web check", pool_size=1)
    try:
        for warning in databases.assert_suitable(database):
            log.warning("%s", warning)
    except Unavailable as error:
        log.warning("database unreachable at start", extra={"error": str(error)})
    finally:
        database.close()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and number > 0 else "there is no such address"
        raise SettingsError(
            f"Cannot listen on {settings.host} port {settings.port} ({reason}): set PRESSWORK_PORT to a free port, "
            "or PRESSWORK_HOST to an address of this machine."
        ) from None
    # Every connection inherits this; without it an answer can wait 40 ms for an ACK. asyncio does not set it here.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


if __name__ == "__main__":
    sys.exit(main())
