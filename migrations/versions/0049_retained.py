"""Retention reads only what is due, weeks are dropped in a moment, and what a deleted tenant left is looked for."""

from pathlib import Path

from alembic import op

revision = "0049"
down_revision = "0047"


def upgrade() -> None:
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql)
