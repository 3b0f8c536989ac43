"""tenant_delete: a tenant with a million images is deleted while another tenant's images are claimed and settled.

`IMAGES` sets how many. Two figures: how long the deletion keeps the database busy, by its own statements, and the worst
time of a claim meanwhile beside the worst one before. The object store is left out: it answers at once.
"""

import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, text

from scheduler.background_tasks import BackgroundTask, BackgroundTaskRunner
from services.core.db.database import Database
from services.core.deletion import task, tenant_task, tenants
from services.core.events import numbering
from services.core.model import ids
from tests import factories
from tests.benchmarks.environment import benchmark_stack
from tests.benchmarks.report import report

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

IMAGES = int(os.environ.get("IMAGES", "1000000"))
JOBS = 10
OTHER = 2
CLAIMED_BEFORE_SECONDS = 20.0
_FILL = {
    "jobs": """INSERT INTO jobs (id, tenant_id, state, priority, total, opened_at, finished_at)
               VALUES (:id, 2, 'completed', 1, :n, now(), now())""",
    "counters": "INSERT INTO counters (job_id, queued, done) VALUES (:id, 0, :n)",
    "images": """INSERT INTO images (job_id, index, segment_id, state)
                 SELECT :id, i, 0, 2 FROM generate_series(0, :n - 1) i""",
    "payloads": """INSERT INTO payloads (job_id, index, n, segment_id, seed, guidance_scale, output_format, prompt,
                                         negative_prompt)
                   SELECT :id, i, 1, 0, i, 7.5, 'png', 'a mug on a table, number ' || i, ''
                   FROM generate_series(0, :n - 1) i""",
    "results": """INSERT INTO results (job_id, index, bytes, claim_id, render_seconds, truncated, sha256, object_key,
                                       device, reproducibility_class, render_key)
                  SELECT :id, i, 100000, 1, 1, false, sha256(CAST(CAST(i AS text) AS bytea)),
                         'ab/2/' || :id || '/' || i || '.png', 'gpu-0', 'class', sha256(CAST(CAST(i AS text) AS bytea))
                  FROM generate_series(0, :n - 1) i""",
}


class NoStore:
    """An object store that has nothing and deletes at once."""

    def drop(self, _key: str) -> None: ...

    def under(self, _folder: str, _after: str = "") -> Iterator[str]:
        return iter(())


class Spent:
    """How long the statements of a database's sessions took."""

    def __init__(self, database: Database) -> None:
        self.seconds, self._began = 0.0, threading.local()
        engine = database._engine
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "after_cursor_execute", self._after)

    def _before(self, *_: Any) -> None:
        self._began.at = time.monotonic()

    def _after(self, *_: Any) -> None:
        self.seconds += time.monotonic() - self._began.at


class Claims:
    """Claims and settles another tenant's images, one batch after the other, and keeps each claim's time: in a process
    of its own, as a worker does."""

    def __init__(self, database_url: str) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._pipe = ours
        self._process = multiprocessing.get_context("spawn").Process(target=_claim, args=(database_url, theirs))
        self._process.start()

    def take(self) -> list[float]:
        """The seconds that each claim since the last call took."""
        return self._ask("take")

    def end(self) -> None:
        self._ask("end")
        self._process.join()

    def _ask(self, word: str) -> list[float]:
        self._pipe.send(word)
        found: list[float] = self._pipe.recv()
        return found


def _claim(database_url: str, pipe: "Connection[list[float], str]") -> None:
    database, seconds, word = Database(database_url, application="presswork worker"), list[float](), ""
    while word != "end":
        if pipe.poll():
            word = pipe.recv()
            pipe.send(seconds)
            seconds = []
        began = time.monotonic()
        claim = factories.claim(database)
        seconds.append(time.monotonic() - began)
        assert claim is not None, "the other tenant has too few images"
        factories.settle(database, claim, stored=factories.stored(claim))
    database.close()


def run() -> None:
    with benchmark_stack() as stack:
        database = stack.database
        factories.register(database)
        factories.submit(database, stack.settings, 400_000)
        _fill(database)
        deleting = Database(stack.settings.database_url, application="presswork scheduler", nested_loops=True)
        spent, claims = Spent(deleting), Claims(stack.settings.database_url)
        try:
            time.sleep(CLAIMED_BEFORE_SECONDS)
            before = claims.take()
            began = time.monotonic()
            with database.begin_system() as connection:
                tenants.delete(connection, "agency", "agency")
            done = _delete(deleting)
            seconds = time.monotonic() - began
            during = claims.take()
        finally:
            claims.end()
            deleting.close()
    assert done.remains == {}, done
    report(
        "tenant_delete", IMAGES / spent.seconds, IMAGES / 120, "images/s of the database's time", "a million in 120 s",
        images=IMAGES, database_seconds=round(spent.seconds, 1), seconds=round(seconds, 1),
        worst_claim_ms_before=round(max(before) * 1000, 1), worst_claim_ms_during=round(max(during) * 1000, 1),
        worst_claim_ratio=round(max(during) / max(before), 2), claims_before=len(before), claims_during=len(during),
        usual_claim_ms_before=round(statistics.median(before) * 1000, 1),
        usual_claim_ms_during=round(statistics.median(during) * 1000, 1),
        slow_claim_ms_before=_slow(before), slow_claim_ms_during=_slow(during),
    )  # fmt: skip


def _slow(seconds: list[float]) -> float:
    """Of a hundred claims one is slower, in milliseconds."""
    return round(statistics.quantiles(seconds, n=100)[98] * 1000, 1)


def _fill(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'agency')"))
    for _ in range(JOBS):
        with database.begin_system() as connection:
            values = {"id": ids.new(), "n": IMAGES // JOBS}
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            for statement in _FILL.values():
                connection.execute(text(statement), values)


def _delete(database: Database) -> tenants.Deletion:
    store: Any = NoStore()
    runner = BackgroundTaskRunner(
        database,
        [
            BackgroundTask("delete-tenant", tenants.pending, lambda item, lease: tenant_task.run(store, item, lease)),
            BackgroundTask("delete-job", task.pending, lambda item, lease: task.run(store, item, lease)),
        ],
        "scheduler-1",
    )
    while True:
        runner.run_once()
        with database.begin_system() as connection:
            numbering.number(connection)
            found = tenants.show(connection, "agency")
        if found.finished_at is not None:
            return found
