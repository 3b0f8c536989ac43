CREATE TABLE policy_terms (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  term text NOT NULL,
  folded text NOT NULL,
  created_by text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX policy_terms_folded ON policy_terms (tenant_id, folded);

-- A row is never changed: a licence whose text has changed is accepted anew.
CREATE TABLE license_acceptances (
  tenant_id integer NOT NULL REFERENCES tenants (id),
  license text NOT NULL,
  sha256 bytea NOT NULL,
  accepted_by text NOT NULL,
  accepted_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant_id, license, sha256)
);

-- W3C Trace Context: the span under which the job was submitted.
ALTER TABLE jobs ADD COLUMN traceparent text;

-- A tenant's transaction records images that its content policy refuses, as failed.
GRANT INSERT ON failures, failure_deltas TO presswork_tenant;
