"""WebDataset: tar shards that hold, for each image, the image file, its record as .json and its prompt as .txt.

The key of a sample is the image's index in the job, in a dataset with the job before it. Times and owners are 0, so the
bytes depend only on the images. Beside the shards of a dataset stand their indexes.
"""

import sys
import tarfile
import tempfile
from array import array
from collections.abc import Iterable
from typing import IO, Any

from services.core.exports.members import Member
from services.core.exports.records import File
from services.core.exports.shards import ExportWriter, Shard
from services.core.model import strict_json


def write(writer: ExportWriter[Any], shard: Shard, members: Iterable[Member]) -> list[File]:
    images = 0
    begins = array("Q")
    with tempfile.TemporaryFile() as file:
        for member, data in writer.pictures(members):
            images += 1
            begins.append(file.tell())
            parts = {
                member.extension: data,
                "json": strict_json.line(member.record()).encode(),
                "txt": member.payload.prompt.encode(),
            }
            for extension, content in sorted(parts.items()):
                _add(file, f"{member.key}.{extension}", content)
        begins.append(file.tell())
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
        path = f"data/{shard.name}.tar"
        files = [writer.put(path, file, "application/x-tar", images)]
    return files if shard.of is not None else [*files, _index(writer, path, begins)]


def _index(writer: ExportWriter[Any], path: str, begins: "array[int]") -> File:
    """Where each sample begins and the last one ends, as numbers of 8 bytes, the lowest first: Energon reads it for
    random access."""
    if sys.byteorder == "big":
        begins.byteswap()
    with tempfile.TemporaryFile() as file:
        file.write(begins.tobytes())
        return writer.put(f"{path}.idx", file, "application/octet-stream", 0)


def _add(file: IO[bytes], name: str, content: bytes) -> None:
    """Writes a member directly to the file, because tarfile's own writer keeps every member in memory."""
    head = tarfile.TarInfo(name)
    head.size = len(content)
    file.write(head.tobuf(tarfile.USTAR_FORMAT))
    file.write(content)
    file.write(bytes(-len(content) % tarfile.BLOCKSIZE))
