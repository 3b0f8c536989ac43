"""progress: reading the status of a job with a million images, half of them done, against counting its images."""

import statistics
import time

from sqlalchemy import text

from services.core.jobs import queries
from tests import factories
from tests.benchmarks.claim import _claim, _settle
from tests.benchmarks.environment import benchmark_stack
from tests.benchmarks.report import report

IMAGES = 1_000_000
READS = 200


def run() -> None:
    with benchmark_stack() as stack:
        factories.register(stack.database)
        job_id = factories.submit(stack.database, stack.settings, [{"prompt": "a mug", "n": 1000}] * (IMAGES // 1000))
        for _ in range(500):  # none of these deltas is folded, which is the worst case for a read
            claim = _claim(stack, 1000)
            assert claim is not None
            _settle(stack, claim)
        reads = []
        for _ in range(READS):
            began = time.perf_counter()
            with stack.database.begin(1) as connection:
                view = queries.job(connection, 1, job_id)
            reads.append(time.perf_counter() - began)
        assert view is not None
        assert view.counts["done"] == IMAGES // 2
        began = time.perf_counter()
        with stack.database.begin_system() as connection:
            connection.execute(
                text("SELECT state, count(*) FROM images WHERE job_id = :id GROUP BY state"), {"id": job_id}
            ).all()
        counted = time.perf_counter() - began
    report(
        "progress", statistics.median(reads) * 1000, counted * 1000, "ms a read (median)", "counting the images",
        images=IMAGES, unfolded_deltas=1000, slowest_ms=round(max(reads) * 1000, 2),
    )  # fmt: skip
