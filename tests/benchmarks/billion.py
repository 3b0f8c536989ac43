"""billion: what a mass of finished images costs those that wait, measured in one run before and after it is made.

`FINISHED` images (2,000,000) are put into the partitions of `WEEKS` (4) weeks, with `EACH` (1) images a request, beside
`WAITING` (200,000). What they take is measured and extrapolated to 1,000,000,000 finished and 10,000,000 waiting.
"""

import os
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import psycopg
from sqlalchemy import text

from services.core.db import partitions
from services.core.jobs import image_pages, lanes, overview, queries
from services.core.jobs.image_pages import Filter
from services.core.queue import counters, expiry, job_states, segments
from tests import factories
from tests.benchmarks import mass
from tests.benchmarks.claim import _claim, _settle
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report

FINISHED = int(os.environ.get("FINISHED", "2000000"))
WAITING = int(os.environ.get("WAITING", "200000"))
EACH = int(os.environ.get("EACH", "1"))
WEEKS = int(os.environ.get("WEEKS", "4"))
SAMPLES = int(os.environ.get("SAMPLES", "200"))
BILLION, TEN_MILLION = 1_000_000_000, 10_000_000
DAY = 86_400


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one act: milliseconds (median, and all but one in a hundred), and the pages that it reads."""

    median: float
    slow: float
    pages: float


def run() -> None:
    with benchmark_stack() as stack, psycopg.connect(_plain(stack), autocommit=True) as database:
        _configure(database)
        factories.register(stack.database)
        live = _wait(stack)
        weeks = mass.weeks(FINISHED, WEEKS)
        finished = mass.JOB * sum(len(week.jobs) for week in weeks)
        database.execute("VACUUM ANALYZE")
        now = mass.sizes(database, [mass.this_week()], dict.fromkeys(mass.PARENTS, WAITING))
        queued = sum(size for name, size in now.items() if name.lstrip().startswith("images"))
        before = _costs(stack, live, ())
        filled = dict.fromkeys(mass.PARENTS, 0.0)
        for week in weeks:
            for table, seconds in mass.fill(database, week, each=EACH):
                filled[table] += seconds
                _say(f"{week.leaf(table)}: {seconds:.1f} s")
        rows = {"images": finished, "payloads": finished // EACH, "results": finished}
        first, again = _vacuum(database, weeks), _vacuum(database, weeks)
        database.execute("VACUUM ANALYZE")
        _say("measuring")
        jobs = [job for week in weeks for job in week.jobs]
        after = _costs(stack, live, jobs)
        size = mass.sizes(database, weeks, rows)
        memory, buffers = _memory(database), _show(database, "shared_buffers")
        dropped = _drop(stack, database, weeks[0])
    _table(before, after)
    total = sum(value * rows[name.split("_")[0].strip()] for name, value in size.items()) / finished
    payload = sum(value for name, value in size.items() if name.lstrip().startswith("payloads")) / EACH
    rate = 64_000 / (after["claim of 64"].median + after["settle of 64"].median)
    vacuum = {name: first[name] / rows[name] * 1e6 for name in mass.PARENTS}
    report(
        "billion", after["claim of 16"].median, before["claim of 16"].median,
        f"ms, claim of 16 beside {finished:,} finished", "the same without them",
        waiting=WAITING, images_a_request=EACH, weeks=WEEKS,
        bytes_a_row={name.strip(): round(value, 1) for name, value in size.items()},
        bytes_a_finished_image=round(total), tb_of_a_billion=round(total * BILLION / 1e12, 3),
        bytes_a_waiting_image=round(queued + payload),
        gb_of_ten_million_waiting=round((queued + payload) * TEN_MILLION / 1e9, 1),
        fill_seconds={name: round(value, 1) for name, value in filled.items()},
        vacuum_seconds={name: [round(first[name], 2), round(again[name], 2)] for name in mass.PARENTS},
        minutes_to_vacuum_a_billion_for_the_first_time=round(sum(vacuum.values()) * BILLION / 1e6 / 60, 1),
        drop=dropped, one_thread_images_per_second=round(rate), days_of_a_billion=round(BILLION / rate / DAY, 2),
        postgres_mib=memory, shared_buffers=buffers,
    )  # fmt: skip


def _plain(stack: BenchmarkStack) -> str:
    return stack.servers.superuser_url.replace("+psycopg", "")


def _configure(database: psycopg.Connection[Any]) -> None:
    """Vacuums are measured by themselves. Bulk loading needs room for its log."""
    for setting in ("autovacuum = off", "max_wal_size = '8GB'", "maintenance_work_mem = '1GB'"):
        database.execute(f"ALTER SYSTEM SET {setting}".encode())
    database.execute("SELECT pg_reload_conf()")
    database.execute("SET synchronous_commit = off")


def _wait(stack: BenchmarkStack) -> list[int]:
    """Jobs that wait, with ten images a request."""
    of_one = min(WAITING, 1_000_000)
    asked = [{"prompt": f"a mug, number {nth}", "n": 10} for nth in range(of_one // 10)]
    return [factories.submit(stack.database, stack.settings, asked) for _ in range(max(1, WAITING // of_one))]


def _costs(stack: BenchmarkStack, live: list[int], finished: list[int] | tuple[()]) -> dict[str, Cost]:
    found = {}
    for seats in (16, 64):
        claims: list[Any] = []
        found[f"claim of {seats}"] = _cost(stack, partial(_take, stack, seats, claims))
        found[f"settle of {seats}"] = _cost(stack, partial(_give, stack, claims))
    chance = random.Random(1)
    tenant = factories.TENANT
    reads: dict[str, Callable[[Any], object]] = {
        "a job's status": lambda c: queries.job(c, tenant, live[0]),
        "a job's images, 100": lambda c: image_pages.page(c, tenant, live[0], Filter(), place=None, limit=100),
        "a list of jobs, 50": lambda c: queries.jobs(c, tenant, before=2**63 - 1, limit=50),
        "overview": lambda c: overview.overview(c, tenant),
        "lanes": lambda c: lanes.waiting(c, tenant, all_tenants=False),
    }
    if finished:
        reads["a finished job's status"] = lambda c: queries.job(c, tenant, chance.choice(finished))
        reads["a finished job's images, 100"] = lambda c: image_pages.page(
            c, tenant, chance.choice(finished), Filter(), place=chance.randrange(mass.JOB - 200), limit=100
        )
    for name, read in reads.items():
        found[name] = _cost(stack, partial(_in, partial(stack.database.read, tenant), read))
    periodic: dict[str, Callable[[Any], object]] = {
        "fold counters": counters.fold,
        "raise low-water marks": segments.raise_low,
        "expire claims": lambda c: expiry.expire(c, 30.0),
        "finish jobs": job_states.finish_all,
    }
    for name, task in periodic.items():
        found[name] = _cost(stack, partial(_in, stack.database.begin_system, task))
    return found


def _take(stack: BenchmarkStack, seats: int, claims: list[Any]) -> None:
    claims.append(_claim(stack, seats))


def _give(stack: BenchmarkStack, claims: list[Any]) -> None:
    _settle(stack, claims.pop())


def _in(begin: Callable[[], Any], act: Callable[[Any], object]) -> None:
    with begin() as connection:
        act(connection)


def _cost(stack: BenchmarkStack, act: Callable[[], object]) -> Cost:
    pages, taken = _pages(stack), []
    for _ in range(SAMPLES):
        began = time.perf_counter()
        act()
        taken.append((time.perf_counter() - began) * 1000)
    read = (_pages(stack) - pages) / SAMPLES
    return Cost(statistics.median(taken), sorted(taken)[-1 - SAMPLES // 100], read)


def _pages(stack: BenchmarkStack) -> int:
    """Pages that this database's sessions have read so far, from memory or disk."""
    with stack.database.begin_system() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with stack.database.begin_system() as connection:
        query = "SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.execute(text(query)).scalar_one())


