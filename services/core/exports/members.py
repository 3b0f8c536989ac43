"""The images of an export: the job's done images in order of their indexes, and their division into shards.

The same rule counts the shards and fills them. So an export that another process continues after a crash gets the
shards that were planned.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypedDict

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.columns import Payload
from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.exports.formats import FORMATS
from services.core.exports.options import Options
from services.core.exports.records import Export, ShardPlan
from services.core.marks import marks
from services.core.model import file_names, ids, metadata_filters, metadata_types, scores
from services.core.model.licenses import License
from services.core.model.metadata_types import Kind
from services.core.model.requests import metadata_text
from services.core.model.specs import Shape
from services.core.policy import licenses

SHARD_BYTES = 1_000_000_000
_PAGE = 500
_MARKS_PAGE = 50_000

_DONE = f"""
FROM images i
CROSS JOIN LATERAL (SELECT * FROM results WHERE results.job_id = :job_id AND results.index = i.index OFFSET 0) r
{columns.payload_of("i", ":job_id")}
"""  # noqa: S608  our own text
# A page is a range of indexes, and each row's result is looked up by key. With a LIMIT or a plain join, a planner
# without statistics of a new table might read the rest of the job as well.
_WHERE = f"""
WHERE i.job_id = :job_id AND i.index >= :first AND i.index < :end AND i.state = 2
  AND (:include_flagged OR r.flagged IS NOT TRUE) AND {columns.in_ranges("r.scores")}
  AND {columns.fits_metadata("p.metadata")}
ORDER BY i.index
"""
_TOTAL = statement("members.total")("SELECT total FROM jobs WHERE id = :job_id")
_OUTLINES = statement("members.outlines")(
    f"SELECT i.index, r.bytes, p.index AS first_index, p.custom_id, p.output_format, p.metadata {_DONE} {_WHERE}"
)
# Of each image all that a shard holds of it.
SELECTED = f"""
SELECT i.index, {columns.payload()}, {columns.shape("s")}, r.object_key, r.sha256, r.bytes, r.truncated, r.flagged,
       r.unknown_words, r.reproducibility_class, r.scores, r.phash
{_DONE} JOIN segments s ON s.job_id = i.job_id AND s.id = i.segment_id
"""
_MEMBERS = statement("members.members")(SELECTED + _WHERE)
_MODELS = statement("members.models")("""
SELECT m.revision, min(m.name) AS name, (array_agg(m.license ORDER BY m.name))[1] AS license FROM models m
WHERE m.revision IN (SELECT model_revision FROM segments WHERE job_id = ANY(CAST(:job_ids AS bigint[])))
GROUP BY m.revision
""")


class Record(TypedDict):
    """The fields of each image in an export, in every format. In tables the columns of its metadata follow."""

    job_id: str
    index: int
    custom_id: str
    prompt: str
    negative_prompt: str
    seed: int
    seed_string: str
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    model: str
    model_revision: str
    output_format: str
    input_sha256: str
    strength: float
    metadata: str
    sha256: str
    bytes: int
    truncated: bool
    safety_checked: bool
    flagged: bool
    unknown_words: str
    reproducibility_class: str
    mark: str
    scores: str
    phash: str


@dataclass(frozen=True, slots=True)
class Member:
    """One image of an export. `flagged` is None where no checker ran, and `mark` without one; `sha256` is 32 raw
    bytes. `columns` are those of all images' metadata. `names_job`: images of other jobs stand beside it."""

    job_id: int
    index: int
    payload: Payload
    shape: Shape
    model: str | None
    object_key: str
    sha256: bytes
    bytes: int
    truncated: bool
    flagged: bool | None
    unknown_words: tuple[str, ...]
    reproducibility_class: str
    mark: str | None
    scores: dict[str, float | None] | None
    phash: int | None
    columns: Mapping[str, Kind]
    names_job: bool = False

    @property
    def extension(self) -> str:
        return file_names.EXTENSIONS[self.payload.output_format]

    @property
    def key(self) -> str:
        """Unique within the export."""
        return f"{ids.public_job(self.job_id)}-{self.index:09d}" if self.names_job else f"{self.index:09d}"

    @property
    def file_name(self) -> str:
        """Unique within the export."""
        own = file_names.with_index(self.payload.custom_id, self.index, self.payload.output_format)
        return f"{ids.public_job(self.job_id)}-{own}" if self.names_job else own

    def row(self) -> dict[str, Any]:
        """The record and the columns of the image's metadata, for a table with declared types: null where the image has
        no such metadata."""
        return {**self.record(), **metadata_types.cells(self.columns, self.payload.metadata)}

    def record(self) -> Record:
        """The fields of the image. None is ever null, a list or an object, because readers infer a column's type from
        its first values. So `metadata` and `scores` are JSON as text."""
        payload, seed = self.payload, self.payload.seed_of(self.index)
        return {
            "job_id": ids.public_job(self.job_id),
            "index": self.index,
            "custom_id": payload.custom_id or "",
            "prompt": payload.prompt,
            "negative_prompt": payload.negative_prompt,
            "seed": seed,
            "seed_string": str(seed),
            "width": self.shape.width,
            "height": self.shape.height,
            "num_inference_steps": self.shape.steps,
            "guidance_scale": payload.guidance_scale,
            "model": self.model or "",
            "model_revision": self.shape.model_revision,
            "output_format": payload.output_format,
            "input_sha256": "" if payload.image_sha256 is None else bytes(payload.image_sha256).hex(),
            "strength": payload.strength or 0.0,
            "metadata": metadata_text(payload.metadata or {}),
            "sha256": self.sha256.hex(),
            "bytes": self.bytes,
            "truncated": self.truncated,
            "safety_checked": self.flagged is not None,
            "flagged": bool(self.flagged),
            "unknown_words": " ".join(self.unknown_words),
            "reproducibility_class": self.reproducibility_class,
            "mark": self.mark or "",
            "scores": json.dumps(self.scores or {}, sort_keys=True),
            "phash": scores.hex_of(self.phash) or "",
        }


