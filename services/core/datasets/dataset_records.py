"""Reads of datasets and their versions, and the frozen values that they return.

A version shows only once it is completed: a shard stands in it if it was written for a completed version up to it, and
no completed version up to it has put another in its place.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.datasets.definition import Definition
from services.core.db.statements import statement
from services.core.exports.options import Options
from services.core.exports.records import File, ShardPlan
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.model.licenses import License
from services.core.model.metadata_types import Kind

PREFIX = "dataset_"
_DATASET = "id, tenant_id, name, format, definition, version, created_at, updated_at, deleted_at"
_ONE = statement("dataset_records.one")(f"""
SELECT {_DATASET} FROM datasets WHERE tenant_id = :tenant_id AND name = :name AND deleted_at IS NULL
""")  # noqa: S608  our own text
_ANY = statement("dataset_records.any")(f"SELECT {_DATASET} FROM datasets WHERE id = :id")  # noqa: S608
_LISTED = statement("dataset_records.listed")(f"""
SELECT {_DATASET} FROM datasets WHERE tenant_id = :tenant_id AND deleted_at IS NULL AND name > :after
ORDER BY name LIMIT :limit
""")  # noqa: S608  our own text
_VERSION = (
    "dataset_id, number, state, while_running, definition, base, base_url, plan, images, images_to_write, "
    "images_written, bytes, is_stored, error, created_at, finished_at, deleted_at, "
    "total_bytes"
)
_VERSIONS = statement("dataset_records.versions")(f"""
SELECT {_VERSION} FROM dataset_versions WHERE dataset_id = :id AND number < :before AND deleted_at IS NULL
ORDER BY number DESC LIMIT :limit
""")  # noqa: S608  our own text
_NUMBERED = statement("dataset_records.numbered")(f"""
SELECT {_VERSION} FROM dataset_versions WHERE dataset_id = :id AND number = :number AND deleted_at IS NULL
""")  # noqa: S608  our own text
_AT_WORK = statement("dataset_records.at_work")(f"""
SELECT {_VERSION} FROM dataset_versions
WHERE dataset_id = :id
  AND (finished_at IS NULL OR (is_stored AND (state IN ('failed', 'cancelled') OR deleted_at IS NOT NULL)))
ORDER BY number LIMIT 1
""")  # noqa: S608  our own text
_NEWEST = statement("dataset_records.newest")(f"""
SELECT {_VERSION} FROM dataset_versions v WHERE dataset_id = ANY(CAST(:ids AS bigint[])) AND deleted_at IS NULL
  AND number IN ((SELECT version FROM datasets WHERE id = v.dataset_id),
                 (SELECT max(number) FROM dataset_versions WHERE dataset_id = v.dataset_id AND deleted_at IS NULL))
ORDER BY dataset_id, number
""")  # noqa: S608  our own text
_UNFINISHED = statement("dataset_records.unfinished")(
    "SELECT number FROM dataset_versions WHERE dataset_id = :id AND finished_at IS NULL"
)
_REMOVED = statement("dataset_records.removed")(
    "SELECT removed FROM dataset_versions WHERE dataset_id = :id AND number = :number"
)
_STANDS = """
s.dataset_id = :id AND s.since <= :number AND (s.until IS NULL OR s.until > :number) AND EXISTS (
  SELECT FROM dataset_versions v WHERE v.dataset_id = s.dataset_id AND v.number = s.since
    AND (v.state = 'completed' OR v.number = :number))
"""
_SHARDS = statement("dataset_records.shards")(f"""
SELECT since, split, ordinal, images, is_written, replaces, members FROM dataset_shards s WHERE {_STANDS}
  AND (s.split, s.ordinal) > (:split, :ordinal)
ORDER BY s.split, s.ordinal LIMIT :limit
""")  # noqa: S608  our own text
_NEXT = statement("dataset_records.next")("""
SELECT since, split, ordinal, images, is_written, replaces, members FROM dataset_shards
WHERE dataset_id = :id AND since = :number AND NOT is_written ORDER BY split, ordinal LIMIT 1
""")
# No number is given twice, whatever became of its shard.
_ORDINALS = statement("dataset_records.ordinals")("""
SELECT split, max(ordinal) + 1 AS next FROM dataset_shards s
WHERE dataset_id = :id AND EXISTS (
  SELECT FROM dataset_versions v WHERE v.dataset_id = s.dataset_id AND v.number = s.since AND v.state = 'completed')
