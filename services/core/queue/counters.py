"""Counters: every move of images appends deltas, which are folded into one row per job."""

from sqlalchemy import Connection

from services.core.db import columns, leases
from services.core.db.statements import statement

_NEW = statement("counters.new")("INSERT INTO counters (job_id, queued) VALUES (:id, :images)")
_GROW = statement("counters.grow")("UPDATE counters SET queued = queued + :images WHERE job_id = :id")
# Deltas are folded oldest first, so no counter can become negative. The rate is an exponentially weighted mean of the
# images finished per second, with a time constant of 30 seconds.
_ADDED = (*columns.COUNTS, "reused")
_FOLD = statement("counters.fold")(f"""
WITH folded AS (
  DELETE FROM counter_deltas WHERE id IN (
    SELECT id FROM counter_deltas ORDER BY id LIMIT 20000 FOR UPDATE SKIP LOCKED
  ) RETURNING job_id, {", ".join(_ADDED)}
), sums AS (
  SELECT job_id, {", ".join(f"sum({name}) AS {name}" for name in _ADDED)} FROM folded GROUP BY job_id
)
UPDATE counters SET
  {", ".join(f"{name} = counters.{name} + sums.{name}" for name in _ADDED)},
  rate = rate + CASE WHEN counters.done + counters.failed = 0 THEN 1 ELSE 1 - exp(-seconds / 30) END
              * ((sums.done + sums.failed) / seconds - rate),
  folded_at = clock_timestamp()
FROM sums, LATERAL (
  SELECT greatest(extract(epoch FROM clock_timestamp() - folded_at)::double precision, 0.05) AS seconds
  FROM counters AS before WHERE before.job_id = sums.job_id
) age
WHERE counters.job_id = sums.job_id
""")  # noqa: S608  our own text


def new(connection: Connection, job_id: int, images: int) -> None:
    """Creates the counters of a new job, all of whose images are queued."""
    connection.execute(_NEW, {"id": job_id, "images": images})


def grow(connection: Connection, job_id: int, images: int) -> None:
    """Adds queued images to a job none of whose images has been claimed."""
    connection.execute(_GROW, {"id": job_id, "images": images})


def fold(connection: Connection) -> int:
    """Adds the deltas to the counters; returns for how many jobs. While another process folds, it does nothing."""
    if not leases.lock_maintenance(connection):
        return 0
    return connection.execute(_FOLD).rowcount
