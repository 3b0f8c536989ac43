-- Null: a program of the release before made it, and its event is gone.
ALTER TABLE api_keys ADD COLUMN created_by text;
UPDATE api_keys SET created_by = (
  SELECT actor FROM events WHERE subject = 'key/' || api_keys.id AND kind = 'key.issued' ORDER BY seq LIMIT 1
);

-- Acts on every job that matches a filter, done by a background task: `reached` is the last job that it has come to, and
-- `last_job` the newest one when it was asked for.
CREATE TABLE bulk_acts (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  actor text NOT NULL,
  verb text NOT NULL,
  filter jsonb NOT NULL,
  options jsonb NOT NULL,
  state text NOT NULL DEFAULT 'running',
  jobs bigint NOT NULL,
  images bigint NOT NULL,
  is_all boolean NOT NULL,
  last_job bigint NOT NULL,
  reached bigint NOT NULL DEFAULT -1,
  done bigint NOT NULL DEFAULT 0,
  lost bigint NOT NULL DEFAULT 0,
  reasons jsonb NOT NULL DEFAULT '[]',
  created_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  CONSTRAINT bulk_acts_state CHECK (state IN ('running', 'completed', 'stopped')),
  CONSTRAINT bulk_acts_finished CHECK ((state = 'running') = (finished_at IS NULL))
);
CREATE INDEX bulk_acts_tenant ON bulk_acts (tenant_id, id);
CREATE INDEX bulk_acts_running ON bulk_acts (tenant_id, id) WHERE state = 'running';

-- Saved views: a page of the dashboard with its filter, under a name, shared within the tenant.
CREATE TABLE views (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  page text NOT NULL,
  name text NOT NULL,
  query text NOT NULL,
  created_by text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT views_name UNIQUE (tenant_id, page, name)
);

-- Links that sign a browser in once. Like sessions, they are no tenant's: the link says which key it is.
CREATE TABLE sign_in_links (
  sha256 bytea PRIMARY KEY,
  key_id text NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
  expires_at timestamptz NOT NULL,
  CONSTRAINT sign_in_links_sha256 CHECK (octet_length(sha256) = 32)
);
CREATE INDEX sign_in_links_expired ON sign_in_links (expires_at);
DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT SELECT, INSERT, DELETE ON sign_in_links TO presswork_app;
  END IF;
END $$;
