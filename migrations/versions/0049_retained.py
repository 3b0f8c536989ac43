"""Retention reads only what is due, weeks are dropped in a moment, and what a deleted tenant left is looked for."""

from pathlib import Path

from alembic import op

from migrations import indexes

revision = "0049"
down_revision = "0047"

# What retention looks for: jobs of a tenant that keep something, by their ends, and those with days of their own.
_ENDED = "jobs (tenant_id, finished_at) WHERE finished_at IS NOT NULL AND deleted_at IS NULL AND"
_INDEXES = {
    "jobs_with_payloads": f"{_ENDED} payloads_erased_at IS NULL",
    "jobs_with_objects": f"{_ENDED} objects_deleted_at IS NULL",
    "jobs_with_own_retention": f"{_ENDED} retention IS NOT NULL",
}


def upgrade() -> None:
    indexes.build(_INDEXES)
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql)
