"""What a new version writes: new shards for new images, and again those shards that lose images.

The images of jobs that have not changed since the version before are not looked at: an ended job changes by its marks
alone. So a version costs as much as is new. The plan depends only on the jobs, their marks and the definition, so the
same inputs give the same shards.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.core.datasets import dataset_records, held, source_images, source_jobs
from services.core.datasets.dataset_records import HeldShard, JobState, Version, VersionPlan
from services.core.datasets.definition import has_table
from services.core.datasets.held import OfJob
from services.core.datasets.removals import Removals
from services.core.datasets.source_jobs import SourceJob
from services.core.db.database import Database
from services.core.exports import members
from services.core.exports.members import ShardCapacity
from services.core.exports.records import ShardPlan
from services.core.exports.shards import ExportFailed
from services.core.model import ids, metadata_types
from services.core.model.metadata_types import Kind

_SHARDS = 100  # read at once
_WORDS = {
    "bool": "true or false", "whole": "a whole number", "long": "a whole number", "float": "a number", "text": "text",
}  # fmt: skip


@dataclass(slots=True)
class NewShard:
    """A shard that is to be written. `replaces`: the version since which the one stands that it takes the place of."""

    split: str
    ordinal: int
    held: list[OfJob]
    replaces: int | None = None

    @property
    def images(self) -> int:
        return held.images(self.held)


@dataclass(slots=True)
class Planned:
    """`closed`: shards of the base that do not stand in this version; `removed`: as `removals` names them."""

    plan: VersionPlan
    jobs: list[SourceJob]
    states: list[JobState]
    new: list[NewShard]
    closed: list[HeldShard]
    removed: list[OfJob]
    to_write: int


@dataclass(slots=True)
class _Growing:
    """The shards of new images, split by split."""

    version: Version
    ordinals: dict[str, int]
    done: list[NewShard] = field(default_factory=list)
    open: dict[str, tuple[ShardCapacity, NewShard]] = field(default_factory=dict)

    def add(self, split: str, job_id: int, index: int, size: int, code: int) -> None:
        if split not in self.open or not self.open[split][0].takes(size):
            self._close(split)
            capacity = ShardCapacity(self.version)
            capacity.takes(size)
            self.open[split] = capacity, NewShard(split, self.ordinals.get(split, 0), [])
            self.ordinals[split] = self.ordinals.get(split, 0) + 1
        shard = self.open[split][1]
        if not shard.held or shard.held[-1].job_id != job_id:
            shard.held.append(OfJob.none(job_id))
        shard.held[-1].add(index, code)

    def _close(self, split: str) -> None:
        if split in self.open:
            self.done.append(self.open.pop(split)[1])

    def all(self) -> list[NewShard]:
        for split in sorted(self.open):
            self._close(split)
        return self.done


class _Types:
    """The kinds of metadata over all images, and where each name was first seen."""

    def __init__(self, version: Version, base: VersionPlan | None) -> None:
        self.kinds: dict[str, Kind] = dict(base.kinds) if base else {}
        self.places: dict[str, str] = dict(base.places) if base else {}
        self._before = dict(base.counted.columns) if base else {}
        self._version = version
        self._is_wanted = has_table(version.format)

    def add(self, job_id: int, index: int, metadata: dict[str, Any] | None) -> None:
        if not self._is_wanted or not metadata:
            return
        for name, value in metadata.items():
            kind = metadata_types.kind_of(value)
            if kind is None:
                continue
            kind = self._version.definition.kind(name, kind)
            known = self.kinds.get(name)
            if known is None:
                self.kinds[name], self.places[name] = kind, f"{ids.public_job(job_id)}/{index}"
            elif known != kind:
                self.kinds[name] = self._joined(name, known, kind, f"{ids.public_job(job_id)}/{index}")

    def _joined(self, name: str, known: Kind, kind: Kind, place: str) -> Kind:
        if name in self._version.definition.types:
            return "text"
        found = metadata_types.joined(known, kind)
        if found == "text":
            raise ExportFailed(
                f"metadata.{name} is {_WORDS[known]} in {self.places[name]} and {_WORDS[kind]} in {place}; a column "
                f"has one type: leave one of the jobs out, or make it text with --text {name}."
            )
        return found

    @property
    def have_changed(self) -> bool:
        """Whether a column of the base's shards has another type now, or is none any more."""
        now = metadata_types.columns(self.kinds)
        types = metadata_types.TYPES
        return any(name not in now or types[now[name]] != types[kind] for name, kind in self._before.items())


