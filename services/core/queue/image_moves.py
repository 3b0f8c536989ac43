"""SQL that settlement and expiry share: one statement moves images out of their claim and does all that follows.

Images of a cancelled job become cancelled, whatever their outcome.
"""

# Of a claim's seconds and slots each job gets the share that :sharing and :shares give it.
#
# Lowers `low` without a guard on its old value: if a periodic task is raising it, this statement must wait for the
# row's lock. A guard would skip the row, and the image would stay below the mark and never be claimed.
MOVED = """
counted AS (
  INSERT INTO counter_deltas (job_id, queued, rendering, done, failed, cancelled, device_seconds, slots, bytes)
  SELECT job_id, count(*) FILTER (WHERE state = 0), -count(*), count(*) FILTER (WHERE state = 2),
         count(*) FILTER (WHERE state = 3), count(*) FILTER (WHERE state = 4),
         coalesce(CAST(:render_seconds AS real) * max(share), 0), coalesce(CAST(:slots AS real) * max(share), 0),
         coalesce(sum(bytes) FILTER (WHERE state = 2), 0)
  FROM moved
  LEFT JOIN unnest(CAST(:sharing AS bigint[]), CAST(:shares AS double precision[])) AS part (sharing, share)
    ON sharing = job_id
  GROUP BY job_id
), lowered AS (
  UPDATE segments SET low = least(segments.low, requeued.low)
  FROM (SELECT job_id, segment_id, min(index) AS low FROM moved WHERE state = 0 GROUP BY job_id, segment_id) requeued
  WHERE segments.job_id = requeued.job_id AND segments.id = requeued.segment_id
), ended AS (
  UPDATE claims SET state = :claim_state, ended_at = now(), render_seconds = :render_seconds WHERE id = ANY(:claim_ids)
)
SELECT (SELECT count(*) FROM moved) AS images, ARRAY(SELECT id FROM cancelled) AS cancelled
"""

CANCELLED = """
WITH cancelled AS MATERIALIZED (
  SELECT id FROM jobs WHERE id = ANY(:job_ids) AND state = ANY(:stopped)
), moved AS ("""
