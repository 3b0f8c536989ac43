-- Keys that exist, and those that programs of the release before make, have every scope: what worked goes on working.
ALTER TABLE api_keys
  ADD COLUMN scopes text[] NOT NULL DEFAULT '{view,submit,operate,admin}',
  ADD COLUMN expires_at timestamptz,
  ADD COLUMN last_used_at timestamptz,
  ADD CONSTRAINT api_keys_scopes CHECK (scopes <> '{}' AND scopes <@ '{view,submit,operate,admin}'::text[]);
