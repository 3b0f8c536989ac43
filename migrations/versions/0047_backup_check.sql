-- Of a run that `presswork backup check` asked for: whatever it finds, it deletes nothing. The release before has no
-- such runs, and its schedulers do not look.
ALTER TABLE storage_audits ADD COLUMN keeps_orphans boolean NOT NULL DEFAULT false;
