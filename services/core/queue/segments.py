"""Segments: their low-water marks, and the sweep after a cancel.

Each verb is safe to run anywhere, at any time, by several at once.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

_LOCK_SEGMENTS = text("""
SELECT job_id, id FROM segments WHERE open AND low <= high
  AND (CAST(:job_ids AS bigint[]) IS NULL OR job_id = ANY(:job_ids))
ORDER BY job_id, id LIMIT :limit FOR UPDATE SKIP LOCKED
""")

_RAISE_LOW = text("""
UPDATE segments SET low = waiting.low
FROM unnest(CAST(:job_ids AS bigint[]), CAST(:ids AS smallint[])) AS locked (job_id, id)
CROSS JOIN LATERAL (
  SELECT s.high, coalesce((SELECT index FROM images WHERE images.job_id = s.job_id AND segment_id = s.id
                           AND index >= s.low AND state = 0 ORDER BY index LIMIT 1), s.high + 1) AS low
  FROM segments s WHERE s.job_id = locked.job_id AND s.id = locked.id
) waiting
WHERE segments.job_id = locked.job_id AND segments.id = locked.id AND segments.low < waiting.low
""")

_SWEEP = text("""
WITH doomed AS MATERIALIZED (
  SELECT queued.job_id, queued.index FROM jobs JOIN segments ON segments.job_id = jobs.id
  CROSS JOIN LATERAL (
    SELECT job_id, index FROM images
    WHERE images.job_id = segments.job_id AND images.segment_id = segments.id AND images.state = 0
    ORDER BY index LIMIT :limit FOR UPDATE SKIP LOCKED
  ) queued
  WHERE jobs.finished_at IS NULL AND jobs.state = 'cancelling'
  LIMIT :limit
), moved AS (
  UPDATE images SET state = 4 FROM doomed
  WHERE images.job_id = doomed.job_id AND images.index = doomed.index AND images.state = 0
  RETURNING images.job_id
), counted AS (
  INSERT INTO counter_deltas (job_id, queued, cancelled) SELECT job_id, -count(*), count(*) FROM moved GROUP BY job_id
)
SELECT count(*) FROM moved
""")


def raise_low(connection: Connection, job_ids: Sequence[int] | None = None, limit: int = 100) -> int:
    """Lifts the low-water marks of open segments to their first queued image. The only verb that raises one.

    Two statements on purpose: the second takes its snapshot when the segments are already locked, so it sees every
    image that was queued again by someone who held the lock before.
    """
    wanted = None if job_ids is None else list(job_ids)
    locked = connection.execute(_LOCK_SEGMENTS, {"job_ids": wanted, "limit": limit}).all()
    if not locked:
        return 0
    values = {"job_ids": [row.job_id for row in locked], "ids": [row.id for row in locked]}
    return connection.execute(_RAISE_LOW, values).rowcount


def sweep_cancelled(connection: Connection, limit: int = 10_000) -> int:
    """Cancels up to `limit` queued images of jobs that are being cancelled; call again while it returns `limit`."""
    return int(connection.execute(_SWEEP, {"limit": limit}).scalar_one())
