"""Where the lists of pictures lie in the store: a run's own while it goes on, and its version's when that is whole."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from sqlalchemy import Connection

from services.core.catalogues import changes, version_list
from services.core.catalogues.catalogue_runs import Run, public_id
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.catalogues.version_list import Redrawn
from services.core.db.leases import Lease
from services.core.storage.contract import ImageStore
from services.core.storage.kept_file import KeptFile

FOLDER = "lists/"
FORMER = "runs/"  # where earlier releases put them, at fixed keys
NAME = "list"  # among a version's files
_MEDIA = "application/vnd.sqlite3"
_PAGE = 1_000


def put(store: ImageStore, catalogue: Catalogue, run_id: int, path: Path, keep: Callable[[], None]) -> str:
    """Stores the list of a run that goes on, and calls `keep` on the way. Returns its key, of which its bytes are a
    part: who makes another plan of the run, however late, does not write over it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        object_key = store.key(f"{catalogue.folder}{FOLDER}{public_id(run_id)}-{digest}.sqlite")
        store.put_file(object_key, KeptFile(file, keep), _MEDIA)  # type: ignore[arg-type]
    return object_key


def fetch(store: ImageStore, object_key: str, path: Path, keep: Callable[[], None]) -> None:
    """Copies a list to a local file, and calls `keep` on the way. Raises ObjectMissing."""
    with path.open("wb") as file:
        for chunk in store.stream(object_key):
            keep()
            file.write(chunk)


def is_of(object_key: str, run_id: int) -> bool:
    """Whether the object is a list of that run, whichever plan wrote it."""
    return object_key.rpartition("/")[2].startswith((f"{public_id(run_id)}-", f"{public_id(run_id)}."))


class CompleteList:
    """The list of a run's version, with what could not be made: the next run tries that again, and draws with another
    seed what a person rejected. A context manager; `path` is a local file while it is open."""

    def __init__(self, store: ImageStore, catalogue: Catalogue, run: Run, lease: Lease) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="presswork-")
        self.path = Path(self._folder.name) / "list.sqlite"
        former = store.key(f"{catalogue.folder}{FORMER}{public_id(run.id)}.sqlite")
        fetch(store, run.list_key or former, self.path, lease.keep)
        version_list.set_redrawn(self.path, _redrawn(run, lease))
        failed = (change for change in _troubled(run, lease) if change.code != "rejected")
        version_list.mark_failed(self.path, ((change.item, change.variant) for change in failed))
        rejected = (change for change in _troubled(run, lease) if change.code == "rejected")
        version_list.redraw(self.path, ((change.item, change.variant) for change in rejected))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _troubled(run: Run, lease: Lease) -> Iterator[Change]:
    def page(connection: Connection, first: int) -> list[Change]:
        return changes.page(connection, run.id, first=first, limit=_PAGE, troubled=True)

    return (change for change in _all(page, lease) if change.kind in changes.RENDERED)


def _redrawn(run: Run, lease: Lease) -> Iterator[Redrawn]:
    def page(connection: Connection, first: int) -> list[Change]:
        return changes.redrawn(connection, run.id, first=first, limit=_PAGE)

    for change in _all(page, lease):
        assert change.request is not None
        assert change.render_key is not None
        yield Redrawn(change.item, change.variant, change.redraws, change.request["seed"], change.render_key)


def _all(read: Callable[[Connection, int], list[Change]], lease: Lease) -> Iterator[Change]:
    first = 0
    while True:
        lease.keep()
        with lease.database.read_system() as connection:
            page = read(connection, first)
        yield from page
        if len(page) < _PAGE:
            return
        first = page[-1].position + 1
