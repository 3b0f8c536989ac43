"""What settlement and expiry share: the SQL by which images leave their claim, with all that follows in one statement.

Images of a cancelled job become cancelled, whatever came of them.
"""

# `low` is lowered without a look at its value: a duty that is raising it right now holds the row's lock, and this
# statement must wait for it (a guard on the old value would let the image fall below the mark for ever).
MOVED = """
counted AS (
  INSERT INTO counter_deltas (job_id, queued, rendering, done, failed, cancelled)
  SELECT job_id, count(*) FILTER (WHERE state = 0), -count(*), count(*) FILTER (WHERE state = 2),
         count(*) FILTER (WHERE state = 3), count(*) FILTER (WHERE state = 4)
  FROM moved GROUP BY job_id
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