GROUP BY split
""")
_CHANGED = statement("dataset_records.changed")("""
SELECT s.since, s.split, s.ordinal, s.images, s.is_written, s.replaces, s.members, s.until FROM dataset_shards s
WHERE s.dataset_id = :id AND ((s.since > :first AND s.since <= :last) OR (s.until > :first AND s.until <= :last))
  AND EXISTS (SELECT FROM dataset_versions v
              WHERE v.dataset_id = s.dataset_id AND v.number = s.since AND v.state = 'completed')
ORDER BY s.split, s.ordinal, s.since
""")
_FILE = f"""
SELECT f.path, f.bytes, f.sha256, f.images, f.object_key, f.since, f.split FROM dataset_files f
LEFT JOIN dataset_shards s
  ON s.dataset_id = f.dataset_id AND s.since = f.since AND s.split = f.split AND s.ordinal = f.ordinal
WHERE f.dataset_id = :id AND {{which}} AND CASE WHEN f.split IS NULL THEN f.since = :number ELSE {_STANDS} END
"""  # noqa: S608  our own text
_TOTAL = statement("dataset_records.total")(
    f"SELECT coalesce(sum(bytes), 0) FROM ({_FILE.format(which='true')}) AS files"  # noqa: S608  our own text
)
_FILES = statement("dataset_records.files")(
    _FILE.format(which="f.path > :after AND (CAST(:split AS text) IS NULL OR f.split = :split)")
    + "ORDER BY f.path LIMIT :limit"
)
_ONE_FILE = statement("dataset_records.file")(_FILE.format(which="f.path = :path"))
_JOBS = statement("dataset_records.jobs")("""
SELECT d.job_id, d.root_id, d.is_final, d.marks, d.images, coalesce(d.state, jobs.state),
       coalesce(d.labels, jobs.labels, '{}')
FROM dataset_jobs d LEFT JOIN jobs ON jobs.id = d.job_id AND d.state IS NULL
WHERE d.dataset_id = :id AND d.number = :number ORDER BY d.job_id
""")


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset. `version` is the last that is completed; 0: there is none."""

    id: int
    tenant_id: int
    name: str
    format: str
    definition: Definition
    version: int
    created_at: datetime
    updated_at: datetime
    is_deleted: bool

    def folder(self, number: int | None = None) -> str:
        """The folder of its objects, or of those that were written for a version."""
        own = f"datasets/{self.tenant_id}/{ids.public(PREFIX, self.id)}/"
        return own if number is None else f"{own}v{number:06d}/"


@dataclass(frozen=True, slots=True)
class VersionPlan:
    """What was decided before the first shard: as that of an export, where each name of metadata was first seen, and of
    what kind all names are, also if they are too many for columns."""

    counted: ShardPlan
    places: dict[str, str] = field(default_factory=dict)
    rewritten: int = 0
    removed: int = 0
    gone: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    def as_json(self) -> str:
        counted = self.counted
        return json.dumps(
            {
                "splits": [[name, shards, images] for name, (shards, images) in counted.splits.items()],
                "models": counted.models,
                "formats": counted.formats,
                "licenses": {name: found.as_json() for name, found in counted.licenses.items()},
                "columns": counted.columns,
                "places": self.places,
                "rewritten": self.rewritten,
                "removed": self.removed,
                "gone": self.gone,
                "kinds": self.kinds,
            }
        )


