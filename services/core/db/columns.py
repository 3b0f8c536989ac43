"""The columns of payloads, shapes and counts: tables, statements and dataclasses take them from here.

Every reader of payloads selects `payload()` and gets a whole `Payload`; a retry copies every column. So a new field of
a request is added once, here: a column, an attribute, and a cell of the row for COPY.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Integer, LargeBinary, SmallInteger, Text

from services.core.model.metadata_filters import Condition
from services.core.model.requests import ImageRequest, MetadataValue, metadata_text
from services.core.model.scores import Range
from services.core.model.specs import DEFAULT_STRENGTH, SEED_LIMIT, OutputFormat, Shape, image_seed

COUNTS = ("queued", "rendering", "done", "failed", "cancelled")  # one per state of images; the sum is the job's total
SHAPE = tuple(field.name for field in fields(Shape))
_UNTIMED = ("prompt_chunks", "first_step", "reproducibility_class")  # see `Shape.timed`
TIMED = tuple(name for name in SHAPE if name not in _UNTIMED)
PAYLOAD = (
    Column("job_id", BigInteger),
    Column("index", Integer),
    Column("n", Integer, nullable=False),
    Column("segment_id", SmallInteger, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("guidance_scale", Double, nullable=False),
    Column("output_format", Text, nullable=False),
    Column("custom_id", Text),
    Column("prompt", Text, nullable=False),
    Column("negative_prompt", Text, nullable=False),
    Column("output_compression", SmallInteger),  # quality of a lossy format, 0..100; null: the format's default
    Column("metadata", JSON),  # as text, so that numbers keep their digits; null: none
    Column("image", Text),  # the input picture: a file's id, or job and index of an earlier image; null: none
    Column("strength", Double),
    Column("image_key", Text),  # its object, and that object's sha256
    Column("image_sha256", LargeBinary),
)
# What a worker needs.
RENDERED = (
    "seed", "guidance_scale", "output_format", "output_compression", "prompt", "negative_prompt", "image_key",
    "image_sha256",
)  # fmt: skip
LISTED = ("custom_id", "metadata")  # repeated for every image of a request: pages must stay small
LISTED_BYTES = "(" + " + ".join(f"coalesce(octet_length({name}::text), 0)" for name in LISTED) + ")"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NULL = "\\N"
_shape, _timed = attrgetter(*SHAPE), attrgetter(*TIMED)
_NO_INPUT = f"\t{_NULL}\t{_NULL}\t{_NULL}\t{_NULL}"


@dataclass(frozen=True, slots=True)
class Input:
    """An input picture as it is recorded: how the request names it, its object, and that object's sha256."""

    name: str
    object_key: str
    sha256: bytes


@dataclass(frozen=True, slots=True)
class Payload:
    """One request as it is stored. `index` and `seed` are those of its first image."""

    index: int
    n: int
    segment_id: int
    seed: int
    guidance_scale: float
    output_format: OutputFormat
    custom_id: str | None
    prompt: str
    negative_prompt: str
    output_compression: int | None
    metadata: dict[str, MetadataValue] | None
    image: str | None
    strength: float | None
    image_key: str | None
    image_sha256: bytes | None

    def seed_of(self, index: int) -> int:
        """The seed of the image at that index of the job."""
        return image_seed(self.seed, index - self.index)


_FIELDS = tuple(field.name for field in fields(Payload))
_values = attrgetter(*(f"payload_{name}" for name in _FIELDS))


def shape_columns() -> tuple[Column[Any], ...]:
    """The columns of a shape, for a table."""
    return (
        Column("model_revision", Text, nullable=False),
        Column("width", Integer, nullable=False),
        Column("height", Integer, nullable=False),
        Column("steps", SmallInteger, nullable=False),
        Column("guided", Boolean, nullable=False),
        Column("prompt_chunks", SmallInteger, nullable=False, server_default="1"),
        Column("first_step", SmallInteger, nullable=False, server_default="0"),
        Column("reproducibility_class", Text, nullable=False, server_default=""),
    )


def timed_columns() -> tuple[Column[Any], ...]:
    """The columns of a shape as its time is measured."""
    return tuple(column for column in shape_columns() if column.name in TIMED)


def names(columns: tuple[Column[Any], ...]) -> str:
    return ", ".join(column.name for column in columns)


def counts(alias: str) -> str:
    """The counts in a SELECT from the view `job_counts`, which adds the deltas that are not folded yet."""
    return ", ".join(f"{alias}.{name}" for name in COUNTS)


def shape(alias: str) -> str:
    """The columns of a shape in a SELECT, in the order of Shape's attributes."""
    return ", ".join(f"{alias}.{name}" for name in SHAPE)


def read_shape(row: Any) -> Shape:
    return Shape(*_shape(row))


