-- A worker of the release before writes neither: its report is empty, and nobody knows when it was busy.
ALTER TABLE workers ADD COLUMN report jsonb NOT NULL DEFAULT '{}', ADD COLUMN busy_at timestamptz;
