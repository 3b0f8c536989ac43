"""A schedule may run a catalogue: its run then has a run of the catalogue in place of a job."""

from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    op.execute("""
ALTER TABLE schedule_runs ADD COLUMN catalogue_run_id bigint, DROP CONSTRAINT schedule_runs_job,
  ADD CONSTRAINT schedule_runs_job CHECK (
    state NOT IN ('running', 'completed', 'failed', 'expired') OR coalesce(job_id, catalogue_run_id) IS NOT NULL)
""")