def _vacuum(database: psycopg.Connection[Any], weeks: list[mass.Week]) -> dict[str, float]:
    """Seconds of VACUUM over all weeks, by table."""
    found = {}
    for parent in mass.PARENTS:
        began = time.monotonic()
        for week in weeks:
            database.execute(f"VACUUM {week.leaf(parent)}".encode())
        found[parent] = time.monotonic() - began
    return found


def _drop(stack: BenchmarkStack, database: psycopg.Connection[Any], week: mass.Week) -> dict[str, float]:
    """Drops a week whose jobs are deleted, while a worker claims and settles."""
    database.execute(
        "UPDATE jobs SET deleted_at = now(), drops_with_week = true WHERE id = ANY(%s)", (list(week.jobs),)
    )
    heap = sum(_number(database, f"SELECT pg_total_relation_size('{week.leaf(parent)}')") for parent in mass.PARENTS)
    going, slowest = True, [0.0]

    def work() -> None:
        while going:
            began = time.perf_counter()
            claim = _claim(stack)
            if claim is not None:
                _settle(stack, claim)
            slowest[0] = max(slowest[0], time.perf_counter() - began)

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(1)
    usual, slowest[0] = slowest[0], 0.0
    began = time.monotonic()
    tables = 0
    while not tables and time.monotonic() - began < 60:
        with stack.database.begin_system() as connection:
            tables = partitions.drop_partitions(connection, 1)
    seconds = time.monotonic() - began
    going = False
    worker.join()
    assert tables == len(mass.PARENTS), tables
    return {
        "images": len(week.jobs) * mass.JOB, "gb": round(heap / 1e9, 2), "seconds": round(seconds, 3),
        "slowest_claim_and_settle_ms": round(slowest[0] * 1000, 1), "slowest_before_ms": round(usual * 1000, 1),
    }  # fmt: skip


def _number(database: psycopg.Connection[Any], query: str) -> int:
    row = database.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def _show(database: psycopg.Connection[Any], setting: str) -> str:
    row = database.execute(f"SHOW {setting}".encode()).fetchone()
    assert row is not None
    return str(row[0])


def _memory(database: psycopg.Connection[Any]) -> int:
    """MiB of all processes of the server, what they share counted once."""
    server = psutil.Process(_number(database, "SELECT pg_backend_pid()")).parent()
    assert server is not None
    processes = [server, *server.children(recursive=True)]
    return int(sum(process.memory_full_info().pss for process in processes) / 2**20)


def _table(before: dict[str, Cost], after: dict[str, Cost]) -> None:
    print(f"{'':30} {'before: ms, 99 %, pages':>28} {'after: ms, 99 %, pages':>28}")
    for name, cost in after.items():
        old = before.get(name)
        cells = [f"{one.median:9.2f} {one.slow:9.2f} {one.pages:8.1f}" if one else "" for one in (old, cost)]
        print(f"{name:30} {cells[0]:>28} {cells[1]:>28}")


def _say(what: str) -> None:
    print(time.strftime("%H:%M:%S"), what, flush=True)
