"""The background task of datasets: the holder of a dataset's lease writes its next version shard by shard, or deletes
what is over.

A shard is stored first and then recorded in one transaction; the version shows when all is recorded. If the process
dies in between, the next one writes the same bytes again under the same key.
"""

import errno
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice

from services.core.crash_points import crash_point
from services.core.datasets import card, dataset_records, datasets, held, planning, source_images, version_removal
from services.core.datasets.dataset_records import Dataset, Version
from services.core.db.leases import Lease, LeaseLost
from services.core.exports.formats import FORMATS
from services.core.exports.shards import ExportFailed, ExportWriter, Shard
from services.core.model.errors import PressworkError, StoreRefused, Unavailable
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

SLICE_SECONDS = 10.0  # then, after the current shard, other datasets get their turn
_DROPPERS = 8
_BATCH = 500
_NO_ROOM = "The scheduler's disk for temporary files is full; the version goes on once there is room."


def run(settings: Settings, store: ImageStore, dataset_id: int, lease: Lease) -> None:
    """Works on a dataset for one time slice. Call it again while the dataset is pending."""
    until = time.monotonic() + SLICE_SECONDS
    while time.monotonic() < until:
        with lease.database.read_system() as connection:
            dataset = dataset_records.read(connection, dataset_id)
            version = None if dataset is None else dataset_records.at_work(connection, dataset)
        if dataset is None:
            return
        if dataset.is_deleted:
            if not _drop(store, dataset, None, lease, until):
                return
            with lease.begin() as connection:
                datasets.forget(connection, dataset)
        elif version is None:
            return
        elif version.deleted_at is not None and version.state == "completed":
            if not _drop_version(store, version, lease, until):
                return
        elif version.finished_at is not None:
            if not _drop(store, dataset, version, lease, until):
                return
            with lease.begin() as connection:
                datasets.forget_version(connection, version)
        else:
            linked = replace(version, base_url=settings.public_url or version.base_url)
            _write(ExportWriter(linked, store, settings.secret, lease.keep), lease)


def _write(writer: ExportWriter[Version], lease: Lease) -> None:
    """Writes the next part: the plan, a shard, or the files that complete the version."""
    version = writer.export
    try:
        if version.plan is None:
            planned = planning.plan(lease.database, version, lease.keep)
            if not planned.plan.counted.images:
                raise ExportFailed("No image of the dataset's jobs is done and fits its filters.")
            with lease.begin() as connection:
                datasets.begin(connection, version, planned)
        elif not _write_shard(writer, lease):
            files = card.write(writer, lease.database)
            crash_point("dataset.listed")
            with lease.begin() as connection:
                datasets.complete(connection, version, files)
    except StoreRefused as error:  # such as a bucket that is full: nothing of the version shows until there is room
        with lease.begin() as connection:
            datasets.held_up(connection, version, str(error))
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            with lease.begin() as connection:
                datasets.held_up(connection, version, _NO_ROOM)
        raise
    except (LeaseLost, Unavailable):
        raise
    except PressworkError as error:  # it would be the same at the next try
        with lease.begin() as connection:
            datasets.fail(connection, version, str(error))


def _write_shard(writer: ExportWriter[Version], lease: Lease) -> bool:
    """Writes the next shard. False: all are written."""
    version = writer.export
    with lease.database.read_system() as connection:
        found = dataset_records.next_shard(connection, version)
    if found is None:
        return False
    again = version.number if found.replaces is not None else None
    shard = Shard(found.ordinal, found.split, found.ordinal, version=again)
    members = source_images.of_shard(lease.database, version, held.unpack(found.members), lease.keep)
    files = FORMATS[version.format].writer()(writer, shard, members)
    crash_point("dataset.stored")
    with lease.begin() as connection:
        datasets.record(connection, version, found, files)
    return True


def _drop(store: ImageStore, dataset: Dataset, version: Version | None, lease: Lease, until: float) -> bool:
    """Deletes all objects of a version, or of all versions, also those that were never recorded, and then the rows of
    files. False: the time slice is over before all is deleted."""
    folder = dataset.folder(None if version is None else version.number)
    with ThreadPoolExecutor(_DROPPERS) as pool:
        while some := list(islice(store.under(folder), _BATCH)):  # listed again until there are none
            if time.monotonic() > until:
                return False
            lease.keep()
            list(pool.map(store.drop, some))
    crash_point("dataset.dropped")
    more = True
    while more:
        with lease.begin() as connection:
            more = datasets.forget_files(connection, dataset, None if version is None else version.number)
    return True


def _drop_version(store: ImageStore, version: Version, lease: Lease, until: float) -> bool:
    """Deletes what stands in no version but one that was deleted. False: the time slice is over before all is
    deleted."""
    with lease.begin() as connection:
        version_removal.settle(connection, version)
    with ThreadPoolExecutor(_DROPPERS) as pool:
        while True:
            with lease.database.read_system() as connection:
                place = version_removal.next_shard(connection, version)
            while True:
                with lease.database.read_system() as connection:
                    files = version_removal.files(connection, version, place, limit=_BATCH)
                if not files:
                    break
                if time.monotonic() > until:
                    return False
                lease.keep()
                list(pool.map(store.drop, [key for _, key in files]))
                crash_point("dataset.shrunk")
                with lease.begin() as connection:
                    version_removal.forget_files(connection, version, place, [path for path, _ in files])
            with lease.begin() as connection:
                if place is None:
                    version_removal.done(connection, version)
                    return True
                version_removal.emptied(connection, version, place)
