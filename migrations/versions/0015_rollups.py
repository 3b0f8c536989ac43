"""What is kept for those who look: rates by minute and hour, a job's accelerator-seconds, failures by cause, marks."""

from pathlib import Path

from alembic import op
from sqlalchemy import Connection, text

revision = "0015"
down_revision = "0014"

_OF_A_TENANT = "tenant_id = (SELECT presswork_tenant())"
_OF_A_JOB = "EXISTS (SELECT FROM jobs WHERE jobs.id = job_id OFFSET 0)"  # as in 0011
_OWN_ROWS = {
    "rates": _OF_A_TENANT,
    "failure_hours": _OF_A_TENANT,
    "failure_deltas": _OF_A_JOB,
    "failure_counts": _OF_A_JOB,
    "marks": _OF_A_JOB,
    "mark_counts": _OF_A_JOB,
}
_ROLES = text("""
SELECT to_regrole('presswork_app')::text AS application, to_regrole('presswork_reader')::text AS reader,
       quote_ident(current_user) AS me
""")
_POLICIES = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON {table} TO {system} USING ((SELECT presswork_house()));
CREATE POLICY tenant ON {table} TO {system}, presswork_tenant USING ({own_rows});
GRANT SELECT ON {table} TO presswork_tenant;
"""


def upgrade() -> None:
    connection = op.get_bind()
    with op.get_context().autocommit_block():
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = '10min'")  # it waits for every transaction under way
        connection.exec_driver_sql("DROP INDEX CONCURRENTLY IF EXISTS failures_cause")  # one that was cut off
        connection.exec_driver_sql("CREATE INDEX CONCURRENTLY failures_cause ON failures (job_id, code, index)")
        connection.exec_driver_sql("SET statement_timeout = '10min'")
        connection.exec_driver_sql("SET lock_timeout = '10s'")
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
    _protect(connection)
    connection.exec_driver_sql("GRANT INSERT, UPDATE, DELETE ON marks TO presswork_tenant")
    connection.exec_driver_sql("GRANT INSERT, UPDATE ON mark_counts TO presswork_tenant")


def _protect(connection: Connection) -> None:
    """Row-level security of the new tables, and the rights of the roles that this migration finds."""
    roles = connection.execute(_ROLES).one()
    system = ", ".join(sorted({roles.application, roles.reader, roles.me} - {None}))
    for table, own_rows in _OWN_ROWS.items():
        connection.exec_driver_sql(_POLICIES.format(table=table, system=system, own_rows=own_rows))
        if roles.application is not None:
            connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {roles.application}")
        if roles.reader is not None:
            connection.exec_driver_sql(f"GRANT SELECT ON {table} TO {roles.reader}")
