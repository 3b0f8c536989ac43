-- Keys that exist, and those that programs of the release before make, have every scope: what worked goes on working.
ALTER TABLE api_keys
  ADD COLUMN scopes text[] NOT NULL DEFAULT '{view,submit,operate,admin}',
  ADD COLUMN expires_at timestamptz,
  ADD COLUMN last_used_at timestamptz,
  ADD CONSTRAINT api_keys_scopes CHECK (scopes <> '{}' AND scopes <@ '{view,submit,operate,admin}'::text[]);

-- Devices whose workers are to take nothing new, also when they are started again. The fleet belongs to no tenant.
CREATE TABLE drains (
  host text,
  device text,
  drained_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (host, device)
);
GRANT SELECT ON drains TO presswork_tenant;
DO $$
BEGIN
  IF to_regrole('presswork_app') IS NOT NULL THEN
    GRANT SELECT, INSERT, DELETE ON drains TO presswork_app;
  END IF;
  IF to_regrole('presswork_reader') IS NOT NULL THEN
    GRANT SELECT ON drains TO presswork_reader;
  END IF;
END $$;
