"""Terms that a tenant's content policy refuses, accepted licences, and the trace that a job belongs to."""

from pathlib import Path

from alembic import op
from sqlalchemy import Connection, text

revision = "0041"
down_revision = "0040"

_TABLES = {  # and what a tenant's transaction writes of them
    "policy_terms": "INSERT, DELETE",
    "license_acceptances": "INSERT",
}
_ROLES = text("""
SELECT to_regrole('presswork_app')::text AS application, to_regrole('presswork_reader')::text AS reader,
       quote_ident(current_user) AS me
""")
_POLICIES = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON {table} TO {system} USING ((SELECT presswork_house()));
CREATE POLICY tenant ON {table} TO {system}, presswork_tenant USING (tenant_id = (SELECT presswork_tenant()));
GRANT SELECT, {writes} ON {table} TO presswork_tenant;
"""


def upgrade() -> None:
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
    _protect(connection)


def _protect(connection: Connection) -> None:
    """Row-level security of the new tables, and the rights of the roles that this migration finds."""
    roles = connection.execute(_ROLES).one()
    system = ", ".join(sorted({roles.application, roles.reader, roles.me} - {None}))
    for table, writes in _TABLES.items():
        connection.exec_driver_sql(_POLICIES.format(table=table, system=system, writes=writes))
        if roles.application is not None:
            connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {roles.application}")
        if roles.reader is not None:
            connection.exec_driver_sql(f"GRANT SELECT ON {table} TO {roles.reader}")
