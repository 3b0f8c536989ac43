"""Jobs to export: finished ones with real little pictures, and the background task that writes their exports."""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.db.database import Database
from services.core.exports import exports, options, records
from services.core.exports.records import Export
from services.core.jobs import lifecycle
from services.core.model import file_names
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.contract import ImageStore
from services.core.storage.s3 import S3Store
from tests import factories
from tests.waiting import until

FORMATS = ("png", "jpeg", "webp")


def picture(index: int, output_format: str = "png") -> bytes:
    """16 by 16 of a colour of its own."""
    drawn = io.BytesIO()
    Image.new("RGB", (16, 16), (index % 256, index * 7 % 256, 90)).save(drawn, output_format)
    return drawn.getvalue()


def odd_requests(count: int = 10) -> list[dict[str, Any]]:
    """Of every format, some with names, some of several images, with prompts that are awkward in a file."""
    prompts = ["a mug", "=1+1", "caf\u00e9 \u732b \u2028 end", 'two\nlines, "quoted"', "@sum", "-3"]
    return [
        {
            "prompt": prompts[index % len(prompts)],
            "negative_prompt": "+blur" if index % 2 else "",
            "seed": 2**63 - 1 - index,
            "n": 1 + index % 3,
            "size": "64x64",
            "output_format": FORMATS[index % 3],
            **({"custom_id": f"SKU.{index}"} if index % 2 else {}),
        }
        for index in range(count)
    ]


def finished_job(
    database: Database,
    settings: Settings,
    store: ImageStore,
    requests: Iterable[dict[str, Any]] | None = None,
    *,
    flagged: frozenset[int] = frozenset(),
) -> int:
    """Every image done and stored. Those with the given indexes are flagged; at the others nobody has looked."""
    factories.register(database)
    job_id = factories.submit(database, settings, odd_requests() if requests is None else requests)
    while claim := factories.claim(database):
        stored = []
        for image, result in zip(claim.images, factories.stored(claim), strict=True):
            data = picture(image.index, image.output_format)
            key = f"test/{job_id}/{image.index}.{file_names.EXTENSIONS[image.output_format]}"
            store.put(key, data, f"image/{image.output_format}", {}, claim_id=claim.id)
            found = image.index in flagged
            stored.append(
                replace(
                    result,
                    object_key=key,
                    sha256=hashlib.sha256(data).digest(),
                    bytes=len(data),
                    flagged=found or None,
                    unknown_words=("zyx", "wvu") if found else (),
                )
            )
        factories.settle(database, claim, stored=stored)
    finish(database, job_id)
    return job_id


def finish(database: Database, job_id: int) -> None:
    with database.begin_system() as connection:
        assert job_id in lifecycle.finish(connection)


def order(database: Database, job_id: int, form: str, **wished: Any) -> int:
    """An export that waits; its id."""
    with database.begin(factories.TENANT) as connection:
        asked = options.parse({"format": form, "options": wished})
        return exports.create(connection, factories.TENANT, job_id, asked, base_url="http://presswork.test/")[0]


def read(database: Database, export_id: int) -> Export | None:
    with database.begin_system() as connection:
        return records.read(connection, export_id)


def run(
    database: Database, settings: Settings, store: ImageStore, holder: str = "scheduler-a", seconds: float = 20
) -> None:
    """Writes and drops all that waits."""
    background_task = _background_tasks(database, settings, store, holder)

    def nothing_waits() -> bool:
        background_task.run_once()
        with database.begin_system() as connection:
            return not exports.pending(connection)

    until(nothing_waits, seconds, every=0.01)


def run_once(database: Database, settings: Settings, store: ImageStore) -> None:
    _background_tasks(database, settings, store, "scheduler-a").run_once()


def _background_tasks(database: Database, settings: Settings, store: ImageStore, holder: str) -> BackgroundTaskRunner:
    return BackgroundTaskRunner(database, background_tasks(settings, store, Notifier(settings.redis_url)), holder)


def export(database: Database, settings: Settings, store: ImageStore, job_id: int, form: str, **wished: Any) -> Export:
    """Ordered and written."""
    export_id = order(database, job_id, form, **wished)
    run(database, settings, store)
    found = read(database, export_id)
    assert found is not None
    return found


def sums(database: Database, export_id: int) -> dict[str, str]:
    """path -> sha256, of every file."""
    with database.begin_system() as connection:
        return {file.path: file.sha256.hex() for file in records.files(connection, export_id, limit=100_000)}


def download(database: Database, store: S3Store, export_id: int, folder: Path) -> Path:
    """The export's tree, each file with the recorded size and sha256."""
    with database.begin_system() as connection:
        found = records.files(connection, export_id, limit=100_000)
    for file in found:
        data = store.read(file.object_key)
        assert (len(data), hashlib.sha256(data).digest()) == (file.bytes, file.sha256), file.path
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def age_leases(database: Database) -> None:
    """As if their holder had died long ago."""
    with database.begin_system() as connection:
        connection.execute(text("UPDATE leases SET expires_at = '-infinity'"))
