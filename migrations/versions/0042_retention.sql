-- For how many days after its end a job keeps its prompts, its objects and its records. Null: for ever.
CREATE TABLE retention_rules (
  tenant_id integer PRIMARY KEY REFERENCES tenants (id),
  payload_days integer,
  object_days integer,
  record_days integer,
  updated_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT retention_rules_days CHECK (payload_days >= 0 AND object_days >= 0 AND record_days >= 0)
);

-- What of a job is due to go. `reason` says what still holds it; it is looked at again at `look_again_at`.
CREATE TABLE retention_work (
  job_id bigint REFERENCES jobs (id) ON DELETE CASCADE,
  kind text,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  look_again_at timestamptz NOT NULL DEFAULT now(),
  reason text,
  PRIMARY KEY (job_id, kind),
  CONSTRAINT retention_work_kind CHECK (kind IN ('payloads','objects','records'))
);
CREATE INDEX retention_work_next ON retention_work (tenant_id, look_again_at);

-- `retention` is what the submission asked for: days by kind, null for ever; a kind that it does not name follows the
-- tenant's rule. From the other two moments on the job's prompts, or its objects, count as gone. `drops_with_week`: the
-- rows of its images are left to go with their partitions.
ALTER TABLE jobs
  ADD COLUMN retention jsonb,
  ADD COLUMN payloads_erased_at timestamptz,
  ADD COLUMN objects_deleted_at timestamptz,
  ADD COLUMN drops_with_week boolean NOT NULL DEFAULT false;

