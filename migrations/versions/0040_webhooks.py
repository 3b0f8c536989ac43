"""Webhooks: endpoints, deliveries and their tries."""

from pathlib import Path

from alembic import op
from sqlalchemy import text

revision = "0040"
down_revision = "0039"

_TABLES = ("webhook_endpoints", "webhook_deliveries", "webhook_tries")
_ROLES = text("""
SELECT to_regrole('presswork_app')::text AS application, to_regrole('presswork_reader')::text AS reader,
       quote_ident(current_user) AS me
""")
_POLICIES = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON {table} TO {system} USING ((SELECT presswork_house()));
CREATE POLICY tenant ON {table} TO {system}, presswork_tenant USING (tenant_id = (SELECT presswork_tenant()));
GRANT SELECT ON {table} TO presswork_tenant;
"""


def upgrade() -> None:
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
    roles = connection.execute(_ROLES).one()
    system = ", ".join(sorted({roles.application, roles.reader, roles.me} - {None}))
    for table in _TABLES:
        connection.exec_driver_sql(_POLICIES.format(table=table, system=system))
        if roles.application is not None:
            connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {roles.application}")
        if roles.reader is not None:
            connection.exec_driver_sql(f"GRANT SELECT ON {table} TO {roles.reader}")
    for role, rights in ((roles.application, "SELECT, UPDATE"), (roles.reader, "SELECT")):
        if role is not None:
            connection.exec_driver_sql(f"GRANT {rights} ON webhook_cursor TO {role}")
    connection.exec_driver_sql("GRANT SELECT ON webhook_cursor TO presswork_tenant")
    connection.exec_driver_sql("GRANT INSERT, UPDATE, DELETE ON webhook_endpoints TO presswork_tenant")
    connection.exec_driver_sql("GRANT INSERT, UPDATE ON webhook_deliveries TO presswork_tenant")
