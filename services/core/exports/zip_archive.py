"""Zip: image files under images/, and a record of each in three files: metadata.parquet, which `load_dataset` reads,
records.jsonl, and spreadsheet.csv, which spreadsheets open as UTF-8 and without formulas.

Entries are not compressed, because image files already are. Their date is 1980-01-01, the earliest that a zip allows.
"""

import csv
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterable
from typing import IO, Any

from services.core.exports.members import Member
from services.core.exports.parquet import RecordTable
from services.core.exports.records import File
from services.core.exports.shards import ExportWriter, Shard
from services.core.model import metadata_types, strict_json

_BOM = b"\xef\xbb\xbf"
_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")


def write(writer: ExportWriter[Any], shard: Shard, members: Iterable[Member]) -> list[File]:
    images = 0
    with (
        tempfile.TemporaryFile() as file,
        tempfile.TemporaryFile() as lines,
        tempfile.TemporaryFile() as sheet,
        tempfile.TemporaryFile() as table,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        RecordTable(table, writer.export.columns) as typed,
    ):
        for member, data in writer.pictures(members):
            images += 1
            name = f"images/{member.file_name}"
            archive.writestr(_entry(name), data)
            row = member.row()
            lines.write(strict_json.line({"file_name": name, **member.record()}).encode())
            if images == 1:
                sheet.write(_BOM + csv_line(["file_name", *row]))
            sheet.write(csv_line([name, *row.values()]))
            typed.add(name, row)
        typed.close()
        for name, content in ((typed.NAME, table), ("records.jsonl", lines), ("spreadsheet.csv", sheet)):
            _copy(archive, name, content)
        archive.close()
        return [writer.put(f"data/{shard.name}.zip", file, "application/zip", images)]


def csv_line(values: Iterable[Any]) -> bytes:
    """One row in UTF-8. An apostrophe precedes a text that a spreadsheet would run as a formula."""
    row = io.StringIO(newline="")
    csv.writer(row).writerow([_cell(value) for value in values])
    return row.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULAS):
        return f"'{value}"
    return metadata_types.text_of(value) if isinstance(value, float) else value


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr = 3, 0o100644 << 16
    return entry


def _copy(archive: zipfile.ZipFile, name: str, content: IO[bytes]) -> None:
    content.seek(0)
    entry = _entry(name)
    entry.file_size = content.seek(0, io.SEEK_END)
    content.seek(0)
    with archive.open(entry, "w") as target:
        shutil.copyfileobj(content, target)
