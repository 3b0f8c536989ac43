"""Where published versions of catalogues are copied to, and the objects that lie there."""

from pathlib import Path

from alembic import op
from sqlalchemy import Connection, text

revision = "0027"
down_revision = "0026"

_OF_A_CATALOGUE = "EXISTS (SELECT FROM catalogues WHERE catalogues.id = catalogue_id OFFSET 0)"  # as in 0011
_OWN_ROWS = {
    "catalogue_destinations": "tenant_id = (SELECT presswork_tenant())",
    "catalogue_copies": _OF_A_CATALOGUE,
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
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
    _protect(connection)
    connection.exec_driver_sql("GRANT UPDATE ON catalogue_destinations TO presswork_tenant")


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