@dataclass(frozen=True, slots=True)
class Version:
    """One version at one moment, as the writers of formats take it. `base`: the version that it was made from."""

    dataset: Dataset
    number: int
    state: str
    while_running: bool
    definition: Definition
    base: int
    base_url: str
    plan: VersionPlan | None
    images: int
    images_to_write: int
    images_written: int
    bytes: int
    is_stored: bool
    error: str | None
    created_at: datetime
    finished_at: datetime | None
    deleted_at: datetime | None = None
    total_bytes: int | None = None

    @property
    def folder(self) -> str:
        return self.dataset.folder(self.number)

    @property
    def format(self) -> str:
        return self.dataset.format

    @property
    def options(self) -> Options:
        return self.definition.layout

    @property
    def columns(self) -> Mapping[str, Kind]:
        return {} if self.plan is None else self.plan.counted.columns


@dataclass(frozen=True, slots=True)
class HeldShard:
    """A shard with its images, packed as `held` does. `since`: the version that it was written for; `until`: the one
    that has put another in its place, in a comparison."""

    since: int
    split: str
    ordinal: int
    images: int
    is_written: bool
    replaces: int | None
    members: bytes
    until: int | None = None


@dataclass(frozen=True, slots=True)
class DatasetFile(File):
    """A file of a version. `split` None: it describes the version."""

    since: int = 0
    split: str | None = None


@dataclass(frozen=True, slots=True)
class JobState:
    """A job as a version found it when it was planned: the first job of its retries, whether it had ended, a text that
    changes with its marks, and how many of its images stand in the version."""

    job_id: int
    root_id: int
    is_final: bool
    marks: str
    images: int
    state: str
    labels: Mapping[str, str]


def find(connection: Connection, tenant_id: int, name: str) -> Dataset:
    """Raises NotFound."""
    row = connection.execute(_ONE, {"tenant_id": tenant_id, "name": name}).one_or_none()
    if row is None:
        raise NotFound("There is no such dataset.")
    return _dataset(row)


def read(connection: Connection, dataset_id: int) -> Dataset | None:
    """The dataset of any tenant, even if it is deleted: for the background task."""
    row = connection.execute(_ANY, {"id": dataset_id}).one_or_none()
    return None if row is None else _dataset(row)


def listed(connection: Connection, tenant_id: int, *, after: str, limit: int) -> list[Dataset]:
    """By name, those behind `after`."""
    rows = connection.execute(_LISTED, {"tenant_id": tenant_id, "after": after, "limit": limit})
    return [_dataset(row) for row in rows]


def versions(connection: Connection, dataset: Dataset, *, before: int, limit: int) -> list[Version]:
    """The newest first, those with a number below `before`."""
    rows = connection.execute(_VERSIONS, {"id": dataset.id, "before": before, "limit": limit})
    return [_version(dataset, row) for row in rows]


def version(connection: Connection, dataset: Dataset, number: int) -> Version:
    """Raises NotFound."""
    row = connection.execute(_NUMBERED, {"id": dataset.id, "number": number}).one_or_none()
    if row is None:
        raise NotFound(f"The dataset {dataset.name} has no version {number}.")
    return _version(dataset, row)


def completed(connection: Connection, dataset: Dataset, number: int | None) -> Version:
    """A version that can be read; None: the last. Raises NotFound."""
    wanted = dataset.version if number is None else number
    if not wanted:
        raise NotFound(f"The dataset {dataset.name} has no version yet; `presswork dataset export` writes one.")
    found = version(connection, dataset, wanted)
    if found.state != "completed":
        raise NotFound(f"Version {wanted} of the dataset {dataset.name} is {found.state} and cannot be read.")
    return found


def at_work(connection: Connection, dataset: Dataset) -> Version | None:
    """The version that is to be written, or whose objects are to be deleted."""
    row = connection.execute(_AT_WORK, {"id": dataset.id}).one_or_none()
    return None if row is None else _version(dataset, row)


def unfinished(connection: Connection, dataset: Dataset) -> int | None:
    """The number of the version that is to be written."""
    return connection.execute(_UNFINISHED, {"id": dataset.id}).scalar_one_or_none()


def removed(connection: Connection, found: Version) -> bytes | None:
    """The images that the version's base holds and it does not, as `removals` packs them."""
    packed = connection.execute(_REMOVED, {"id": found.dataset.id, "number": found.number}).scalar_one()
    return None if packed is None else bytes(packed)


