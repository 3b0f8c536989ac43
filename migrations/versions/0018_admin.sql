-- Null: a program of the release before made it, and its event is gone.
ALTER TABLE api_keys ADD COLUMN created_by text;
UPDATE api_keys SET created_by = (
  SELECT actor FROM events WHERE subject = 'key/' || api_keys.id AND kind = 'key.issued' ORDER BY seq LIMIT 1
);
