"""Random SIGKILL and SIGSTOP while thousands of images are rendered: no image is lost and none is done twice.

A tenth of the faults runs with all tests, all of them with `make chaos`. The seed is printed. A run that could not
inject all planned faults fails, because it proves nothing.
"""

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.jobs import queries
from services.core.model.states import ImageState
from services.core.settings import Settings
from services.core.storage import members, s3
from tests.factories import TENANT, submit
from tests.processes import Process
from tests.waiting import until

STOPPED_AT_ONCE = 2
WORKERS = 4
LEASE = 2.0


@dataclass(frozen=True)
class FaultPlan:
    """The faults to inject. `whole_workers` of the kills hit a worker with all its processes, the others only the
    Celery child. At least `fenced` of the stopped children must survive and settle too late; the others may
    die first."""

    images: int
    kills: int
    whole_workers: int
    stops: int
    fenced: int


WHOLE = FaultPlan(images=10_000, kills=200, whole_workers=16, stops=20, fenced=11)
FIFTH = FaultPlan(images=2_000, kills=40, whole_workers=3, stops=4, fenced=1)
TENTH = FaultPlan(images=1_000, kills=20, whole_workers=2, stops=3, fenced=1)


class Fleet:
    """Workers that are started again when they are killed, as a supervisor would."""

    def __init__(self, environ: dict[str, str], folder: Path, database: Database, chance: random.Random) -> None:
        self._environ, self._folder, self._database, self._chance = environ, folder, database, chance
        self._started = 0
        self._stopped: set[int] = set()  # workers whose child is stopped, which get no other fault
        self._pool = ThreadPoolExecutor(STOPPED_AT_ONCE, "stops")
        self.workers = [self._start() for _ in range(WORKERS)]

    def kill_child(self) -> bool:
        children = self.workers[self._aim()].children()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        return bool(children)

    def kill_worker(self) -> bool:
        number = self._aim()
        self.workers[number].kill()
        self.workers[number] = self._start()
        return True

    def stop_child(self) -> Future[str] | None:
        """Freezes a child that holds a claim. It continues once that claim has expired; the future's result is
        what happened then: `fenced` or `died`. None: no child could be frozen right now."""
        if len(self._stopped) == STOPPED_AT_ONCE:
            return None
        number = self._aim()
        child = next(iter(self.workers[number].children()), None)
        if child is None:
            return None
        if not _froze(child):
            return None
        claim = self._claim_of(child)
        if claim is None:
            os.kill(child, signal.SIGCONT)
            return None
        self._stopped.add(number)
        return self._pool.submit(self._go_on, number, child, claim)

    def restart(self) -> bool:
        """Restarts workers that have ended, as a worker does whose child dies three times at its start."""
        for number, worker in enumerate(self.workers):
            if worker.popen.poll() is not None:
                self.workers[number] = self._start()
        return True

    def end(self) -> None:
        for worker in self.workers:
            for pid in worker.children():
                os.kill(pid, signal.SIGCONT)
            worker.kill()

    def _go_on(self, number: int, child: int, claim: int) -> str:
        worker = self.workers[number]
        until(lambda: self._expired(claim), seconds=90)
        try:
            os.kill(child, signal.SIGCONT)
        except ProcessLookupError:
            self._stopped.discard(number)
            return "died"
        fenced = f'"claim": {claim}, "verdict": "fenced"'
        until(lambda: fenced in worker.text() or child not in worker.children(), seconds=90)
        self._stopped.discard(number)
        return "fenced" if fenced in worker.text() else "died"

    def _claim_of(self, child: int) -> int | None:
        """The newest claim of a frozen child, if it holds an older one: so this one cannot be settled already. None,
        too, while one of its unfinished transactions has the claim locked, since then no sweep can expire it."""
        with self._database.begin_system() as connection:
            claims = connection.execute(_CLAIMS, {"pid": child}).scalars().all()
        return claims[0] if len(claims) > 1 else None

    def _expired(self, claim: int) -> bool:
        with self._database.begin_system() as connection:
            return connection.execute(_STATE, {"id": claim}).scalar_one() == "expired"

    def _aim(self) -> int:
        """Chooses the worker for the next fault."""
        self.restart()
        return self._chance.choice([number for number in range(WORKERS) if number not in self._stopped])

    def _start(self) -> Process:
        self._started += 1
        return Process("worker.app", self._environ, self._folder / f"worker-{self._started}.log")


def _froze(pid: int) -> bool:
    """Stops a process, unless an earlier fault is already killing it."""
    try:
        os.kill(pid, signal.SIGSTOP)
        return until(lambda: state if (state := _state(pid)) in "TZX" else None) == "T"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


_CLAIMS = text("""
SELECT claims.id FROM claims JOIN workers ON workers.id = worker_id
WHERE pid = :pid AND workers.state IN ('ready', 'busy') AND claims.state = 'open'
ORDER BY claims.id DESC FOR UPDATE OF claims SKIP LOCKED
""")
_STATE = text("SELECT state FROM claims WHERE id = :id")


