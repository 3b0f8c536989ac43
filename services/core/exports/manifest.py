"""What an export says of itself: manifest.json, and SHA256SUMS for `sha256sum -c`. Nothing in them tells one export
of a job from the next."""

import json
import tempfile
from collections.abc import Iterator
from typing import IO

from services.core.db.database import Database
from services.core.exports import records
from services.core.exports.records import File
from services.core.exports.shards import ExportWriter
from services.core.model import ids

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
_PAGE = 1_000


def write(desk: ExportWriter, database: Database) -> list[File]:
    """Once all shards are recorded."""
    with tempfile.TemporaryFile() as manifest, tempfile.TemporaryFile() as sums:
        _begin(manifest, desk)
        for number, file in enumerate(_files(desk, database)):
            entry = {"path": file.path, "images": file.images, "bytes": file.bytes, "sha256": file.sha256.hex()}
            manifest.write(f"{',' if number else ''}\n    {json.dumps(entry)}".encode())
            sums.write(_line(file))
        manifest.write(b"\n  ]\n}\n")
        about = desk.put(MANIFEST, manifest, "application/json", 0)
        sums.write(_line(about))
        return [about, desk.put(SUMS, sums, "text/plain", 0)]


def _begin(manifest: IO[bytes], desk: ExportWriter) -> None:
    export = desk.export
    assert export.plan is not None
    options = export.options.model_dump(exclude={"expires_in_seconds"})
    head = {
        "version": 1,
        "format": export.format,
        "job": ids.public_job(export.job_id),
        "images": export.plan.images,
        "splits": {name: {"shards": shards, "images": images} for name, (shards, images) in export.plan.splits.items()},
        "options": options,
    }
    manifest.write(json.dumps(head, indent=2).removesuffix("\n}").encode() + b',\n  "files": [')


def _files(desk: ExportWriter, database: Database) -> Iterator[File]:
    passed = 0
    while True:
        desk.keep()
        with database.begin_system() as connection:
            page = records.files(connection, desk.export.id, passed=passed, limit=_PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        passed += _PAGE


def _line(file: File) -> bytes:
    return f"{file.sha256.hex()}  {file.path}\n".encode()
