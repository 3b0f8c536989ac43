"""The errand: an export is written shard by shard, or dropped, by whoever holds its lease.

A shard is put into the store, then recorded in one transaction that moves the export on. Whoever dies between the two
leaves an object that the next one writes again, with the same bytes under the same key.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from services.core.db.leases import Lease
from services.core.exports import exports, manifest, members, records
from services.core.exports.formats import FORMATS
from services.core.exports.members import Member, ShardCapacity
from services.core.exports.records import Export
from services.core.exports.shards import ExportFailed, ExportWriter, Shard
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

SLICE_SECONDS = 10.0  # then others get their turn, after the shard that is being written
_DROPPERS = 8
_TOGETHER = 500


def run(settings: Settings, store: ImageStore, export_id: int, lease: Lease) -> None:
    """Does a slice of what is to be done for an export; again until nothing is."""
    until = time.monotonic() + SLICE_SECONDS
    while (export := _read(export_id, lease)) is not None:
        if export.finished_at is None:
            _write(ExportWriter(export, store, settings.secret, lease.keep), lease)
        elif export.expired or (export.state != "completed" and export.next_shard >= 0):
            _drop(store, export, lease, until)
        else:
            return
        if time.monotonic() > until:
            return


def _read(export_id: int, lease: Lease) -> Export | None:
    with lease.database.begin_system() as connection:
        return records.read(connection, export_id)


def _write(desk: ExportWriter, lease: Lease) -> None:
    """One step: the plan, or the next shard, or what says that all is there."""
    export = desk.export
    try:
        if export.plan is None:
            plan = members.plan(lease.database, export, lease.keep)
            with lease.begin() as connection:
                exports.begin(connection, export, plan)
        elif (shard := _next_shard(export)) is not None:
            _write_shard(desk, shard, lease)
        elif export.images_done != export.plan.images:
            raise ExportFailed(
                f"{export.images_done:,} images were found where {export.plan.images:,} had been counted."
            )
        else:
            files = manifest.write(desk, lease.database)
            with lease.begin() as connection:
                if exports.record(connection, export, files, images=0, next_index=0):
                    exports.complete(connection, export)
    except ExportFailed as error:
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


def _write_shard(desk: ExportWriter, shard: Shard, lease: Lease) -> None:
    export, cut = desk.export, ShardCapacity(desk.export)
    first = export.next_index if shard.ordinal else 0
    last = first

    def taken() -> Iterable[Member]:
        nonlocal last
        for member in members.of_split(lease.database, export, shard.split, first, lease.keep):
            if not cut.takes(member.bytes):
                return
            last = member.index
            yield member

    files = FORMATS[export.format].writer()(desk, shard, taken())
    with lease.begin() as connection:
        exports.record(connection, export, files, images=cut.images, next_index=last + 1)


def _drop(store: ImageStore, export: Export, lease: Lease, until: float) -> None:
    """Every object first, also those that were never recorded; then the rows. What is left at the end of the slice is
    found by the next."""
    with ThreadPoolExecutor(_DROPPERS) as pool:
        while some := list(islice(store.under(export.prefix), _TOGETHER)):  # listed anew, until there are none
            if time.monotonic() > until:
                return
            lease.keep()
            list(pool.map(store.drop, some))
    more = True
    while more:
        with lease.begin() as connection:
            more = exports.forget_files(connection, export)
    with lease.begin() as connection:
        exports.forget(connection, export)
