CREATE TABLE datasets (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  name text NOT NULL,
  format text NOT NULL,
  definition jsonb NOT NULL,
  version integer NOT NULL DEFAULT 0,
  last_number integer NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz
);
CREATE UNIQUE INDEX datasets_name ON datasets (tenant_id, name) WHERE deleted_at IS NULL;
CREATE INDEX datasets_deleted ON datasets (tenant_id, id) WHERE deleted_at IS NOT NULL;

CREATE TABLE dataset_versions (
  dataset_id bigint REFERENCES datasets (id) ON DELETE CASCADE,
  number integer,
  tenant_id integer NOT NULL,
  state text NOT NULL DEFAULT 'queued',
  while_running boolean NOT NULL DEFAULT false,
  definition jsonb NOT NULL,
  base integer NOT NULL DEFAULT 0,
  base_url text NOT NULL DEFAULT '',
  plan jsonb,
  removed bytea,
  images integer NOT NULL DEFAULT 0,
  images_to_write integer NOT NULL DEFAULT 0,
  images_written integer NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0,
  is_stored boolean NOT NULL DEFAULT true,
  error text,
  created_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  PRIMARY KEY (dataset_id, number),
  CONSTRAINT dataset_versions_state CHECK (state IN ('queued','running','completed','failed','cancelled')),
  CONSTRAINT dataset_versions_finished
    CHECK ((state IN ('completed','failed','cancelled')) = (finished_at IS NOT NULL))
);
-- One version of a dataset is written at a time.
CREATE UNIQUE INDEX dataset_versions_unfinished ON dataset_versions (dataset_id) WHERE finished_at IS NULL;
CREATE INDEX dataset_versions_waiting ON dataset_versions (tenant_id, dataset_id) WHERE finished_at IS NULL;
CREATE INDEX dataset_versions_dropped ON dataset_versions (tenant_id, dataset_id)
  WHERE state IN ('failed','cancelled') AND is_stored;

-- A shard stands in the versions from `since` on, as far as they are completed, and until before `until`.
CREATE TABLE dataset_shards (
  dataset_id bigint REFERENCES datasets (id) ON DELETE CASCADE,
  since integer,
  split text,
  ordinal integer,
  tenant_id integer NOT NULL,
  until integer,
  replaces integer,
  images integer NOT NULL,
  members bytea NOT NULL,
  is_written boolean NOT NULL DEFAULT false,
  PRIMARY KEY (dataset_id, since, split, ordinal)
);

CREATE TABLE dataset_files (
  dataset_id bigint REFERENCES datasets (id) ON DELETE CASCADE,
  since integer,
  path text,
  tenant_id integer NOT NULL,
  split text,
  ordinal integer,
  bytes bigint NOT NULL,
  sha256 bytea NOT NULL,
  images integer NOT NULL,
  object_key text NOT NULL,
  PRIMARY KEY (dataset_id, path, since)
);
CREATE INDEX dataset_files_shard ON dataset_files (dataset_id, since, split, ordinal, path);

-- The jobs that a version was made of, and how they were.
CREATE TABLE dataset_jobs (
  dataset_id bigint REFERENCES datasets (id) ON DELETE CASCADE,
  number integer,
  job_id bigint,
  tenant_id integer NOT NULL,
  root_id bigint NOT NULL,
  is_final boolean NOT NULL,
  marks text NOT NULL,
  images integer NOT NULL DEFAULT 0,
  PRIMARY KEY (dataset_id, number, job_id)
);
CREATE INDEX dataset_jobs_job ON dataset_jobs (job_id);
