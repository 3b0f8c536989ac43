-- Whether a session names no tenant. Only the roles of the policy `system` see rows by it. Programs of the release before
-- set app.tenant to '*' in their sessions and to a number in a tenant's transactions, where they keep their role.
CREATE OR REPLACE FUNCTION presswork_house() RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS
  $$ SELECT coalesce(current_setting('app.tenant', true), '') IN ('', '*') $$;

-- As before, and the tenants' role too may insert into a partition.
CREATE OR REPLACE FUNCTION presswork_make_partitions(first date, weeks integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
  parent text; monday date; leaf text; made integer := 0; low bigint; high bigint; options text;
BEGIN
  FOR week IN 0 .. weeks - 1 LOOP
    monday := date_trunc('week', first)::date + 7 * week;
    low := (extract(epoch FROM monday::timestamp AT TIME ZONE 'UTC' - timestamptz '2026-01-01Z') * 1000)::bigint << 22;
    high := (extract(epoch FROM (monday + 7)::timestamp AT TIME ZONE 'UTC' - timestamptz '2026-01-01Z') * 1000)::bigint << 22;
    FOREACH parent IN ARRAY ARRAY['images', 'payloads', 'results'] LOOP
      leaf := parent || '_' || to_char(monday, 'YYYYMMDD');
      CONTINUE WHEN to_regclass(leaf) IS NOT NULL;
      options := CASE parent WHEN 'images' THEN
        'WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0)' ELSE '' END;
      BEGIN
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS INCLUDING CONSTRAINTS) %s', leaf, parent, options);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', parent, leaf, low, high);
        PERFORM presswork_allow_inserts(leaf);
        made := made + 1;
      EXCEPTION WHEN check_violation THEN  -- rows of that week came before its partition: they stay in the default
        RAISE WARNING 'partition % is not made: the default partition holds rows of its week', leaf;
      END;
    END LOOP;
  END LOOP;
  RETURN made;
END $$;

CREATE FUNCTION presswork_allow_inserts(leaf text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    EXECUTE format('GRANT INSERT ON %I TO presswork_app', leaf);
  END IF;
  EXECUTE format('GRANT INSERT ON %I TO presswork_tenant', leaf);
END $$;
REVOKE ALL ON FUNCTION presswork_allow_inserts(text) FROM PUBLIC;

SELECT presswork_allow_inserts(relname) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent IN ('images'::regclass, 'payloads'::regclass, 'results'::regclass) AND relkind = 'r';

-- What requests do. Tables without row-level security can only be read.
GRANT SELECT ON tenants, api_keys, models, model_shapes, engines, jobs, job_counts, idempotency, segments, images,
  payloads, results, failures, claims, counters, counter_deltas, workers, leases, files, uploads, upload_parts,
  job_chunks, render_rates, exports, export_files, events TO presswork_tenant;
GRANT INSERT, UPDATE ON jobs, idempotency, segments, images, payloads, counters, counter_deltas, files, uploads,
  upload_parts, job_chunks, exports, export_files TO presswork_tenant;
GRANT INSERT (tenant_id, actor, kind, subject, data) ON events TO presswork_tenant;

DO $$
BEGIN
  IF NOT has_schema_privilege('presswork_tenant', 'public', 'USAGE') THEN
    GRANT USAGE ON SCHEMA public TO presswork_tenant;
  END IF;
END $$;

-- How long the claim's lease is. A claim that ends much later than that from now was made before the clock was set back.
ALTER TABLE claims ADD COLUMN lease_seconds real;
