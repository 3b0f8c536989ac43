"""New images: one row each, copied for requests that arrive, or made by the database from payloads that it holds.

An image is queued, or failed from the first on if the content policy refused its prompt.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db import copying, partitions
from services.core.db.statements import statement
from services.core.events import log
from services.core.model.errors import REFUSED_BY_POLICY
from services.core.policy import refusals
from services.core.policy.refusals import Door

_ROWS = 8_192  # in one piece of COPY
_SPREAD = """
INSERT INTO {images_leaf} (job_id, index, segment_id{column})
SELECT job_id, index + nth, segment_id{value} FROM payloads CROSS JOIN generate_series(0, n - 1) AS nth
WHERE job_id = :job_id AND index >= :first ORDER BY index
"""
# No claim had the image: claim 0, no device, no batch.
_RECORD = statement("images.record_refused")("""
WITH failed AS MATERIALIZED (
  SELECT one.first + nth AS index, message
  FROM unnest(CAST(:firsts AS integer[]), CAST(:counts AS integer[]), CAST(:messages AS text[]))
       AS one (first, n, message) CROSS JOIN generate_series(0, n - 1) AS nth
), by_cause AS (
  INSERT INTO failure_deltas (job_id, code, images, index, message)
  SELECT :job_id, :code, count(*), max(index), (array_agg(message ORDER BY index DESC))[1] FROM failed
), counted AS (
  UPDATE counters SET queued = queued - images, failed = failed + images
  FROM (SELECT count(*) AS images FROM failed) moved WHERE job_id = :job_id
)
INSERT INTO failures (job_id, index, code, message, claim_id, device, batch_images)
SELECT :job_id, index, :code, message, 0, '', 0 FROM failed
""")


@dataclass(frozen=True, slots=True)
class Refused:
    """A request whose prompt the content policy refuses: the index of its first image, how many it has, and why."""

    first: int
    n: int
    message: str


class Runs:
    """The segments of new images in the order of their indexes: six bytes for each run of images of one segment."""

    def __init__(self, first: int) -> None:
        """`first`: the index of the first image."""
        self._first = first
        self._ends, self._segments = array("i"), array("h")  # of each run, the index after its last image

    def extend(self, end: int, segment: int) -> None:
        """The next images, up to index `end` without it, are of that segment."""
        if self._segments and self._segments[-1] == segment:
            self._ends[-1] = end
        else:
            self._ends.append(end)
            self._segments.append(segment)

    def rows(self, job_id: int, first: int, end: int) -> Iterator[bytes]:
        """Lines for COPY of the images from index `first` to `end` without it, some thousands at a time."""
        at = bisect_right(self._ends, first)
        while first < end:
            upto = min(end, self._ends[at], first + _ROWS)
            rest = f"\t{self._segments[at]}\n"
            yield "".join([f"{job_id}\t{index}{rest}" for index in range(first, upto)]).encode()
            first, at = upto, at + (upto == self._ends[at])


def copy(connection: Connection, job_id: int, runs: Runs, *, first: int, end: int) -> None:
    """Copies the images from index `first` to `end` without it, which the counters hold as queued."""
    images_leaf = partitions.leaf(connection, "images", job_id)
    sql = f"COPY {images_leaf} (job_id, index, segment_id) FROM STDIN"
    copying.rows(connection, sql, runs.rows(job_id, first, end))


def spread(
    connection: Connection,
    job_id: int,
    *,
    first: int = 0,
    refused: Sequence[Refused] = (),
    door: Door | None = None,
) -> None:
    """Inserts the images of the job's payloads from index `first` on, which the counters hold as queued; those that are
    refused, at `door`, are failed."""
    parts = {"column": ", state", "value": ", CASE WHEN index = ANY(:refused) THEN 3 ELSE 0 END"}
    sql = _SPREAD.format(
        images_leaf=partitions.leaf(connection, "images", job_id), **(parts if refused else {"column": "", "value": ""})
    )
    values: dict[str, object] = {"job_id": job_id, "first": first}
    if refused:
        values["refused"] = [one.first for one in refused]
    connection.execute(statement("images.spread_refused" if refused else "images.spread")(sql), values)
    if refused:
        assert door is not None, "whoever refuses says where"
        _record(connection, job_id, refused, door)


def _record(connection: Connection, job_id: int, refused: Sequence[Refused], door: Door) -> None:
    values = {
        "job_id": job_id,
        "code": REFUSED_BY_POLICY,
        "firsts": [one.first for one in refused],
        "counts": [one.n for one in refused],
        "messages": [one.message for one in refused],
    }
    connection.execute(_RECORD, values)
    log.append_of_job(connection, "job.images_refused", job_id, {"images": sum(one.n for one in refused)})
    refusals.kept(connection, door, job_id, len(refused))