def timed(alias: str) -> str:
    """The columns of a shape as its time is measured, in a SELECT."""
    return ", ".join(f"{alias}.{name}" for name in TIMED)


def read_timed(row: Any) -> Shape:
    return Shape(*_timed(row))


def payload(alias: str = "p") -> str:
    """The columns of a payload in a SELECT, under names that no other table has."""
    return ", ".join(f"{alias}.{name} AS payload_{name}" for name in _FIELDS)


def read_payload(row: Any) -> Payload:
    return Payload(*_values(row))


def payload_of(image: str, job: str | None = None) -> str:
    """Joins, as `p`, the payload of each row of `image`. A payload is stored at the index of its first image. `job` is
    a value of the statement where all rows are of one job: then the planner can tell the partition."""
    return (
        f"CROSS JOIN LATERAL (SELECT * FROM payloads WHERE payloads.job_id = {job or f'{image}.job_id'} "  # noqa: S608  our own text
        f"AND payloads.index <= {image}.index ORDER BY payloads.index DESC LIMIT 1) p"
    )


def in_ranges(scores: str) -> str:
    """Whether `scores`, a column, is in every range of the statement's values `ranges(...)`."""
    return (
        "NOT EXISTS (SELECT FROM unnest(CAST(:names AS text[]), CAST(:lows AS double precision[]), "
        "CAST(:highs AS double precision[])) AS wish (name, low, high) "
        f"WHERE (CAST({scores}->>wish.name AS double precision) BETWEEN low AND high) IS NOT TRUE)"
    )


def ranges(wished: Sequence[Range]) -> dict[str, list[Any]]:
    """The values of a statement with `in_ranges`."""
    return {
        "names": [one.name for one in wished],
        "lows": [one.low for one in wished],
        "highs": [one.high for one in wished],
    }


def fits_metadata(metadata: str) -> str:
    """Whether `metadata`, a column, fits every filter of the statement's values `metadata_values(...)`, as
    `metadata_filters.holds` says."""
    return (
        "NOT EXISTS (SELECT FROM unnest(CAST(:metadata_names AS text[]), CAST(:metadata_texts AS text[]), "
        "CAST(:metadata_numbers AS text[]), CAST(:metadata_nots AS boolean[])) AS wish (name, value, number, negated) "
        f"GROUP BY name, negated HAVING bool_or(CASE json_typeof({metadata}->wish.name) WHEN 'number' "
        f"THEN trim_scale(CAST({metadata}->>wish.name AS numeric))::text = wish.number "
        f"ELSE coalesce({metadata}->>wish.name, '') = wish.value END) = negated)"
    )


def metadata_values(wished: Sequence[Condition]) -> dict[str, list[Any]]:
    """The values of a statement with `fits_metadata`."""
    return {
        "metadata_names": [one.name for one in wished],
        "metadata_texts": [one.value for one in wished],
        "metadata_numbers": [one.number for one in wished],
        "metadata_nots": [one.negated for one in wished],
    }


def payload_row(
    request: ImageRequest, *, job_id: int, index: int, segment_id: int, seed: int, guidance_scale: float,
    picture: Input | None = None,
) -> tuple[str, str]:  # fmt: skip
    """A line for COPY with its cells in the order of PAYLOAD, and the text that an Idempotency-Key's digest covers.

    The second text of a request must be the same in every version, or keys of the release before stop matching. So a
    field that is added later appears in it only if the request sets it.
    """
    custom_id = _NULL if request.custom_id is None else request.custom_id
    compression = _NULL if request.output_compression is None else request.output_compression
    words = f"{_escaped(request.prompt)}\t{_escaped(request.negative_prompt)}\t{compression}"
    digest_text = f"{request.output_format}\t{custom_id}\t{words}"
    stored = f"{digest_text}\t{_NULL}"
    if request.metadata:
        stored = digest_text = f"{digest_text}\t{_escaped(metadata_text(request.metadata))}"
    if picture is None:
        stored += _NO_INPUT
    else:
        strength = DEFAULT_STRENGTH if request.strength is None else request.strength
        stored += f"\t{picture.name}\t{strength!r}\t{_escaped(picture.object_key)}\t\\\\x{picture.sha256.hex()}"
        digest_text = f"{digest_text}\timage {picture.sha256.hex()}"
    return f"{job_id}\t{index}\t{request.n}\t{segment_id}\t{seed}\t{guidance_scale!r}\t{stored}\n", digest_text


def image_seed_sql(seed: str, nth: str) -> str:
    """`image_seed` as an SQL expression. It adds as numeric: a sum that wraps at 2^63 would overflow a bigint."""
    return f"mod({seed}::numeric + {nth}, {SEED_LIMIT})::bigint"


def _escaped(value: str) -> str:
    """The value in COPY's text format. Printable text without a backslash needs no escape."""
    return value if value.isprintable() and "\\" not in value else value.translate(_ESCAPES)
