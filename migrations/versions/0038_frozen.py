"""Datasets: what a version knew of its jobs, and the deletion of single versions."""

from pathlib import Path

from alembic import op

revision = "0038"
down_revision = "0035"


def upgrade() -> None:
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql)
