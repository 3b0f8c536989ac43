"""The images of a dataset's jobs: which of them the filters take, and all that a shard holds of each."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from services.core.datasets.dataset_records import Version
from services.core.datasets.definition import Definition
from services.core.datasets.held import CODES, OfJob
from services.core.db import columns
from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.exports import members
from services.core.exports.members import Member
from services.core.exports.shards import ExportFailed
from services.core.model import ids, metadata_filters, scores

_PAGE = 5_000
_MEMBERS_PAGE = 500
# An image belongs to the split of its request: by custom_id, or else by what is drawn. So the images of one request
# stand in one split, in whichever job they were rendered.
REQUEST = (
    "coalesce(p.custom_id, '#' || md5(p.prompt || chr(1) || p.negative_prompt || "
    "chr(1) || coalesce(encode(p.image_sha256, 'hex'), '')))"
)
# All that an image is drawn by: two with the same are the same picture.
_IDENTITY = (
    "decode(md5(ROW(p.custom_id, p.prompt, p.negative_prompt, p.image_sha256, p.strength, p.guidance_scale, "
    "p.output_format, p.output_compression, CAST(p.metadata AS text), "
    f"{columns.image_seed_sql('p.seed', '(i.index - p.index)')}, {columns.shape('s')})::text), 'hex')"
)
_SEGMENT = "JOIN segments s ON s.job_id = i.job_id AND s.id = i.segment_id"
_WANTED = statement("source_images.wanted")(f"""
SELECT i.index, r.bytes, p.output_format, p.metadata, {REQUEST} AS request, m.mark,
       CASE WHEN :identified THEN {_IDENTITY} END AS identity
FROM images i
CROSS JOIN LATERAL (SELECT * FROM results WHERE results.job_id = :job_id AND results.index = i.index OFFSET 0) r
{columns.payload_of("i", ":job_id")}
{_SEGMENT}
LEFT JOIN LATERAL (
  SELECT mark FROM marks WHERE marks.job_id = i.job_id AND marks.index = i.index OFFSET 0
) m ON true
WHERE i.job_id = :job_id AND i.index >= :first AND i.index < :end AND i.state = 2
  AND coalesce(m.mark, 'none') = ANY(CAST(:marks AS text[]))
  AND (CAST(:flagged AS boolean) IS NULL OR coalesce(r.flagged, false) = :flagged)
  AND (CAST(:unknown_words AS boolean) IS NULL OR (jsonb_array_length(r.unknown_words) > 0) = :unknown_words)
  AND (CAST(:after AS timestamptz) IS NULL OR r.finished_at >= :after)
  AND (CAST(:before AS timestamptz) IS NULL OR r.finished_at < :before)
  AND {columns.in_ranges("r.scores")} AND {columns.fits_metadata("p.metadata")}
ORDER BY i.index
""")  # noqa: S608  our own text
_NOT_DONE = statement("source_images.not_done")(f"""
SELECT {_IDENTITY} AS identity FROM images i {columns.payload_of("i", ":job_id")} {_SEGMENT}
WHERE i.job_id = :job_id AND i.index >= :first AND i.index < :end AND i.state <> 2
""")  # noqa: S608  our own text
_THESE = statement("source_images.these")(
    members.SELECTED
    + """
WHERE i.job_id = :job_id AND i.index = ANY(CAST(:indexes AS integer[])) AND i.state = 2 ORDER BY i.index
"""
)


def wanted(
    database: Database, job_id: int, total: int, definition: Definition, keep: Callable[[], None],
    *, identified: bool = False,
) -> Iterator[tuple[Any, int]]:  # fmt: skip
    """The images of a job that the filters take, in order, each with the code of its mark; if asked for, with an
    `identity` that is the same for the same picture."""
    filters = definition.filters
    values: dict[str, Any] = {
        "job_id": job_id, "identified": identified,
        "marks": filters.marks, "flagged": filters.flagged, "unknown_words": filters.unknown_words,
        "after": filters.after, "before": filters.before,
    }  # fmt: skip
    values |= columns.ranges(scores.ranges(filters.scores))
    values |= columns.metadata_values(metadata_filters.conditions(filters.metadata))
    for first in range(0, total, _PAGE):
        keep()
        with database.read_system() as connection:
            rows = connection.execute(_WANTED, values | {"first": first, "end": first + _PAGE}).all()
        for row in rows:
            yield row, CODES[row.mark]


def not_done(database: Database, job_id: int, total: int, keep: Callable[[], None]) -> Counter[bytes]:
    """How many images of each identity the job has not done, so that its retries may do them."""
    found: Counter[bytes] = Counter()
    for first in range(0, total, _PAGE):
        keep()
        with database.read_system() as connection:
            values = {"job_id": job_id, "first": first, "end": first + _PAGE}
            found.update(bytes(row.identity) for row in connection.execute(_NOT_DONE, values))
    return found


def of_shard(database: Database, version: Version, held: list[OfJob], keep: Callable[[], None]) -> Iterator[Member]:
    """The images of a shard, in order. Raises ExportFailed if one is not there any more."""
    assert version.plan is not None
    plan = version.plan.counted
    for one in held:
        for begin in range(0, len(one.indexes), _MEMBERS_PAGE):
            keep()
            indexes = list(one.indexes[begin : begin + _MEMBERS_PAGE])
            with database.read_system() as connection:
                rows = connection.execute(_THESE, {"job_id": one.job_id, "indexes": indexes}).all()
            if len(rows) != len(indexes):
                raise ExportFailed(
                    f"Images of {ids.public_job(one.job_id)} were deleted while they were being written."
                )
            for place, row in enumerate(rows, begin):
                payload = columns.read_payload(row)
                yield members.member(row, payload, one.job_id, plan, one.mark(place), names_job=True)
