"""The embedded servers for the tests that need them: one stack a test process, and a fresh copy of a migrated
template database for each test."""

import dataclasses
import gc
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import certifi
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

gc.disable()  # until all tests are collected: a third of that is the search for cycles among what stays to the end
WORKER_LEASE = 1.5
_numbers = itertools.count(1)
_RUNNING = os.environ.get("PRESSWORK_TESTS_STACK")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each HTTP client reads all certificates that it trusts, for 13 ms, and the servers here speak plain HTTP."""
    end = "-----END CERTIFICATE-----\n"
    first = certifi.contents().partition(end)[0] + end
    file = tmp_path_factory.mktemp("authority") / "one.pem"
    file.write_text(first, encoding="ascii", errors="replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(file))
        patch.setenv("SSL_CERT_FILE", str(file))  # of the programs that the tests start, too
        yield


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
            _ease_sign_in(running)
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
        left: list[str] = []

        def drop() -> None:
            while left:
                admin.execute(f"DROP DATABASE {left.pop()} WITH (FORCE)")

        @contextmanager
        def copy(original: str) -> Iterator[str]:
            drop()  # only now: for sessions that have not ended yet, Postgres would look every tenth of a second
            name = f"test_{os.getpid()}_{next(_numbers)}"
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {original} OWNER presswork_migrator STRATEGY {strategy}")
            yield _rename(stack.values["DATABASE_URL"], name)
            left.append(name)

        yield copy
        drop()


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


def _ease_sign_in(stack: Stack) -> None:
    """Postgres lets a client compute 4,096 hashes for each connection, against who would guess a password from what is
    stored of it. The tests open some ten thousand."""
    urls = [stack.values["DATABASE_URL"], stack.migrator_url, stack.superuser_url]
    urls += [address for own in stack.programs.values() for name, address in own.items() if name == "DATABASE_URL"]
    with psycopg.connect(_plain(stack.superuser_url)) as admin:
        admin.execute("SET scram_iterations = 1")
        for url in urls:
            parts = urlsplit(url)
            admin.execute(f"ALTER ROLE {parts.username} PASSWORD '{parts.password}'")


def _plain(url: str) -> str:
    """The URL as psycopg itself takes it."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def _rename(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"
