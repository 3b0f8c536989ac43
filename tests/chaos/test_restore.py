"""A database is restored to a moment while a job was rendered: nothing is doubled, and no bytes are wrong.

The server is a real one with an archive of its write-ahead log. What it had committed after that moment is gone, and
the store still has the objects of it. One worker was not stopped: it holds a claim of the lost time.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from services.core.db import database as databases
from services.core.db.database import Database
from services.core.jobs import queries
from services.core.model import ids
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.servers import Postgres
from services.local.stack import Stack
from tests import memory
from tests.factories import TENANT, submit
from tests.processes import Command, Process
from tests.waiting import until

IMAGES, AT_ONCE = 2_000, 16
LOST_SECONDS = 10
LEASE = "2"


@pytest.fixture
def archived() -> Iterator[Stack]:
    """Servers of this test alone; Postgres archives its log beside its data."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("PRESSWORK_", "AWS_"))}
    for name in ("DATABASE_URL", "REDIS_URL"):
        quiet.pop(name, None)
    with memory.folder("presswork-restore-") as folder, Stack(folder / "stack", quiet) as stack:
        postgres = server(stack)
        archive = postgres.folder / "archive"
        archive.mkdir()
        give(archive, postgres)
        with psycopg.connect(plain(stack.superuser_url), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET archive_mode = on")
            admin.execute(f"ALTER SYSTEM SET archive_command = 'cp %p {archive}/%f'")
        restart(postgres)
        databases.migrate(stack.migrator_url)
        yield stack


def server(stack: Stack) -> Postgres:
    [found] = [one for one in stack.servers if isinstance(one, Postgres)]
    return found


def restart(postgres: Postgres) -> None:
    postgres.stop()
    postgres.start()
    postgres.wait_ready()


def plain(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


def give(folder: Path, postgres: Postgres) -> None:
    """To the user that the server runs as."""
    owner = postgres.data.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


def base_backup(stack: Stack, folder: Path) -> None:
    postgres = server(stack)
    command = [postgres.bin / "pg_basebackup", "-D", folder, "-c", "fast", "-d", plain(stack.superuser_url)]
    done = subprocess.run(command, capture_output=True, text=True, env=postgres.environment(), check=False)
    assert done.returncode == 0, done.stderr


def restore(stack: Stack, backup: Path, moment: str) -> None:
    """Puts the backup in the place of the data and replays the log up to the moment."""
    postgres = server(stack)
    postgres.stop()  # archives the segment at hand
    shutil.rmtree(postgres.data)
    shutil.copytree(backup, postgres.data)
    with (postgres.data / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"restore_command = 'cp {postgres.folder}/archive/%f %p'\n")
        settings.write(f"recovery_target_time = '{moment}'\nrecovery_target_action = 'promote'\n")
    (postgres.data / "recovery.signal").touch()
    postgres.data.chmod(0o700)
    give(postgres.data, postgres)
    postgres.start()
    postgres.wait_ready()
    with psycopg.connect(plain(stack.superuser_url), autocommit=True) as admin:
        until(lambda: not admin.execute("SELECT pg_is_in_recovery()").fetchone()[0])


def done(database: Database, job_id: int) -> int:
    with database.begin(TENANT) as connection:
        found = queries.job(connection, TENANT, job_id)
    assert found is None or sum(found.counts.values()) == found.total
    return found.counts["done"] if found else -1


def results(database: Database, job_id: int) -> dict[int, tuple[str, bytes]]:
    asked = text("SELECT index AS place, object_key, sha256 FROM results WHERE job_id = :id ORDER BY index")
    with database.begin_system() as connection:
        return {row.place: (row.object_key, bytes(row.sha256)) for row in connection.execute(asked, {"id": job_id})}


def assert_each_once(
    database: Database, store: S3Store, job: int, before: dict[int, tuple[str, bytes]], foreign: int
) -> None:
    """Every image is done, with the bytes that are recorded, and with those that it had in the lost time. Only where
    something else lay under its key has it another one."""
    after = results(database, job)
    assert sorted(after) == list(range(IMAGES))
    with ThreadPoolExecutor(8) as pool:
        stored = dict(zip(after, pool.map(lambda one: store.read(one[0]), after.values()), strict=True))
    assert all(hashlib.sha256(stored[index]).digest() == digest for index, (_, digest) in after.items())
    assert {index: before[index][1] for index in before} == {index: after[index][1] for index in before}
    assert {index for index in before if after[index][0] != before[index][0]} == {foreign}
    objects = [key for key in store.under("") if f"/{ids.public_job(job)}/" in key]
    assert len(objects) == IMAGES + 1, "one of each image, and what lay in the place of one"


def mugs(count: int, what: str) -> list[dict[str, object]]:
    return [{"prompt": f"a {what} {index}", "size": "64x64"} for index in range(count)]


def freeze_in_a_claim(worker: Process, database: Database) -> tuple[int, int]:
    """Stops the worker's child while it holds a claim; both ids."""
    held = text("""
SELECT claims.id FROM claims JOIN workers ON workers.id = worker_id
WHERE pid = :pid AND claims.state = 'open' ORDER BY claims.id DESC LIMIT 1 FOR UPDATE OF claims SKIP LOCKED
""")
    while True:
        (child,) = until(worker.children)
        os.kill(child, signal.SIGSTOP)
        time.sleep(0.05)
        with database.begin_system() as connection:
            claim = connection.execute(held, {"pid": child}).scalar_one_or_none()
        if claim is not None:
            return child, claim
        os.kill(child, signal.SIGCONT)


@contextmanager
def running(environ: dict[str, str], folder: Path) -> Iterator[Callable[[str], Process]]:
    """Starts programs, and ends them afterwards."""
    started: list[Process] = []

    def start(module: str) -> Process:
        started.append(Process(module, environ, folder / f"{len(started)}.log"))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            for pid in process.children():
                os.kill(pid, signal.SIGCONT)
            process.kill()


def presswork(environ: dict[str, str], folder: Path, *arguments: str) -> tuple[int, dict[str, object]]:
    log = folder / f"{ids.new()}.log"
    code = Command(environ, log, *arguments, "--json", cwd=folder).popen.wait(120)
    said = log.read_text()
    return code, json.loads(said[said.index("{") :])


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_restore_to_a_moment_within_a_job_doubles_nothing_and_makes_no_wrong_bytes(archived: Stack, tmp_path: Path):
    environ = archived.values | {
        "PRESSWORK_LEASE_SECONDS": LEASE, "PRESSWORK_SIMULATED_BATCH_MS": "400", "OMP_NUM_THREADS": "1",
        "PRESSWORK_PIPELINE": "simulated",
    }  # fmt: skip
    settings = Settings.read(environ)
    store = S3Store(settings)
    store.prepare()
    database = Database(environ["DATABASE_URL"], application="tests", pool_size=10)
    with running(environ, tmp_path) as start:
        *others, survivor = [start(module) for module in ("scheduler.app", "worker.app", "worker.app")]
        until(lambda: _ready(database) == 2, seconds=90)
        first = submit(database, settings, mugs(40, "jug"))
        until(lambda: done(database, first) == 40)
        assert presswork(environ, tmp_path, "storage", "audit")[1]["refusal"] is None
        base_backup(archived, tmp_path / "base")

        job = submit(database, settings, mugs(IMAGES, "mug"))
        until(lambda: done(database, job) > IMAGES / 8)
        kept = set(results(database, job))
        with database.begin_system() as connection:
            moment = str(connection.execute(text("SELECT clock_timestamp()")).scalar_one())
        later = submit(database, settings, mugs(AT_ONCE, "hat"), priority="high")  # accepted in the time that gets lost
        until(lambda: done(database, later) == AT_ONCE)
        time.sleep(LOST_SECONDS)
        child, claim = freeze_in_a_claim(survivor, database)
        for process in others:
            process.kill()
        before = results(database, job)
        lost_minute = sorted(set(before) - kept)
        assert kept and len(before) < IMAGES and len(lost_minute) > 100, "the restore is to hit the job"
        foreign = lost_minute[-1]  # something else lies under the key of an image of the lost time
        store.put_file(before[foreign][0], BytesIO(b"something else"), "image/png")
        for index in range(3):
            store.drop(results(database, first)[index][0])

        database.close()
        restore(archived, tmp_path / "base", moment)
        database = Database(environ["DATABASE_URL"], application="tests", pool_size=10)
        restored = done(database, job)
        assert len(kept) <= restored < len(before) and done(database, later) == -1
        os.kill(child, signal.SIGCONT)
        until(lambda: f'"claim": {claim}, "verdict": "fenced"' in survivor.text())

        code, found = presswork(environ, tmp_path, "backup", "check", "--share", "1")
        assert code == 3 and "recovered" in str(found["restored"]) and "log is archived" in str(found["log"])
        [lost] = found["lost"]
        assert (lost["job"], lost["missing"], lost["damaged"]) == (ids.public_job(first), 3, 0)
        assert found["deleted"] == 0 and found["orphans"] >= AT_ONCE, (
            "those of the job that is gone, and of images that are not done yet"
        )

        for module in ("scheduler.app", "worker.app"):
            start(module)
        again = ids.parse_job(lost["drawn_in"])
        until(lambda: done(database, job) == IMAGES and done(database, again) == 3, seconds=240)
        assert_each_once(database, store, job, before, foreign)
        drawn, right = (list(results(database, one).values())[:3] for one in (again, first))
        assert [digest for _, digest in drawn] == [digest for _, digest in right]

        code, audit = presswork(environ, tmp_path, "storage", "audit", "--accept-restore", "--share", "1")
        assert audit["refusal"] is None and audit["counts"]["orphans"] == AT_ONCE + 1
        print(
            f"{len(kept)} of {IMAGES} images at the moment, {len(before)} when it was lost, {restored} restored; "
            f"{found['orphans']} extra objects"
        )
        database.close()


def _ready(database: Database) -> int:
    with database.begin_system() as connection:
        return len([row for row in queries.fleet(connection) if row.state in ("ready", "busy")])
