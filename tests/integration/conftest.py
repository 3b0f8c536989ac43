"""The HTTP API for tests that talk to it, and the worker's loop for those that render."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import psycopg
import pytest

from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests import factories
from tests.render_loops import RenderLoopMaker, render_loop_maker
from tests.web import Api, open_api

# Of these no row is left to the next test, children first.
_EMPTIED = (
    "export_files", "exports", "job_chunks", "job_inputs", "counters", "counter_deltas", "images", "payloads",
    "results", "failures", "claims", "segments", "idempotency", "jobs", "upload_parts", "uploads", "files",
    "render_rates", "rates", "failure_deltas", "failure_counts", "failure_hours", "marks", "mark_counts",
    "image_scores",
)  # fmt: skip


@pytest.fixture
def api(settings: Settings, store: S3Store) -> Iterator[Api]:
    with open_api(settings) as running:
        yield running


@pytest.fixture
def fast(settings: Settings) -> Settings:
    """Faults on, small leases, and small pictures are asked for."""
    return dataclasses.replace(settings, simulated_faults=True, lease_seconds=3.0)


@pytest.fixture
def make_render_loop(database_url: str, fast: Settings, store: S3Store) -> Iterator[RenderLoopMaker]:
    with render_loop_maker(database_url, fast, store) as make:
        yield make


@pytest.fixture(scope="module")
def served(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[Api]:
    """One server and one database for a whole file."""
    with fresh_database(template) as url:
        settings = Settings.read(dict(stack.values) | {"DATABASE_URL": url})
        S3Store(settings).prepare()
        with open_api(settings) as running:
            yield running


@pytest.fixture
def emptied(served: Api, stack: Stack) -> Api:
    """The same server again and again; of the tests before no job is left and no worker but the first."""
    name = served.settings.database_url.rpartition("/")[2]
    admin = f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", "")
    with psycopg.connect(admin) as connection:
        for table in _EMPTIED:
            connection.execute(f"DELETE FROM {table}")
        connection.execute("DELETE FROM workers WHERE id <> 'worker-a'")
        connection.execute("UPDATE workers SET seen_at = now(), state = 'ready'")
    factories.register(served.database)  # a worker of the test before may have registered another revision
    return served
