"""The background task of exports: the holder of an export's lease writes it shard by shard, or deletes it.

A shard is stored first and then recorded in one transaction. If the process dies in between, the next one writes the
same bytes again under the same key.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from services.core.crash_points import crash_point
from services.core.db.leases import Lease, LeaseLost
from services.core.exports import exports, manifest, members, records
from services.core.exports.formats import FORMATS
from services.core.exports.members import Member, ShardCapacity
from services.core.exports.records import Export
from services.core.exports.shards import ExportFailed, ExportWriter, Shard
from services.core.model.errors import PressworkError, Unavailable
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

SLICE_SECONDS = 10.0  # then, after the current shard, other exports get their turn
_DROPPERS = 8
_BATCH = 500


def run(settings: Settings, store: ImageStore, export_id: int, lease: Lease) -> None:
    """Works on an export for one time slice. Call it again while the export is pending."""
    until = time.monotonic() + SLICE_SECONDS
    while (export := _read(export_id, lease)) is not None:
        if export.finished_at is None:
            linked = replace(export, base_url=settings.public_url or export.base_url)
            _write(ExportWriter(linked, store, settings.secret, lease.keep), lease)
        elif export.expired or (export.state != "completed" and export.next_shard >= 0):
            _drop(store, export, lease, until)
        else:
            return
        if time.monotonic() > until:
            return


def _read(export_id: int, lease: Lease) -> Export | None:
    with lease.database.read_system() as connection:
        return records.read(connection, export_id)


def _write(writer: ExportWriter[Export], lease: Lease) -> None:
    """Writes the next part: the plan, a shard, or the manifest that completes the export."""
    export = writer.export
    try:
        if export.plan is None:
            marked = members.with_marks(lease.database, export, lease.keep)
            plan = members.plan(lease.database, marked, lease.keep)
            with lease.begin() as connection:
                exports.begin(connection, marked, plan)
        elif (shard := _next_shard(export)) is not None:
            _write_shard(writer, shard, lease)
        elif export.images_done != export.plan.images:
            raise ExportFailed(
                f"{export.images_done:,} images were found, but {export.plan.images:,} had been counted."
            )
        else:
            files = manifest.write(writer, lease.database)
            crash_point("export.listed")
            with lease.begin() as connection:
                if exports.record(connection, export, files, images=0, next_index=0):
                    exports.complete(connection, export)
    except (LeaseLost, Unavailable):
        raise
    except PressworkError as error:  # it would be the same at the next try
        with lease.begin() as connection:
            exports.fail(connection, export, str(error))


def _next_shard(export: Export) -> Shard | None:
    assert export.plan is not None
    before = 0
    for split, (count, _) in export.plan.splits.items():
        if export.next_shard < before + count:
            return Shard(export.next_shard, split, export.next_shard - before, count)
        before += count
    return None


def _write_shard(writer: ExportWriter[Export], shard: Shard, lease: Lease) -> None:
    export, capacity = writer.export, ShardCapacity(writer.export)
    first = export.next_index if shard.ordinal else 0
    last = first

    def taken() -> Iterable[Member]:
        nonlocal last
        for member in members.of_split(lease.database, export, shard.split, first, lease.keep):
            if not capacity.takes(member.bytes):
                return
            last = member.index
            yield member

    files = FORMATS[export.format].writer()(writer, shard, taken())
    crash_point("export.stored")
    with lease.begin() as connection:
        exports.record(connection, export, files, images=capacity.images, next_index=last + 1)


def _drop(store: ImageStore, export: Export, lease: Lease, until: float) -> None:
    """Deletes all objects, including those that were never recorded, and then the rows. What is left at the end of the
    time slice is deleted in the next."""
    with ThreadPoolExecutor(_DROPPERS) as pool:
        while some := list(islice(store.under(export.folder), _BATCH)):  # listed again until there are none
            if time.monotonic() > until:
                return
            lease.keep()
            list(pool.map(store.drop, some))
    crash_point("export.dropped")
    more = True
    while more:
        with lease.begin() as connection:
            more = exports.forget_files(connection, export)
    with lease.begin() as connection:
        exports.forget(connection, export)
