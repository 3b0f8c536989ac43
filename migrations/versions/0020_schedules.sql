-- What is submitted at set times. `next_at` is the instant of the next run: null while the schedule is paused, and when
-- it fires no more.
CREATE TABLE schedules (
  id bigint PRIMARY KEY,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  name text NOT NULL,
  cron text,
  at timestamptz,
  timezone text NOT NULL,
  target_kind text NOT NULL,
  target text NOT NULL,
  base_url text NOT NULL,
  misfire text NOT NULL,
  misfire_limit smallint NOT NULL,
  overlap text NOT NULL,
  deadline text,
  paused boolean NOT NULL,
  next_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  changed_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT schedules_name UNIQUE (tenant_id, name),
  CONSTRAINT schedules_times CHECK ((cron IS NULL) <> (at IS NULL)),
  CONSTRAINT schedules_misfire CHECK (misfire IN ('latest', 'all', 'none') AND misfire_limit BETWEEN 1 AND 100),
  CONSTRAINT schedules_overlap CHECK (overlap IN ('skip', 'queue', 'cancel')),
  CONSTRAINT schedules_paused CHECK (NOT paused OR next_at IS NULL)
);
CREATE INDEX schedules_due ON schedules (tenant_id, next_at) WHERE next_at IS NOT NULL;

-- One row for each instant of a schedule, whoever finds that it is due. A run is `waiting` for the one before it,
-- `submitting`, and `running` once its job is recorded, in the transaction that records the job.
CREATE TABLE schedule_runs (
  id bigint PRIMARY KEY,
  schedule_id bigint NOT NULL REFERENCES schedules (id) ON DELETE CASCADE,
  tenant_id integer NOT NULL REFERENCES tenants (id),
  instant timestamptz NOT NULL,
  state text NOT NULL,
  asked_by text,
  job_id bigint,
  reason text,
  deadline_at timestamptz,
  raised smallint NOT NULL DEFAULT 0,
  warned_at timestamptz,
  missed_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  submitted_at timestamptz,
  finished_at timestamptz,
  CONSTRAINT schedule_runs_instant UNIQUE (schedule_id, instant),
  CONSTRAINT schedule_runs_state CHECK (state IN ('waiting', 'submitting', 'running', 'completed', 'failed',
    'cancelled', 'expired', 'skipped', 'refused')),
  CONSTRAINT schedule_runs_finished CHECK
    ((state IN ('waiting', 'submitting', 'running')) = (finished_at IS NULL)),
  CONSTRAINT schedule_runs_job CHECK (state NOT IN ('running', 'completed', 'failed', 'expired') OR job_id IS NOT NULL)
);
CREATE INDEX schedule_runs_submitting ON schedule_runs (tenant_id, id) WHERE state = 'submitting';
CREATE INDEX schedule_runs_live ON schedule_runs (schedule_id, instant) WHERE finished_at IS NULL;
CREATE INDEX schedule_runs_finished ON schedule_runs (finished_at) WHERE finished_at IS NOT NULL;
