"""Hugging Face image folder: image files, copied within the store unless they lie in shards, and a metadata.parquet
in each folder.

`load_dataset(DIR)` reads the downloaded tree.
"""

import io
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from services.core.exports.members import Member
from services.core.exports.parquet import RecordTable
from services.core.exports.records import File
from services.core.exports.shards import ExportFailed, ExportWriter, Shard, lots, missing
from services.core.model import file_names
from services.core.model.errors import ObjectMissing
from services.core.storage import members as members_of_shards

_COPIERS = 8
_BATCH = 64


def write(writer: ExportWriter[Any], shard: Shard, members: Iterable[Member]) -> list[File]:
    folder = f"{file_names.split_folder(shard.split, writer.export.options.split)}/{shard.place}"
    files: list[File] = []
    with (
        tempfile.TemporaryFile() as file,
        RecordTable(file, writer.export.columns) as table,
        ThreadPoolExecutor(_COPIERS) as pool,
    ):
        for some in _batches(members):
            writer.keep()
            in_shards = [member for member in some if members_of_shards.place(member.object_key) is not None]
            for lot in lots(in_shards):
                writer.keep()
                files += pool.map(
                    lambda member, data: _put(writer, f"{folder}/{member.file_name}", member, data),
                    lot, writer.fetch(lot),
                )  # fmt: skip
            objects = [member for member in some if members_of_shards.place(member.object_key) is None]
            files += pool.map(lambda member: _copy(writer, f"{folder}/{member.file_name}", member), objects)
            for member in some:
                table.add(member.file_name, member.row())
        table.close()
        files.append(writer.put(f"{folder}/{table.NAME}", file, "application/vnd.apache.parquet", 0))
    return files


def _put(writer: ExportWriter[Any], path: str, member: Member, data: bytes) -> File:
    """Stores an image that lies in a shard: the store copies whole objects alone."""
    key = writer.key(path)
    writer.store.put_file(key, io.BytesIO(data), file_names.media_type(path))
    return File(path, member.sha256, len(data), 1, key)


def _copy(writer: ExportWriter[Any], path: str, member: Member) -> File:
    """Copies an image within the store and checks its size. Its bytes are not read: the store copies them unchanged."""
    key = writer.key(path)
    try:
        writer.store.copy(member.object_key, key)
        size = writer.store.size(key)
    except ObjectMissing:
        raise missing(member) from None
    if size != member.bytes:
        raise ExportFailed(
            f"Image {member.index} has {size:,} bytes in the store, but {member.bytes:,} were recorded. "
            "Render it again, or restore its object."
        )
    return File(path, member.sha256, size, 1, key)


def _batches(members: Iterable[Member]) -> Iterator[list[Member]]:
    rest = iter(members)
    while some := list(islice(rest, _BATCH)):
        yield some
