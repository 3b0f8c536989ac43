"""dataset: version 1 of 1,000,000 images of 20 jobs, 5 % failed and retried, against `tarfile` from local files: of
images that are objects, and of others that lie in shards of 64, in the same run.

Then version 2 with 1 % more, what the store gives to a program that only reads, and what the writer takes of a core.
`IMAGES=50000 make bench NAME=dataset` takes fewer, and `KEPT=shards` leaves the objects out. The images' rows share a
thousand pictures in the store, each of which is read as often as images name it.
"""

import hashlib
import io
import os
import resource
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.datasets import dataset_records, datasets
from services.core.datasets.dataset_records import Version
from services.core.datasets.definition import DatasetRequest, DatasetSources
from services.core.db.database import Database
from services.core.model import ids
from services.core.notify import Notifier
from services.core.storage import members, tars
from services.core.storage.s3 import S3Store
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report

IMAGES = int(os.environ.get("IMAGES", "1000000"))
KEPT = os.environ.get("KEPT", "objects,shards").split(",")
JOBS, EVERY = 20, 20  # every twentieth image failed
_OBJECTS = 1_024
_SHARD = 64
_TENANT = 1
_FILL = """
INSERT INTO jobs (id, tenant_id, state, priority, total, requests, finished_at, parent_id)
  VALUES (:id, 1, 'completed', 1, :n, :n, now(), :parent);
INSERT INTO counters (job_id, queued, done, failed) VALUES (:id, 0, :n - :failed, :failed);
INSERT INTO segments (job_id, id, tenant_id, model_revision, width, height, steps, guided, priority, open, low, high)
  VALUES (:id, 0, 1, 'r', 64, 64, 10, true, 1, false, 0, :n - 1);
INSERT INTO payloads (job_id, index, n, segment_id, seed, guidance_scale, output_format, prompt, negative_prompt,
                      metadata)
  SELECT :id, nth, 1, 0, nth, 7.5, 'png', 'a mug of the job ' || :number || ', number ' || nth, '', '{"lang":"en"}'
  FROM generate_series(0, :n - 1) AS nth;
INSERT INTO images (job_id, index, segment_id, state)
  SELECT :id, nth, 0, CASE WHEN :failed > 0 AND nth % :every = 7 THEN 3 ELSE 2 END
  FROM generate_series(0, :n - 1) AS nth;
INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, truncated, unknown_words,
                     render_seconds, claim_id)
  SELECT job_id, index, (CAST(:keys AS text[]))[1 + index % :objects],
         (CAST(:sums AS bytea[]))[1 + index % :objects], (CAST(:sizes AS integer[]))[1 + index % :objects],
         'simulated', 'class', false, '[]', 1, 1 FROM images WHERE job_id = :id AND state = 2;
"""


def run(images: int = IMAGES) -> None:
    with benchmark_stack() as stack:
        store = S3Store(stack.settings)
        pictures = [_picture(number) for number in range(_OBJECTS)]
        objects, shards = _stored(store, pictures), _in_shards(store, pictures)
        found = {name: _measured(stack, store, name, images, kept) for name, kept in
                 (("objects", objects), ("shards", shards)) if name in KEPT}  # fmt: skip
        baseline = _tarfile(pictures, min(images, 100_000))
        reads = _reads(store, objects["keys"], min(images, 20_000))
    for name, (rate, more) in found.items():
        report(
            "dataset" if name == "objects" else "dataset-shards", rate, baseline, f"images/s of version 1, {name}",
            "tarfile from local files", command="make bench NAME=dataset", **more, store_reads=round(reads),
            share_of_store_reads=round(rate / reads, 3), load=os.getloadavg()[0],
            peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        )  # fmt: skip


