"""Failed images by cause: every settle with failures appends deltas, which are folded into one row a job and cause, and
one a tenant, hour and cause. So nobody who asks why images failed needs to read the images.
"""

from sqlalchemy import Connection

from services.core.db.statements import statement

# Of each cause the newest reason is kept, with an image that failed of it.
_FOLD = statement("failure_counts.fold")("""
WITH folded AS (
  DELETE FROM failure_deltas WHERE id IN (
    SELECT id FROM failure_deltas ORDER BY id LIMIT 20000 FOR UPDATE SKIP LOCKED
  ) RETURNING id, job_id, code, images, index, message, at
), by_job AS (
  INSERT INTO failure_counts AS c (job_id, code, images, index, message, at)
  SELECT job_id, code, sum(images), (array_agg(index ORDER BY at DESC, id DESC))[1],
         (array_agg(message ORDER BY at DESC, id DESC))[1], max(at)
  FROM folded GROUP BY job_id, code ORDER BY job_id, code
  ON CONFLICT (job_id, code) DO UPDATE SET images = c.images + excluded.images, at = greatest(c.at, excluded.at),
    index = CASE WHEN excluded.at >= c.at THEN excluded.index ELSE c.index END,
    message = CASE WHEN excluded.at >= c.at THEN excluded.message ELSE c.message END
)
INSERT INTO failure_hours AS h (tenant_id, hour, code, images, job_id, index, message, at)
SELECT tenant_id, date_trunc('hour', at, 'UTC'), code, sum(images), (array_agg(job_id ORDER BY at DESC, id DESC))[1],
       (array_agg(index ORDER BY at DESC, id DESC))[1], (array_agg(message ORDER BY at DESC, id DESC))[1], max(at)
FROM folded CROSS JOIN LATERAL (SELECT tenant_id FROM jobs WHERE jobs.id = folded.job_id OFFSET 0) of_job
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
ON CONFLICT (tenant_id, hour, code) DO UPDATE SET images = h.images + excluded.images, at = greatest(h.at, excluded.at),
  job_id = CASE WHEN excluded.at >= h.at THEN excluded.job_id ELSE h.job_id END,
  index = CASE WHEN excluded.at >= h.at THEN excluded.index ELSE h.index END,
  message = CASE WHEN excluded.at >= h.at THEN excluded.message ELSE h.message END
""")
_FORGET = statement("failure_counts.forget")("""
DELETE FROM failure_hours WHERE (tenant_id, hour, code) IN (
  SELECT tenant_id, hour, code FROM failure_hours WHERE hour < now() - interval '8 days' LIMIT 10000)
""")


def fold(connection: Connection) -> None:
    """Adds the deltas to the counts. The caller holds the maintenance lock, so one at a time folds."""
    connection.execute(_FOLD)


def forget(connection: Connection) -> int:
    """Deletes the counts of hours after eight days, up to 10,000 a call; those of jobs stay. Returns how many."""
    return connection.execute(_FORGET).rowcount
