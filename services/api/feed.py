"""The feed: one reader per process looks at the database once a second for all who watch a job or a tenant's jobs.

A watcher gets events in order of `seq`, each once, and the newest snapshot of each job that changed. Snapshots that a
slow watcher has not taken yet are replaced, so nothing piles up.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import anyio

from services.api.errors import ApiError
from services.api.v1 import schemas
from services.core.db.database import Database
from services.core.events.queries import Event, job_of
from services.core.jobs import live
from services.core.jobs.queries import JobView
from services.core.model.errors import Unavailable
from services.core.model.scopes import Principal
from services.core.tenants import sessions

T = TypeVar("T")
log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 15.0  # so that a connection that is dead is noticed, and one that is idle is kept
WAITING_EVENTS = 2_000  # that a watcher may be behind
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def message(kind: str, data: str, seq: int | None = None) -> bytes:
    """One message of an event stream. `data` is JSON, so it has no line breaks."""
    number = "" if seq is None else f"id: {seq}\n"
    return f"{number}event: {kind}\ndata: {data}\n\n".encode()


class Watcher:
    """Someone who watches one job, or all jobs of a tenant, while their key or session holds. `take` returns what is
    new; `changed` is set when there is something."""

    def __init__(self, who: Principal, job: int | None) -> None:
        self.who, self.tenant, self.job = who, who.tenant_id, job
        self.names_hosts = who.sees_hosts
        self.changed = asyncio.Event()
        self.ended = False
        self.is_new = True  # the reader has not told it anything yet
        self._seq = 0
        self._early: list[tuple[int, bytes]] | None = []  # events that came before it has caught up
        self._seen: dict[int, datetime] = {}  # how old the newest snapshot of each job is
        self._events: deque[bytes] = deque()
        self._jobs: dict[int, bytes] = {}

    def follows(self, tenant: int | None, job: int | None) -> bool:
        """`tenant` is that of the job, which only a watcher of all its jobs needs to know."""
        return self.tenant == tenant if self.job is None else self.job == job

    def catch_up(self, after: int, missed: Iterable[tuple[int, bytes]]) -> None:
        """Adds what was missed, then what has come in the meantime, and nothing up to `after`: another server may have
        shown what this one has not seen."""
        early, self._early = self._early or [], None
        self._seq = max(self._seq, after)
        for seq, text in [*missed, *early]:
            self.event(seq, text)

    def event(self, seq: int, text: bytes) -> None:
        """Adds an event, unless it was added before."""
        if self._early is not None:
            self._early.append((seq, text))
            return
        if seq <= self._seq or self.ended:
            return
        self._seq = seq
        self._events.append(text)
        if len(self._events) > WAITING_EVENTS:
            self.end("reset", "Events were missed, because they were not read in time: begin again.")
        self.changed.set()

    def snapshot(self, job: int, as_of: datetime, text: bytes) -> None:
        """Adds a job's snapshot, unless a newer one was added."""
        if as_of > self._seen.get(job, _LONG_AGO) and not self.ended:
            self._seen[job] = as_of
            self._jobs[job] = text
            self.changed.set()

    def tell(self, text: bytes) -> None:
        self._events.append(text)
        self.changed.set()

    def end(self, kind: str, sentence: str) -> None:
        """The last message, in place of all others."""
        self._events.clear()
        self._jobs.clear()
        self.tell(message(kind, json.dumps({"message": sentence})))
        self.ended = True

    def take(self) -> bytes:
        self.changed.clear()
        text = b"".join([*self._events, *self._jobs.values()])
        self._events.clear()
        self._jobs.clear()
        return text


