-- In the order in which a submission locks them, so that the two wait for each other and never for ever.
LOCK TABLE payloads, images, uploads IN ACCESS EXCLUSIVE MODE;

-- A job's counts: its counters plus the deltas that are not folded yet. security_invoker: a reader sees only the jobs
-- that row-level security shows it.
CREATE VIEW job_counts WITH (security_invoker = true) AS
SELECT c.job_id, c.queued + d.queued AS queued, c.rendering + d.rendering AS rendering, c.done + d.done AS done,
       c.failed + d.failed AS failed, c.cancelled + d.cancelled AS cancelled, c.reused + d.reused AS reused,
       c.rate, c.folded_at
FROM counters c
CROSS JOIN LATERAL (
  SELECT coalesce(sum(queued), 0)::integer AS queued, coalesce(sum(rendering), 0)::integer AS rendering,
         coalesce(sum(done), 0)::integer AS done, coalesce(sum(failed), 0)::integer AS failed,
         coalesce(sum(cancelled), 0)::integer AS cancelled, coalesce(sum(reused), 0)::integer AS reused
  FROM counter_deltas WHERE counter_deltas.job_id = c.job_id
) d;

DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT SELECT ON job_counts TO presswork_app;
  END IF;
  IF to_regrole('presswork_reader') IS NOT NULL THEN
    GRANT SELECT ON job_counts TO presswork_reader;
  END IF;
END $$;

-- No code reads these columns any more. Only the catalogue changes: no row is rewritten.
ALTER TABLE images DROP COLUMN not_before;
ALTER TABLE uploads DROP COLUMN mime_type;

-- Data that a client keeps with a request. json, because jsonb would change how numbers are written.
ALTER TABLE payloads ADD COLUMN metadata json;
