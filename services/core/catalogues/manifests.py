"""The manifests of a version, which list its pictures as JSON lines and as Parquet, and the pointer to the current one.

Both list the same, in order of item and variant. The pointer is a small object at a fixed key that names the published
version with its manifests; it is written after the version is published, so who follows it finds everything.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, Self

from services.core.catalogues import entries, lists
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.entries import Entry
from services.core.catalogues.lists import CompleteList
from services.core.catalogues.versions import Manifest, Version
from services.core.db.leases import Lease
from services.core.model.errors import ObjectMissing
from services.core.storage.contract import ImageStore
from services.core.storage.kept_file import KeptFile

POINTER = "current.json"
FOLDER = "versions/"
_PAGE = 5_000
FILES = {  # name and media type
    "jsonl": ("manifest.jsonl", "application/x-ndjson"),
    "parquet": ("manifest.parquet", "application/vnd.apache.parquet"),
    lists.NAME: ("list.sqlite", "application/vnd.sqlite3"),
}


def write(store: ImageStore, catalogue: Catalogue, run: Run, lease: Lease) -> tuple[int, int, dict[str, Manifest]]:
    """Writes the manifests and the list of the run's version. Returns how many pictures the version has, their bytes
    and the files."""
    version, images, size = run.version, 0, 0
    assert version is not None
    with tempfile.TemporaryFile() as lines, tempfile.TemporaryFile() as table:
        with _Table(table) as writer:
            for page in _pages(catalogue, version, lease):
                rows = [_row(version, entry) for entry in page]
                lines.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                writer.write(rows)
                images += len(page)
                size += sum(entry.bytes for entry in page)
        with CompleteList(store, catalogue, run, lease) as complete, complete.path.open("rb") as listed:
            files: dict[str, IO[bytes]] = {"jsonl": lines, "parquet": table, lists.NAME: listed}
            found = {name: _put(store, catalogue, version, name, file, lease) for name, file in files.items()}
        return images, size, found


def folder(catalogue: Catalogue, version: int) -> str:
    """Where a version's files lie in the store."""
    return f"{catalogue.folder}{FOLDER}{version:08d}/"


def point(store: ImageStore, catalogue: Catalogue, version: Version) -> None:
    """Moves the pointer in the store to that version."""
    data = pointer(catalogue, version)
    store.put_file(store.key(catalogue.folder + POINTER), io.BytesIO(data), "application/json")


def pointer(catalogue: Catalogue, version: Version) -> bytes:
    """The pointer that names that version."""
    manifests = {
        name: {"object_key": one.object_key, "sha256": one.sha256, "bytes": one.bytes}
        for name, one in sorted(version.manifests.items())
        if name != lists.NAME
    }
    found = {
        "catalogue": catalogue.name,
        "version": version.version,
        "images": version.images,
        "manifests": manifests,
    }
    return json.dumps(found).encode()


def read_pointer(store: ImageStore, catalogue: Catalogue) -> bytes | None:
    """The pointer in the store, if there is one."""
    try:
        return store.read(store.key(catalogue.folder + POINTER))
    except ObjectMissing:
        return None


def _pages(catalogue: Catalogue, version: int, lease: Lease) -> Iterator[list[Entry]]:
    after = ("", "")
    while True:
        lease.keep()
        with lease.database.read_system() as connection:
            page = entries.page(connection, catalogue.id, version, after=after, limit=_PAGE)
        if page:
            yield page
        if len(page) < _PAGE:
            return
        after = (page[-1].item, page[-1].variant)


def _row(version: int, entry: Entry) -> dict[str, Any]:
    request = entry.request
    return {
        "item": entry.item,
        "variant": entry.variant,
        "object_key": entry.object_key,
        "sha256": entry.sha256.hex(),
        "bytes": entry.bytes,
        "size": request.get("size"),
        "prompt": request.get("prompt"),
        "seed": request.get("seed"),
        "model_revision": entry.model_revision,
        "reproducibility_class": entry.reproducibility_class,
        "version": entry.from_version,
        "stale": entry.is_stale_in(version),
    }


def _put(store: ImageStore, catalogue: Catalogue, version: int, name: str, file: IO[bytes], lease: Lease) -> Manifest:
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    title, media_type = FILES[name]
    key = store.key(folder(catalogue, version) + title)
    store.put_file(key, KeptFile(file, lease.keep), media_type)  # type: ignore[arg-type]
    return Manifest(key, digest, size)


class _Table:
    """Rows as Parquet, a row group for each call."""

    def __init__(self, file: IO[bytes]) -> None:
        import pyarrow as pa
        import pyarrow.parquet

        text, flag = pa.string(), pa.bool_()
        self._schema = pa.schema([
            ("item", text), ("variant", text), ("object_key", text), ("sha256", text), ("bytes", pa.int64()),
            ("size", text), ("prompt", text), ("seed", pa.int64()), ("model_revision", text),
            ("reproducibility_class", text), ("version", pa.int32()), ("stale", flag),
        ])  # fmt: skip
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd", version="2.6")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.Table.from_pylist(list(rows), self._schema))
