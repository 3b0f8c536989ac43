"""A receiver of webhooks on this machine, and what sends to it in a test."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import Any

from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, webhook_runner
from services.core.db.database import Database
from services.core.events import log, numbering
from services.core.settings import Settings
from services.core.webhooks import deliveries, deriving, endpoints
from services.core.webhooks.asked import WebhookRequest
from services.core.webhooks.deliveries import Delivery, Try
from services.core.webhooks.endpoints import Endpoint
from tests.factories import TENANT

Reply = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Receiver:
    """What came: headers and body of each request that came whole. `reply` answers."""

    url: str
    reply: Reply
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.came]

    @property
    def types(self) -> list[str]:
        return [message["type"] for message in self.messages]


def answer(handler: BaseHTTPRequestHandler, status: int = 200, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def receiving(reply: Reply = answer) -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # its sender was interrupted
                return
            found.came.append(({name.lower(): value for name, value in self.headers.items()}, body))
            found.reply(self)

        do_GET = do_POST  # noqa: N815  http.server's name

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    found = Receiver(f"http://127.0.0.1:{server.server_port}/hook", reply)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def to_this_machine(settings: Settings) -> Settings:
    """Settings that let webhooks lead here."""
    return replace(settings, webhook_networks=(ip_network("127.0.0.1/32"),), webhook_http=True)


def make(database: Database, settings: Settings, url: str, tenant: int = TENANT, **fields: Any) -> tuple[Endpoint, str]:
    with database.begin(tenant) as connection:
        return endpoints.create(
            connection, settings, tenant, WebhookRequest.model_validate({"url": url, "events": ["*"], **fields})
        )


def happen(database: Database, kind: str = "export.completed", subject: str = "export/7", tenant: int = TENANT) -> None:
    with database.begin_system() as connection:
        log.append(connection, kind, subject, tenant_id=tenant)


def derive(database: Database) -> int:
    """Numbers what happened, and makes the deliveries."""
    with database.begin_system() as connection:
        while numbering.number(connection) == 5_000:
            pass
    made = 0
    with database.begin_system() as connection:
        made += deriving.derive(connection)
    return made


def runner(database: Database, settings: Settings, holder: str = "scheduler-1") -> BackgroundTaskRunner:
    return webhook_runner(database, settings, holder)


def listed(database: Database, endpoint: Endpoint) -> list[Delivery]:
    """Its deliveries, the newest first."""
    with database.begin(endpoint.tenant_id) as connection:
        return deliveries.page(connection, endpoint, before=None, limit=1000)


def tries(database: Database, delivery: Delivery, tenant: int = TENANT) -> list[Try]:
    with database.begin(tenant) as connection:
        return deliveries.tries(connection, tenant, delivery.id)


def hurry(database: Database) -> None:
    """Every pause is over."""
    with database.begin_system() as connection:
        connection.execute(text("UPDATE webhook_deliveries SET next_at = now() WHERE state = 'pending'"))
        connection.execute(text("UPDATE webhook_endpoints SET not_before = now()"))