-- Empties the requests with an index from `first` to `past`, which is not among them, of a job that is marked so.
-- Sizes, seeds and custom_ids stay. Returns how many it emptied.
CREATE FUNCTION presswork_erase_payloads(job bigint, first bigint, past bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_partition_pruning = off AS $$
DECLARE
  erased integer;
BEGIN
  IF NOT EXISTS (SELECT FROM jobs WHERE id = job AND payloads_erased_at IS NOT NULL) THEN
    RETURN 0;
  END IF;
  UPDATE payloads SET prompt = '', negative_prompt = '', metadata = NULL, image = NULL, image_key = NULL,
         image_sha256 = NULL
  WHERE job_id = job AND index >= first AND index < past
    AND (prompt <> '' OR negative_prompt <> '' OR metadata IS NOT NULL OR image IS NOT NULL);
  GET DIAGNOSTICS erased = ROW_COUNT;
  RETURN erased;
END $$;

-- Whether the whole week of a job is deleted, and long over: then its partitions are dropped instead of its rows deleted.
CREATE FUNCTION presswork_is_condemned(job bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  epoch timestamptz := timestamptz '2026-01-01Z'; monday timestamp; low bigint; high bigint;
BEGIN
  monday := date_trunc('week', (epoch + make_interval(secs => (job >> 22) / 1000.0)) AT TIME ZONE 'UTC');
  IF monday + interval '14 days' > now() AT TIME ZONE 'UTC'
     OR to_regclass('images_' || to_char(monday, 'YYYYMMDD')) IS NULL THEN
    RETURN false;
  END IF;
  low := (extract(epoch FROM monday AT TIME ZONE 'UTC' - epoch) * 1000)::bigint << 22;
  high := (extract(epoch FROM (monday + interval '7 days') AT TIME ZONE 'UTC' - epoch) * 1000)::bigint << 22;
  RETURN NOT EXISTS (
    SELECT FROM jobs WHERE id >= low AND id < high AND (deleted_at IS NULL OR finished_at IS NULL));
END $$;

-- Drops up to `most` weeks of images, payloads and results that are long over and of which no job is left, or only jobs
-- whose rows are left to go this way. Waits a tenth of a second for the tables, and then leaves it to a later call.
-- Returns how many tables it dropped.
CREATE FUNCTION presswork_drop_partitions(most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
  epoch timestamptz := timestamptz '2026-01-01Z'; week text; parent text; leaf text; monday timestamp;
  low bigint; high bigint; used boolean; dropped integer := 0; weeks integer := 0;
BEGIN
  IF NOT presswork_house() THEN
    RETURN 0;
  END IF;
  FOR week IN SELECT right(relname, 8) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
      WHERE inhparent = 'images'::regclass AND relname ~ '^images_[0-9]{8}$' ORDER BY 1 LOOP
    monday := to_timestamp(week, 'YYYYMMDD')::date;
    EXIT WHEN weeks >= most OR monday + interval '14 days' > now() AT TIME ZONE 'UTC';
    low := (extract(epoch FROM monday AT TIME ZONE 'UTC' - epoch) * 1000)::bigint << 22;
    high := (extract(epoch FROM (monday + interval '7 days') AT TIME ZONE 'UTC' - epoch) * 1000)::bigint << 22;
    CONTINUE WHEN EXISTS (SELECT FROM jobs WHERE id >= low AND id < high AND NOT drops_with_week);
    BEGIN
      FOREACH parent IN ARRAY ARRAY['images', 'payloads', 'results'] LOOP
        leaf := parent || '_' || week;
        CONTINUE WHEN to_regclass(leaf) IS NULL;
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', parent);
        EXECUTE format('SELECT EXISTS (SELECT FROM %I l WHERE NOT EXISTS (
          SELECT FROM jobs WHERE jobs.id = l.job_id AND drops_with_week) LIMIT 1)', leaf) INTO used;
        IF used THEN
          RAISE EXCEPTION 'rows of no job' USING ERRCODE = 'raise_exception';
        END IF;
        EXECUTE format('DROP TABLE %I', leaf);
        dropped := dropped + 1;
      END LOOP;
      weeks := weeks + 1;
    EXCEPTION WHEN lock_not_available THEN
      RETURN 0;
    WHEN raise_exception THEN
      RAISE WARNING 'the partitions of the week % hold rows of jobs that are not there: they stay', week;
    END;
  END LOOP;
  RETURN dropped;
END $$;

-- As before, and also what presswork_delete_images would have deleted of images whose partitions were dropped.
CREATE OR REPLACE FUNCTION presswork_delete_job(job bigint, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_partition_pruning = off AS $$
DECLARE
  deleted integer;
BEGIN
  IF NOT presswork_is_deleted(job) OR EXISTS (SELECT FROM images WHERE job_id = job)
     OR EXISTS (SELECT FROM exports WHERE job_id = job) THEN
    RETURN 0;
  END IF;
  DELETE FROM counter_deltas WHERE id = ANY (ARRAY(
    SELECT id FROM counter_deltas WHERE job_id = job LIMIT most));
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM failure_deltas WHERE id = ANY (ARRAY(
    SELECT id FROM failure_deltas WHERE job_id = job LIMIT most));
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM job_chunks WHERE job_id = job AND number = ANY (ARRAY(
    SELECT number FROM job_chunks WHERE job_id = job ORDER BY number LIMIT most));
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM segments WHERE job_id = job AND id = ANY (ARRAY(
    SELECT id FROM segments WHERE job_id = job ORDER BY id LIMIT most));
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM failures WHERE (job_id, ctid) IN (SELECT job_id, ctid FROM failures WHERE job_id = job LIMIT most);
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM marks WHERE (job_id, ctid) IN (SELECT job_id, ctid FROM marks WHERE job_id = job LIMIT most);
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM image_scores WHERE (job_id, ctid) IN (SELECT job_id, ctid FROM image_scores WHERE job_id = job LIMIT most);
  GET DIAGNOSTICS deleted = ROW_COUNT;
  IF deleted > 0 THEN RETURN deleted; END IF;
  DELETE FROM failure_counts WHERE job_id = job;
  DELETE FROM mark_counts WHERE job_id = job;
  UPDATE failure_hours SET job_id = NULL, index = NULL, message = '' WHERE job_id = job;
  DELETE FROM counters WHERE job_id = job;
  DELETE FROM jobs WHERE id = job;
  RETURN 1;
END $$;

-- Deletes attempts that failed more than `days` ago, up to `most`, of jobs that have ended; the counts by cause stay.
CREATE FUNCTION presswork_forget_failures(days integer, most integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  forgotten integer;
BEGIN
  IF days < 7 THEN
    RAISE EXCEPTION 'failures are kept for at least 7 days';
  END IF;
  DELETE FROM failures WHERE id = ANY (ARRAY(
    SELECT id FROM failures WHERE failed_at < now() - make_interval(days => days)
      AND NOT EXISTS (SELECT FROM jobs WHERE jobs.id = failures.job_id AND jobs.finished_at IS NULL)
    ORDER BY failed_at LIMIT most));
  GET DIAGNOSTICS forgotten = ROW_COUNT;
  RETURN forgotten;
END $$;

-- From `deleted_at` on the tenant takes no new work.
ALTER TABLE tenants ADD COLUMN deleted_at timestamptz;

-- The deletion of a tenant, and at its end what was deleted and what remains. It outlives the tenant.
CREATE TABLE tenant_deletions (
  id bigint PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
  tenant_id integer NOT NULL UNIQUE,
  name text NOT NULL,
  requested_at timestamptz NOT NULL DEFAULT now(),
  requested_by text NOT NULL,
  images bigint NOT NULL DEFAULT 0,
  objects bigint NOT NULL DEFAULT 0,
  rows bigint NOT NULL DEFAULT 0,
  emptied_at timestamptz,
  finished_at timestamptz,
  remains jsonb
);
CREATE INDEX tenant_deletions_open ON tenant_deletions (tenant_id) WHERE finished_at IS NULL;

-- Marks the tenant as deleted, revokes its keys, and ends its sessions. Returns how many keys it revoked.
CREATE FUNCTION presswork_condemn_tenant(tenant integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  revoked integer;
BEGIN
  IF NOT presswork_house() THEN
    RETURN 0;
  END IF;
  UPDATE tenants SET deleted_at = coalesce(deleted_at, now()) WHERE id = tenant;
  IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'tenants'::regclass AND attname = 'state') THEN
    EXECUTE 'UPDATE tenants SET state = ''suspended'' WHERE id = $1' USING tenant;
  END IF;
  UPDATE api_keys SET revoked_at = now() WHERE tenant_id = tenant AND revoked_at IS NULL;
  GET DIAGNOSTICS revoked = ROW_COUNT;
  DELETE FROM sign_in_links WHERE key_id IN (SELECT id FROM api_keys WHERE tenant_id = tenant);
  DELETE FROM sessions WHERE user_tenant = tenant OR key_id IN (SELECT id FROM api_keys WHERE tenant_id = tenant);
  RETURN revoked;
END $$;

-- Every table that holds rows of a tenant, from the catalogue: those that have a column tenant_id or refer to tenants,
-- and those without one that refer to such a table; with a condition that selects the rows of the tenant $1.
CREATE FUNCTION presswork_tenant_tables() RETURNS TABLE (name text, condition text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
WITH own AS (
  SELECT c.oid, c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
  WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND NOT a.attisdropped AND c.relname NOT IN ('tenants', 'tenant_deletions')
    AND (a.attname = 'tenant_id' OR EXISTS (
      SELECT FROM pg_constraint k WHERE k.contype = 'f' AND k.conrelid = c.oid AND k.confrelid = 'tenants'::regclass
        AND k.conkey = ARRAY[a.attnum]))
), below AS (
  SELECT c.relname, a.attname, p.relname AS parent, pa.attname AS parents, own.attname AS tenant
  FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN own ON own.oid = k.confrelid
  JOIN pg_class p ON p.oid = k.confrelid
  JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
  JOIN pg_attribute pa ON pa.attrelid = k.confrelid AND pa.attnum = k.confkey[1]
  WHERE k.contype = 'f' AND cardinality(k.conkey) = 1 AND NOT c.relispartition
    AND k.conrelid NOT IN (SELECT oid FROM own WHERE attname = 'tenant_id')
)
SELECT relname::text, format('%I = $1', attname) FROM own
UNION ALL
SELECT relname::text, format('%I IN (SELECT %I FROM %I WHERE %I = $1)', attname, parents, parent, tenant) FROM below
ORDER BY 1, 2 $$;

-- Deletes up to `most` rows of each of these tables, of a tenant that is deleted. A row that another still needs stays
-- for the next call, and of events the newest numbered one, as always. Returns how many rows it deleted.
CREATE FUNCTION presswork_delete_tenant_rows(tenant integer, tables text[], most integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET enable_partition_pruning = off AS $$
DECLARE
  one record; gone bigint; deleted bigint := 0; rest text;
BEGIN
  IF NOT presswork_house() OR NOT EXISTS (SELECT FROM tenants WHERE id = tenant AND deleted_at IS NOT NULL) THEN
    RETURN 0;
  END IF;
  FOR one IN SELECT * FROM presswork_tenant_tables() LOOP
    CONTINUE WHEN one.name <> ALL (tables);
    rest := CASE WHEN one.name = 'events' THEN ' AND seq < (SELECT max(seq) FROM events)' ELSE '' END;
    BEGIN
      EXECUTE format('DELETE FROM %1$I WHERE (tableoid, ctid) IN (SELECT tableoid, ctid FROM %1$I WHERE %2$s%3$s LIMIT $2)',
                     one.name, one.condition, rest) USING tenant, most;
      GET DIAGNOSTICS gone = ROW_COUNT;
      deleted := deleted + gone;
    EXCEPTION WHEN foreign_key_violation THEN
      NULL;
    END;
  END LOOP;
  RETURN deleted;
END $$;

-- How many rows of the tenant each table holds that holds any.
CREATE FUNCTION presswork_count_tenant_rows(tenant integer) RETURNS jsonb
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  one record; found bigint; counted jsonb := '{}';
BEGIN
  IF NOT presswork_house() THEN
    RETURN NULL;
  END IF;
  FOR one IN SELECT * FROM presswork_tenant_tables() LOOP
    EXECUTE format('SELECT count(*) FROM %I WHERE %s', one.name, one.condition) INTO found USING tenant;
    IF found > 0 THEN
      counted := counted || jsonb_build_object(one.name, found + coalesce((counted->>one.name)::bigint, 0));
    END IF;
  END LOOP;
  RETURN counted;
END $$;

-- Deletes the row of a deleted tenant, at last. False: something refers to it, such as a job that was being submitted.
-- It waits for transactions that are about to refer to it; those that come later are refused.
CREATE FUNCTION presswork_delete_tenant(tenant integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET lock_timeout = '1s' AS $$
BEGIN
  IF NOT presswork_house() THEN
    RETURN false;
  END IF;
  DELETE FROM tenants WHERE id = tenant AND deleted_at IS NOT NULL;
  RETURN true;
EXCEPTION WHEN foreign_key_violation OR lock_not_available THEN
  RETURN false;
END $$;

-- The mark that tells whether database and store belong together. The store has a copy of it, in an object.
CREATE TABLE storage_mark (
  singleton boolean PRIMARY KEY DEFAULT true,
  epoch bigint NOT NULL DEFAULT 0,
  is_pending boolean NOT NULL DEFAULT false,
  CONSTRAINT storage_mark_singleton CHECK (singleton)
);
INSERT INTO storage_mark DEFAULT VALUES;

-- A run of the storage auditor. `at_job` and `at_key` say how far it has come.
CREATE TABLE storage_audits (
  id bigint PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
  requested_by text NOT NULL,
  requested_at timestamptz NOT NULL DEFAULT now(),
  share real NOT NULL,
  step text NOT NULL DEFAULT 'records',
  at_job bigint NOT NULL DEFAULT 0,
  at_key text NOT NULL DEFAULT '',
  objects bigint NOT NULL DEFAULT 0,
  records bigint NOT NULL DEFAULT 0,
  sampled bigint NOT NULL DEFAULT 0,
  missing bigint NOT NULL DEFAULT 0,
  damaged bigint NOT NULL DEFAULT 0,
  orphans bigint NOT NULL DEFAULT 0,
  foreign_objects bigint NOT NULL DEFAULT 0,
  deleted bigint NOT NULL DEFAULT 0,
  requeued bigint NOT NULL DEFAULT 0,
  refusal text,
  finished_at timestamptz,
  CONSTRAINT storage_audits_step CHECK (step IN ('records','listing','requeue','orphans','done')),
  CONSTRAINT storage_audits_share CHECK (share BETWEEN 0 AND 1)
);
CREATE UNIQUE INDEX storage_audits_open ON storage_audits ((true)) WHERE finished_at IS NULL;

-- Objects that no record names, since when, and in which run they were last seen.
CREATE TABLE storage_orphans (
  object_key text COLLATE "C" PRIMARY KEY,
  first_seen_at timestamptz NOT NULL DEFAULT now(),
  audit_id bigint NOT NULL
);
CREATE INDEX storage_orphans_age ON storage_orphans (first_seen_at);

-- Images whose object is missing or damaged, and the job that draws each again.
CREATE TABLE storage_findings (
  job_id bigint,
  index integer,
  kind text NOT NULL,
  audit_id bigint NOT NULL,
  found_at timestamptz NOT NULL DEFAULT now(),
  requeued_as bigint,
  PRIMARY KEY (job_id, index),
  CONSTRAINT storage_findings_kind CHECK (kind IN ('missing','damaged'))
);
CREATE INDEX storage_findings_waiting ON storage_findings (job_id) WHERE requeued_as IS NULL;
