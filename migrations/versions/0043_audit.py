"""The audit trail: administrative acts, kept for longer than other events, and sealed in ranges."""

from pathlib import Path

from alembic import op
from sqlalchemy import text

revision = "0043"
down_revision = "0042"

_ROLES = text("""
SELECT to_regrole('presswork_app')::text AS application, to_regrole('presswork_reader')::text AS reader,
       quote_ident(current_user) AS me
""")
_POLICIES = """
ALTER TABLE audit_seals ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_seals FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON audit_seals TO {system} USING ((SELECT presswork_house()));
CREATE POLICY tenant ON audit_seals TO {system}, presswork_tenant USING (tenant_id = (SELECT presswork_tenant()));
GRANT SELECT ON audit_seals, audit_cursor TO presswork_tenant;
"""


def upgrade() -> None:
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
    roles = connection.execute(_ROLES).one()
    system = ", ".join(sorted({roles.application, roles.reader, roles.me} - {None}))
    connection.exec_driver_sql(_POLICIES.format(system=system))
    if roles.application is not None:
        connection.exec_driver_sql(f"GRANT SELECT, INSERT ON audit_seals TO {roles.application}")
        connection.exec_driver_sql(f"GRANT SELECT, UPDATE (sealed_seq) ON audit_cursor TO {roles.application}")
        function = "presswork_forget_trail(integer, integer)"
        connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {function} TO {roles.application}")
    if roles.reader is not None:
        connection.exec_driver_sql(f"GRANT SELECT ON audit_seals, audit_cursor TO {roles.reader}")
