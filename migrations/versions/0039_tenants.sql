-- Whose administrators administer every tenant: the first one. Quotas: null is unlimited.
ALTER TABLE tenants
  ADD COLUMN operator boolean NOT NULL DEFAULT false,
  ADD COLUMN state text NOT NULL DEFAULT 'active',
  ADD COLUMN max_images_queued bigint,
  ADD COLUMN max_images_in_flight bigint,
  ADD COLUMN max_requests_per_second double precision,
  ADD COLUMN max_bytes_stored bigint,
  ADD COLUMN max_bytes_spooled bigint,
  ADD COLUMN max_device_seconds_per_day double precision,
  ADD CONSTRAINT tenants_state CHECK (state IN ('active', 'suspended')),
  ADD CONSTRAINT tenants_quotas CHECK (least(max_images_queued, max_bytes_stored, max_bytes_spooled) >= 0
    AND max_images_in_flight > 0 AND max_requests_per_second > 0 AND max_device_seconds_per_day >= 0);

UPDATE tenants SET operator = true WHERE id = (SELECT min(id) FROM tenants);

-- What each tenant uses: one row, to which the deltas are added about once a second. A tenant without a row uses nothing
-- but what its deltas say.
CREATE TABLE tenant_usage (
  tenant_id integer PRIMARY KEY REFERENCES tenants (id) ON DELETE CASCADE,
  images_queued bigint NOT NULL DEFAULT 0,
  bytes_stored bigint NOT NULL DEFAULT 0,
  bytes_spooled bigint NOT NULL DEFAULT 0,
  counted_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE tenant_usage_deltas (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  tenant_id integer NOT NULL,
  images_queued bigint NOT NULL DEFAULT 0,
  bytes_stored bigint NOT NULL DEFAULT 0,
  bytes_spooled bigint NOT NULL DEFAULT 0
);
CREATE INDEX tenant_usage_deltas_tenant ON tenant_usage_deltas (tenant_id);

-- The bytes of a job's pictures. Null: the job is from before, and a periodic task adds them up.
ALTER TABLE counter_deltas ADD COLUMN bytes bigint NOT NULL DEFAULT 0;
ALTER TABLE counters ADD COLUMN bytes bigint;
ALTER TABLE counters ALTER COLUMN bytes SET DEFAULT 0;

CREATE INDEX counters_unsized ON counters (job_id) WHERE bytes IS NULL;

-- Which tenants' images a claim holds, and how many of each; null in a claim of the release before.
ALTER TABLE claims ADD COLUMN tenant_ids integer[], ADD COLUMN tenant_images smallint[];

-- Files and parts come and go in several ways, a deleted job and a deleted tenant among them: the database itself adds
-- up their bytes, so that no way can forget it. The argument names the columns: one for all rows, or that of the files'
-- purposes.
CREATE FUNCTION presswork_count_bytes() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
  IF TG_ARGV[0] = 'purpose' THEN
    INSERT INTO tenant_usage_deltas (tenant_id, bytes_stored, bytes_spooled)
    SELECT tenant_id, sign * coalesce(sum(bytes) FILTER (WHERE purpose = 'batch_output'), 0),
           sign * coalesce(sum(bytes) FILTER (WHERE purpose <> 'batch_output'), 0)
    FROM moved, (SELECT CASE TG_OP WHEN 'DELETE' THEN -1 ELSE 1 END AS sign) s GROUP BY tenant_id, sign;
  ELSIF TG_ARGV[0] = 'spooled' THEN
    INSERT INTO tenant_usage_deltas (tenant_id, bytes_spooled)
    SELECT tenant_id, CASE TG_OP WHEN 'DELETE' THEN -1 ELSE 1 END * sum(bytes) FROM moved GROUP BY tenant_id;
  ELSE
    INSERT INTO tenant_usage_deltas (tenant_id, bytes_stored)
    SELECT tenant_id, CASE TG_OP WHEN 'DELETE' THEN -1 ELSE 1 END * sum(bytes) FROM moved GROUP BY tenant_id;
  END IF;
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION presswork_count_bytes() FROM PUBLIC;
CREATE TRIGGER files_stored AFTER INSERT ON files REFERENCING NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_count_bytes('purpose');
CREATE TRIGGER files_gone AFTER DELETE ON files REFERENCING OLD TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_count_bytes('purpose');
CREATE TRIGGER upload_parts_stored AFTER INSERT ON upload_parts REFERENCING NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_count_bytes('spooled');
CREATE TRIGGER upload_parts_gone AFTER DELETE ON upload_parts REFERENCING OLD TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_count_bytes('spooled');
CREATE TRIGGER export_files_stored AFTER INSERT ON export_files REFERENCING NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_count_bytes('stored');
CREATE TRIGGER export_files_gone AFTER DELETE ON export_files REFERENCING OLD TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_count_bytes('stored');
CREATE TRIGGER dataset_files_stored AFTER INSERT ON dataset_files REFERENCING NEW TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_count_bytes('stored');
CREATE TRIGGER dataset_files_gone AFTER DELETE ON dataset_files REFERENCING OLD TABLE AS moved
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_count_bytes('stored');

-- What a job's counters hold when they go was added to its tenant's usage before, and nothing else of it was.
CREATE FUNCTION presswork_uncount_jobs() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
  INSERT INTO tenant_usage_deltas (tenant_id, images_queued, bytes_stored)
  SELECT tenant_id, -sum(gone.queued), -coalesce(sum(gone.bytes), 0) FROM gone JOIN jobs ON jobs.id = gone.job_id
  GROUP BY tenant_id HAVING sum(gone.queued) <> 0 OR coalesce(sum(gone.bytes), 0) <> 0;
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION presswork_uncount_jobs() FROM PUBLIC;
CREATE TRIGGER counters_gone AFTER DELETE ON counters REFERENCING OLD TABLE AS gone
  FOR EACH STATEMENT EXECUTE FUNCTION presswork_uncount_jobs();

-- Jobs of programs of the release before are counted by the hourly count.
INSERT INTO tenant_usage (tenant_id, images_queued, bytes_stored, bytes_spooled)
SELECT t.id,
  (SELECT coalesce(sum(queued), 0) FROM counters JOIN jobs ON jobs.id = job_id
   WHERE jobs.tenant_id = t.id AND finished_at IS NULL),
  (SELECT coalesce(sum(bytes) FILTER (WHERE purpose = 'batch_output'), 0) FROM files WHERE tenant_id = t.id)
  + (SELECT coalesce(sum(bytes), 0) FROM export_files WHERE tenant_id = t.id)
  + (SELECT coalesce(sum(bytes), 0) FROM dataset_files WHERE tenant_id = t.id),
  (SELECT coalesce(sum(bytes) FILTER (WHERE purpose <> 'batch_output'), 0) FROM files WHERE tenant_id = t.id)
  + (SELECT coalesce(sum(bytes), 0) FROM upload_parts WHERE tenant_id = t.id)
FROM tenants t;
