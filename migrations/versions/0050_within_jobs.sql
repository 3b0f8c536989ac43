-- Of a job that is being looked at, the images up to this one are done. A scheduler of the release before begins that
-- job again, and counts its images twice in that run.
ALTER TABLE storage_audits ADD COLUMN in_job bigint NOT NULL DEFAULT 0, ADD COLUMN at_index integer NOT NULL DEFAULT -1;