def _measured(
    stack: BenchmarkStack, store: S3Store, name: str, images: int, objects: dict[str, list[object]]
) -> tuple[float, dict[str, object]]:
    """Images a second of version 1, and what else there is to say."""
    jobs = [_job(stack.database, number, images // JOBS, objects) for number in range(JOBS)]
    for number, job in enumerate(jobs):
        _job(stack.database, number, images // JOBS // EVERY, objects, parent=job)
    with stack.database.begin_system() as connection:
        connection.execute(text("ANALYZE"))
    with stack.database.begin(_TENANT) as connection:
        asked = {"name": name, "jobs": [ids.public_job(job) for job in jobs]}
        datasets.create(connection, _TENANT, DatasetRequest.model_validate(asked))
    spent = time.process_time()
    first, seconds = _version(stack, store, name)
    spent = time.process_time() - spent
    more = _job(stack.database, JOBS, images // 100, objects)
    with stack.database.begin(_TENANT) as connection:
        datasets.add(connection, _TENANT, name, DatasetSources(jobs=[ids.public_job(more)]))
    second, later = _version(stack, store, name)
    _check(stack.database, store, second)
    assert (first.images, second.images) == (images, images + images // 100), (first, second)
    return first.images / seconds, {
        "images": first.images, "seconds": round(seconds, 1), "shards": _shards(first), "mib": first.bytes >> 20,
        "version_2_seconds": round(later, 2), "version_2_share": round(later / seconds, 4),
        "writer_ms_of_a_core": round(1e3 * spent / images, 3),
    }  # fmt: skip


def _picture(number: int) -> bytes:
    """A PNG of some three kilobytes."""
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    drawn = io.BytesIO()
    Image.fromarray(pixels).save(drawn, "png")
    return drawn.getvalue()


def _stored(store: S3Store, pictures: list[bytes]) -> dict[str, list[object]]:
    keys = [f"bench/{number}.png" for number in range(len(pictures))]
    for key, data in zip(keys, pictures, strict=True):
        store.put(key, data, "image/png", {}, claim_id=1)
    sums = [hashlib.sha256(data).digest() for data in pictures]
    return {"keys": list(keys), "sums": list(sums), "sizes": [len(data) for data in pictures]}


def _in_shards(store: S3Store, pictures: list[bytes]) -> dict[str, list[object]]:
    """The same pictures, as workers store them with "store": "shards"."""
    keys: list[object] = []
    for first in range(0, len(pictures), _SHARD):
        parts: list[bytes] = []
        end = 0
        name = f"bench/{first}.tar"
        for number, data in enumerate(pictures[first : first + _SHARD], first):
            record = b"{}" * 150
            keys.append(members.Place(name, end + 3 * tars.BLOCK, len(data)).key)
            for extension, content in (("json", record), ("png", data)):
                parts += [tars.head(f"{number:08d}.{extension}", len(content)), content, tars.padding(len(content))]
            end = sum(map(len, parts))
        store.put(name, b"".join([*parts, tars.end(end)]), "application/x-tar", {}, claim_id=1)
    sums = [hashlib.sha256(data).digest() for data in pictures]
    return {"keys": keys, "sums": list(sums), "sizes": [len(data) for data in pictures]}


def _job(
    database: Database, number: int, images: int, objects: dict[str, list[object]], *, parent: int | None = None
) -> int:
    """A finished job; one with a parent is its retry, of which no image failed."""
    job = ids.new()
    failed = 0 if parent is not None or number == JOBS else images // EVERY
    values = {"id": job, "n": images, "number": number, "parent": parent, "failed": failed, "every": EVERY,
              "objects": _OBJECTS, **objects}  # fmt: skip
    with database.begin_system() as connection:
        for statement in filter(str.strip, _FILL.split(";")):
            connection.execute(text(statement), values)
    return job


def _version(stack: BenchmarkStack, store: S3Store, name: str) -> tuple[Version, float]:
    with stack.database.begin(_TENANT) as connection:
        number = datasets.export(connection, _TENANT, name, while_running=False, base_url="")
    tasks = background_tasks(stack.settings, store, Notifier(stack.settings.redis_url))
    runner = BackgroundTaskRunner(stack.database, [one for one in tasks if one.name == "dataset"], "benchmark")
    began = time.perf_counter()
    while True:
        runner.run_once()
        with stack.database.begin(_TENANT) as connection:
            version = dataset_records.version(connection, dataset_records.find(connection, _TENANT, name), number)
        if version.finished_at is not None:
            break
    assert version.state == "completed", version.error
    return version, time.perf_counter() - began


def _check(database: Database, store: S3Store, version: Version) -> None:
    """Every shard has the images that it is said to have, and the last one reads as a tar of them."""
    with database.begin(_TENANT) as connection:
        files = [
            file
            for file in dataset_records.every_file(connection, version.dataset.id, version.number)
            if file.split is not None
        ]
    assert sum(file.images for file in files) == version.images
    last = [file for file in files if file.path.endswith(".tar")][-1]
    data = store.read(last.object_key)
    assert hashlib.sha256(data).digest() == last.sha256
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert sum(entry.name.endswith(".png") for entry in tar) == last.images


def _shards(version: Version) -> int:
    assert version.plan is not None
    return sum(shards for shards, _ in version.plan.counted.splits.values())


def _reads(store: S3Store, keys: list[Any], images: int) -> float:
    """Images a second that the store gives to a program that does nothing else with them, by eight threads."""
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(store.read_small, islice(cycle(keys), images)):
            pass
    return images / (time.perf_counter() - began)


def _tarfile(pictures: list[bytes], images: int) -> float:
    """Images a second of the same tars, written by `tarfile` from files of this machine."""
    with tempfile.TemporaryDirectory(prefix="presswork-tar-") as name:
        folder = Path(name)
        for number, data in enumerate(pictures):
            for extension, content in (("png", data), ("json", b"{}" * 300), ("txt", b"a mug " * 5)):
                (folder / f"{number}.{extension}").write_bytes(content)
        began = time.perf_counter()
        numbers = islice(cycle(range(len(pictures))), images)
        for shard in range(0, images, 10_000):
            with tarfile.open(folder / "shard.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for place, number in enumerate(islice(numbers, 10_000)):
                    for extension in ("json", "png", "txt"):
                        tar.add(folder / f"{number}.{extension}", f"{shard + place:09d}.{extension}")
        return images / (time.perf_counter() - began)
