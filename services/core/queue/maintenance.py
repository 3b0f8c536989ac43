"""The ledger's housekeeping, each safe to run anywhere, at any time, by several at once: what a duty or a worker's
timer calls. Folding counters, raising low-water marks, sweeping what was cancelled, forgetting what is old.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

# Deltas are folded oldest first, so no counter can dip below nothing on the way. The rate is an exponential mean
# over half a minute of images finished a second.
_FOLD = text("""
WITH gone AS (
  DELETE FROM counter_deltas WHERE id IN (
    SELECT id FROM counter_deltas ORDER BY id LIMIT 20000 FOR UPDATE SKIP LOCKED
  ) RETURNING job_id, queued, rendering, done, failed, cancelled, reused
), sums AS (
  SELECT job_id, sum(queued) AS queued, sum(rendering) AS rendering, sum(done) AS done, sum(failed) AS failed,
         sum(cancelled) AS cancelled, sum(reused) AS reused
  FROM gone GROUP BY job_id
)
UPDATE counters SET
  queued = counters.queued + sums.queued, rendering = counters.rendering + sums.rendering,
  done = counters.done + sums.done, failed = counters.failed + sums.failed,
  cancelled = counters.cancelled + sums.cancelled, reused = counters.reused + sums.reused,
  rate = rate + CASE WHEN counters.done + counters.failed = 0 THEN 1 ELSE 1 - exp(-seconds / 30) END
              * ((sums.done + sums.failed) / seconds - rate),
  folded_at = clock_timestamp()
FROM sums, LATERAL (
  SELECT greatest(extract(epoch FROM clock_timestamp() - folded_at)::double precision, 0.05) AS seconds
  FROM counters AS before WHERE before.job_id = sums.job_id
) age
WHERE counters.job_id = sums.job_id
""")

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

_CHARGE = text("""
UPDATE tenants SET virtual_time = greatest(virtual_time,
  (SELECT coalesce(min(t.virtual_time), 0) FROM tenants t
   WHERE EXISTS (SELECT FROM segments WHERE tenant_id = t.id AND open AND low <= high))) + :cost / weight
WHERE id = :tenant_id
""")

_FORGET_CLAIMS = text("""
DELETE FROM claims WHERE id IN (
  SELECT id FROM claims WHERE state <> 'open' AND ended_at < now() - interval '1 day' ORDER BY ended_at LIMIT 10000)
""")
_FORGET_KEYS = text("""
DELETE FROM idempotency WHERE (tenant_id, key) IN (
  SELECT tenant_id, key FROM idempotency WHERE created_at < now() - interval '7 days' LIMIT 10000)
""")
_FORGET_WORKERS = text("DELETE FROM workers WHERE seen_at < now() - interval '1 day'")

_MAKE_PARTITIONS = text("SELECT presswork_make_partitions((now() AT TIME ZONE 'UTC')::date, :weeks)")


def alone(connection: Connection) -> bool:
    """Whether nobody else keeps house right now; until this transaction ends nobody else will."""
    return bool(connection.execute(text("SELECT pg_try_advisory_xact_lock(7209412)")).scalar_one())


def fold(connection: Connection) -> int:
    """Adds the deltas up into the counters; returns for how many jobs. One at a time: a second one does nothing."""
    if not alone(connection):
        return 0
    return connection.execute(_FOLD).rowcount


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


def charge(connection: Connection, tenant_id: int, cost: float) -> None:
    """Moves a tenant's virtual time on by what it used, over its weight. An idle tenant does not hoard credit."""
    connection.execute(_CHARGE, {"tenant_id": tenant_id, "cost": cost})


def forget(connection: Connection) -> None:
    """Drops ended claims and silent workers after a day, idempotency records after a week."""
    for statement in (_FORGET_CLAIMS, _FORGET_KEYS, _FORGET_WORKERS):
        connection.execute(statement)


def make_partitions(connection: Connection, weeks: int = 5) -> int:
    """Makes this week's partitions and those of the next ones; returns how many were missing."""
    return int(connection.execute(_MAKE_PARTITIONS, {"weeks": weeks}).scalar_one())
