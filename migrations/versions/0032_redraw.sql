-- Image to image. A worker of the release before knows no input pictures and would begin with noise: no model takes any
-- until a worker of this release has registered it, so replace every worker before anybody asks for it.
ALTER TABLE models ADD COLUMN redraws boolean NOT NULL DEFAULT false;
ALTER TABLE segments ADD COLUMN first_step smallint NOT NULL DEFAULT 0;
ALTER TABLE payloads ADD COLUMN image text, ADD COLUMN strength double precision, ADD COLUMN image_key text,
  ADD COLUMN image_sha256 bytea;
ALTER TABLE files DROP CONSTRAINT files_purpose,
  ADD CONSTRAINT files_purpose CHECK (purpose IN ('batch', 'batch_output', 'vision'));

-- The files, and the jobs of the earlier images, that a job's images are redrawn from. While the job has not ended,
-- nobody deletes them.
CREATE TABLE job_inputs (
  job_id bigint REFERENCES jobs (id) ON DELETE CASCADE,
  kind text,
  thing bigint,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  PRIMARY KEY (job_id, kind, thing),
  CONSTRAINT job_inputs_kind CHECK (kind IN ('file', 'job'))
);
CREATE INDEX job_inputs_thing ON job_inputs (thing);