def plan(database: Database, version: Version, keep: Callable[[], None]) -> Planned:
    """Raises ExportFailed if the images' metadata cannot be columns."""
    tenant, dataset, definition = version.dataset.tenant_id, version.dataset, version.definition
    with database.read_system() as connection:
        of_base = source_jobs.of_base(connection, dataset, version.base, definition)
        there_now = source_jobs.find(connection, tenant, definition, of_base)
        jobs = [job for job in there_now if job.is_final or version.while_running]
        base = dataset_records.version(connection, dataset, version.base) if version.base else None
        before = {one.job_id: one for one in dataset_records.jobs(connection, dataset.id, version.base)}
        models, licenses = members.models_of(connection, [job.id for job in jobs])
        ordinals = dataset_records.ordinals(connection, dataset.id)
    changed = _changed(jobs, before, same=base is not None and base.definition.digest == definition.digest)
    holding = _held(database, version, {job.id: job.total for job in jobs if job.id in changed}, keep)
    types = _Types(version, base.plan if base else None)
    types.kinds |= {name: "text" for name in definition.types if name in types.kinds}
    growing = _Growing(version, ordinals)
    formats = set(base.plan.counted.formats) if base and base.plan else set()
    taken: dict[int, bytearray] = {}
    for job, row, code in _wanted(database, version, jobs, changed, keep):
        formats.add(row.output_format)
        if job.id not in taken:
            taken[job.id] = bytearray(job.total)
        taken[job.id][row.index] = 1
        types.add(job.id, row.index, row.metadata)
        if not holding[job.id][row.index]:
            split = definition.layout.split_of(row.request)
            growing.add(split, job.id, row.index, row.bytes, code)
    there = {job.id for job in jobs}
    closed: list[HeldShard] = []
    again: list[NewShard] = []
    lost = Removals()
    kept: dict[tuple[str, int], int] = {}
    counts: dict[int, int] = {}
    for shard in _shards(database, dataset.id, version.base, keep):
        rest, loses = _divided(held.unpack(shard.members), there, changed, taken, lost)
        if loses or types.have_changed:
            closed.append(shard)
            if rest:
                again.append(NewShard(shard.split, shard.ordinal, rest, replaces=shard.since))
        else:
            kept[shard.split, shard.ordinal] = shard.images
        _count(counts, rest)
    new = [*again, *growing.all()]
    for shard_ in growing.done:
        _count(counts, shard_.held)
    sizes = [*kept.items(), *(((one.split, one.ordinal), one.images) for one in new)]
    splits = {name: _size(sizes, name) for name in definition.split}
    counted = ShardPlan(splits, models, tuple(sorted(formats)), licenses, metadata_types.columns(types.kinds))
    gone = tuple(source_jobs.gone(definition, there_now))
    removed = lost.named(database, keep)
    found = VersionPlan(counted, types.places, len(again), held.images(removed), gone, types.kinds)
    states = [
        JobState(job.id, job.root, job.is_final, job.marks, counts.get(job.id, 0), job.state, job.labels)
        for job in jobs
    ]
    return Planned(found, jobs, states, new, closed, removed, sum(one.images for one in new))