@pytest.fixture
def chance() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def fleet(
    environ: dict[str, str], database: Database, store: s3.S3Store, tmp_path: Path, chance: random.Random
) -> Iterator[Fleet]:
    environment = environ | {
        "PRESSWORK_LEASE_SECONDS": str(LEASE),
        "PRESSWORK_SIMULATED_BATCH_MS": "200",  # so that even a fast machine is not done before the last fault
        "PRESSWORK_SICK_SECONDS": "0.1",
        "OMP_NUM_THREADS": "1",
    }
    scheduler = Process("scheduler.app", environment, tmp_path / "scheduler.log")
    fleet = Fleet(environment, tmp_path, database, chance)
    yield fleet
    fleet.end()
    scheduler.kill()


class Reader:
    """Polls the job's progress, as a dashboard would, and records every inconsistent read."""

    def __init__(self, database: Database, job_id: int) -> None:
        self._database, self._job_id = database, job_id
        self.reads = 0
        self.bad: list[object] = []
        self.done = 0
        self._last = Counter[str]()
        self._going = True
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()

    def _run(self) -> None:
        while self._going:
            with self._database.begin(TENANT) as connection:
                view = queries.job(connection, TENANT, self._job_id)
            assert view is not None
            counts = view.counts
            self.reads += 1
            went_back = any(counts[state] < self._last[state] for state in ("done", "failed", "cancelled"))
            if sum(counts.values()) != view.total or min(counts.values()) < 0 or went_back:
                self.bad.append(counts)
            self._last = Counter(counts)
            self.done = counts["done"]
            time.sleep(0.05)


@pytest.mark.timeout(600)
def test_twenty_kills_and_three_stops_lose_nothing_and_show_nothing_twice(
    fleet: Fleet, database: Database, settings: Settings, store: s3.S3Store, chance: random.Random
):
    assert_survives(TENTH, fleet, database, settings, store, chance)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_two_hundred_kills_and_twenty_stops_lose_nothing_and_show_nothing_twice(
    fleet: Fleet, database: Database, settings: Settings, store: s3.S3Store, chance: random.Random
):
    assert_survives(WHOLE, fleet, database, settings, store, chance)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_forty_kills_and_four_stops_lose_nothing_of_what_is_stored_in_shards(
    fleet: Fleet, database: Database, settings: Settings, store: s3.S3Store, chance: random.Random
):
    assert_survives(FIFTH, fleet, database, settings, store, chance, head={"store": "shards"})


def assert_survives(
    plan: FaultPlan,
    fleet: Fleet,
    database: Database,
    settings: Settings,
    store: s3.S3Store,
    chance: random.Random,
    head: dict[str, str] | None = None,
) -> None:
    """Renders a job while injecting the planned faults; asserts that every image was made exactly once."""
    until(lambda: _registered(database), seconds=90)
    requests = [{"prompt": f"a mug {index}", "size": "64x64", "output_format": "jpeg"} for index in range(plan.images)]
    job_id = submit(database, settings, requests, head=head)
    faults = ["child"] * (plan.kills - plan.whole_workers) + ["worker"] * plan.whole_workers + ["stop"] * plan.stops
    chance.shuffle(faults)
    hit = Counter[str]()
    stops = []
    with Reader(database, job_id) as reader:
        for number, fault in enumerate(faults):
            _wait_for_progress(reader, number * plan.images * 0.9 / len(faults), chance)
            if fault == "stop":
                stops.append(until(fleet.stop_child, seconds=60))
            else:
                until(fleet.kill_child if fault == "child" else fleet.kill_worker)
            hit[fault] += 1
        assert reader.done < plan.images, "the job was over before the last fault"
        ends = Counter(stop.result() for stop in stops)
        until(lambda: fleet.restart() and reader.done == plan.images, seconds=240)
    print(f"{dict(hit)}, {reader.reads} reads, stops ended as {dict(ends)}")

    assert not reader.bad
    assert reader.reads > plan.images / 20
    assert hit == {"child": plan.kills - plan.whole_workers, "worker": plan.whole_workers, "stop": plan.stops}
    assert ends.total() == plan.stops
    assert ends["fenced"] >= plan.fenced, "a stopped child that goes on settles too late, and lives"
    with database.begin_system() as connection:
        states = {
            row.state: row.n
            for row in connection.execute(text("SELECT state, count(*) AS n FROM images GROUP BY state"))
        }
        rows = connection.execute(text("SELECT index, object_key, sha256 FROM results ORDER BY index")).all()
        lost = connection.execute(text("SELECT max(lost), max(attempt) FROM images")).one()
    print(f"most often lost: {lost[0]}")
    assert states == {ImageState.DONE: plan.images}
    assert lost[1] == 0
    assert [row.index for row in rows] == list(range(plan.images))
    assert len({row.object_key for row in rows}) == plan.images
    assert (len({members.object_of(row.object_key) for row in rows}) < plan.images) is (head is not None)

    def mismatched(row: object) -> bool:
        return hashlib.sha256(store.read(row.object_key)).digest() != bytes(row.sha256)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(mismatched, rows)) == 0


def _registered(database: Database) -> bool:
    with database.begin_system() as connection:
        return len([row for row in queries.fleet(connection) if row.state == "ready"]) >= WORKERS


def _wait_for_progress(reader: Reader, done: float, chance: random.Random) -> None:
    """Spreads the faults over the job's progress, with a time limit for each."""
    deadline = time.monotonic() + 3.0
    time.sleep(chance.uniform(0.0, 0.2))
    while reader.done < done and time.monotonic() < deadline:
        time.sleep(0.01)
