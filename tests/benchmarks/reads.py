"""reads: what a read of one job costs beside many weeks, in a transaction that may write and in one that may not.

`WEEKS` (52) weeks with one finished job of `EACH` (10,000) images each. The connection plans as a web server's does.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import psutil
import psycopg
from sqlalchemy import text

from services.core.db import database as databases
from services.core.db.database import Connection, Database
from services.core.jobs import image_pages, queries
from services.core.jobs.image_pages import Filter
from tests import factories
from tests.benchmarks import mass
from tests.benchmarks.environment import benchmark_stack
from tests.benchmarks.report import report

WEEKS = int(os.environ.get("WEEKS", "52"))
EACH = int(os.environ.get("EACH", "10000"))
SAMPLES = int(os.environ.get("SAMPLES", "200"))
Begin = Callable[[int], AbstractContextManager[Connection]]
Read = Callable[[Connection], object]


def run() -> None:
    with benchmark_stack() as stack:
        factories.register(stack.database)
        jobs = _fill(stack.servers.superuser_url.replace("+psycopg", ""))
        database = databases.Database(stack.settings.database_url, application="benchmark", pool_size=1)
        found = {
            name: (_cost(database, database.begin, read), _cost(database, database.read, read))
            for name, read in _reads(jobs).items()
        }
        database.close()
    print(f"{'':30}{'begin: ms, CPU ms, pages':>30}{'read: ms, CPU ms, pages':>30}")
    for name, costs in found.items():
        print(f"{name:30}" + "".join(f"{ms:12.2f}{cpu:9.2f}{pages:9.0f}" for ms, cpu, pages in costs))
    before, after = found["a page of 100 images"]
    report(
        "reads", after[0], before[0], "ms, a page of 100 images with `read`", "with `begin`",
        weeks=WEEKS, images_a_job=EACH, costs=found,
    )  # fmt: skip


def _fill(url: str) -> list[int]:
    weeks = mass.weeks(EACH * WEEKS, WEEKS, job=EACH)
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("SET synchronous_commit = off")
        for week in weeks:
            for _ in mass.fill(database, week, each=1, job=EACH):
                pass
        database.execute("VACUUM ANALYZE")
    return [job for week in weeks for job in week.jobs]


def _reads(jobs: list[int]) -> dict[str, Read]:
    chance, tenant = random.Random(1), factories.TENANT

    def page(of: Filter) -> Read:
        return lambda c: image_pages.page(
            c, tenant, chance.choice(jobs), of, place=chance.randrange(EACH - 200), limit=100
        )

    return {
        "a page of 100 images": page(Filter()),
        "a page of 100 done images": page(Filter(state=queries.ImageState.DONE)),
        "one image": lambda c: queries.image(c, tenant, chance.choice(jobs), chance.randrange(EACH)),
        "a job's status": lambda c: queries.job(c, tenant, chance.choice(jobs)),
    }


def _cost(database: Database, begin: Begin, read: Read) -> tuple[float, float, float]:
    """Median milliseconds, milliseconds of the server's processor, and pages of one read."""
    for _ in range(10):
        _in(begin, read)
    server, pages, taken = _server(database), _pages(database), []
    cpu = _seconds(server)
    for _ in range(SAMPLES):
        began = time.perf_counter()
        _in(begin, read)
        taken.append((time.perf_counter() - began) * 1000)
    used = _seconds(server) - cpu
    read_pages = (_pages(database) - pages) / SAMPLES
    return round(statistics.median(taken), 2), round(used * 1000 / SAMPLES, 2), round(read_pages, 1)


def _in(begin: Begin, read: Read) -> None:
    with begin(factories.TENANT) as connection:
        read(connection)


def _server(database: Database) -> psutil.Process:
    """The process of the pool's only session."""
    with database.begin_system() as connection:
        return psutil.Process(int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one()))


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _pages(database: Database) -> int:
    """Pages that this database's sessions have read so far, from memory or disk."""
    with database.begin_system() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with database.begin_system() as connection:
        query = "SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.execute(text(query)).scalar_one())
