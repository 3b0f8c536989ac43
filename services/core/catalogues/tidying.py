"""Tidies a catalogue: moves the pointer in the store, drops versions that are not kept, and the objects that no kept
version has. What a crash leaves of these is found again.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, copies, copying, destinations, entries, lists, manifests, versions
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.versions import Version
from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.storage.contract import ImageStore

_AT_ONCE = 500
_DROPPED_AT_ONCE = 32
_DROPPERS = 8


@dataclass(frozen=True, slots=True)
class _Begun:
    """What a tidying finds: the versions that are kept, the catalogue's `tidy_from`, and the version to which the
    pointer is to move, None if it is where it belongs."""

    kept: Sequence[Version]
    tidy_from: datetime | None
    to_announce: Version | None


def tidy(store: ImageStore, catalogue: Catalogue, keep: int, lease: Lease) -> None:
    """Keeps the newest `keep` versions and the published one."""
    begun = _begin(catalogue, manifests.read_pointer(store, catalogue), keep, lease)
    crash_point("version.forgotten")
    if begun.to_announce is not None:
        _point(store, catalogue, begun.to_announce, begun.tidy_from, lease)
        crash_point("pointer.moved")
    _drop_files(store, catalogue, begun.kept, lease)
    _drop_unused(store, catalogue, [one.version for one in begun.kept], lease)
    with lease.begin() as connection:
        catalogues.end_tidying(connection, catalogue.id, begun.tidy_from, moved=begun.to_announce is not None)
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


def _begin(catalogue: Catalogue, pointer: bytes | None, keep: int, lease: Lease) -> _Begun:
    """Forgets versions, and notes that the pointer is about to move if what it is now, `pointer`, is not what it should
    be. With the catalogue's row locked: nobody publishes a version that goes. From this commit until the pointer is
    known to have moved, nobody knows which one it names."""
    with lease.begin() as connection:
        current = catalogues.find(connection, catalogue.tenant_id, catalogue.name, lock=True)
        whole = versions.listed(connection, catalogue.id)
        kept = [one for number, one in enumerate(whole) if number < keep or one.version == current.published]
        versions.forget(connection, catalogue.id, [one for one in whole if one not in kept])
        published = next((one for one in kept if one.version == current.published), None)
        if published is None or (
            current.announced == current.published and pointer == manifests.pointer(catalogue, published)
        ):
            return _Begun(kept, current.tidy_from, None)
        return _Begun(kept, catalogues.doubt_announced(connection, catalogue.id), published)


def _point(store: ImageStore, catalogue: Catalogue, to: Version, began: datetime | None, lease: Lease) -> None:
    assert began is not None
    with lease.overwriting(
        lambda connection: catalogues.doubt_announced(connection, catalogue.id),
        lambda connection: catalogues.record_announced(connection, catalogue.id, to.version, began),
    ):
        manifests.point(store, catalogue, to)


def _drop_files(store: ImageStore, catalogue: Catalogue, kept: Sequence[Version], lease: Lease) -> None:
    """Drops files of versions that are not kept, and lists of runs that have ended. Each lot is found first, and then
    compared with the runs that go on: what nothing needs then is never needed again, so a late deletion takes nothing.
    """
    needed = {manifest.object_key for version in kept for manifest in version.manifests.values()}
    for folder in (manifests.FOLDER, lists.FOLDER, lists.FORMER):
        found = store.under(catalogue.folder + folder)
        while some := list(islice(found, _AT_ONCE)):
            with lease.begin() as connection:
                live = runs.live(connection, catalogue.id)
            for key in some:
                if key not in needed and not any(_is_of(store, catalogue, key, run) for run in live):
                    lease.keep()
                    store.drop(key)


def _is_of(store: ImageStore, catalogue: Catalogue, key: str, run: Run) -> bool:
    """Whether it is a list of the run, or a file of the version that it makes."""
    own = run.version is not None and key.startswith(store.key(manifests.folder(catalogue, run.version)))
    return own or lists.is_of(key, run.id)


def _drop_unused(store: ImageStore, catalogue: Catalogue, kept: Sequence[int], lease: Lease) -> None:
    with ThreadPoolExecutor(_DROPPERS) as pool:
        while True:
            with lease.begin() as connection:
                unused = entries.unused(connection, catalogue.id, kept, limit=_AT_ONCE)
            gone = iter({one.object_key for one in unused if one.is_last})
            while some := list(islice(gone, _DROPPED_AT_ONCE)):
                with lease.begin():  # a late deletion would take pictures that a run has adopted again
                    pass
                list(pool.map(store.drop, [*some, *(store.key(catalogue.thumbnail_of(key)) for key in some)]))
            if not unused:
                return
            crash_point("entry.dropped")
            with lease.begin() as connection:
                entries.forget(connection, catalogue.id, unused)
