"""Catalogues for tests: one with real little pictures, its runs, and a worker that renders what they ask for."""

import csv
import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, entries, lists, preparation, version_list
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.files import files
from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.model.specs import FailedImage, Image
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.contract import ImageStore
from tests import factories

DEFINITION: dict[str, Any] = {
    "source": {"file": "shop.csv"},
    "id": "sku",
    "keep": 3,
    "removed_limit": 0.4,
    "variants": {"front": {"prompt": "{{ title }}", "size": "64x64"}},
}
HOLDER = "scheduler-a"


def create(database: Database, name: str = "shop", **more: Any) -> Catalogue:
    with database.begin(factories.TENANT) as connection:
        return catalogues.put(connection, factories.TENANT, name, DEFINITION | more)


def again(database: Database, catalogue: Catalogue) -> Catalogue:
    with database.begin_system() as connection:
        return catalogues.read(connection, catalogue.id)[0]


def change(item: str, prompt: str = "a mug", *, kind: Any = "new", variant: str = "front", **more: Any) -> Change:
    seed = int.from_bytes(hashlib.sha256(f"{item} {variant}".encode()).digest()[:4], "big")
    request = {"prompt": prompt, "seed": seed, "size": "64x64", "output_format": "png", "model": "simulated"}
    key = hashlib.sha256(f"{prompt} {seed}".encode()).digest()
    return Change(
        item, variant, kind, line=2, render_key=key, request=request, model_revision=factories.REVISION, **more
    )


def begin(database: Database, catalogue: Catalogue, **asked: Any) -> int:
    with database.begin(factories.TENANT) as connection:
        return runs.begin(connection, again(database, catalogue), **asked)


def read(database: Database, run_id: int) -> Run:
    with database.begin_system() as connection:
        return runs.read(connection, run_id)


def plan(
    database: Database,
    store: ImageStore,
    catalogue: Catalogue,
    found: Iterable[Change],
    unchanged: int = 0,
    **asked: Any,
) -> int:
    """A run that has found these changes."""
    run_id = begin(database, catalogue, **asked)
    lease = Lease(database, f"catalogue/{catalogue.id}", HOLDER)
    assert lease.take()
    run, listed = read(database, run_id), list(found)
    counts = preparation.record(run, listed, lease) + Counter(unchanged=unchanged)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.sqlite"
        with closing(version_list.create(path)) as connection:
            for number, variant in enumerate(sorted({change.variant for change in listed})):
                connection.execute("INSERT INTO variants VALUES (?, ?, NULL)", (number, variant))
            version_list.finish(connection, {})
        list_key = lists.put(store, catalogue, run_id, path, lease.keep)
    base = again(database, catalogue).published or 0
    preparation.decide(catalogue, run, preparation.Planned(counts, {}, base, list_key=list_key), lease)
    lease.release()
    return run_id


def upload(
    database: Database, store: ImageStore, catalogue: Catalogue, items: Mapping[str, str], name: str = ""
) -> int:
    """A CSV file with a title for each sku, which the next run reads; its id."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([("sku", "title"), *items.items()])
    return upload_text(database, store, catalogue, text.getvalue(), name or "shop.csv")


def upload_text(database: Database, store: ImageStore, catalogue: Catalogue, text: str, name: str = "shop.csv") -> int:
    data, file_id = text.encode(), ids.new()
    key = store.key(files.object_name(factories.TENANT, file_id))
    store.put_file(key, io.BytesIO(data), "text/csv")
    with database.begin(factories.TENANT) as connection:
        digest = hashlib.sha256(data).digest()
        files.record(
            connection, file_id, tenant_id=factories.TENANT, purpose="batch", filename=name, size=len(data),
            sha256=digest, key=key,
        )  # fmt: skip
        catalogues.set_file(connection, factories.TENANT, catalogue.name, file_id)
    return file_id


def tend(database: Database, settings: Settings, store: ImageStore) -> None:
    """What the scheduler does for all catalogues, until nothing is left to do now."""
    notifier = Notifier(settings.redis_url)
    tasks = [task for task in background_tasks(settings, store, notifier) if task.name == "catalogue"]
    runner = BackgroundTaskRunner(database, tasks, HOLDER)
    while runner.run_once():
        pass


def draw(image: Image) -> bytes:
    return f"{image.spec.prompt} {image.spec.seed}".encode()


def render(
    database: Database, store: ImageStore, *, failing: Iterable[str] = (), draw: Callable[[Image], bytes] = draw
) -> None:
    """Renders all that waits; images whose prompt has one of these texts fail. Then jobs finish."""
    while claim := factories.claim(database):
        results, failed = [], []
        for image, result in zip(claim.images, factories.stored(claim), strict=True):
            if any(text in image.spec.prompt for text in failing):
                failed.append(FailedImage(image.job_id, image.index, "error", "It cannot be drawn."))
                continue
            data = draw(image)
            key = store.key(f"drawn/{image.job_id}/{image.index}.png")
            store.put(key, data, "image/png", {}, claim_id=claim.id)
            digest = hashlib.sha256(data).digest()
            results.append(replace(result, object_key=key, sha256=digest, bytes=len(data)))
        factories.settle(database, claim, stored=results, failed=failed)
    with database.begin_system() as connection:
        lifecycle.finish(connection)


def pictures(database: Database, store: ImageStore, catalogue: Catalogue) -> dict[tuple[str, str], bytes]:
    """What readers of the published version see, by item and variant."""
    with database.begin_system() as connection:
        current, _ = catalogues.read(connection, catalogue.id)
        if current.published is None:
            return {}
        page = entries.page(connection, catalogue.id, current.published, after=("", ""), limit=1_000)
    return {(entry.item, entry.variant): store.read(entry.object_key) for entry in page}
