"""busy: the fraction of time that a simulated accelerator (14 ms an image, batches of 16) is rendering while one job
of 5,000 JPEGs goes through the real stack, compared with a naive worker on the same device in the same run. For both
the object store answers 30 ms late, as a remote one does."""

import os
import subprocess
import sys
import time
from urllib.parse import urlsplit

import psycopg
from sqlalchemy import text

from services.core.jobs import queries
from tests import factories
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report
from tests.processes import Process
from tests.proxy import Proxy
from tests.waiting import until

IMAGES, NAIVE_IMAGES = 5_000, 600
IMAGE_MS = 14
STORE_MS = 30


def run() -> None:
    with benchmark_stack(PRESSWORK_SIMULATED_IMAGE_MS=str(IMAGE_MS), OMP_NUM_THREADS="1") as stack:
        store = urlsplit(stack.settings.s3_endpoint_url)
        proxy = Proxy(store.hostname or "", store.port or 0, delay=STORE_MS / 1000)
        stack.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
        naive, naive_rate = _naive(stack)
        busy, rate = _presswork(stack)
    report(
        "busy", busy, naive, "fraction of time rendering", "a task for each prompt",
        images=IMAGES, store_answers_late_ms=STORE_MS, images_per_second=round(rate, 1), naive_images=NAIVE_IMAGES,
        naive_images_per_second=round(naive_rate, 1), device_limit_images_per_second=round(1000 / IMAGE_MS, 1),
    )  # fmt: skip


def _presswork(stack: BenchmarkStack) -> tuple[float, float]:
    worker = Process("worker.app", {**os.environ, **stack.environ}, stack.folder / "worker.log")
    try:
        until(lambda: _ready(stack))
        requests = [
            {"prompt": f"a mug, number {index}", "output_format": "jpeg", "seed": index} for index in range(IMAGES)
        ]
        job_id = factories.submit(stack.database, stack.settings, requests)
        until(lambda: _done(stack, job_id), seconds=600, every=0.5)
        with stack.database.begin_system() as connection:
            row = connection.execute(text(
                "SELECT sum(render_seconds) AS rendering, sum(images) AS images, "
                "extract(epoch FROM max(ended_at) - min(created_at))::float AS wall FROM claims"
            )).one()  # fmt: skip
    finally:
        worker.stop()
    return row.rendering / row.wall, row.images / row.wall


def _ready(stack: BenchmarkStack) -> bool:
    with stack.database.begin_system() as connection:
        return bool(queries.fleet(connection))


def _done(stack: BenchmarkStack, job_id: int) -> bool:
    with stack.database.begin(1) as connection:
        found = queries.job(connection, 1, job_id)
    return found is not None and found.counts["done"] == IMAGES


def _naive(stack: BenchmarkStack) -> tuple[float, float]:
    url = stack.servers.superuser_url.replace("postgresql+psycopg", "postgresql")
    everything = stack.servers.admin  # its keys at Redis are not Presswork's
    environ = {**os.environ, **stack.environ, **everything, "NAIVE_DATABASE_URL": url, "C_FORCE_ROOT": "1"}
    os.environ["REDIS_URL"] = everything["REDIS_URL"]
    from tests.benchmarks import naive

    with psycopg.connect(url, autocommit=True) as database:
        database.execute(naive.TABLE)
        with database.cursor() as cursor:
            cursor.executemany("INSERT INTO naive VALUES (%s, 'queued')", [(n,) for n in range(NAIVE_IMAGES)])
        log = (stack.folder / "naive.log").open("wb")
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.benchmarks.naive", "worker", "-c", "1", "-l", "WARNING"],
            env=environ, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            naive.render.delay(0, "warm up")
            until(lambda: database.execute("SELECT state FROM naive WHERE id = 0").fetchone() == ("done",))
            began = time.monotonic()
            for number in range(1, NAIVE_IMAGES):
                naive.render.delay(number, f"a mug, number {number}")
            until(lambda: database.execute("SELECT count(*) FROM naive WHERE state = 'done'").fetchone()
                  == (NAIVE_IMAGES,), seconds=300, every=0.2)  # fmt: skip
            wall = time.monotonic() - began
            (seconds,) = database.execute("SELECT sum(render_seconds) FROM naive WHERE id > 0").fetchone()
        finally:
            worker.terminate()
            worker.wait(30)
            log.close()
    return seconds / wall, (NAIVE_IMAGES - 1) / wall
