"""What two versions of a dataset differ in. Only shards are read that one of them holds and the other does not."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.datasets import dataset_records, held
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
    left, right = _images(older), _images(newer)
    why = _reasons(connection, after) if after.base == before.number else {}
    gone = [
        Difference("removed", ids.public_job(job), index, why.get((ids.public_job(job), index)))
        for job, index in sorted(left - right)
    ]
    new = [Difference("added", ids.public_job(job), index) for job, index in sorted(right - left)]
    return Comparison(len(new), len(gone), len(newer), len(older), [*gone, *new][:limit])


def _images(shards: Iterable[HeldShard]) -> set[tuple[int, int]]:
    return {(one.job_id, index) for shard in shards for one in held.unpack(shard.members) for index in one.indexes}


def _reasons(connection: Connection, version: Version) -> dict[tuple[str, int], str]:
    return {(job, index): why for job, index, why in dataset_records.removed(connection, version)}
