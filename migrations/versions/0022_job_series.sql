-- From series_at on, when a worker first claimed images of the job, in spans of series_seconds. What programs of the
-- release before fold is missing.
ALTER TABLE counters ADD COLUMN series_at timestamptz, ADD COLUMN series_seconds integer,
  ADD COLUMN series_done integer[], ADD COLUMN series_failed integer[];
