"""Datasets in tests: jobs of which some images fail, their retries, and the background task that writes versions."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.datasets import dataset_records, datasets
from services.core.datasets.dataset_records import Version
from services.core.datasets.definition import DatasetRequest, DatasetSources
from services.core.db.database import Database
from services.core.jobs import retry
from services.core.marks import marks
from services.core.model import file_names, ids, requests
from services.core.model.specs import FailedImage
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.settings import Settings
from services.core.storage.contract import ImageStore
from tests import exporting, factories
from tests.waiting import until

TENANT = factories.TENANT


def rendered(
    database: Database, settings: Settings, store: ImageStore, wanted: Iterable[dict[str, Any]] | int,
    *, failed: frozenset[int] = frozenset(), finish: bool = True, **head: Any,
) -> int:  # fmt: skip
    """A job, or one that is there, with every image done but those that fail."""
    factories.register(database)
    job_id = wanted if isinstance(wanted, int) else factories.submit(database, settings, wanted, **head)
    while claim := factories.claim(database):
        stored, lost = [], []
        for image, result in zip(claim.images, factories.stored(claim), strict=True):
            if image.index in failed:
                lost.append(FailedImage(image.job_id, image.index, "error", "No."))
                continue
            data = exporting.picture(int(image.spec.seed) % 251, image.output_format)
            key = f"test/{image.job_id}/{image.index}.{file_names.EXTENSIONS[image.output_format]}"
            store.put(key, data, f"image/{image.output_format}", {}, claim_id=claim.id)
            digest = hashlib.sha256(data).digest()
            stored.append(replace(result, object_key=key, sha256=digest, bytes=len(data)))
        factories.settle(database, claim, stored=stored, failed=lost)
    if finish:
        exporting.finish(database, job_id)
    return job_id


def retried(
    database: Database, settings: Settings, store: ImageStore, parent: int,
    *, failed: frozenset[int] = frozenset(), **which: Any,
) -> int:  # fmt: skip
    """A retry of what failed, all done but those that fail again."""
    with database.begin(TENANT) as connection:
        child = retry.retry(connection, TENANT, parent, requests.RetryOptions(**which), policy=policies.NOTHING).job_id
    return rendered(database, settings, store, child, failed=failed)


def make(database: Database, *jobs: int, name: str = "mugs", **fields: Any) -> None:
    asked = DatasetRequest.model_validate({"name": name, "jobs": [ids.public_job(job) for job in jobs], **fields})
    with database.begin(TENANT) as connection:
        datasets.create(connection, TENANT, asked)


def add(database: Database, *jobs: int, name: str = "mugs", remove: bool = False, **more: Any) -> None:
    sources = DatasetSources.model_validate({"jobs": [ids.public_job(job) for job in jobs], **more})
    with database.begin(TENANT) as connection:
        datasets.add(connection, TENANT, name, sources, remove=remove)


def order(database: Database, *, name: str = "mugs", while_running: bool = False) -> int:
    with database.begin(TENANT) as connection:
        return datasets.export(connection, TENANT, name, while_running=while_running, base_url="http://presswork.test/")


def run(database: Database, settings: Settings, store: ImageStore, holder: str = "scheduler-a") -> None:
    """Writes and drops all that waits."""
    runner = _runner(database, settings, store, holder)

    def nothing_waits() -> bool:
        runner.run_once()
        with database.begin_system() as connection:
            return not datasets.pending(connection)

    until(nothing_waits, 30, every=0.01)


def run_once(database: Database, settings: Settings, store: ImageStore) -> None:
    _runner(database, settings, store, "scheduler-b").run_once()


def _runner(database: Database, settings: Settings, store: ImageStore, holder: str) -> BackgroundTaskRunner:
    tasks = [one for one in background_tasks(settings, store, Notifier(settings.redis_url)) if one.name == "dataset"]
    return BackgroundTaskRunner(database, tasks, holder)


def version(database: Database, number: int, name: str = "mugs") -> Version:
    with database.begin(TENANT) as connection:
        return dataset_records.version(connection, dataset_records.find(connection, TENANT, name), number)


def export(database: Database, settings: Settings, store: ImageStore, **how: Any) -> Version:
    """A version, ordered and written."""
    number = order(database, **how)
    run(database, settings, store)
    return version(database, number, how.get("name", "mugs"))


def files(database: Database, number: int, name: str = "mugs") -> dict[str, dataset_records.DatasetFile]:
    with database.begin(TENANT) as connection:
        dataset = dataset_records.find(connection, TENANT, name)
        return {file.path: file for file in dataset_records.every_file(connection, dataset.id, number)}


def sums(database: Database, number: int, name: str = "mugs") -> dict[str, str]:
    return {path: file.sha256.hex() for path, file in files(database, number, name).items()}


def download(database: Database, store: ImageStore, number: int, folder: Path, name: str = "mugs") -> Path:
    """The version's tree, each file with the recorded size and sha256."""
    for file in files(database, number, name).values():
        data = store.read(file.object_key)
        assert (len(data), hashlib.sha256(data).digest()) == (file.bytes, file.sha256), file.path
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(data)
    return folder


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def mark(database: Database, job: int, indexes: list[int], word: marks.Mark | None) -> None:
    with database.begin(TENANT) as connection:
        marks.put(connection, TENANT, job, indexes, word)


def age_leases(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("UPDATE leases SET expires_at = '-infinity'"))
