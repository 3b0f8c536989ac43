"""What a history is run on: one database with virtual time, emptied for each history, and ways for transactions to end
badly. One thread, so the order of all that happens is the order of the steps."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from sqlalchemy import text

from services.core.db.database import Connection, Database
from services.core.fleet import models
from services.core.model import ids
from services.core.model.errors import DatabaseUnavailable
from services.core.settings import Settings
from tests import factories
from tests.simulation import sessions
from tests.simulation.clock import Clock, assert_virtual, install

TENANTS = (1, 2, 3)
EMPTIED = (
    "job_chunks", "job_inputs", "counter_deltas", "counters", "images", "payloads", "results", "failures", "claims",
    "segments", "idempotency", "failure_deltas", "failure_counts", "failure_hours", "rates", "image_scores", "events",
    "workers", "leases", "tenant_usage_deltas", "tenant_usage", "engines", "drains", "jobs",
)  # fmt: skip
_DEAD_ROWS = 40  # histories; then the tables are new


class Fate(StrEnum):
    """How a transaction ends."""

    COMMIT = "commit"
    LOST = "reply lost"  # it is committed, and the client hears of an error
    ROLLBACK = "rollback"  # the client or the connection dies before the commit
    HOLD = "hold"  # it stays open while others go on; a later step commits it or not


class NotCommitted(Exception):
    """The transaction was rolled back, and its client knows nothing of it."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """The database for one piece of work, whose transactions have that fate."""

    database: Database
    fate: Fate

    def begin_system(self) -> AbstractContextManager[Connection]:
        return self._ending(self.database.begin_system())

    def begin(self, tenant: int) -> AbstractContextManager[Connection]:
        return self._ending(self.database.begin(tenant))

    @contextmanager
    def _ending(self, transaction: AbstractContextManager[Connection]) -> Iterator[Connection]:
        with transaction as connection:
            yield connection
            if self.fate is Fate.ROLLBACK:
                raise NotCommitted


@dataclass(slots=True)
class Held:
    """A transaction that is open: what ends it, with a commit or not; what the model does once it is committed; and
    which claims it has locked."""

    kind: str
    end: Callable[[bool], None] = lambda _commit: None
    committed: Callable[[], None] = lambda: None
    claims: frozenset[int] = frozenset()


class World:
    """The database, the clock, and at most one transaction that is held open."""

    def __init__(self, database: Database, settings: Settings, superuser: psycopg.Connection) -> None:
        self.clock = Clock()
        self.database, self.settings, self.superuser = database, settings, superuser
        install(superuser)
        sessions.install(database, self.clock)  # the simulation's own database
        factories.register(database)
        with database.begin_system() as connection:
            self.registry = models.registry(connection)
            connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'second'), (3, 'third')"))
        self.held: Held | None = None
        self.histories = 0
        self.objects: set[str] = set()
        self.counts: Counter[str] = Counter()  # of all histories: what they came to

    @contextmanager
    def virtual_ids(self) -> Iterator[None]:
        real, ids.new = ids.new, self.clock.new_id  # type: ignore[assignment]
        try:
            yield
        finally:
            ids.new = real  # type: ignore[assignment]

    def reset(self) -> None:
        """Of the history before nothing is left."""
        self.release()
        self.clock.reset()
        self.objects.clear()
        if self.histories % _DEAD_ROWS == 0:
            self.superuser.execute(f"TRUNCATE {', '.join(EMPTIED)} RESTART IDENTITY CASCADE")
        else:
            self.superuser.execute("; ".join(f"DELETE FROM {table}" for table in EMPTIED))
        self.superuser.execute(
            "UPDATE tenants SET virtual_time = 0, state = 'active', max_images_in_flight = NULL, weight = 1"
        )
        self.histories += 1

    def release(self) -> None:
        """Rolls back what is held."""
        if self.held is not None:
            held, self.held = self.held, None
            held.end(False)

    def end_held(self, *, commit: bool) -> None:
        held, self.held = self.held, None
        assert held is not None
        held.end(commit)
        if commit:
            held.committed()

    def run(self, body: Callable[[Connection], Any], fate: Fate = Fate.COMMIT, tenant: int | None = None) -> Any:
        """One transaction. Raises as `do` does."""

        def whole(database: Doomed) -> Any:
            with database.begin_system() if tenant is None else database.begin(tenant) as connection:
                return body(connection)

        return self.do(whole, fate)

    def do(self, work: Callable[["Doomed"], Any], fate: Fate = Fate.COMMIT) -> Any:
        """Work that opens its own transaction. Raises NotCommitted if that is the transaction's fate, and
        DatabaseUnavailable where it had to wait for the transaction that is held."""
        try:
            return work(Doomed(self.database, fate))
        except DatabaseUnavailable as error:
            if self.held is None:
                raise AssertionError("in one thread nobody waits for a lock") from error
            raise

    def hold(self, body: Callable[[Connection], Any]) -> tuple[Any, Callable[[bool], None]]:
        """Begins a transaction and leaves it open. Returns what it did, and how to end it: with a commit, or not."""
        assert self.held is None
        begin = self.database.begin_system()
        connection = begin.__enter__()
        try:
            result = body(connection)
        except BaseException as error:
            begin.__exit__(type(error), error, error.__traceback__)
            raise

        def end(commit: bool) -> None:
            if commit:
                begin.__exit__(None, None, None)
                return
            with suppress(NotCommitted):
                begin.__exit__(NotCommitted, NotCommitted(), None)

        return result, end

    def snapshot(self, after_event: int) -> dict[str, list[list[Any]]]:
        """Every row that counts, as committed now; of the events those with a higher id."""
        return self.superuser.execute(_SNAPSHOT, {"after": after_event}).fetchone()[0]  # type: ignore[index]

    def assert_virtual(self) -> None:
        assert_virtual(self.superuser)

    # An object store in memory, as far as deleting needs it.

    def drop(self, key: str) -> None:
        self.objects.discard(key)

    def under(self, folder: str, after: str = "") -> Iterator[str]:
        return iter(sorted(key for key in self.objects if key.startswith(folder) and key > after))


def _rows(columns: str, source: str) -> str:
    return f"(SELECT coalesce(json_agg(json_build_array({columns})), '[]') FROM {source})"


_SNAPSHOT = f"""
SELECT json_build_object(
  'jobs', {
    _rows(
        "j.id, j.state, j.paused, j.priority, j.total, j.stop_reason, j.deleted_at IS NOT NULL, "
        "c.queued, c.rendering, c.done, c.failed, c.cancelled",
        "jobs j JOIN job_counts c ON c.job_id = j.id",
    )
},
  'images', {
    _rows(
        "i.job_id, i.index, i.state, i.attempt, i.lost, i.crashes, i.claim_id, s.width, s.cap",
        "images i JOIN segments s ON s.job_id = i.job_id AND s.id = i.segment_id",
    )
},
  'claims', {
    _rows(
        "id, worker_id, state, images, extract(epoch FROM expires_at)::numeric(20, 3)::text, job_ids, "
        "tenant_ids, tenant_images",
        "claims",
    )
},
  'results', {
    _rows(
        "job_id, index, claim_id, reused, object_key, encode(sha256, 'hex'), device, versions, truncated, flagged, "
        "phash",
        "results LEFT JOIN engines ON engines.id = engine_id",
    )
},
  'failures', {_rows("job_id, index, code, claim_id, device, batch_images", "failures")},
  'causes', {
    _rows(
        "job_id, code, images",
        '''(
    SELECT job_id, code, sum(images)::bigint AS images FROM (
      SELECT job_id, code, images FROM failure_counts UNION ALL SELECT job_id, code, images FROM failure_deltas
    ) both_tables GROUP BY job_id, code) summed''',
    )
},
  'events', {_rows("id, seq, kind, subject, data", "(SELECT * FROM events WHERE id > %(after)s ORDER BY id) fresh")}
)"""
