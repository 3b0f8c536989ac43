"""WebDataset: tar shards that hold, for each image, the image file, its record as .json and its prompt as .txt.

The key of a sample is the image's index in the job, in a dataset with the job before it. Times and owners are 0, so the
bytes depend only on the images. Beside the shards of a dataset stand their indexes.
"""

import sys
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from services.core.exports.members import Member
from services.core.exports.records import File
from services.core.exports.shards import ExportWriter, Shard
from services.core.model import strict_json
from services.core.storage import tars

_BUFFER = 1 << 20


def write(writer: ExportWriter[Any], shard: Shard, members: Iterable[Member]) -> list[File]:
    images = end = 0
    begins = array("Q")
    with tempfile.TemporaryFile(buffering=_BUFFER) as file:
        for member, data in writer.pictures(members):
            images += 1
            begins.append(end)
            sample = b"".join(_sample(member, data))
            file.write(sample)
            end += len(sample)
        begins.append(end)
        file.write(tars.end(end))
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


def _sample(member: Member, data: bytes) -> Iterator[bytes]:
    """The members of the archive that are the image's, by name. tarfile's own writer would keep each in memory."""
    parts = {
        member.extension: data,
        "json": strict_json.line(member.record()).encode(),
        "txt": member.payload.prompt.encode(),
    }
    for extension, content in sorted(parts.items()):
        yield tars.head(f"{member.key}.{extension}", len(content))
        yield content
        yield tars.padding(len(content))
