-- What a key says of the other sessions stands in the row.
ALTER TABLE sessions
  ALTER COLUMN key_id DROP NOT NULL,
  ADD COLUMN user_tenant integer REFERENCES tenants (id),
  ADD COLUMN user_name text,
  ADD COLUMN user_scopes text[],
  ADD CONSTRAINT sessions_whose CHECK ((key_id IS NULL) = (user_name IS NOT NULL AND user_tenant IS NOT NULL
    AND user_scopes IS NOT NULL));