def shards(
    connection: Connection, dataset_id: int, number: int, *, after: tuple[str, int], limit: int
) -> list[HeldShard]:
    """The shards of a version, those behind `after` (split, ordinal)."""
    values = {"id": dataset_id, "number": number, "split": after[0], "ordinal": after[1], "limit": limit}
    return [HeldShard(*row) for row in connection.execute(_SHARDS, values)]


def next_shard(connection: Connection, found: Version) -> HeldShard | None:
    """The next one to write."""
    row = connection.execute(_NEXT, {"id": found.dataset.id, "number": found.number}).one_or_none()
    return None if row is None else HeldShard(*row)


def ordinals(connection: Connection, dataset_id: int) -> dict[str, int]:
    """The number of the next shard of each split that has some."""
    return {row.split: row.next for row in connection.execute(_ORDINALS, {"id": dataset_id})}


def changed(connection: Connection, dataset_id: int, first: int, last: int) -> list[HeldShard]:
    """The shards that one of the two versions holds and the other does not."""
    rows = connection.execute(_CHANGED, {"id": dataset_id, "first": first, "last": last})
    return [HeldShard(*row) for row in rows]


def files(
    connection: Connection, dataset_id: int, number: int, *, after: str = "", split: str | None = None, limit: int
) -> list[DatasetFile]:
    """The files of a version by path, those behind `after`; with `split` only those of its shards."""
    values = {"id": dataset_id, "number": number, "after": after, "split": split, "limit": limit}
    return [_file(row) for row in connection.execute(_FILES, values)]


def file(connection: Connection, dataset_id: int, number: int, path: str) -> DatasetFile | None:
    row = connection.execute(_ONE_FILE, {"id": dataset_id, "number": number, "path": path}).one_or_none()
    return None if row is None else _file(row)


def total_bytes(connection: Connection, dataset_id: int, number: int) -> int:
    """Of all files of a version."""
    return int(connection.execute(_TOTAL, {"id": dataset_id, "number": number}).scalar_one())


def newest(connection: Connection, some: Sequence[Dataset]) -> dict[int, list[Version]]:
    """Of each dataset the version that can be read and the newest one, which may be at work, by number."""
    by_id = {one.id: one for one in some}
    found: dict[int, list[Version]] = {one.id: [] for one in some}
    for row in connection.execute(_NEWEST, {"ids": list(by_id)}):
        found[row.dataset_id].append(_version(by_id[row.dataset_id], row))
    return found


def every_file(connection: Connection, dataset_id: int, number: int, *, page: int = 1_000) -> Iterator[DatasetFile]:
    after = ""
    while found := files(connection, dataset_id, number, after=after, limit=page):
        yield from found
        after = found[-1].path


def jobs(connection: Connection, dataset_id: int, number: int) -> Sequence[JobState]:
    """The jobs that a version was made of."""
    rows = connection.execute(_JOBS, {"id": dataset_id, "number": number})
    return [JobState(*row) for row in rows]


def _file(row: Any) -> DatasetFile:
    return DatasetFile(row.path, bytes(row.sha256), row.bytes, row.images, row.object_key, row.since, row.split)


def _dataset(row: Any) -> Dataset:
    return Dataset(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        format=row.format,
        definition=Definition.model_validate(row.definition),
        version=row.version,
        created_at=row.created_at,
        updated_at=row.updated_at,
        is_deleted=row.deleted_at is not None,
    )


def _version(dataset: Dataset, row: Any) -> Version:
    plan = row.plan and VersionPlan(
        ShardPlan(
            {name: (shards, images) for name, shards, images in row.plan["splits"]},
            row.plan["models"],
            tuple(row.plan["formats"]),
            {name: License.from_json(value) for name, value in row.plan["licenses"].items()},
            row.plan["columns"],
        ),
        row.plan["places"],
        row.plan["rewritten"],
        row.plan["removed"],
        tuple(row.plan["gone"]),
        row.plan.get("kinds", row.plan["columns"]),
    )
    given = {name: getattr(row, name) for name in Version.__slots__ if name not in ("dataset", "definition", "plan")}
    return Version(dataset=dataset, definition=Definition.model_validate(row.definition), plan=plan, **given)
