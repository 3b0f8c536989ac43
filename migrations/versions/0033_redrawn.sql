-- A picture that a review has drawn again with another seed is an image of another job. `redraws`: how often its seed was
-- exchanged, which decides the seed.
ALTER TABLE catalogue_changes
  ADD COLUMN redraws integer NOT NULL DEFAULT 0,
  ADD COLUMN job_id bigint,
  ADD COLUMN index integer,
  ADD CONSTRAINT catalogue_changes_redrawn CHECK ((job_id IS NULL) = (index IS NULL));
CREATE INDEX catalogue_changes_redrawn ON catalogue_changes (run_id, position) WHERE job_id IS NOT NULL;
ALTER TABLE catalogue_runs ADD COLUMN redraw_jobs bigint[] NOT NULL DEFAULT '{}';
GRANT UPDATE (redraws, job_id, index, request, render_key) ON catalogue_changes TO presswork_tenant;

-- When what public links show was exchanged last: no two moments of a catalogue lie in one second.
ALTER TABLE catalogues ADD COLUMN moved_at timestamptz;
UPDATE catalogues SET moved_at = now() WHERE published IS NOT NULL;

ALTER TABLE catalogue_destinations DROP COLUMN before;
