-- A catalogue: a source of items whose pictures are kept up to date, and published as a whole.
CREATE TABLE catalogues (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  name text NOT NULL,
  public_id text NOT NULL,
  definition jsonb NOT NULL,
  file_id bigint,
  version integer NOT NULL DEFAULT 0,
  published integer,
  announced integer,
  tidy_from timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz
);
CREATE UNIQUE INDEX catalogues_name ON catalogues (tenant_id, name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX catalogues_public ON catalogues (public_id);
CREATE INDEX catalogues_untidy ON catalogues (tenant_id, tidy_from) WHERE tidy_from IS NOT NULL;

-- A run compares the source with the version `base` (0: with nothing) and makes the version `version` of it. The columns
-- after `position` say how far the state's work has come.
CREATE TABLE catalogue_runs (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  catalogue_id bigint NOT NULL REFERENCES catalogues (id),
  state text NOT NULL,
  plan_only boolean NOT NULL,
  accept_removed boolean NOT NULL,
  definition jsonb NOT NULL,
  file_id bigint,
  base integer NOT NULL DEFAULT 0,
  version integer,
  job_id bigint,
  source jsonb NOT NULL DEFAULT '{}',
  counts jsonb NOT NULL DEFAULT '{}',
  position integer NOT NULL DEFAULT 0,
  error jsonb,
  deadline timestamptz,
  cancel_requested_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  planned_at timestamptz,
  rendered_at timestamptz,
  finished_at timestamptz,
  CONSTRAINT catalogue_runs_state CHECK (state IN ('queued','submitting','rendering','reviewing','writing',
    'planned','unchanged','published','kept','failed','cancelled')),
  CONSTRAINT catalogue_runs_finished CHECK (
    (state IN ('planned','unchanged','published','kept','failed','cancelled')) = (finished_at IS NOT NULL))
);
CREATE INDEX catalogue_runs_catalogue ON catalogue_runs (catalogue_id, id);
CREATE UNIQUE INDEX catalogue_runs_one ON catalogue_runs (catalogue_id) WHERE finished_at IS NULL AND NOT plan_only;
CREATE INDEX catalogue_runs_waiting ON catalogue_runs (tenant_id, id) WHERE finished_at IS NULL;

-- What a run found to differ from its base. Those to be rendered come first: `position` is the image's index in the job.
CREATE TABLE catalogue_changes (
  run_id bigint NOT NULL REFERENCES catalogue_runs (id) ON DELETE CASCADE,
  position integer NOT NULL,
  item text COLLATE "C" NOT NULL,
  variant text COLLATE "C" NOT NULL,
  kind text NOT NULL,
  line integer,
  render_key bytea,
  request jsonb,
  model_revision text,
  outcome text,
  code text,
  message text,
  PRIMARY KEY (run_id, position),
  CONSTRAINT catalogue_changes_kind CHECK (kind IN ('new','changed','model','retried','broken','removed')),
  CONSTRAINT catalogue_changes_outcome CHECK (outcome IN ('done','failed','rejected','removed'))
);
CREATE INDEX catalogue_changes_kind ON catalogue_changes (run_id, kind, position);
CREATE INDEX catalogue_changes_troubled ON catalogue_changes (run_id, position) WHERE code IS NOT NULL;

CREATE TABLE catalogue_versions (
  catalogue_id bigint NOT NULL REFERENCES catalogues (id),
  version integer NOT NULL,
  run_id bigint NOT NULL,
  images integer NOT NULL,
  bytes bigint NOT NULL,
  manifests jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (catalogue_id, version)
);

-- The picture that an item's variant has from one version until before another: so a version costs what it changes.
CREATE TABLE catalogue_entries (
  catalogue_id bigint NOT NULL REFERENCES catalogues (id),
  item text COLLATE "C" NOT NULL,
  variant text COLLATE "C" NOT NULL,
  from_version integer NOT NULL,
  until_version integer,
  stale_from integer,
  render_key bytea NOT NULL,
  object_key text NOT NULL,
  sha256 bytea NOT NULL,
  bytes integer NOT NULL,
  request jsonb NOT NULL,
  model_revision text NOT NULL,
  reproducibility_class text NOT NULL,
  rendered_at timestamptz NOT NULL,
  job_id bigint NOT NULL,
  index integer NOT NULL,
  PRIMARY KEY (catalogue_id, item, variant, from_version),
  CONSTRAINT catalogue_entries_order CHECK (until_version > from_version)
);
CREATE INDEX catalogue_entries_open ON catalogue_entries (catalogue_id, from_version) WHERE until_version IS NULL;
CREATE INDEX catalogue_entries_closed ON catalogue_entries (catalogue_id, until_version) WHERE until_version IS NOT NULL;
CREATE INDEX catalogue_entries_object ON catalogue_entries (catalogue_id, object_key);
CREATE INDEX catalogue_entries_stale ON catalogue_entries (catalogue_id) WHERE stale_from IS NOT NULL AND until_version IS NULL;
