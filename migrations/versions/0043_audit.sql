-- How far the log of events is sealed, and how far what is kept for a shorter time is pruned.
CREATE TABLE audit_cursor (
  singleton boolean PRIMARY KEY DEFAULT true,
  sealed_seq bigint NOT NULL,
  pruned_seq bigint NOT NULL,
  CONSTRAINT audit_cursor_singleton CHECK (singleton)
);
INSERT INTO audit_cursor (sealed_seq, pruned_seq) SELECT coalesce(min(seq), 1) - 1, coalesce(min(seq), 1) - 1 FROM events;

-- A range of a tenant's audit trail: the numbers of its events, the place of the first in the tenant's chain, the hash of
-- the event before and that of the last one. Without a tenant: the system's. A row stays when its events are pruned.
CREATE TABLE audit_seals (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  tenant_id integer REFERENCES tenants (id),
  first bigint NOT NULL,
  seqs bigint[] NOT NULL,
  from_at timestamptz NOT NULL,
  to_at timestamptz NOT NULL,
  previous bytea NOT NULL,
  hash bytea NOT NULL,
  sealed_at timestamptz NOT NULL DEFAULT now(),
  pruned_at timestamptz,
  CONSTRAINT audit_seals_hashes CHECK (octet_length(previous) = 32 AND octet_length(hash) = 32),
  CONSTRAINT audit_seals_range CHECK (first > 0 AND cardinality(seqs) > 0 AND from_at <= to_at)
);
CREATE UNIQUE INDEX audit_seals_place ON audit_seals (tenant_id, first) NULLS NOT DISTINCT;
CREATE INDEX audit_seals_tenant ON audit_seals (tenant_id, id);
CREATE INDEX audit_seals_kept ON audit_seals (id) WHERE pruned_at IS NULL;

-- The kinds of events that are no part of the audit trail: what things go through, and the daily work of users.
CREATE FUNCTION presswork_untrailed() RETURNS text[] LANGUAGE sql IMMUTABLE AS $$ SELECT ARRAY[
  'job.queued', 'job.started', 'job.finalizing', 'job.completed', 'job.failed', 'job.cancelled', 'job.expired',
  'job.refused', 'export.completed', 'export.failed', 'device.sick',
  'job.created', 'job.submitted', 'job.marked', 'image.poison', 'export.created', 'file.created', 'file.expired',
  'upload.created', 'upload.completed', 'upload.expired', 'dataset.version_asked', 'dataset.version_completed',
  'dataset.version_failed', 'catalogue.uploaded', 'catalogue.run', 'catalogue.run_planned', 'catalogue.run_published',
  'catalogue.run_unchanged', 'catalogue.run_kept', 'catalogue.run_failed', 'catalogue.run_cancelled',
  'catalogue.copied', 'catalogue.copy_failed', 'schedule.fired', 'schedule.run_requested', 'schedule.run_skipped',
  'schedule.run_refused', 'schedule.deadline_at_risk', 'schedule.deadline_missed'
] $$;

-- As before, but for the audit trail, and no longer from the lowest number: `pruned_seq` says up to where all is gone
-- that may go. Looks at the next `most` numbers.
CREATE OR REPLACE FUNCTION presswork_forget_events(days integer, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  start bigint; past bigint; newest bigint; young bigint; forgotten integer;
  cutoff timestamptz := now() - make_interval(days => days);
BEGIN
  IF days < 7 THEN
    RAISE EXCEPTION 'events are kept for at least 7 days';
  END IF;
  SELECT pruned_seq INTO start FROM audit_cursor FOR UPDATE;
  SELECT max(seq) INTO newest FROM events;
  past := least(start + most, newest - 1);
  IF start IS NULL OR newest IS NULL OR past <= start THEN
    RETURN 0;
  END IF;
  SELECT seq INTO young FROM events WHERE seq > start AND seq <= past AND at >= cutoff ORDER BY seq LIMIT 1;
  DELETE FROM events
  WHERE seq > start AND seq <= past AND at < cutoff AND kind = ANY (presswork_untrailed());
  GET DIAGNOSTICS forgotten = ROW_COUNT;
  UPDATE audit_cursor SET pruned_seq = least(past, young - 1);
  RETURN forgotten;
END $$;

-- Deletes the events of the oldest sealed ranges, up to `most` of them, all of whose events are more than `days` old. The
-- seals stay. An event that is not sealed stays, and so does the newest numbered one. Returns how many it deleted.
CREATE FUNCTION presswork_forget_trail(days integer, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  forgotten integer; cutoff timestamptz := now() - make_interval(days => days);
BEGIN
  IF days < 90 THEN
    RAISE EXCEPTION 'the audit trail is kept for at least 90 days';
  END IF;
  WITH oldest AS (
    SELECT id FROM audit_seals WHERE pruned_at IS NULL ORDER BY id LIMIT most
  ), pruned AS (
    UPDATE audit_seals s SET pruned_at = now() FROM oldest
    WHERE s.id = oldest.id AND to_at < cutoff AND seqs[cardinality(seqs)] < (SELECT max(seq) FROM events)
    RETURNING seqs
  )
  DELETE FROM events USING (SELECT unnest(seqs) AS number FROM pruned) p
  WHERE seq = p.number AND at < cutoff;
  GET DIAGNOSTICS forgotten = ROW_COUNT;
  RETURN forgotten;
END $$;
REVOKE ALL ON FUNCTION presswork_forget_trail(integer, integer) FROM PUBLIC;