class Feed:
    """Reads while somebody watches. For one event loop."""

    def __init__(self, database: Database, most: int) -> None:
        self._database, self._most = database, most
        self._watchers: set[Watcher] = set()
        self._closed = False
        self._reader: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._thread = anyio.CapacityLimiter(1)
        self.seq = 0  # of the last event it has seen
        self._last: dict[int, JobView] = {}
        self._reachable = True
        self._kept_at = time.monotonic()

    def admit(self) -> None:
        """Raises ApiError: 503, too many watch, or the server is stopping."""
        if self._closed or len(self._watchers) >= self._most:
            raise ApiError(503, "too_many_watchers", "This server has as many watchers as it takes; try again.")

    @asynccontextmanager
    async def watch(self, who: Principal, job: int | None = None) -> AsyncIterator[Watcher]:
        """Events from now on, and snapshots. The caller has seen that the job is the tenant's."""
        watcher = Watcher(who, job)
        self._watchers.add(watcher)
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_on())
        try:
            await self._ready.wait()
            yield watcher
        finally:
            self._watchers.discard(watcher)
            if not self._watchers and self._reader is not None:
                self._reader.cancel()
                self._reader = None
                self._ready.clear()
                self._last = {}

    def close(self) -> None:
        """Ends every stream, so that the server can stop. Watchers come back to another one."""
        self._closed = True
        for watcher in self._watchers:
            watcher.end("closing", "The server is stopping: connect again.")

    async def _read_on(self) -> None:
        while True:
            try:
                if not self._ready.is_set():
                    self.seq = await self._in_thread(self._latest)
                    self._ready.set()
                watchers = list(self._watchers)
                look, ended = await self._in_thread(partial(self._look, watchers))
                self._deliver(watchers, look)
                self._dismiss(watchers, ended)
                self._reachable = True
                self._keep_alive(watchers)
            except Unavailable as error:
                self._say_unreachable(error)
            except Exception:
                log.exception("feed cannot look")
            await asyncio.sleep(LOOK_SECONDS)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(function, limiter=self._thread)

    def _latest(self) -> int:
        with self._database.read_system() as connection:  # as the system: it reads for all who watch
            return live.latest(connection)

    def _look(self, watchers: Iterable[Watcher]) -> tuple[live.Look, set[Principal]]:
        """What is new, and whose key or session has ended."""
        jobs = {watcher.job for watcher in watchers if watcher.job is not None}
        tenants = {watcher.tenant for watcher in watchers if watcher.job is None}
        with self._database.read_system() as connection:  # as the system: it reads for all who watch
            ended = sessions.ended(connection, {watcher.who for watcher in watchers})
            return live.look(connection, self.seq, jobs=jobs, tenants=tenants), ended

    def _deliver(self, looked_for: Iterable[Watcher], look: live.Look) -> None:
        """Tells everybody, also those who came during the look: what they read before may be older."""
        for event in look.events:
            self.seq = event.seq
            texts: dict[bool, bytes] = {}
            for watcher in self._watchers:
                if watcher.follows(event.tenant_id, job_of(event)):
                    if watcher.names_hosts not in texts:
                        texts[watcher.names_hosts] = event_message(event, watcher.names_hosts)
                    watcher.event(event.seq, texts[watcher.names_hosts])
        for view in look.jobs.values():
            text, changed = job_message(view), self._has_changed(view)
            for watcher in self._watchers:
                if (changed or watcher.is_new) and watcher.follows(look.owners.get(view.id), view.id):
                    watcher.snapshot(view.id, view.as_of, text)
        for watcher in looked_for:
            watcher.is_new = False
            if watcher.job is not None and watcher.job not in look.jobs and not watcher.ended:
                watcher.end("deleted", "The job was deleted.")
        self._last = look.jobs

    def _dismiss(self, looked_for: Iterable[Watcher], ended: set[Principal]) -> None:
        for watcher in looked_for:
            if watcher.who in ended and not watcher.ended:
                watcher.end("signed_out", "The key or the session that opened this stream has ended.")

    def _keep_alive(self, watchers: Iterable[Watcher]) -> None:
        if time.monotonic() - self._kept_at > KEEP_ALIVE_SECONDS:
            self._kept_at = time.monotonic()
            for watcher in watchers:
                watcher.tell(b": still here\n\n")

    def _has_changed(self, view: JobView) -> bool:
        before = self._last.get(view.id)
        # How long a job still takes follows from the work ahead of it, which changes all the time: it is told with what
        # changes of the job itself.
        return before is None or _but_for_the_time(before) != _but_for_the_time(view)

    def _say_unreachable(self, error: Unavailable) -> None:
        log.warning("feed cannot look", extra={"error": str(error)})
        if self._reachable:
            self._reachable = False
            for watcher in self._watchers:
                watcher.tell(message("unreachable", json.dumps({"message": "The database cannot be reached."})))


def _but_for_the_time(view: JobView) -> JobView:
    return replace(view, as_of=view.created_at, eta_seconds=None, eta_low=None, eta_high=None)


def event_message(event: Event, names_hosts: bool) -> bytes:
    return message(event.kind, schemas.event(event, names_hosts=names_hosts).model_dump_json(), event.seq)


def job_message(view: JobView) -> bytes:
    return message("job", schemas.job(view).model_dump_json())
