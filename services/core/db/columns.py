"""What a payload, a shape and the counts consist of: tables, statements and dataclasses take their columns from here.

Whoever reads payloads selects `payload()` and gets a whole `Payload`; a retry copies every column. So a new field of a
request is added here once: a column, an attribute, and a cell of the row for COPY.
"""

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Double, Integer, SmallInteger, Text

from services.core.model.requests import ImageRequest, MetadataValue, metadata_text
from services.core.model.specs import SEED_LIMIT, OutputFormat, Shape, image_seed

COUNTS = ("queued", "rendering", "done", "failed", "cancelled")  # the states of images: they add up to the job's total
SHAPE = tuple(field.name for field in fields(Shape))
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
)
RENDERED = ("seed", "guidance_scale", "output_format", "output_compression", "prompt", "negative_prompt")  # by workers
LISTED = ("custom_id", "metadata")  # what every image of a request is listed with: a page of them must stay small
LISTED_BYTES = "(" + " + ".join(f"coalesce(octet_length({name}::text), 0)" for name in LISTED) + ")"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NULL = "\\N"


@dataclass(frozen=True, slots=True)
class Payload:
    """One request as it is stored. `index` is that of its first image, and `seed` that image's."""

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

    def seed_of(self, index: int) -> int:
        """The seed of the image at that index of the job."""
        return image_seed(self.seed, index - self.index)


_FIELDS = tuple(field.name for field in fields(Payload))
_values = attrgetter(*(f"payload_{name}" for name in _FIELDS))


def shape_columns() -> tuple[Column[Any], ...]:
    """For a table with a row per shape of something."""
    return (
        Column("model_revision", Text, nullable=False),
        Column("width", Integer, nullable=False),
        Column("height", Integer, nullable=False),
        Column("steps", SmallInteger, nullable=False),
        Column("guided", Boolean, nullable=False),
    )


def names(columns: tuple[Column[Any], ...]) -> str:
    return ", ".join(column.name for column in columns)


def counts(alias: str) -> str:
    """The counts in a SELECT, of the view `job_counts`: counters with the deltas that are not folded into them yet."""
    return ", ".join(f"{alias}.{name}" for name in COUNTS)


def shape(alias: str) -> str:
    """The columns of a shape in a SELECT, in the order of Shape's attributes."""
    return ", ".join(f"{alias}.{name}" for name in SHAPE)


def read_shape(row: Any) -> Shape:
    return Shape(row.model_revision, row.width, row.height, row.steps, row.guided)


def payload(alias: str = "p") -> str:
    """The columns of a payload in a SELECT, under names that no other table's have."""
    return ", ".join(f"{alias}.{name} AS payload_{name}" for name in _FIELDS)


def read_payload(row: Any) -> Payload:
    return Payload(*_values(row))


def payload_of(image: str) -> str:
    """Joins, as `p`, the payload of each row of `image`: its request's, which lies at the index of its first image."""
    return (
        f"CROSS JOIN LATERAL (SELECT * FROM payloads WHERE payloads.job_id = {image}.job_id "  # noqa: S608  our own text
        f"AND payloads.index <= {image}.index ORDER BY payloads.index DESC LIMIT 1) p"
    )


def payload_row(
    request: ImageRequest, *, job_id: int, index: int, segment_id: int, seed: int, guidance_scale: float
) -> tuple[str, str]:
    """A line for COPY, its cells in the order of PAYLOAD; and of it what the request said, for an Idempotency-Key.

    What an earlier version wrote of a request must not change: a field added later stands in the second text only where
    it is given.
    """
    custom_id = _NULL if request.custom_id is None else request.custom_id
    compression = _NULL if request.output_compression is None else request.output_compression
    words = f"{_escaped(request.prompt)}\t{_escaped(request.negative_prompt)}\t{compression}"
    said = f"{request.output_format}\t{custom_id}\t{words}"
    stored = f"{said}\t{_NULL}"
    if request.metadata:
        stored = said = f"{said}\t{_escaped(metadata_text(request.metadata))}"
    return f"{job_id}\t{index}\t{request.n}\t{segment_id}\t{seed}\t{guidance_scale!r}\t{stored}\n", said


def image_seed_sql(seed: str, nth: str) -> str:
    """`image_seed` as an SQL expression. Seeds wrap around at 2^63, which a bigint cannot hold on the way."""
    return f"mod({seed}::numeric + {nth}, {SEED_LIMIT})::bigint"


def _escaped(value: str) -> str:
    """As COPY's text format takes it. What is printable and holds no backslash needs nothing."""
    return value if value.isprintable() and "\\" not in value else value.translate(_ESCAPES)
