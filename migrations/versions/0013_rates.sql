-- The seconds behind `rate`; older ones count less. folded_at is since this release the time up to which it was measured.
ALTER TABLE counters ADD COLUMN rate_seconds double precision NOT NULL DEFAULT 0;

-- A worker is seen while it starts, which may take minutes, and says what it does.
ALTER TABLE workers ADD COLUMN doing text NOT NULL DEFAULT '';
ALTER TABLE workers DROP CONSTRAINT workers_state,
  ADD CONSTRAINT workers_state CHECK (state IN ('starting','ready','busy','sick','stopped','crashed'));

-- How many requests gave no seed. Jobs of the release before count none.
ALTER TABLE jobs ADD COLUMN drawn_seeds integer NOT NULL DEFAULT 0;

CREATE OR REPLACE VIEW job_counts WITH (security_invoker = true) AS
SELECT c.job_id, c.queued + d.queued AS queued, c.rendering + d.rendering AS rendering, c.done + d.done AS done,
       c.failed + d.failed AS failed, c.cancelled + d.cancelled AS cancelled, c.reused + d.reused AS reused,
       c.rate, c.folded_at, c.rate_seconds
FROM counters c
CROSS JOIN LATERAL (
  SELECT coalesce(sum(queued), 0)::integer AS queued, coalesce(sum(rendering), 0)::integer AS rendering,
         coalesce(sum(done), 0)::integer AS done, coalesce(sum(failed), 0)::integer AS failed,
         coalesce(sum(cancelled), 0)::integer AS cancelled, coalesce(sum(reused), 0)::integer AS reused
  FROM counter_deltas WHERE counter_deltas.job_id = c.job_id
) d;
