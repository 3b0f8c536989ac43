-- Null in rows that a program of the release before has written.
ALTER TABLE failures ADD COLUMN worker_id text, ADD COLUMN claimed_at timestamptz;
