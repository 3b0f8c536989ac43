"""What two versions of a dataset differ in. Only shards are read that one of them holds and the other does not."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection

from services.core.datasets import dataset_records, held, removals
from services.core.datasets.dataset_records import HeldShard, Version
from services.core.model import ids


@dataclass(frozen=True, slots=True)
class Difference:
    """An image that only one of the versions holds. `why`: what took it out, where a version says so."""

    change: str
    job_id: str
    index: int
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`shards_added` and `shards_removed` count the shards that only one version holds; `images` are the first
    differences, by job and index."""

    added: int
    removed: int
    shards_added: int
    shards_removed: int
    images: list[Difference]


def compare(connection: Connection, before: Version, after: Version, *, limit: int) -> Comparison:
    first, last = sorted((before.number, after.number))
    found = dataset_records.changed(connection, before.dataset.id, first, last)
    older = [one for one in found if one.since <= first]
    newer = [one for one in found if one.since > first and (one.until is None or one.until > last)]
    if before.number > after.number:
        older, newer = newer, older
    flags: dict[int, bytearray] = {}
    _flag(flags, older, 1)
    _flag(flags, newer, 2)
    gone, new = list(islice(_places(flags, 1), limit)), list(islice(_places(flags, 2), limit))
    why = _reasons(connection, after, set(gone)) if after.base == before.number else {}
    images = [Difference("removed", job, index, why.get((job, index))) for job, index in gone]
    images += [Difference("added", job, index) for job, index in new]
    added, removed = (sum(found.count(side) for found in flags.values()) for side in (2, 1))
    return Comparison(added, removed, len(newer), len(older), images[:limit])


def _flag(flags: dict[int, bytearray], shards: Iterable[HeldShard], side: int) -> None:
    """Adds `side` to the byte of each image of these shards: one byte an image, however many there are."""
    for shard in shards:
        for one in held.unpack(shard.members):
            found = flags.setdefault(one.job_id, bytearray())
            found.extend(bytes(max(0, max(one.indexes, default=-1) + 1 - len(found))))
            for index in one.indexes:
                found[index] |= side


def _places(flags: dict[int, bytearray], side: int) -> Iterator[tuple[str, int]]:
    """The images that only one side has, in order."""
    for job_id, found in sorted(flags.items()):
        index = found.find(side)
        while index >= 0:
            yield ids.public_job(job_id), index
            index = found.find(side, index + 1)


def _reasons(connection: Connection, version: Version, wanted: set[tuple[str, int]]) -> dict[tuple[str, int], str]:
    found: dict[tuple[str, int], str] = {}
    if not wanted:
        return found
    for job, index, why in removals.unpack(dataset_records.removed(connection, version)):
        if (job, index) in wanted:
            found[job, index] = why
            if len(found) == len(wanted):
                break
    return found
