"""WebDataset: tar shards with, for each image, the picture, its record as .json and its prompt as .txt.

A key is the image's index in the job; what is not decided by the job (times, owners) is nought.
"""

import tarfile
import tempfile
from collections.abc import Iterable
from typing import IO

from services.core.exports.members import Member
from services.core.exports.records import File
from services.core.exports.shards import ExportWriter, Shard, json_line


def write(desk: ExportWriter, shard: Shard, members: Iterable[Member]) -> list[File]:
    images = 0
    with tempfile.TemporaryFile() as file:
        for member, data in desk.pictures(members):
            images += 1
            parts = {
                member.extension: data,
                "json": json_line(member.record()).encode(),
                "txt": member.payload.prompt.encode(),
            }
            for extension, content in sorted(parts.items()):
                _add(file, f"{member.index:09d}.{extension}", content)
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
        return [desk.put(f"data/{shard.name}.tar", file, "application/x-tar", images)]


def _add(file: IO[bytes], name: str, content: bytes) -> None:
    """Straight into the file: tarfile's own writer remembers every member."""
    head = tarfile.TarInfo(name)
    head.size = len(content)
    file.write(head.tobuf(tarfile.USTAR_FORMAT))
    file.write(content)
    file.write(bytes(-len(content) % tarfile.BLOCKSIZE))
