"""Kill -9 and SIGSTOP at random, while ten thousand images are rendered: nothing is lost, nothing is seen twice.

The seed is printed. A run that did not hit what it set out to hit proves nothing, and fails.
"""

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from services.core import storage, views
from services.core.database import Database
from services.core.settings import Settings
from services.core.states import ImageState
from tests.factories import TENANT, submit
from tests.processes import Process
from tests.waiting import until

IMAGES = 10_000
KILLS = 200
WHOLE_WORKERS = 25  # of the kills; the others hit the Celery child alone
STOPS = 20
WORKERS = 3
LEASE = 2.0


class Fleet:
    """Workers that are started again when they are killed, as a supervisor would."""

    def __init__(self, environ: dict[str, str], folder: Path) -> None:
        self._environ, self._folder = environ, folder
        self._started = 0
        self.workers = [self._start() for _ in range(WORKERS)]

    def kill_child(self, chance: random.Random) -> bool:
        children = self.workers[chance.randrange(WORKERS)].children()
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        return bool(children)

    def kill_worker(self, chance: random.Random) -> bool:
        number = chance.randrange(WORKERS)
        self.workers[number].kill()
        self.workers[number] = self._start()
        return True

    def stop_child(self, chance: random.Random, seconds: float) -> bool:
        """Freezes a child for longer than its lease and a sweep, but not for the watchdog's time; then it goes on."""
        children = self.workers[chance.randrange(WORKERS)].children()
        if not children:
            return False
        os.kill(children[0], signal.SIGSTOP)

        def go_on() -> None:
            time.sleep(seconds)
            try:
                os.kill(children[0], signal.SIGCONT)
            except ProcessLookupError:
                pass

        threading.Thread(target=go_on).start()
        return True

    def end(self) -> None:
        for worker in self.workers:
            for pid in worker.children():
                os.kill(pid, signal.SIGCONT)
            worker.kill()

    def fenced(self) -> int:
        return sum(log.read_text(errors="replace").count('"verdict": "fenced"') for log in self._folder.glob("*.log"))

    def _start(self) -> Process:
        self._started += 1
        return Process("worker.app", self._environ, self._folder / f"worker-{self._started}.log")


@pytest.fixture
def fleet(environ: dict[str, str], store: storage.S3Store, tmp_path: Path) -> Iterator[Fleet]:
    environment = environ | {
        "PRESSWORK_LEASE_SECONDS": str(LEASE),
        "PRESSWORK_SIMULATED_BATCH_MS": "60",
        "PRESSWORK_SICK_SECONDS": "0.1",
        "OMP_NUM_THREADS": "1",
    }
    scheduler = Process("scheduler.app", environment, tmp_path / "scheduler.log")
    fleet = Fleet(environment, tmp_path)
    yield fleet
    fleet.end()
    scheduler.kill()


class Reader:
    """Reads the job's progress all the time, as a dashboard would, and notes every read that does not add up."""

    def __init__(self, database: Database, job_id: int) -> None:
        self._database, self._job_id = database, job_id
        self.reads = 0
        self.bad: list[object] = []
        self.done = 0
        self._last = Counter[str]()
        self._going = True
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._going = False
        self._thread.join()

    def _run(self) -> None:
        while self._going:
            with self._database.begin(TENANT) as connection:
                view = views.job(connection, TENANT, self._job_id)
            assert view is not None
            counts = view.counts
            self.reads += 1
            went_back = any(counts[state] < self._last[state] for state in ("done", "failed", "cancelled"))
            if sum(counts.values()) != view.total or min(counts.values()) < 0 or went_back:
                self.bad.append(counts)
            self._last = Counter(counts)
            self.done = counts["done"]
            time.sleep(0.02)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_two_hundred_kills_and_twenty_stops_lose_nothing_and_show_nothing_twice(
    fleet: Fleet, database: Database, settings: Settings, store: storage.S3Store
):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    until(lambda: _registered(database))
    requests = [{"prompt": f"a mug {index}", "size": "64x64", "output_format": "jpeg"} for index in range(IMAGES)]
    job_id = submit(database, settings, requests)
    reader = Reader(database, job_id)
    faults = ["child"] * (KILLS - WHOLE_WORKERS) + ["worker"] * WHOLE_WORKERS + ["stop"] * STOPS
    chance.shuffle(faults)
    hit = Counter[str]()
    for number, fault in enumerate(faults):
        _wait_for_progress(reader, number * IMAGES * 0.9 / len(faults), chance)
        verb = {
            "child": lambda: fleet.kill_child(chance),
            "worker": lambda: fleet.kill_worker(chance),
            "stop": lambda: fleet.stop_child(chance, LEASE * chance.uniform(1.6, 1.95)),
        }[fault]
        until(verb)
        hit[fault] += 1
    assert reader.done < IMAGES, "the job was over before the last fault"
    until(lambda: reader.done == IMAGES, seconds=120)
    reader.end()
    print(f"{dict(hit)}, {reader.reads} reads, {fleet.fenced()} fenced settles")

    assert not reader.bad
    assert reader.reads > 500
    assert hit == {"child": KILLS - WHOLE_WORKERS, "worker": WHOLE_WORKERS, "stop": STOPS}
    assert fleet.fenced() > 0, "no settle came late: the stops proved nothing"
    with database.begin() as connection:
        states = {
            row.state: row.n
            for row in connection.execute(text("SELECT state, count(*) AS n FROM images GROUP BY state"))
        }
        rows = connection.execute(text("SELECT index, object_key, sha256 FROM results ORDER BY index")).all()
        lost = connection.execute(text("SELECT max(lost), max(attempt) FROM images")).one()
    print(f"most often lost: {lost[0]}")
    assert states == {ImageState.DONE: IMAGES}
    assert lost[1] == 0
    assert [row.index for row in rows] == list(range(IMAGES))
    assert len({row.object_key for row in rows}) == IMAGES

    def mismatched(row: object) -> bool:
        return hashlib.sha256(store.read(row.object_key)).digest() != bytes(row.sha256)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(mismatched, rows)) == 0


def _registered(database: Database) -> bool:
    with database.begin() as connection:
        return len([row for row in views.fleet(connection) if row.state == "ready"]) >= WORKERS


def _wait_for_progress(reader: Reader, done: float, chance: random.Random) -> None:
    """The faults are spread over the job, and none waits for long."""
    deadline = time.monotonic() + 1.5
    time.sleep(chance.uniform(0.0, 0.2))
    while reader.done < done and time.monotonic() < deadline:
        time.sleep(0.01)