class Layout(Protocol):
    """What decides where the shards of an export end."""

    @property
    def format(self) -> str: ...

    @property
    def options(self) -> Options: ...


class ShardCapacity:
    """How much one shard may hold and holds. `max_bytes` None: only the number of images is limited."""

    def __init__(self, export: Layout) -> None:
        layout, wished = FORMATS[export.format], export.options
        self.max_images = min(wished.images_per_shard, layout.max_images or wished.images_per_shard)
        self.max_bytes = SHARD_BYTES if layout.limits_bytes and wished.images == "inline" else None
        self.images = self.bytes = 0

    def takes(self, size: int) -> bool:
        """Counts an image of `size` bytes if it fits into the shard; False if it does not. The first one always
        fits."""
        full = self.images >= self.max_images
        too_large = self.max_bytes is not None and self.bytes + size > self.max_bytes
        if self.images and (full or too_large):
            return False
        self.images += 1
        self.bytes += size
        return True


def with_marks(database: Database, export: Export, keep: Callable[[], None]) -> Export:
    """The export with the marks that its images have now. They are kept with its plan."""
    with database.read_system() as connection:
        total = int(connection.execute(_TOTAL, {"job_id": export.job_id}).scalar_one())
    found = bytearray()
    for begin in range(0, total, _MARKS_PAGE):
        keep()
        with database.read_system() as connection:
            found += marks.packed(connection, export.job_id, begin, min(begin + _MARKS_PAGE, total))
    return replace(export, marks=bytes(found))


