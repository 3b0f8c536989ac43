"""What people are told: a job's rate notes the seconds behind it, so that the rate of a moment is not taken for the
job's; a job counts its requests without a seed, of which `dedupe` can reuse nothing; a worker says how it starts."""

from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    op.get_bind().execution_options(no_parameters=True).exec_driver_sql(sql)