def _changed(jobs: Sequence[SourceJob], before: dict[int, JobState], *, same: bool) -> set[int]:
    """The jobs whose images are looked at. Of a family with two retries all of them, if one is: an image that both have
    rendered counts once."""
    found = set()
    for job in jobs:
        known = before.get(job.id)
        if not (same and known and known.is_final and known.marks == job.marks and known.root_id == job.root):
            found.add(job.id)
    there = {job.id for job in jobs}
    families = {job.root for job in jobs if job.id in found and job.id != job.root}
    families |= {known.root_id for known in before.values() if known.job_id not in there}
    return found | {job.id for job in jobs if job.root in families and job.id != job.root}


def _wanted(
    database: Database, version: Version, jobs: Sequence[SourceJob], changed: set[int], keep: Callable[[], None]
) -> Iterator[tuple[SourceJob, Any, int]]:
    """The images that are taken, job by job. Of the same picture the retries of a family give as many as the first
    job has not done: one that an earlier retry has done already is left out. What the first job does not have counts
    once, or as often as one retry has it."""
    sizes = Counter(job.root for job in jobs if job.id != job.root)
    totals = {job.id: job.total for job in jobs}
    wanting: dict[int, Counter[bytes]] = {}
    given: dict[int, Counter[bytes]] = {}
    for job in jobs:
        if job.id not in changed:
            continue
        has_siblings = job.id != job.root and sizes[job.root] > 1
        if has_siblings and job.root not in wanting:
            wanting[job.root] = source_images.not_done(database, job.root, totals.get(job.root, 0), keep)
            given[job.root] = Counter()
        own: Counter[bytes] = Counter()
        found = source_images.wanted(database, job.id, job.total, version.definition, keep, identified=has_siblings)
        for row, code in found:
            if has_siblings:
                key = bytes(row.identity)
                own[key] += 1
                if given[job.root][key] >= max(wanting[job.root][key], own[key]):
                    continue
                given[job.root][key] += 1
            yield job, row, code


def _held(
    database: Database, version: Version, totals: dict[int, int], keep: Callable[[], None]
) -> dict[int, bytearray]:
    """Which images of these jobs the base holds."""
    found = {job_id: bytearray(total) for job_id, total in totals.items()}
    for shard in _shards(database, version.dataset.id, version.base, keep):
        for one in held.unpack(shard.members):
            if one.job_id in found:
                for index in one.indexes:
                    found[one.job_id][index] = 1
    return found


def _divided(
    before: list[OfJob], there: set[int], changed: set[int], taken: dict[int, bytearray], lost: Removals
) -> tuple[list[OfJob], bool]:
    """What stays of a shard, and whether it loses any image; adds these to `lost`."""
    rest, loses = [], False
    for one in before:
        if one.job_id in there and one.job_id not in changed:
            rest.append(one)
            continue
        flags = taken.get(one.job_id) if one.job_id in there else None
        stays = OfJob(one.job_id, array("I"), bytearray())
        for place, index in enumerate(one.indexes):
            if flags is not None and flags[index]:
                stays.add(index, one.marks[place])
            else:
                loses = True
                lost.add(one.job_id, index, is_there=one.job_id in there)
        if stays.indexes:
            rest.append(stays)
    return rest, loses


def _shards(database: Database, dataset_id: int, number: int, keep: Callable[[], None]) -> Iterator[HeldShard]:
    after = ("", -1)
    while number:
        keep()
        with database.read_system() as connection:
            page = dataset_records.shards(connection, dataset_id, number, after=after, limit=_SHARDS)
        for shard in page:
            keep()
            yield shard
        if len(page) < _SHARDS:
            return
        after = page[-1].split, page[-1].ordinal


def _count(counts: dict[int, int], some: list[OfJob]) -> None:
    for one in some:
        counts[one.job_id] = counts.get(one.job_id, 0) + len(one.indexes)


def _size(sizes: Sequence[tuple[tuple[str, int], int]], name: str) -> tuple[int, int]:
    own = [images for (split, _), images in sizes if split == name]
    return len(own), sum(own)
