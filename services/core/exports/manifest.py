"""The description of an export: README.md, manifest.json, and SHA256SUMS for `sha256sum -c`. Equal exports of a job
have equal ones."""

import json
import tempfile
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from services.core.db.database import Database
from services.core.exports import readme, records
from services.core.exports.records import Export, File
from services.core.exports.shards import ExportWriter
from services.core.model import ids

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
_PAGE = 1_000


def write(writer: ExportWriter[Export], database: Database) -> list[File]:
    """Writes the three files. Call it when all shards are recorded."""
    first = readme.write(writer)
    with tempfile.TemporaryFile() as manifest, tempfile.TemporaryFile() as sums:
        _begin(manifest, writer)
        for number, file in enumerate(chain([first], _files(writer, database))):
            entry = {"path": file.path, "images": file.images, "bytes": file.bytes, "sha256": file.sha256.hex()}
            manifest.write(f"{',' if number else ''}\n    {json.dumps(entry)}".encode())
            sums.write(line(file))
        manifest.write(b"\n  ]\n}\n")
        described = writer.put(MANIFEST, manifest, "application/json", 0)
        sums.write(line(described))
        return [first, described, writer.put(SUMS, sums, "text/plain", 0)]


def _begin(manifest: IO[bytes], writer: ExportWriter[Export]) -> None:
    export = writer.export
    assert export.plan is not None
    options = export.options.model_dump(exclude={"expires_in_seconds"})
    head: dict[str, Any] = {
        "version": 1,
        "format": export.format,
        "job": ids.public_job(export.job_id),
        "images": export.plan.images,
        "splits": {name: {"shards": shards, "images": images} for name, (shards, images) in export.plan.splits.items()},
        "options": options,
    }
    if export.plan.licenses:
        head["licenses"] = {name: found.as_json() for name, found in export.plan.licenses.items()}
    manifest.write(json.dumps(head, indent=2).removesuffix("\n}").encode() + b',\n  "files": [')


def _files(writer: ExportWriter[Export], database: Database) -> Iterator[File]:
    after = ""
    while True:
        writer.keep()
        with database.read_system() as connection:
            page = records.files(connection, writer.export.id, after=after, limit=_PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].path


def line(file: File) -> bytes:
    """A file's line in SHA256SUMS."""
    return f"{file.sha256.hex()}  {file.path}\n".encode()
