-- No tenant's transaction reads it: the cookie says which tenant it is. A cookie has 256 random bits, so its sha256 is
-- enough; whoever reads the table cannot sign in with it.
CREATE TABLE sessions (
  sha256 bytea PRIMARY KEY,
  key_id text NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
  created_at timestamptz NOT NULL DEFAULT now(),
  expires_at timestamptz NOT NULL,
  CONSTRAINT sessions_sha256 CHECK (octet_length(sha256) = 32)
);
CREATE INDEX sessions_expired ON sessions (expires_at);

DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT SELECT, INSERT, DELETE ON sessions TO presswork_app;
  END IF;
END $$;
