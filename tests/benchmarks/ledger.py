"""ledger: images/s that null accelerators claim and settle, end to end, and Postgres's CPU for each, on this machine.

Each is a worker's process that renders at once and stores nothing (`null_worker.py`). Beside it, in the same run, two
queues on the same Postgres do as many empty jobs as fit a few seconds: PgQueuer and procrastinate (`rivals.py`).
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
from psycopg import sql
from sqlalchemy import text

from tests import factories
from tests.benchmarks import null_worker
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report
from worker.pipelines.simulated import SimulatedPipeline

IMAGES = int(os.environ.get("LEDGER_IMAGES", "400000"))
WORKERS = 2
REQUEST = 1_000
RIVALS = {"pgqueuer": 60_000, "procrastinate": 2_000}
FOLDER = Path(__file__).parents[2] / ".rivals"


def run() -> None:
    with benchmark_stack() as stack:
        factories.register(stack.database, SimulatedPipeline(stack.settings).card)
        factories.submit(
            stack.database, stack.settings, [{"prompt": "a mug", "n": REQUEST, "size": "64x64"}] * (IMAGES // REQUEST)
        )
        ours = ledger(stack)
        rivals = {name: rival(stack, name, jobs) for name, jobs in RIVALS.items()}
    report(
        "ledger", ours["images_per_second"], 11_574, "images/s claimed and settled", "a billion a day",
        **{name: found for name, found in ours.items() if name != "images_per_second"},
        images=IMAGES, workers=WORKERS, rivals=rivals,
    )  # fmt: skip


def ledger(stack: BenchmarkStack) -> dict[str, object]:
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    environ = {**stack.environ, "OMP_NUM_THREADS": "1", "PRESSWORK_HOUSEKEEPING": "on"}
    for _ in range(WORKERS):
        here, there = context.Pipe()
        process = context.Process(target=null_worker.run, args=(environ, there), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    for pipe in pipes:
        pipe.recv()
    server = PostgresCpu(stack)
    began, used = time.monotonic(), server.seconds()
    for pipe in pipes:
        pipe.send("go")
    told = [pipe.recv() for pipe in pipes]
    seconds, used = time.monotonic() - began, server.seconds() - used
    with stack.database.begin_system() as connection:
        done = connection.execute(text("SELECT count(*) FROM images WHERE state = 2")).scalar_one()
        assert done == IMAGES, f"{done} of {IMAGES} are done"
    for pipe in pipes:
        pipe.send("end")
    for process in processes:
        process.join(10)
    claims = [size for one in told for size in one["claims"]]
    statements: Counter[str] = Counter()
    for one in told:
        statements.update(one["statements"])
    return {
        "images_per_second": round(IMAGES / seconds),
        "postgres_ms_an_image": round(used * 1000 / IMAGES, 4),
        "worker_ms_an_image": round(sum(one["cpu"] for one in told) * 1000 / IMAGES, 4),
        "statements_an_image": round(sum(statements.values()) / IMAGES, 3),
        "round_trips_an_image": round(sum(one["round_trips"] for one in told) / IMAGES, 3),
        "images_a_claim": round(sum(claims) / len(claims)),
        "statements": dict(statements.most_common()),
        "seconds": round(seconds, 1),
    }


def rival(stack: BenchmarkStack, name: str, jobs: int) -> dict[str, object]:
    """That queue's empty jobs a second, in a database of its own on the same server."""
    url = stack.servers.superuser_url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as database:
        database.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = urlsplit(url)._replace(path=f"/{name}").geturl()
    environ = {**os.environ, "PYTHONPATH": str(FOLDER)}
    command = [sys.executable, "-m", "tests.benchmarks.rivals", name, url, str(jobs)]
    server = PostgresCpu(stack)
    process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != "ready\n":
            return {"not measured": "it is not installed, or did not start: see above"}
        used = server.seconds()
        process.stdin.write("go\n")
        process.stdin.flush()
        told = process.stdout.readline()
        used = server.seconds() - used
    if not told:
        return {"not measured": "it did not end its jobs: see above"}
    seconds = json.loads(told)["seconds"]
    return {"jobs_per_second": round(jobs / seconds), "postgres_ms_a_job": round(used * 1000 / jobs, 4), "jobs": jobs}


class PostgresCpu:
    """Seconds of CPU that the server's processes have used, those that have ended among them."""

    def __init__(self, stack: BenchmarkStack) -> None:
        with stack.database.begin_system() as connection:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        parent = psutil.Process(pid).parent()
        assert parent is not None
        self._server = parent

    def seconds(self) -> float:
        times = self._server.cpu_times()
        used = times.user + times.system + times.children_user + times.children_system
        for process in self._server.children(recursive=True):
            own = process.cpu_times()
            used += own.user + own.system
        return float(used)
