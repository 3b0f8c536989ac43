"""Segments: the images of one job that share a shape, from which workers claim. Every write except the quarantine's.

Any number of processes may raise low-water marks and sweep cancelled images at the same time.
"""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.model import states
from services.core.model.specs import Shape

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

# The first job of every tenant, then the second: a tenant that cancels a thousand jobs does not delay the others.
# LIMIT and OFFSET 0 keep one probe for each job: as a join, the queued images of every job would be read.
_SWEEPABLE = statement("segments.sweepable")("""
SELECT id FROM (
  SELECT id, row_number() OVER (PARTITION BY tenant_id ORDER BY id) AS turn FROM jobs
  CROSS JOIN LATERAL (
    SELECT FROM images WHERE images.job_id = jobs.id AND images.state = 0 LIMIT 1 OFFSET 0
  ) queued
  WHERE finished_at IS NULL AND state = ANY(:sources)
) waiting ORDER BY turn, id LIMIT :limit
""")
_SWEEP = statement("segments.sweep")("""
WITH doomed AS MATERIALIZED (
  SELECT job_id, index FROM images
  WHERE job_id = :job_id AND state = 0
    AND EXISTS (SELECT FROM jobs WHERE id = :job_id AND finished_at IS NULL AND jobs.state = ANY(:sources))
  ORDER BY segment_id, index LIMIT :limit FOR UPDATE SKIP LOCKED
), moved AS (
  UPDATE images SET state = 4 FROM doomed
  WHERE images.job_id = doomed.job_id AND images.index = doomed.index AND images.state = 0
  RETURNING images.job_id
), counted AS (
  INSERT INTO counter_deltas (job_id, queued, cancelled) SELECT job_id, -count(*), count(*) FROM moved GROUP BY job_id
)
SELECT count(*) FROM moved
""")
SWEPT_AT_ONCE = 10_000
_SWEPT_JOBS = 100


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
    locked = connection.execute(_LOCK_SEGMENTS, {"job_ids": wanted, "limit": limit}).all()
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

    Tenants take turns and each job gets an equal share; large jobs get what small jobs leave of theirs.
    """
    jobs, swept = sweepable(connection), 0
    while jobs and swept < limit:
        share, large = max((limit - swept) // len(jobs), 1), []
        for job_id in jobs[: limit - swept]:
            found = sweep(connection, job_id, share)
            swept += found
            if found == share:
                large.append(job_id)
        jobs = large
    return swept


def sweepable(connection: Connection, limit: int = _SWEPT_JOBS) -> list[int]:
    """Jobs that are being cancelled and still have queued images."""
    return list(connection.execute(_SWEEPABLE, {"sources": states.FINISH_STOPPED.guard, "limit": limit}).scalars())
