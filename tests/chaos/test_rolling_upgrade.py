"""A rolling upgrade from the release with the schema before, while jobs arrive: no image is lost, failed or made twice.

The schema goes first, then web server, scheduler and workers are replaced one by one; both releases run side by side.
Each program that is stopped by SIGTERM ends within its grace, and a worker has finished what it had begun.
"""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Self

import httpx
import pytest
from sqlalchemy import text

from services.core.db import revisions
from services.core.db.database import Database
from services.core.jobs import queries
from services.core.model import ids
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from services.local.stack import Stack
from tests import earlier_release
from tests.earlier_release import EarlierProcess
from tests.factories import TENANT
from tests.processes import Process
from tests.waiting import until

COMMIT, WHY_NOT = earlier_release.commit()
IMAGES = 32
GRACE_SECONDS = 30.0  # of a SIGTERM

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


class Storm:
    """A client that submits jobs to one web server after the other; what does not answer is left out, as behind a load
    balancer."""

    def __init__(self, key: str) -> None:
        self.ports = {name: free_port() for name in ("earlier", "later")}
        self._http = httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=10)
        self.accepted: list[tuple[str, int]] = []  # by which release
        self._going = True
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()

    def by(self, release: str) -> int:
        return sum(name == release for name, _ in self.accepted)

    def passes(self, release: str, jobs: int = 3) -> None:
        """Returns when that release has accepted so many more jobs."""
        before = self.by(release)
        until(lambda: self.by(release) >= before + jobs)

    def _run(self) -> None:
        names, number = list(self.ports), 0
        while self._going:
            number += 1
            images = [{"prompt": f"a mug {index}", "size": "64x64", "seed": index} for index in range(IMAGES)]
            while self._going:
                names.reverse()
                try:
                    answer = self._http.post(
                        f"http://127.0.0.1:{self.ports[names[0]]}/v1/jobs", json={"images": images},
                        headers={"Idempotency-Key": f"storm-{number}"},
                    )  # fmt: skip
                except httpx.TransportError:
                    time.sleep(0.05)
                    continue
                if answer.status_code != 503:
                    assert answer.status_code == 202, answer.text
                    self.accepted.append((names[0], ids.parse_job(answer.json()["id"])))
                    break
            time.sleep(0.1)


class Releases:
    """Programs of both releases on one database, started one by one and ended together."""

    def __init__(self, tree: Path, environ: dict[str, str], folder: Path) -> None:
        self._tree, self._environ, self._folder = tree, environ, folder
        self._running: list[Process] = []

    def earlier(self, module: str, *arguments: str, **more: str) -> Process:
        return self._keep(EarlierProcess(self._tree, module, self._environ | more, self._log(), *arguments))

    def later(self, module: str, *arguments: str, **more: str) -> Process:
        return self._keep(Process(module, self._environ | more, self._log(), *arguments))

    def end(self) -> None:
        for process in self._running:
            process.kill()

    def _keep(self, process: Process) -> Process:
        self._running.append(process)
        return process

    def _log(self) -> Path:
        return self._folder / f"{len(self._running)}.log"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return earlier_release.unpack(COMMIT, tmp_path / "earlier")


@pytest.fixture
def empty_url(fresh_database) -> Iterator[str]:
    """A database without tables."""
    with fresh_database("template0") as url:
        yield url


@pytest.fixture
def releases(stack: Stack, tree: Path, empty_url: str, tmp_path: Path) -> Iterator[Releases]:
    environ = dict(stack.values) | {
        "DATABASE_URL": empty_url, "PRESSWORK_PIPELINE": "simulated", "PRESSWORK_SIMULATED_BATCH_MS": "300",
        "PRESSWORK_LEASE_SECONDS": "5", "OMP_NUM_THREADS": "1", "PRESSWORK_PREFIX": "upgrade/",
    }  # fmt: skip
    started = Releases(tree, environ, tmp_path)
    yield started
    started.end()


