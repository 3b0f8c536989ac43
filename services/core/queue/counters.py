"""Counters: every move of images appends deltas, which are folded into one row per job, and into the rates by minute
and by hour (`jobs/rates.py` reads them)."""

from sqlalchemy import Connection

from services.core.db import columns, leases
from services.core.db.statements import statement
from services.core.queue import failure_counts, job_series
from services.core.tenants import usage

_NEW = statement("counters.new")(f"""
WITH {usage.QUEUED}
INSERT INTO counters (job_id, queued) VALUES (:id, CAST(:images AS bigint))
""")  # noqa: S608  our own text
_GROW = statement("counters.grow")(f"""
WITH {usage.QUEUED}
UPDATE counters SET queued = queued + CAST(:images AS bigint) WHERE job_id = :id
""")  # noqa: S608  our own text
# Deltas are folded oldest first, so no counter can become negative.
#
# The rate is the number of images finished per second, measured from one fold with finished images to the next. Older
# images and their seconds count less: a third of them after 30 seconds, or, if batches take longer, after twice as many
# images as are being rendered. The measurement begins when a worker first claims images of the job, and again if none
# was being rendered for a minute: the job was paused, or others came first.
#
# What was finished when is added to the job's own series (`job_series.py`).
#
# Whatever deltas came to is added to the rates of their minute and hour by the same statement: each once, and where it
# belongs, also if nobody folded for hours.
_ADDED = (*columns.COUNTS, "reused", "device_seconds", "bytes")
_ROLLED = ("done", "failed", "reused", "device_seconds", "slots")
_FOLD = statement("counters.fold")(f"""
WITH folded AS (
  DELETE FROM counter_deltas WHERE id IN (
    SELECT id FROM counter_deltas ORDER BY id LIMIT 20000 FOR UPDATE SKIP LOCKED
  ) RETURNING id, job_id, at, slots, {", ".join(_ADDED)}
), rolled AS (
  INSERT INTO rates AS r (tenant_id, grain, at, {", ".join(_ROLLED)})
  SELECT tenant_id, grain, date_trunc(grain, at, 'UTC'), {", ".join(f"sum({name})" for name in _ROLLED)}
  FROM folded
  CROSS JOIN LATERAL (SELECT tenant_id FROM jobs WHERE jobs.id = folded.job_id OFFSET 0) of_job
  CROSS JOIN (VALUES ('minute'), ('hour')) AS kept (grain)
  WHERE greatest({", ".join(_ROLLED)}) > 0
  GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
  ON CONFLICT (tenant_id, grain, at) DO UPDATE SET
    {", ".join(f"{name} = r.{name} + excluded.{name}" for name in _ROLLED)}
), {usage.FOLDED}, sums AS (
  SELECT job_id, {", ".join(f"sum({name}) AS {name}" for name in _ADDED)},
{job_series.GATHERED}
  FROM folded GROUP BY job_id
), measured AS (
  SELECT sums.*, (sums.done + sums.failed)::double precision AS finished, seconds, clock_timestamp() AS until,
         before.rendering = 0 AND (before.rate_seconds = 0 OR seconds > 60) AS begins,
         before.rate_seconds * exp(-least(
           seconds / 30, (sums.done + sums.failed) / (2.0 * greatest(before.rendering, 1)))) AS older,
         kept.series_at, spans.series_seconds, series.series_done, series.series_failed
  FROM sums JOIN counters before USING (job_id)
  CROSS JOIN LATERAL (
    SELECT greatest(extract(epoch FROM clock_timestamp() - before.folded_at)::double precision, 0.001) AS seconds
  ) since
{job_series.ADDED}
)
UPDATE counters SET
  {", ".join(f"{name} = counters.{name} + measured.{name}" for name in _ADDED)},
  rate = CASE WHEN begins THEN 0 WHEN finished = 0 THEN rate
              ELSE (rate * older + finished) / (older + seconds) END,
  rate_seconds = CASE WHEN begins THEN 0 WHEN finished = 0 THEN rate_seconds ELSE older + seconds END,
  folded_at = CASE WHEN begins OR finished > 0 THEN until ELSE folded_at END,
  {job_series.SET}
FROM measured WHERE counters.job_id = measured.job_id
""")  # noqa: S608  our own text

# Jobs from before pictures' bytes were added up: the first one, or as many as have so many images together. What is not
# folded yet is left to its fold.
_SIZE_OLD = statement("counters.size_old")(f"""
WITH old AS MATERIALIZED (
  SELECT job_id FROM (
    SELECT job_id, sum(total) OVER (ORDER BY job_id) AS images, row_number() OVER (ORDER BY job_id) AS nth
    FROM (SELECT job_id FROM counters WHERE bytes IS NULL ORDER BY job_id LIMIT 100) oldest
    JOIN jobs ON jobs.id = job_id
  ) first WHERE nth = 1 OR images <= 50000
), sized AS (
  UPDATE counters SET bytes = (SELECT coalesce(sum(bytes), 0) FROM results WHERE results.job_id = old.job_id)
    - (SELECT coalesce(sum(bytes), 0) FROM counter_deltas WHERE counter_deltas.job_id = old.job_id)
  FROM old WHERE counters.job_id = old.job_id RETURNING counters.job_id, counters.bytes
)
{usage.SIZED}
""")  # noqa: S608  our own text
_FORGET_RATES = statement("counters.forget_rates")("""
DELETE FROM rates WHERE (tenant_id, grain, at) IN (
  SELECT tenant_id, grain, at FROM rates
  WHERE grain = 'minute' AND at < now() - interval '2 days' OR grain = 'hour' AND at < now() - interval '2 years'
  LIMIT 10000)
""")


def recount_usage(connection: Connection) -> int:
    """Counts anew what one tenant uses, if that is due. While another process folds, it does nothing."""
    return usage.recount(connection) if leases.lock_maintenance(connection) else 0


def size_old(connection: Connection) -> int:
    """Adds up the bytes of some jobs from before they were counted; returns of how many tenants. While another process
    folds, it does nothing."""
    return connection.execute(_SIZE_OLD).rowcount if leases.lock_maintenance(connection) else 0


def new(connection: Connection, job_id: int, images: int) -> None:
    """Creates the counters of a new job, all of whose images are queued."""
    connection.execute(_NEW, {"id": job_id, "images": images})


def grow(connection: Connection, job_id: int, images: int) -> None:
    """Adds queued images to a job none of whose images has been claimed."""
    connection.execute(_GROW, {"id": job_id, "images": images})


def fold(connection: Connection) -> int:
    """Adds the deltas to the counters and to what is counted by cause; returns for how many jobs. While another process
    folds, it does nothing."""
    if not leases.lock_maintenance(connection):
        return 0
    failure_counts.fold(connection)
    usage.fold(connection)
    return connection.execute(_FOLD).rowcount


def forget_rates(connection: Connection) -> int:
    """Deletes rates of minutes after two days and of hours after two years, and failures by hour after eight days, up
    to 10,000 of each a call; returns how many."""
    return connection.execute(_FORGET_RATES).rowcount + failure_counts.forget(connection)