def plan(database: Database, export: Export, keep: Callable[[], None]) -> ShardPlan:
    """Counts the shards and images of each split. Calls `keep` regularly."""
    open_shards: dict[str, ShardCapacity] = {}
    shards, images = dict.fromkeys(export.options.split, 0), dict.fromkeys(export.options.split, 0)
    formats: set[str] = set()
    kinds: dict[str, Kind] = {}
    for row in _rows(database, export, _OUTLINES, 0, keep):
        formats.add(row.output_format)
        metadata_types.collect(kinds, row.metadata)
        split = export.options.split_of(_request(row.custom_id, row.first_index))
        images[split] += 1
        if split not in open_shards or not open_shards[split].takes(row.bytes):
            open_shards[split] = ShardCapacity(export)
            open_shards[split].takes(row.bytes)
            shards[split] += 1
    with database.read_system() as connection:
        models, found = models_of(connection, [export.job_id])
    splits = {name: (shards[name], images[name]) for name in export.options.split}
    return ShardPlan(splits, models, tuple(sorted(formats)), found, metadata_types.columns(kinds))


def models_of(connection: Connection, job_ids: Sequence[int]) -> tuple[dict[str, str], dict[str, License]]:
    """The name of each model revision that draws these jobs of one tenant, and the licence of each model that has one,
    with who accepted it and when."""
    rows = connection.execute(_MODELS, {"job_ids": list(job_ids)}).all()
    models = {row.revision: row.name for row in sorted(rows, key=lambda row: row.revision)}
    by_name = sorted(rows, key=lambda row: row.name)
    accepted = licenses.of_jobs(connection, job_ids)
    return models, {row.name: accepted.beside(License.from_json(row.license)) for row in by_name if row.license}


def of_split(database: Database, export: Export, split: str, first: int, keep: Callable[[], None]) -> Iterator[Member]:
    """The images of the split from index `first` on."""
    assert export.plan is not None
    for row in _rows(database, export, _MEMBERS, first, keep):
        payload = columns.read_payload(row)
        if export.options.split_of(_request(payload.custom_id, payload.index)) == split:
            mark = None if export.marks is None else marks.unpacked(export.marks, row.index)
            yield member(row, payload, export.job_id, export.plan, mark)


def _rows(database: Database, export: Export, statement: Any, first: int, keep: Callable[[], None]) -> Iterator[Any]:
    """Reads page by page. The job has finished, so its rows do not change in between."""
    values: dict[str, Any] = {"job_id": export.job_id, "include_flagged": export.options.include_flagged}
    values |= columns.ranges(scores.ranges(export.options.scores))
    values |= columns.metadata_values(metadata_filters.conditions(export.options.metadata))
    with database.read_system() as connection:
        total = int(connection.execute(_TOTAL, {"job_id": export.job_id}).scalar_one())
    for begin in range(first, total, _PAGE):
        keep()
        with database.read_system() as connection:
            rows: Sequence[Any] = connection.execute(statement, values | {"first": begin, "end": begin + _PAGE}).all()
        wanted = export.options.mark
        for row in rows:
            if wanted is None or (export.marks and marks.unpacked(export.marks, row.index) == wanted):
                yield row


def _request(custom_id: str | None, first_index: int) -> str:
    """The name by which a request's images are assigned to a split: the custom_id, the same in all jobs, or its
    index."""
    return custom_id or f"#{first_index}"


def member(
    row: Any, payload: Payload, job_id: int, plan: ShardPlan, mark: str | None, *, names_job: bool = False
) -> Member:
    return Member(
        job_id=job_id,
        index=row.index,
        payload=payload,
        shape=columns.read_shape(row),
        model=plan.models.get(row.model_revision),
        object_key=row.object_key,
        sha256=bytes(row.sha256),
        bytes=row.bytes,
        truncated=row.truncated,
        flagged=row.flagged,
        unknown_words=tuple(row.unknown_words),
        reproducibility_class=row.reproducibility_class,
        mark=mark,
        scores=row.scores,
        phash=row.phash,
        columns=plan.columns,
        names_job=names_job,
    )
