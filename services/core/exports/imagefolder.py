"""Hugging Face image folder: real picture files, copied within the store, and a metadata.jsonl in each folder.

`load_dataset("imagefolder", data_dir=...)` reads the downloaded tree.
"""

import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from services.core.exports.members import Member
from services.core.exports.records import File
from services.core.exports.shards import ExportFailed, ExportWriter, Shard, gone, json_line
from services.core.model.errors import ObjectMissing

_COPIERS = 8
_TOGETHER = 64


def write(desk: ExportWriter, shard: Shard, members: Iterable[Member]) -> list[File]:
    folder = f"{shard.split}/{shard.ordinal:05d}"
    files: list[File] = []
    with tempfile.TemporaryFile() as lines, ThreadPoolExecutor(_COPIERS) as pool:
        for some in _batches(members):
            desk.keep()
            files += pool.map(lambda member: _copy(desk, f"{folder}/{member.file_name}", member), some)
            for member in some:
                lines.write(json_line({"file_name": member.file_name, **member.record()}).encode())
        files.append(desk.put(f"{folder}/metadata.jsonl", lines, "application/jsonl", 0))
    return files


def _copy(desk: ExportWriter, path: str, member: Member) -> File:
    """Its size is asked for, not its bytes read: the store copies what the ledger's sha256 was taken of."""
    key = desk.export.prefix + path
    try:
        desk.store.copy(member.object_key, key)
        size = desk.store.size(key)
    except ObjectMissing:
        raise gone(member) from None
    if size != member.bytes:
        raise ExportFailed(
            f"Image {member.index} has {size:,} bytes in the store where the ledger records {member.bytes:,}. "
            "Render it again, or restore its object."
        )
    return File(path, member.sha256, size, 1, key)


def _batches(members: Iterable[Member]) -> Iterator[list[Member]]:
    rest = iter(members)
    while some := list(islice(rest, _TOGETHER)):
        yield some