@pytest.mark.timeout(600)
def test_programs_are_replaced_one_by_one_while_jobs_arrive(
    stack: Stack, tree: Path, empty_url: str, releases: Releases, store: S3Store
):
    before, after = earlier_release.newest_revision(tree), revisions.known()[0]
    assert before < after
    owner_url = f"{stack.migrator_url.rpartition('/')[0]}/{empty_url.rpartition('/')[2]}"
    migrated(releases.earlier("services.cli", "migrate", DATABASE_URL=owner_url))
    with closing(Database(empty_url, application="tests", pool_size=10)) as database:
        with database.begin_system() as connection:
            key = api_keys.issue_key(connection, stack.values["PRESSWORK_SECRET"], TENANT, "storm")
        storm = Storm(key)
        old_web = releases.earlier("services.web", PRESSWORK_PORT=str(storm.ports["earlier"]))
        old_scheduler = releases.earlier("scheduler.app")
        old_workers = [releases.earlier("worker.app") for _ in range(2)]
        until(lambda: ready(database) == 2, seconds=120)
        with storm:
            storm.passes("earlier")
            began = time.monotonic()
            migrated(releases.later("services.cli", "migrate", DATABASE_URL=owner_url))
            storm.passes("earlier")
            releases.later("services.web", PRESSWORK_PORT=str(storm.ports["later"]))
            releases.later("worker.app")
            until(lambda: ready(database) == 3, seconds=120)
            storm.passes("later")
            storm.passes("earlier")
            releases.later("scheduler.app")
            graces = [drained(process) for process in (old_scheduler, old_workers[0])]
            releases.later("worker.app")
            until(lambda: ready(database) == 3, seconds=120)
            graces += [drained(process) for process in (old_workers[1], old_web)]
            storm.passes("later")
        took = time.monotonic() - began
        jobs = [job for _, job in storm.accepted]
        until(lambda: all(done(database, job) == IMAGES for job in jobs), seconds=240)
        assert_each_once(database, store, jobs)
    print(
        f"{before} to {after}: {storm.by('earlier')} jobs by the earlier release, {storm.by('later')} by this one, "
        f"{len(jobs) * IMAGES} images in {took:.0f} s; ends after {[round(grace, 1) for grace in graces]} s"
    )


def migrated(process: Process) -> None:
    assert process.popen.wait(120) == 0, process.text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def drained(process: Process) -> float:
    """Stops it by SIGTERM; after how many seconds it has ended."""
    began = time.monotonic()
    assert process.stop(GRACE_SECONDS) == 0, process.text()[-2000:]
    return time.monotonic() - began


def ready(database: Database) -> int:
    with database.begin_system() as connection:
        return len([row for row in queries.fleet(connection) if row.state in ("ready", "busy")])


def done(database: Database, job_id: int) -> int:
    with database.begin(TENANT) as connection:
        found = queries.job(connection, TENANT, job_id)
    assert found is not None and sum(found.counts.values()) == found.total == IMAGES
    assert found.counts["failed"] == found.counts["cancelled"] == 0
    return found.counts["done"]


def assert_each_once(database: Database, store: S3Store, jobs: list[int]) -> None:
    asked = text("""
SELECT job_id, index AS place, object_key, sha256 FROM results WHERE job_id = ANY(:jobs) ORDER BY job_id, index
""")
    with database.begin_system() as connection:
        rows = connection.execute(asked, {"jobs": jobs}).all()
        lost = connection.execute(text("SELECT max(lost), max(attempt), max(crashes) FROM images")).one()
        unsettled = connection.execute(text("SELECT count(*) FROM claims WHERE state <> 'settled'")).scalar_one()
    assert [(row.job_id, row.place) for row in rows] == [(job, n) for job in sorted(jobs) for n in range(IMAGES)]
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda row: hashlib.sha256(store.read(row.object_key)).digest(), rows))
    assert digests == [bytes(row.sha256) for row in rows]
    of_place = [{bytes(row.sha256) for row in rows if row.place == n} for n in range(IMAGES)]
    assert all(len(digests) == 1 for digests in of_place), "both releases draw alike"
    assert tuple(lost) == (0, 0, 0) and unsettled == 0, "who was stopped had finished what it had begun"
