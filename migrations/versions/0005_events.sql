-- `id` is assigned when a row is inserted, `seq` after it is committed: readers go by `seq`. The application can set
-- neither. There is no foreign key to tenants: an event outlives its subject.
CREATE TABLE events (
  id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
  seq bigint,
  tenant_id integer,
  at timestamptz NOT NULL DEFAULT now(),
  actor text NOT NULL,
  kind text NOT NULL,
  subject text NOT NULL,
  data jsonb NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX events_seq ON events (seq);
CREATE INDEX events_unnumbered ON events (id) WHERE seq IS NULL;
CREATE INDEX events_subject ON events (subject, seq);

ALTER TABLE events ENABLE ROW LEVEL SECURITY;
ALTER TABLE events FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON events USING ((SELECT presswork_house()) OR tenant_id = (SELECT presswork_tenant()));

-- Numbers the oldest committed rows without a number; returns how many. Only one caller at a time does: each UPDATE takes
-- its snapshot while it holds the lock, so after the commit of the one before. So numbers are assigned and become visible
-- in order and without a gap. A row that is committed later gets a later number, and no reader waits for it.
-- The next number is max(seq) + 1: deleting old events must keep the newest numbered row.
CREATE FUNCTION presswork_number_events(most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  numbered integer;
BEGIN
  IF NOT presswork_house() OR NOT pg_try_advisory_xact_lock(7209414) THEN
    RETURN 0;
  END IF;
  UPDATE events SET seq = fresh.seq FROM (
    SELECT id, (SELECT coalesce(max(seq), 0) FROM events) + row_number() OVER (ORDER BY id) AS seq
    FROM (SELECT id FROM events WHERE seq IS NULL ORDER BY id LIMIT most) waiting
  ) fresh WHERE events.id = fresh.id;
  GET DIAGNOSTICS numbered = ROW_COUNT;
  RETURN numbered;
END $$;
REVOKE ALL ON FUNCTION presswork_number_events(integer) FROM PUBLIC;

DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT SELECT ON events TO presswork_app;
    GRANT INSERT (tenant_id, actor, kind, subject, data) ON events TO presswork_app;
    GRANT EXECUTE ON FUNCTION presswork_number_events(integer) TO presswork_app;
  END IF;
  IF to_regrole('presswork_reader') IS NOT NULL THEN
    GRANT SELECT ON events TO presswork_reader;
  END IF;
END $$;
