"""The embedded servers for the tests that need them: one stack a test process, and a fresh copy of a migrated
template database for each test."""

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import redis

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MALLOC_PERTURB_", "165")  # a server that reads what it has freed is to crash here, not elsewhere

from services.core.db import database as databases
from services.core.jobs import queries
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests import memory, programs
from tests.processes import Process
from tests.waiting import until
from worker.pipelines.ai100_stand_in.install import install

WORKER_LEASE = 1.5
_numbers = itertools.count(1)
_RUNNING = os.environ.get("PRESSWORK_TESTS_STACK")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Real Postgres, Valkey and SeaweedFS, on ports of their own; or those that run already, with a migrated template,
    as the file says that PRESSWORK_TESTS_STACK names."""
    if _RUNNING:
        running = _running(tmp_path_factory.mktemp("stack"), Path(_RUNNING))
        programs.learn(running)
        yield running
        return
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("PRESSWORK_", "AWS_"))}
    for name in ("DATABASE_URL", "REDIS_URL"):
        quiet.pop(name, None)
    with memory.folder("presswork-tests-") as folder:
        with Stack(folder / "stack", quiet) as running:
            programs.learn(running)
            yield running
        shutil.copytree(running.home.logs, tmp_path_factory.mktemp("stack") / "logs")


@pytest.fixture(scope="session")
def template(stack: Stack) -> str:
    """The name of a migrated database to copy."""
    if not _RUNNING:
        databases.migrate(stack.migrator_url)
    return "presswork"


@pytest.fixture(scope="session")
def fresh_database(stack: Stack) -> Iterator[Callable[[str], AbstractContextManager[str]]]:
    """Copies a database, by its name, for the application's role: for those who need one for longer than a test."""
    with psycopg.connect(_plain(stack.superuser_url), autocommit=True) as admin:
        (data,) = admin.execute("SHOW data_directory").fetchone()
        # By files, with a checkpoint and no log: quick in memory, and slow where each file is written to a disk.
        strategy = "FILE_COPY" if Path(data).is_relative_to(memory.MEMORY) else "WAL_LOG"

        @contextmanager
        def copy(original: str) -> Iterator[str]:
            name = f"test_{os.getpid()}_{next(_numbers)}"
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {original} OWNER presswork_migrator STRATEGY {strategy}")
            yield _rename(stack.values["DATABASE_URL"], name)
            _drop(admin, name)

        yield copy


@pytest.fixture(scope="session")
def on_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Settings that put the stand-in in the place of a Cloud AI 100. Test processes share the cache of exports, which
    take long, and which it keeps apart."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    sdk = install(tmp_path_factory.mktemp("sdk"))
    return {"PRESSWORK_AI100_SDK": str(sdk), "PRESSWORK_ARTEFACTS": str(folder / "ai100-artefacts")}


@pytest.fixture
def database_url(fresh_database: Callable[[str], AbstractContextManager[str]], template: str) -> Iterator[str]:
    """A fresh copy of the template."""
    with fresh_database(template) as url:
        yield url


@pytest.fixture
def environ(stack: Stack, database_url: str) -> dict[str, str]:
    """The environment that Presswork's programs need."""
    return dict(stack.values) | {"DATABASE_URL": database_url}


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    return Settings.read(environ)


@pytest.fixture
def redis_admin(stack: Stack) -> Iterator["redis.Redis"]:
    """For what no program may do: look into queues, and break things."""
    with redis.Redis.from_url(stack.admin["REDIS_URL"]) as client:
        yield client


@pytest.fixture
def store_admin(stack: Stack, settings: Settings) -> Settings:
    """Settings with a key that may make buckets."""
    keys = stack.admin["AWS_ACCESS_KEY_ID"], stack.admin["AWS_SECRET_ACCESS_KEY"]
    return dataclasses.replace(settings, s3_access_key=keys[0], s3_secret_key=keys[1])


@pytest.fixture
def database(database_url: str) -> Iterator[databases.Database]:
    database = databases.Database(database_url, application="tests", pool_size=10)
    yield database
    database.close()


@pytest.fixture
def store(settings: Settings) -> S3Store:
    store = S3Store(settings)
    store.prepare()
    return store


@pytest.fixture
def start(
    environ: dict[str, str], store: object, tmp_path: Path, database: databases.Database
) -> Iterator[Callable[..., Process]]:
    """Starts workers and waits until they have registered."""
    running: list[Process] = []

    def make(*, wait: bool = True, **extra: str) -> Process:
        environment = {
            **environ,
            "PRESSWORK_LEASE_SECONDS": str(WORKER_LEASE),
            "PRESSWORK_SIMULATED_FAULTS": "1",
            **extra,
        }
        process = Process("worker.app", environment, tmp_path / f"worker-{len(running)}.log")
        running.append(process)
        if wait:
            until(lambda: _alive(database) >= sum(entry.popen.poll() is None for entry in running))
        return process

    yield make
    for process in running:
        process.kill()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def _alive(database: databases.Database) -> int:
    with database.begin_system() as connection:
        return sum(row.state in ("ready", "busy", "sick") for row in queries.fleet(connection))


def _running(home: Path, told: Path) -> Stack:
    """A stack that somebody else has started and will stop."""
    known = json.loads(told.read_text(encoding="utf-8"))
    running = Stack(home, {})
    running.values, running.migrator_url, running.superuser_url = known["values"], known["migrator"], known["superuser"]
    running.programs, running.admin = known["programs"], known["admin"]
    return running


def _drop(admin: "psycopg.Connection", name: str) -> None:
    """Lets sessions end that are about to: Postgres looks for them every tenth of a second. Others are ended."""
    sessions = "SELECT FROM pg_stat_activity WHERE datname = %s"
    with suppress(AssertionError):
        until(lambda: not admin.execute(sessions, [name]).fetchall(), seconds=0.1, every=0.005)
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _plain(url: str) -> str:
    """The URL as psycopg itself takes it."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def _rename(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"
