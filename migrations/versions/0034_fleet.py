"""Mixed fleets: classes that a job may ask for, and when a worker will be free."""

from pathlib import Path

from alembic import op
from sqlalchemy import text

revision = "0034"
down_revision = "0033"

_READERS = text("""
SELECT quote_ident(name) AS role, name <> 'presswork_reader' AND name <> 'presswork_tenant' AS writes
FROM unnest(ARRAY['presswork_app', 'presswork_tenant', 'presswork_reader']) AS name WHERE to_regrole(name) IS NOT NULL
""")


def upgrade() -> None:
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
    for role, writes in connection.execute(_READERS).all():
        rights = "SELECT, INSERT, UPDATE, DELETE" if writes else "SELECT"
        connection.exec_driver_sql(f"GRANT {rights} ON model_classes TO {role}")
