"""Segments: the images of one job that share a shape, from which workers claim. Every write except the quarantine's.

Any number of processes may raise low-water marks and sweep cancelled images at the same time.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from sqlalchemy import Connection

from services.core.db import columns, turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.model import states
from services.core.model.specs import Shape
from services.core.model.states import JobState

_NEW = statement("segments.new")(f"""
INSERT INTO segments (job_id, id, tenant_id, {", ".join(columns.SHAPE)}, priority, open, low, high)
VALUES (:job_id, :id, :tenant_id, :{", :".join(columns.SHAPE)}, :priority, :open, :low, :high)
""")  # noqa: S608  our own text
_INHERIT = statement("segments.inherit")(f"""
INSERT INTO segments (job_id, id, tenant_id, {", ".join(columns.SHAPE)}, priority, open, low, high)
SELECT :child, s.id, s.tenant_id, {columns.shape("s")}, :priority, false, span.low, span.high
FROM (
  SELECT segment_id, min(index) AS low, max(index + n - 1) AS high FROM payloads WHERE job_id = :child
  GROUP BY segment_id
) span JOIN segments s ON s.job_id = :parent AND s.id = span.segment_id
""")  # noqa: S608  our own text
_GROW = statement("segments.grow")("UPDATE segments SET high = :high WHERE job_id = :job_id AND id = :segment_id")
_SET_OPEN = statement("segments.set_open")("UPDATE segments SET open = :open WHERE job_id = :job_id")
_CLOSE = statement("segments.close")("UPDATE segments SET open = false WHERE job_id = :job_id AND open")
_SET_PRIORITY = statement("segments.set_priority")("UPDATE segments SET priority = :priority WHERE job_id = :job_id")

_LOCK_SEGMENTS = statement("segments.lock_segments")("""
SELECT job_id, id FROM segments WHERE open AND low <= high
  AND (CAST(:job_ids AS bigint[]) IS NULL OR job_id = ANY(:job_ids))
ORDER BY job_id, id LIMIT :limit FOR UPDATE SKIP LOCKED
""")
# In the order of the index of open segments: those of finished jobs are not walked over.
_PLACE = "model_revision, priority, tenant_id, job_id, id"
_LOCK_NEXT_SEGMENTS = statement("segments.lock_next_segments")(f"""
SELECT {_PLACE} FROM segments WHERE open AND low <= high
  AND ({_PLACE}) > (:model_revision, CAST(:priority AS smallint), :tenant_id, :job_id, CAST(:id AS smallint))
ORDER BY {_PLACE} LIMIT :limit FOR UPDATE SKIP LOCKED
""")  # noqa: S608  our own text

_RAISE_LOW = statement("segments.raise_low")("""
UPDATE segments SET low = waiting.low
FROM unnest(CAST(:job_ids AS bigint[]), CAST(:ids AS smallint[])) AS locked (job_id, id)
CROSS JOIN LATERAL (
  SELECT s.high, coalesce((SELECT index FROM images WHERE images.job_id = s.job_id AND segment_id = s.id
                           AND index >= s.low AND state = 0 ORDER BY index LIMIT 1), s.high + 1) AS low
  FROM segments s WHERE s.job_id = locked.job_id AND s.id = locked.id
) waiting
WHERE segments.job_id = locked.job_id AND segments.id = locked.id AND segments.low < waiting.low
""")

_SWEEPABLE = statement("segments.sweepable")(
    turns.first_of_each("""
  SELECT id FROM jobs
  WHERE state = :state AND tenant_id = t.id AND finished_at IS NULL
    AND EXISTS (SELECT FROM segments WHERE job_id = jobs.id AND low <= high)
  ORDER BY id LIMIT :first
""")
)
# What is swept is behind the low-water mark, so that no sweep walks over what earlier ones left. If an image is locked
# and passed over, the mark stays where it is. The segments' locks keep two sweeps apart.
_SWEEP = statement("segments.sweep")("""
WITH held AS MATERIALIZED (
  SELECT job_id, id, low FROM segments
  WHERE job_id = :job_id AND low <= high
    AND EXISTS (SELECT FROM jobs WHERE id = :job_id AND finished_at IS NULL AND jobs.state = ANY(:sources))
  ORDER BY id FOR UPDATE SKIP LOCKED
), doomed AS MATERIALIZED (
  SELECT queued.* FROM held CROSS JOIN LATERAL (
    SELECT job_id, index, segment_id FROM images
    WHERE images.job_id = held.job_id AND images.segment_id = held.id AND images.index >= held.low AND state = 0
    ORDER BY index LIMIT :limit FOR UPDATE SKIP LOCKED
  ) queued LIMIT :limit
), taken AS (
  SELECT segment_id, count(*) AS images, max(index) AS last, sum(count(*)) OVER () = :limit
           AND segment_id = max(segment_id) OVER () AS is_last
  FROM doomed GROUP BY segment_id
), moved AS (
  UPDATE images SET state = 4 FROM doomed
  WHERE images.job_id = doomed.job_id AND images.index = doomed.index AND images.state = 0
  RETURNING images.job_id
), counted AS (
  INSERT INTO counter_deltas (job_id, queued, cancelled) SELECT job_id, -count(*), count(*) FROM moved GROUP BY job_id
), raised AS (
  UPDATE segments SET low = CASE WHEN taken.is_last THEN taken.last ELSE segments.high END + 1
  FROM held LEFT JOIN taken ON taken.segment_id = held.id
  WHERE segments.job_id = held.job_id AND segments.id = held.id
    AND NOT EXISTS (SELECT FROM taken WHERE is_last AND held.id > segment_id)
    AND coalesce(taken.images, 0) = (
      SELECT count(*) FROM images
      WHERE images.job_id = held.job_id AND images.segment_id = held.id AND images.index >= held.low AND state = 0
        AND (taken.is_last IS NOT TRUE OR images.index <= taken.last))
)
SELECT count(*) FROM moved
""")
SWEPT_AT_ONCE = 10_000


class _Place(NamedTuple):
    """A place among the open segments."""

    model_revision: str
    priority: int
    tenant_id: int
    job_id: int
    id: int


_FIRST_PLACE = _Place("", 0, 0, 0, 0)


def new(
    connection: Connection,
    job_id: int,
    *,
    tenant_id: int,
    priority: int,
    segments: Sequence[tuple[Shape, int, int]],
    first: int = 0,
    opened: bool = True,
) -> None:
    """Inserts segments (shape, first index, last index), numbered from `first`. Workers claim only from open ones."""
    rows = [
        {
            "job_id": job_id,
            "id": number,
            "tenant_id": tenant_id,
            "priority": priority,
            **asdict(shape),
            "low": low,
            "high": high,
            "open": opened,
        }
        for number, (shape, low, high) in enumerate(segments, first)
    ]
    if rows:
        connection.execute(_NEW, rows)


def inherit(connection: Connection, *, parent_id: int, child_id: int, priority: int) -> None:
    """Inserts the segments of a job whose payloads were copied from its parent, with the parent's shapes; not open."""
    connection.execute(_INHERIT, {"parent": parent_id, "child": child_id, "priority": priority})


