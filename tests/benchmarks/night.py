"""night: a whole run over 200,000 items x 3 variants of which none has changed, by a scheduler, against reading the
feed alone. No picture is copied. Part of `NAME=catalogue`."""

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
from sqlalchemy import text

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, expansion, lists, manifests, planning, versions
from services.core.catalogues import definition as definitions
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.versions import Manifest
from services.core.db.database import Database
from services.core.files import files
from services.core.fleet import models
from services.core.items.records import ItemFile
from services.core.model import ids
from services.core.storage.s3 import S3Store
from tests import factories
from tests.benchmarks.environment import BenchmarkStack, benchmark_stack
from tests.benchmarks.report import report
from tests.processes import Process
from tests.waiting import until

ITEMS = 200_000
SECONDS, MIB = 60, 500  # what a night may take
_ENTRIES = text("""
INSERT INTO catalogue_entries (catalogue_id, item, variant, from_version, render_key, object_key, sha256, bytes,
  request, model_revision, reproducibility_class, rendered_at, job_id, index)
SELECT :id, 'SKU-' || lpad(n::text, 8, '0'), variant, 1, sha256(convert_to(n || variant, 'UTF8')), 'catalogues/x',
  sha256(convert_to(variant || n, 'UTF8')), 300000, '{"prompt": "a red mug", "output_format": "png"}', 'r', 'c',
  now(), 1, n
FROM generate_series(0, :items - 1) n CROSS JOIN unnest(CAST(:variants AS text[])) variant
WHERE NOT (variant = 'lifestyle' AND n % 10 = 5)
""")
_MADE = text("""
UPDATE catalogue_runs SET state = 'published', version = 1, planned_at = now(), finished_at = now() WHERE id = :id
""")


def run(feed: Path, variants: dict[str, dict[str, str]], items: int = ITEMS) -> None:
    """`feed`: a file of so many items."""
    with benchmark_stack() as stack:
        factories.register(stack.database)
        store = S3Store(stack.settings)
        given = {"source": {"file": feed.name}, "id": "sku", "model": "simulated", "variants": variants}
        with stack.database.begin(factories.TENANT) as connection:
            shop = catalogues.put(connection, factories.TENANT, "shop", given)
        file_id = _upload(stack.database, store, shop, feed)
        pictures = _published(stack, store, shop, feed, items)
        before = set(store.under(shop.folder))
        with stack.database.begin(factories.TENANT) as connection:
            shop = catalogues.find(connection, factories.TENANT, "shop")
            assert shop.file_id == file_id
            night = runs.begin(connection, shop)
        scheduler = Process("scheduler.app", {**os.environ, **stack.environ}, stack.folder / "scheduler.log")
        peak = 0
        try:
            until(lambda: "scheduler" in scheduler.text() or scheduler.popen.poll() is not None)
            process = psutil.Process(scheduler.pid)
            began = time.perf_counter()
            while not (found := _read(stack.database, night)).is_final:
                assert scheduler.popen.poll() is None, scheduler.text()
                with suppress(psutil.Error):
                    peak = max(peak, process.memory_info().rss)
                time.sleep(0.05)
            seconds = time.perf_counter() - began
        finally:
            scheduler.stop()
        assert (found.state, found.counts["unchanged"]) == ("unchanged", pictures), (found.state, found.error)
        written = set(store.under(shop.folder)) - before
    assert not written, f"a night without changes wrote {len(written)} objects"
    began = time.perf_counter()
    assert sum(1 for _ in ItemFile(path=feed, form="csv", wanted=["sku"]).items()) == items
    reading = time.perf_counter() - began
    report(
        "night", items / seconds, items / reading, "items/s", "reading the same file", items=items, pictures=pictures,
        seconds=round(seconds, 1), seconds_allowed=SECONDS, peak_mib=peak >> 20, mib_allowed=MIB, objects_written=0,
    )  # fmt: skip


def _published(stack: BenchmarkStack, store: S3Store, shop: Catalogue, feed: Path, items: int) -> int:
    """Version 1 as a first night leaves it, without its pictures' bytes; how many pictures it has."""
    definition, problems = definitions.read("shop", shop.definition)
    assert definition is not None, problems
    with stack.database.begin_system() as connection:
        variants, problems = expansion.compile_variants("shop", definition, models.registry(connection), "simulated")
        run_id = runs.begin(connection, shop)
        connection.execute(_MADE, {"id": run_id})
        catalogues.begin_version(connection, shop.id)
    assert not problems
    file = ItemFile(path=feed, form="csv", wanted=expansion.fields(definition, variants))
    path = stack.folder / "list.sqlite"
    plan = planning.make(definition, variants, file.items(), unit=file.unit, previous=None, path=path)
    key = store.key(f"{shop.folder}{manifests.FOLDER}00000001/list.sqlite")
    with path.open("rb") as listed:
        store.put_file(key, listed, "application/vnd.sqlite3")
    with stack.database.begin_system() as connection:
        values = {"id": shop.id, "items": items, "variants": list(definition.variants)}
        made = connection.execute(_ENTRIES, values).rowcount
        manifest = {lists.NAME: Manifest(key, "", path.stat().st_size)}
        versions.add(connection, shop.id, 1, run_id, images=made, size=0, manifests=manifest)
        manifests.point(store, shop, versions.find(connection, shop.id, 1))
        connection.execute(
            text("UPDATE catalogues SET published = 1, announced = 1, tidy_from = NULL WHERE id = :id"), {"id": shop.id}
        )
    assert made == plan.pictures["new"]
    return int(made)


def _upload(database: Database, store: S3Store, shop: Catalogue, feed: Path) -> int:
    file_id = ids.new()
    key = store.key(files.object_name(factories.TENANT, file_id))
    with feed.open("rb") as data:
        store.put_file(key, data, "text/csv")
    with database.begin(factories.TENANT) as connection:
        files.record(
            connection, file_id, tenant_id=factories.TENANT, purpose="batch", filename=feed.name,
            size=feed.stat().st_size, sha256=bytes(32), key=key,
        )  # fmt: skip
        catalogues.set_file(connection, factories.TENANT, shop.name, file_id)
    return file_id


def _read(database: Database, run_id: int) -> runs.Run:
    with database.begin_system() as connection:
        return runs.read(connection, run_id)
