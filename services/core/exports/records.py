"""Reads of exports, and the frozen values that they return."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.exports.options import Options
from services.core.marks.marks import Packed
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.model.licenses import License
from services.core.model.metadata_types import Kind

_COLUMNS = (
    "id, tenant_id, job_id, format, options, state, images_total, images_done, bytes, next_shard, next_index, error, "
    "created_at, finished_at, expires_at"
)
_KEPT = f"SELECT {_COLUMNS} FROM exports WHERE (expires_at IS NULL OR expires_at > now())"  # noqa: S608  our own text
_ONE = statement("records.one")(f"{_KEPT} AND tenant_id = :tenant_id AND id = :id")
_OF_JOB = statement("records.of_job")(f"{_KEPT} AND job_id = :job_id AND id < :before ORDER BY id DESC LIMIT :limit")
_ANY = statement("records.any")(f"""
SELECT {_COLUMNS}, marks, (expires_at IS NOT NULL AND expires_at <= now()) AS expired FROM exports WHERE id = :id
""")  # noqa: S608  our own text
_OWNS = statement("records.owns")("SELECT EXISTS (SELECT FROM jobs WHERE id = :job_id AND tenant_id = :tenant_id)")
_FILES = statement("records.files")("""
SELECT path, bytes, sha256, images, object_key FROM export_files WHERE export_id = :id AND path > :after
ORDER BY path LIMIT :limit
""")
_FILE = statement("records.file")("""
SELECT path, bytes, sha256, images, object_key FROM export_files WHERE export_id = :id AND path = :path
""")
_PREFIX = "export_"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The size of an export, counted before its first shard is written: (shards, images) of each split, in order. Also
    the model name of each of the job's model revisions, the output formats that occur, each model's licence if it
    is known, and the columns that the images' metadata are."""

    splits: dict[str, tuple[int, int]]
    models: dict[str, str]
    formats: tuple[str, ...] = ()
    licenses: dict[str, License] = field(default_factory=dict)
    columns: dict[str, Kind] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return sum(images for _, images in self.splits.values())


@dataclass(frozen=True, slots=True)
class Export:
    """One export at one moment. `next_shard` is the next one to write; below 0: nothing of the export is stored.
    `marks` are those of the job's images when the export was planned; only the background task reads them."""

    id: int
    tenant_id: int
    job_id: int
    format: str
    options: Options
    base_url: str
    plan: ShardPlan | None
    state: str
    images_total: int
    images_done: int
    bytes: int
    next_shard: int
    next_index: int
    error: str | None
    created_at: datetime
    finished_at: datetime | None
    expires_at: datetime | None
    expired: bool = False
    marks: Packed | None = None

    @property
    def columns(self) -> Mapping[str, Kind]:
        """The columns that the images' metadata are."""
        return {} if self.plan is None else self.plan.columns

    @property
    def folder(self) -> str:
        """The folder of its objects."""
        return f"exports/{self.tenant_id}/{public_id(self.id)}/"


@dataclass(frozen=True, slots=True)
class File:
    """One file of an export. `images` is the number of its images; `sha256` is 32 raw bytes."""

    path: str
    sha256: bytes
    bytes: int
    images: int
    object_key: str


def public_id(export_id: int) -> str:
    return ids.public(_PREFIX, export_id)


def parse_id(public: str) -> int:
    """The inverse of `public_id`. Raises NotFound if the text is not an export's id."""
    return ids.parse(_PREFIX, public, "export")


def find(connection: Connection, tenant_id: int, export_id: int) -> Export:
    """Raises NotFound: the tenant has no such export, or it has expired."""
    row = connection.execute(_ONE, {"tenant_id": tenant_id, "id": export_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such export.")
    return _export(row)


def of_job(connection: Connection, tenant_id: int, job_id: int, *, before: int, limit: int) -> list[Export]:
    """The job's newest exports with an id below `before`. Raises NotFound: the tenant has no such job."""
    if not connection.execute(_OWNS, {"job_id": job_id, "tenant_id": tenant_id}).scalar_one():
        raise NotFound("There is no such job.")
    return seen(connection, job_id, before=before, limit=limit)


def seen(connection: Connection, job_id: int, *, before: int, limit: int) -> list[Export]:
    """The same of a job that the transaction sees; none if it sees no such job."""
    rows = connection.execute(_OF_JOB, {"job_id": job_id, "before": before, "limit": limit})
    return [_export(row) for row in rows]


def files(connection: Connection, export_id: int, *, after: str = "", limit: int) -> Sequence[File]:
    """The export's files by path, those behind `after`."""
    rows = connection.execute(_FILES, {"id": export_id, "after": after, "limit": limit})
    return [_of_file(row) for row in rows]


def file(connection: Connection, export_id: int, path: str) -> File | None:
    row = connection.execute(_FILE, {"id": export_id, "path": path}).one_or_none()
    return None if row is None else _of_file(row)


def read(connection: Connection, export_id: int) -> Export | None:
    """The export of any tenant, even if it has expired: for the background task."""
    row = connection.execute(_ANY, {"id": export_id}).one_or_none()
    if row is None:
        return None
    marks = None if row.marks is None else zlib.decompress(row.marks)
    return replace(_export(row, row.expired), marks=marks)


def _of_file(row: Any) -> File:
    return File(row.path, bytes(row.sha256), row.bytes, row.images, row.object_key)


def _export(row: Any, expired: bool = False) -> Export:
    kept = dict(row.options)
    base_url, counted = kept.pop("base_url", ""), kept.pop("plan", None)
    plan = counted and ShardPlan(
        {name: (shards, images) for name, shards, images in counted["splits"]},
        counted["models"],
        tuple(counted.get("formats", ())),
        {name: License.from_json(value) for name, value in counted.get("licenses", {}).items()},
        counted.get("columns", {}),
    )
    return Export(
        id=row.id,
        tenant_id=row.tenant_id,
        job_id=row.job_id,
        format=row.format,
        options=Options.model_validate(kept),
        base_url=base_url,
        plan=plan,
        state=row.state,
        images_total=row.images_total,
        images_done=row.images_done,
        bytes=row.bytes,
        next_shard=row.next_shard,
        next_index=row.next_index,
        error=row.error,
        created_at=row.created_at,
        finished_at=row.finished_at,
        expires_at=row.expires_at,
        expired=expired,
    )
