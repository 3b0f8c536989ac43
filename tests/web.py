"""The API behind a real server on loopback, with a registered model, a worker that has been up, and a key."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import httpx
import uvicorn
from sqlalchemy import text

from services.core.db.database import Database
from services.core.fleet import workers
from services.core.model.scopes import Scope
from services.core.settings import Settings
from services.core.tenants import api_keys
from services.web import application, server_config
from tests import factories, programs
from tests.waiting import until

TABLES = ("jobs", "segments", "images", "payloads", "counters", "idempotency")


@dataclass
class Api:
    url: str
    key: str
    http: httpx.Client  # sends the key
    settings: Settings
    database: Database

    @property
    def address(self) -> tuple[str, int]:
        parts = httpx.URL(self.url)
        return parts.host, parts.port or 0

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=20)

    def submit(self, *images: dict[str, object], **head: object) -> dict[str, object]:
        answer = self.http.post("/v1/jobs", json={"images": list(images) or [{"prompt": "a mug"}], **head})
        assert answer.status_code == 202, answer.text
        found: dict[str, object] = answer.json()
        return found

    def new_tenant(self, name: str, *, operator: bool = False) -> tuple[int, str]:
        """Its id and a key of its own. `operator`: it may see and steer what belongs to no tenant, as the first one."""
        with self.database.begin_system() as connection:
            tenant = connection.execute(
                text("INSERT INTO tenants (name, operator) VALUES (:name, :operator) RETURNING id"),
                {"name": name, "operator": operator},
            ).scalar_one()
            return tenant, api_keys.issue_key(connection, self.settings.secret, tenant, "test")

    def new_key(self, *given: Scope) -> str:
        """A key of its tenant with these scopes."""
        with self.database.begin_system() as connection:
            return api_keys.issue_key(connection, self.settings.secret, factories.TENANT, "some", given=given)

    def rows(self) -> dict[str, int]:
        """How many rows there are of all that a submission writes."""
        with self.database.begin_system() as connection:
            return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in TABLES}


class _Server(uvicorn.Server):
    """Ends as soon as it is told to. uvicorn's own looks every tenth of a second whether it was, and then waits another
    for connections that are long gone: together longer than most tests run."""

    def end(self) -> None:
        """From another thread."""
        self._loop.call_soon_threadsafe(self._told.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._told = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        ticks = self._loop.create_task(super().main_loop())
        await self._told.wait()
        ticks.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in (*self.servers, *(sockets or [])):
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0)  # those that are idle go
        try:
            await asyncio.wait_for(self._wait_tasks_to_complete(), self.config.timeout_graceful_shutdown)
        except TimeoutError:
            for task in self.server_state.tasks:
                task.cancel()
        await self.lifespan.shutdown()


@contextmanager
def serving(settings: Settings, port: int = 0) -> Iterator[str]:
    """The API as its own server would run it, in a thread; its address."""
    with closing(socket.create_server(("127.0.0.1", port))) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = _Server(server_config(application(programs.settings("web", settings))))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        until(lambda: server.started, every=0.002)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.end()
            thread.join()


@contextmanager
def open_api(settings: Settings) -> Iterator[Api]:
    database = Database(settings.database_url, application="tests", pool_size=10)
    factories.register(database)
    with database.begin_system() as connection:
        key = api_keys.issue_key(connection, settings.secret, factories.TENANT, "test")
        workers.register(
            connection, "worker-a", host="host", pid=1, device="cpu", model="simulated",
            revision=factories.REVISION, state="ready",
        )  # fmt: skip
    headers = {"Authorization": f"Bearer {key}"}
    with serving(settings) as url, httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
        yield Api(url, key, http, settings, database)
    database.close()
