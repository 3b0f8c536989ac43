"""Shards: the images of one job that one claim rendered, as one tar in WebDataset's layout. For each image it holds the
picture and a `.json` with the facts by which it was drawn; prompts only for jobs that write them into files.

A shard's name holds the claim's id and its own digest: nothing else is written there, and one that is stored and never
settled is an orphan.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from services.core.model import file_names, ids
from services.core.model.specs import Image
from services.core.storage import keys, members, tars
from worker.outcome import Encoded

MEDIA_TYPE = "application/x-tar"
MOST_BYTES = 64 << 20  # of the images of one shard, so that it is sent in one request, and from memory


@dataclass(frozen=True, slots=True)
class Member:
    """An image of a shard: where its bytes begin, and their sha256."""

    encoded: Encoded
    begin: int
    sha256: bytes

    def key(self, object_key: str) -> str:
        """The image's key, if the shard has this one."""
        return members.Place(object_key, self.begin, len(self.encoded.data)).key


@dataclass(frozen=True, slots=True)
class Shard:
    """A whole tar. `name` is its key without the installation's prefix."""

    name: str
    data: bytes
    members: tuple[Member, ...]

    @property
    def images(self) -> list[Image]:
        return [member.encoded.image for member in self.members]


def lots(encoded: Iterable[Encoded]) -> list[list[Encoded]]:
    """What goes into one shard each: images of one job, in order."""
    found: list[list[Encoded]] = []
    size = 0
    for one in sorted(encoded, key=lambda one: (one.image.job_id, one.image.index)):
        is_other = not found or found[-1][0].image.job_id != one.image.job_id
        if is_other or size + len(one.data) > MOST_BYTES:
            found.append([])
            size = 0
        found[-1].append(one)
        size += len(one.data)
    return found


def tar(lot: Sequence[Encoded], claim_id: int) -> Shard:
    """The same images give the same bytes."""
    parts: list[bytes] = []
    found: list[Member] = []
    end = 0
    for one in lot:
        picture = hashlib.sha256(one.data)
        key = f"{one.image.index:08d}"
        record = json.dumps(_record(one, picture.hexdigest())).encode()
        files = ((file_names.EXTENSIONS[one.image.output_format], one.data), ("json", record))
        for extension, content in sorted(files):
            parts += [tars.head(f"{key}.{extension}", len(content)), content, tars.padding(len(content))]
            if content is one.data:
                found.append(Member(one, end + tars.BLOCK, picture.digest()))
            end += sum(map(len, parts[-3:]))
    parts.append(tars.end(end))
    first, data = lot[0].image, b"".join(parts)
    digest = hashlib.sha256(data).hexdigest()
    name = keys.shard_name(first.tenant_id, ids.public_job(first.job_id), first.index, claim_id, digest)
    return Shard(name, data, tuple(found))


def _record(one: Encoded, sha256: str) -> dict[str, Any]:
    image = one.image
    record = image.spec.canonical() | {"sha256": sha256}
    record |= {"job": ids.public_job(image.job_id), "index": image.index}
    record |= {"reproducibility_class": one.rendered.reproducibility_class}
    if not image.embed_prompt:
        record.pop("prompt", None)
        record.pop("negative_prompt", None)
    return record
