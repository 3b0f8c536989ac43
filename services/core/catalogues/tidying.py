"""Tidies a catalogue: moves the pointer in the store, drops versions that are not kept, and the objects that no kept
version has. What a crash leaves of these is found again.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, copies, copying, destinations, entries, lists, manifests, versions
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.versions import Version
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.storage.contract import ImageStore

_AT_ONCE = 500
_DROPPERS = 8


def tidy(store: ImageStore, catalogue: Catalogue, keep: int, lease: Lease) -> None:
    """Keeps the newest `keep` versions and the published one."""
    published, announced, kept = _forget_versions(catalogue, keep, lease)
    crash_point("version.forgotten")
    if published is not None and published.version != announced:
        lease.keep()
        manifests.point(store, catalogue, published)
        lease.confirm(lambda connection: catalogues.doubt_announced(connection, catalogue.id))
        crash_point("pointer.moved")
    _drop_files(store, catalogue, kept, lease)
    _drop_unused(store, catalogue, [one.version for one in kept], lease)
    with lease.begin() as connection:
        catalogues.record_announced(connection, catalogue.id, None if published is None else published.version)
        copying.want(connection, catalogue.id)


def remove(store: ImageStore, catalogue: Catalogue, lease: Lease) -> None:
    """Drops all objects of a deleted catalogue, and then its rows."""
    with ThreadPoolExecutor(_DROPPERS) as pool:
        for folder in (catalogue.folder, catalogue.thumbnails):
            while some := list(islice(store.under(folder), _AT_ONCE)):  # listed again until there are none
                lease.keep()
                list(pool.map(store.drop, some))
    crash_point("catalogue.dropped")
    more = True
    while more:
        with lease.begin() as connection:
            more = entries.forget_all(connection, catalogue.id, most=5_000)
            more |= copies.forget_all(connection, catalogue.id, most=5_000)
    with lease.begin() as connection:
        destinations.forget(connection, catalogue.id)
        versions.forget(connection, catalogue.id, versions.listed(connection, catalogue.id))
        catalogues.forget(connection, catalogue.id)


def _forget_versions(catalogue: Catalogue, keep: int, lease: Lease) -> tuple[Version | None, int | None, list[Version]]:
    """The published version, the number of the one that the pointer names, and all that are kept. With the catalogue's
    row locked: nobody publishes one that goes. From this commit until the pointer is known to have moved, nobody knows
    which one it names."""
    with lease.begin() as connection:
        current = catalogues.find(connection, catalogue.tenant_id, catalogue.name, lock=True)
        whole = versions.listed(connection, catalogue.id)
        kept = [one for number, one in enumerate(whole) if number < keep or one.version == current.published]
        versions.forget(connection, catalogue.id, [one for one in whole if one not in kept])
        if current.announced != current.published:
            catalogues.record_announced(connection, catalogue.id, None)
    return next((one for one in kept if one.version == current.published), None), current.announced, kept


def _drop_files(store: ImageStore, catalogue: Catalogue, kept: Sequence[Version], lease: Lease) -> None:
    needed = {manifest.object_key for version in kept for manifest in version.manifests.values()}
    with lease.begin() as connection:
        needed |= {lists.key(store, catalogue, run.id) for run in runs.live(connection, catalogue.id)}
    for folder in (manifests.FOLDER, lists.RUNS):
        for key in store.under(catalogue.folder + folder):
            if key not in needed:
                lease.keep()
                store.drop(key)


def _drop_unused(store: ImageStore, catalogue: Catalogue, kept: Sequence[int], lease: Lease) -> None:
    with ThreadPoolExecutor(_DROPPERS) as pool:
        while True:
            with lease.begin() as connection:
                unused = entries.unused(connection, catalogue.id, kept, limit=_AT_ONCE)
            gone = {one.object_key for one in unused if one.is_last}
            list(pool.map(store.drop, gone | {store.key(catalogue.thumbnail_of(key)) for key in gone}))
            if not unused:
                return
            crash_point("entry.dropped")
            with lease.begin() as connection:
                entries.forget(connection, catalogue.id, unused)
