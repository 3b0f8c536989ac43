"""shards: rendering 10,000 images into one object each and into shards, on the same store: requests, seconds, bytes.

One worker's loop with a simulated accelerator that takes no time, in this process; batches of 16, then of 64.
`IMAGES=2000 make bench NAME=shards` takes fewer.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.core.storage.s3 import S3Store
from tests import factories
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report
from tests.render_loops import counts, render_loop_maker

IMAGES = int(os.environ.get("IMAGES", "10000"))
BATCHES = (16, 64)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a whole job: seconds, requests and bytes sent to the store, and processor seconds of store and worker."""

    seconds: float
    requests: int
    mib: float
    store_seconds: float
    worker_seconds: float


def run(images: int = IMAGES) -> None:
    with benchmark_stack(OMP_NUM_THREADS="1") as stack:
        found = {(way, batch): _cost(stack, images, way, batch) for batch in BATCHES for way in ("objects", "shards")}
    best, usual = found["shards", BATCHES[-1]], found["objects", BATCHES[-1]]
    more = {
        f"{way}_of_{batch}": f"{cost.requests:,} requests, {cost.seconds:.1f} s, {cost.mib:.1f} MiB sent, processor: "
        f"store {cost.store_seconds:.1f} s, worker and clients {cost.worker_seconds:.1f} s"
        for (way, batch), cost in found.items()
    }
    report(
        "shards", images / best.seconds, images / usual.seconds, "images/s into shards",
        "an object for each image", images=images, **more, load=os.getloadavg()[0],
    )  # fmt: skip


def _cost(stack: BenchmarkStack, images: int, way: str, batch: int) -> Cost:
    settings = replace(stack.settings, batch_sizes=(batch, 1))
    store, sent = S3Store(settings), Counter[str]()
    store.prepare()

    def note(request: Any, **_: Any) -> None:
        sent["requests"] += 1
        sent["bytes"] += int(request.headers.get("Content-Length") or 0)

    store._client.meta.events.register("before-send.s3", note)
    with render_loop_maker(stack.settings.database_url, settings, store) as make:
        loop = make(worker=f"{way}-{batch}")
        rows = [{"prompt": f"mug {n}", "size": "64x64", "seed": n} for n in range(images)]
        job_id = factories.submit(stack.database, settings, rows, head={"store": way})
        began, own, theirs = time.perf_counter(), time.process_time(), _store_seconds(stack.folder)
        while counts(stack.database, job_id).get("done", 0) < images:
            loop.run()
        seconds = time.perf_counter() - began
    return Cost(
        seconds, sent["requests"], sent["bytes"] / 2**20, _store_seconds(stack.folder) - theirs,
        time.process_time() - own,
    )  # fmt: skip


def _store_seconds(folder: Path) -> float:
    """What the store's processes have taken of the processors."""
    found = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            is_weed = (place / "comm").read_text().strip() == "weed"
            if is_weed and (place / "cwd").resolve().is_relative_to(folder.resolve()):
                found += sum(map(int, (place / "stat").read_text().rpartition(")")[2].split()[11:13]))
        except OSError:
            continue
    return found / _TICKS
