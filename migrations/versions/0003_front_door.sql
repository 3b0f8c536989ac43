CREATE TABLE files (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  purpose text NOT NULL,
  filename text NOT NULL,
  bytes bigint NOT NULL,
  sha256 bytea NOT NULL,
  object_key text NOT NULL,
  job_id bigint,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz,
  deleted_at timestamptz,
  CONSTRAINT files_purpose CHECK (purpose IN ('batch','batch_output')),
  CONSTRAINT files_sha256 CHECK (octet_length(sha256) = 32)
);
CREATE INDEX files_tenant ON files (tenant_id, id);
CREATE INDEX files_deleted ON files (id) WHERE deleted_at IS NOT NULL;
CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE uploads (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  purpose text NOT NULL,
  filename text NOT NULL,
  bytes bigint NOT NULL,
  mime_type text NOT NULL,
  state text NOT NULL DEFAULT 'pending',
  file_id bigint,
  file_expires_seconds integer,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  CONSTRAINT uploads_state CHECK (state IN ('pending','completed','cancelled','expired')),
  CONSTRAINT uploads_file CHECK ((state = 'completed') = (file_id IS NOT NULL))
);
CREATE INDEX uploads_pending ON uploads (expires_at) WHERE state = 'pending';

CREATE TABLE upload_parts (
  id bigint PRIMARY KEY,
  upload_id bigint NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  bytes bigint NOT NULL,
  sha256 bytea NOT NULL,
  object_key text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX upload_parts_upload ON upload_parts (upload_id);

ALTER TABLE jobs
  DROP CONSTRAINT jobs_total,
  ADD COLUMN requests integer NOT NULL DEFAULT 0,
  ADD COLUMN requests_done integer,
  ADD COLUMN requests_failed integer,
  ADD COLUMN input_file_id bigint,
  ADD COLUMN output_file_id bigint,
  ADD COLUMN error_file_id bigint,
  ADD COLUMN output_expires_seconds integer,
  ADD COLUMN completion_window text,
  ADD COLUMN base_url text,
  ADD COLUMN expires_at timestamptz,
  ADD COLUMN opened_at timestamptz,
  ADD COLUMN stop_reason text,
  ADD COLUMN problems jsonb,
  ADD COLUMN parent_id bigint,
  ADD COLUMN dedupe boolean NOT NULL DEFAULT false,
  ADD COLUMN embed_prompt boolean NOT NULL DEFAULT false,
  ADD CONSTRAINT jobs_total CHECK (total > 0 OR (total = 0 AND state NOT IN ('queued','in_progress','finalizing','completed'))),
  ADD CONSTRAINT jobs_stop_reason CHECK (stop_reason IN ('cancelled','expired'));
CREATE INDEX jobs_expiring ON jobs (expires_at) WHERE expires_at IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_parent ON jobs (parent_id) WHERE parent_id IS NOT NULL;

CREATE TABLE job_chunks (
  job_id bigint REFERENCES jobs (id),
  number integer,
  tenant_id integer NOT NULL,
  sha256 bytea NOT NULL,
  first_index integer NOT NULL,
  requests integer NOT NULL,
  images integer NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (job_id, number)
);

ALTER TABLE idempotency ADD COLUMN kind text NOT NULL DEFAULT 'job';

ALTER TABLE payloads ADD COLUMN output_compression smallint;

-- Every column is null or has a constant default. The index on render_key is built by the next migration.
ALTER TABLE results
  ADD COLUMN render_key bytea,
  ADD COLUMN reused boolean NOT NULL DEFAULT false;

ALTER TABLE counters ADD COLUMN reused integer NOT NULL DEFAULT 0;
ALTER TABLE counter_deltas ADD COLUMN reused integer NOT NULL DEFAULT 0;

CREATE TABLE render_rates (
  model_revision text,
  width integer,
  height integer,
  steps smallint,
  guided boolean,
  device text,
  images bigint NOT NULL,
  seconds_per_image double precision NOT NULL,
  deviation double precision NOT NULL,
  measured_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (model_revision, width, height, steps, guided, device)
) WITH (fillfactor = 70);

CREATE TABLE exports (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  job_id bigint NOT NULL REFERENCES jobs (id),
  format text NOT NULL,
  options jsonb NOT NULL DEFAULT '{}',
  state text NOT NULL DEFAULT 'queued',
  images_total integer NOT NULL DEFAULT 0,
  images_done integer NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0,
  next_shard integer NOT NULL DEFAULT 0,
  next_index integer NOT NULL DEFAULT 0,
  error text,
  created_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  expires_at timestamptz,
  CONSTRAINT exports_format CHECK (format IN ('webdataset','parquet','imagefolder','zip')),
  CONSTRAINT exports_state CHECK (state IN ('queued','running','completed','failed','cancelled')),
  CONSTRAINT exports_finished CHECK ((state IN ('completed','failed','cancelled')) = (finished_at IS NOT NULL))
);
CREATE INDEX exports_job ON exports (job_id, id);
CREATE INDEX exports_live ON exports (id) WHERE finished_at IS NULL;

CREATE TABLE export_files (
  export_id bigint REFERENCES exports (id) ON DELETE CASCADE,
  path text,
  tenant_id integer NOT NULL,
  shard integer NOT NULL,
  bytes bigint NOT NULL,
  sha256 bytea NOT NULL,
  images integer NOT NULL,
  object_key text NOT NULL,
  PRIMARY KEY (export_id, path)
);

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['files', 'uploads', 'upload_parts', 'job_chunks', 'exports', 'export_files'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format('CREATE POLICY tenant ON %I USING ((SELECT presswork_house()) '
                   'OR tenant_id = (SELECT presswork_tenant()))', name);
  END LOOP;
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT SELECT, INSERT, UPDATE ON files, uploads, upload_parts, job_chunks, render_rates, exports, export_files
      TO presswork_app;
    GRANT DELETE ON files, uploads, upload_parts, job_chunks, render_rates, exports, export_files, duties
      TO presswork_app;
  END IF;
  IF to_regrole('presswork_reader') IS NOT NULL THEN
    GRANT SELECT ON files, uploads, job_chunks, render_rates, exports, export_files TO presswork_reader;
  END IF;
END $$;
