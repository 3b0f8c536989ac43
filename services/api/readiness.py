"""Readiness: whether a submission would be accepted and rendered.

The route takes no key, so anyone may call it at any rate. Each server is looked at by one thread at a time, which no
other request waits for; an answer is the last look's.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import anyio

from services.api.dependencies import Context
from services.api.v1.schemas import Check, Ready
from services.core import notify
from services.core.db import database, probe
from services.core.fleet import workers
from services.core.jobs import queries
from services.core.model.errors import DatabaseUnavailable, PressworkError, Unavailable, UnsuitableDatabase
from services.core.storage import installation

log = logging.getLogger(__name__)
FRESH_SECONDS = 1.0
WAIT_SECONDS = 1.0  # that an answer waits for looks under way
STALE_SECONDS = 15.0  # a look that takes longer says nothing good of what it looks at
STORE_WRITE_SECONDS = 30.0  # between two writes into the store, which may cost money
Checks = dict[str, Check]


class Readiness:
    """The last look at each server. For one event loop."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store_written = float("-inf")
        self._prefix_claimed = False
        self._looks = [
            Look("database", self._database),
            Look("store", self._store),
            Look("redis", self._redis, silent="degraded"),
        ]

    async def answer(self) -> Ready:
        """Waits a moment for looks under way, and for nothing else."""
        under_way = [task for look in self._looks if (task := look.refreshed()) is not None]
        if under_way:
            await asyncio.wait(under_way, timeout=WAIT_SECONDS)
        checks: Checks = {}
        for look in self._looks:
            checks |= look.seen()
        found = {check.status for check in checks.values()}
        status = "failing" if "failing" in found else "degraded" if "degraded" in found else "ok"
        age = max(look.age for look in self._looks)
        return Ready.model_validate({"status": status, "checks": checks, "age_seconds": round(age, 1)})

    def _database(self) -> Checks:
        def check() -> None:
            for warning in database.assert_suitable(self._context.database):
                log.warning("%s", warning)
            # As the system: this route takes no key, so there is no tenant.
            with self._context.database.begin_system() as connection:
                probe.write(connection)

        found = {"database": _checked("The database is reachable, suitable and takes writes.", check)}
        return found | self._model_and_worker() if found["database"].status == "ok" else found

    def _model_and_worker(self) -> Checks:
        model = self._context.settings.model
        try:
            # As the system: this route takes no key, so there is no tenant.
            with self._context.database.read_system() as connection:
                registered, worker_was_up = queries.readiness(connection, model)
                starting = [] if worker_was_up else workers.starting(connection)
        except Unavailable as error:
            return {"database": _unavailable(error)}
        return {
            "model": _ok(f"The default model {model} is registered.")
            if registered
            else _failing(f"The default model {model} is not registered: start a worker that serves it."),
            "worker": _ok("A worker has been up.")
            if worker_was_up
            else _failing(f"A worker is starting: {starting[0]}." if starting else "No worker has been up yet."),
        }

    def _store(self) -> Checks:
        def check() -> None:
            if time.monotonic() - self._store_written < STORE_WRITE_SECONDS:
                self._context.store.check()
            else:
                self._claim_prefix()
                self._context.store.check_write()
                self._store_written = time.monotonic()

        return {"store": _checked("The object store is reachable and takes writes.", check)}

    def _claim_prefix(self) -> None:
        """Once: whether the objects in the bucket are this installation's."""
        if self._prefix_claimed:
            return
        try:
            installation.claim_prefix(self._context.database, self._context.store)
            self._prefix_claimed = True
        except DatabaseUnavailable:
            log.warning("prefix not claimed: no database")  # the look at the database says it

    def _redis(self) -> Checks:
        if notify.redis_answers(self._context.settings.redis_url):
            return {"redis": _ok("Redis answers and takes writes.")}
        message = "Redis cannot be used: workers find work on their own timer, a few seconds later."
        return {"redis": Check(status="degraded", message=message)}


class Look:
    """Looks at one server in a thread, one look at a time, and keeps what the last one saw.

    `silent` is the status of a server that a look has been waiting for too long.
    """

    def __init__(self, name: str, look: Callable[[], Checks], silent: str = "failing") -> None:
        self._name, self._look, self._silent = name, look, silent
        self._seen: Checks = {}
        self._seen_at = time.monotonic()
        self._task: asyncio.Task[None] | None = None
        self._thread = anyio.CapacityLimiter(1)  # its own, so that a look that hangs takes no other request's thread

    @property
    def age(self) -> float:
        return time.monotonic() - self._seen_at

    def refreshed(self) -> "asyncio.Task[None] | None":
        """The look that is under way, begun now if the last one is too old; None if the last one is fresh."""
        if self._task is not None and self._task.done():
            self._task = None
        if self._task is None and (not self._seen or self.age > FRESH_SECONDS):
            self._task = asyncio.create_task(self._refresh())
        return self._task

    def seen(self) -> Checks:
        if self._seen and self.age <= STALE_SECONDS:
            return self._seen
        message = f"It has not answered for {self.age:.0f} s." if self._seen else "It has not answered yet."
        return {self._name: Check.model_validate({"status": self._silent, "message": message})}

    async def _refresh(self) -> None:
        try:
            self._seen = await anyio.to_thread.run_sync(self._look, limiter=self._thread)
            self._seen_at = time.monotonic()
        except Exception:
            log.exception("look failed", extra={"server": self._name})
            self._seen = {self._name: _failing("It cannot be looked at; the log says why.")}


def _checked(sentence: str, check: Callable[[], object]) -> Check:
    """The check's answer. An outage shows only its kind; the log has the details."""
    try:
        check()
    except UnsuitableDatabase as error:
        return _failing(str(error))
    except Unavailable as error:
        return _unavailable(error)
    except PressworkError as error:
        log.warning("not ready", extra={"error": str(error)})
        return _failing("It is unusable; the log says why.")
    return _ok(sentence)


def _unavailable(error: Unavailable) -> Check:
    log.warning("not ready", extra={"error": str(error)})
    return _failing((type(error).__doc__ or "").strip())


def _ok(message: str) -> Check:
    return Check(status="ok", message=message)


def _failing(message: str) -> Check:
    return Check(status="failing", message=message)
