-- A delta says when it happened, how long devices held its images, and how many slots of batches these took. A program of
-- the release before says only when.
ALTER TABLE counter_deltas ADD COLUMN at timestamptz NOT NULL DEFAULT now(),
  ADD COLUMN device_seconds real NOT NULL DEFAULT 0, ADD COLUMN slots real NOT NULL DEFAULT 0;
ALTER TABLE counters ADD COLUMN device_seconds double precision NOT NULL DEFAULT 0;

CREATE OR REPLACE VIEW job_counts WITH (security_invoker = true) AS
SELECT c.job_id, c.queued + d.queued AS queued, c.rendering + d.rendering AS rendering, c.done + d.done AS done,
       c.failed + d.failed AS failed, c.cancelled + d.cancelled AS cancelled, c.reused + d.reused AS reused,
       c.rate, c.folded_at, c.rate_seconds, c.device_seconds + d.device_seconds AS device_seconds
FROM counters c
CROSS JOIN LATERAL (
  SELECT coalesce(sum(queued), 0)::integer AS queued, coalesce(sum(rendering), 0)::integer AS rendering,
         coalesce(sum(done), 0)::integer AS done, coalesce(sum(failed), 0)::integer AS failed,
         coalesce(sum(cancelled), 0)::integer AS cancelled, coalesce(sum(reused), 0)::integer AS reused,
         coalesce(sum(device_seconds), 0)::double precision AS device_seconds
  FROM counter_deltas WHERE counter_deltas.job_id = c.job_id
) d;

-- What each tenant's images came to, by minute and by hour. Whoever folds deltas adds them here in the same statement, to
-- the minute and the hour in which they happened: so each counts once, however late and by whomever it is folded.
CREATE TABLE rates (
  tenant_id integer,
  grain text,
  at timestamptz,
  done bigint NOT NULL,
  failed bigint NOT NULL,
  reused bigint NOT NULL,
  device_seconds double precision NOT NULL,
  slots double precision NOT NULL,
  PRIMARY KEY (tenant_id, grain, at),
  CONSTRAINT rates_grain CHECK (grain IN ('minute', 'hour'))
);
CREATE INDEX rates_age ON rates (grain, at);