def grow(connection: Connection, job_id: int, segment_id: int, high: int) -> None:
    """Extends a segment that is not open; `high` is the index of its last image."""
    connection.execute(_GROW, {"job_id": job_id, "segment_id": segment_id, "high": high})


def set_open(connection: Connection, job_id: int, is_open: bool) -> None:
    connection.execute(_SET_OPEN, {"job_id": job_id, "open": is_open})


def close(connection: Connection, job_id: int) -> None:
    """Closes the job's segments: its images are no longer claimed."""
    connection.execute(_CLOSE, {"job_id": job_id})


def set_priority(connection: Connection, job_id: int, priority: int) -> None:
    connection.execute(_SET_PRIORITY, {"job_id": job_id, "priority": priority})


def raise_low(connection: Connection, job_ids: Sequence[int] | None = None, limit: int = 100) -> int:
    """Raises the low-water marks of open segments to their first queued image. Nothing else raises them.

    Uses two statements on purpose: the second takes its snapshot with the segments locked, so it sees every image that
    an earlier holder of the lock has queued again.
    """
    wanted = None if job_ids is None else list(job_ids)
    return _raise(connection, connection.execute(_LOCK_SEGMENTS, {"job_ids": wanted, "limit": limit}).all())


class Rounds:
    """Goes round all open segments, some at each call, so that each has its turn however many one tenant has."""

    def __init__(self) -> None:
        self._place = _FIRST_PLACE

    def raise_low(self, connection: Connection, limit: int = 100) -> int:
        """Raises the marks of the next segments, as `raise_low`; returns how many it raised."""
        locked = connection.execute(_LOCK_NEXT_SEGMENTS, self._place._asdict() | {"limit": limit}).all()
        self._place = _Place(*locked[-1]) if len(locked) == limit else _FIRST_PLACE
        return _raise(connection, locked)


def _raise(connection: Connection, locked: Sequence[Any]) -> int:
    if not locked:
        return 0
    values = {"job_ids": [row.job_id for row in locked], "ids": [row.id for row in locked]}
    return connection.execute(_RAISE_LOW, values).rowcount


def sweep(connection: Connection, job_id: int, limit: int = SWEPT_AT_ONCE) -> int:
    """Cancels up to `limit` queued images of this job, if it is being cancelled; returns how many."""
    values = {"job_id": job_id, "limit": limit, "sources": states.FINISH_STOPPED.guard}
    return int(connection.execute(_SWEEP, values).scalar_one())


def sweep_cancelled(connection: Connection, limit: int = SWEPT_AT_ONCE) -> int:
    """Cancels up to `limit` queued images of the jobs that are being cancelled. Call again while it returns `limit`.

    Each tenant gets an equal share, and those with much to sweep get what the others leave of theirs.
    """
    jobs: dict[int, list[int]] = {}
    for job_id, tenant_id in sweepable(connection):
        jobs.setdefault(tenant_id, []).append(job_id)
    swept = 0
    while jobs and swept < limit:
        share = max((limit - swept) // len(jobs), 1)
        for tenant_id in list(jobs)[: limit - swept]:
            swept += _sweep_some(connection, jobs[tenant_id], share)
            if not jobs[tenant_id]:
                del jobs[tenant_id]
    return swept


def sweepable(connection: Connection) -> list[Waiting]:
    """Some jobs of each tenant that are being cancelled and may still have queued images, the oldest first."""
    return turns.waiting(connection, _SWEEPABLE, (), (), state=JobState.CANCELLING)


def _sweep_some(connection: Connection, jobs: list[int], share: int) -> int:
    """Cancels up to `share` queued images of these jobs, one job after the other, and removes those that are done."""
    swept = 0
    while jobs and swept < share:
        asked = share - swept
        found = sweep(connection, jobs[0], asked)
        swept += found
        if found < asked:
            del jobs[0]
    return swept
