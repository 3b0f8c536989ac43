"""Retention, deleting a tenant, and the storage auditor."""

from pathlib import Path

from alembic import op
from sqlalchemy import text

from migrations import indexes

revision = "0042"
down_revision = "0041"

_INDEXES = {
    "jobs_retained": "jobs (tenant_id, finished_at) WHERE finished_at IS NOT NULL AND deleted_at IS NULL",
    "failures_age": "failures (failed_at)",
}
_OF_TENANTS = ("retention_rules", "retention_work")
_OF_THE_SYSTEM = ("tenant_deletions", "storage_mark", "storage_audits", "storage_orphans", "storage_findings")
_FUNCTIONS = (
    "presswork_erase_payloads(bigint, bigint, bigint)", "presswork_drop_partitions(integer)",
    "presswork_is_condemned(bigint)", "presswork_condemn_tenant(integer)", "presswork_tenant_tables()",
    "presswork_delete_tenant_rows(integer, text[], integer)", "presswork_count_tenant_rows(integer)",
    "presswork_delete_tenant(integer)", "presswork_forget_failures(integer, integer)",
)  # fmt: skip
_ROLES = text("""
SELECT to_regrole('presswork_app')::text AS application, to_regrole('presswork_reader')::text AS reader,
       quote_ident(current_user) AS me
""")
_POLICIES = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY system ON {table} TO {system} USING ((SELECT presswork_house()));
GRANT SELECT ON {table} TO presswork_tenant;
"""
_TENANT = """
CREATE POLICY tenant ON {table} TO {system}, presswork_tenant USING (tenant_id = (SELECT presswork_tenant()));
"""


def upgrade() -> None:
    indexes.build(_INDEXES)
    connection = op.get_bind()
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
    roles = connection.execute(_ROLES).one()
    system = ", ".join(sorted({roles.application, roles.reader, roles.me} - {None}))
    for table in (*_OF_TENANTS, *_OF_THE_SYSTEM):
        connection.exec_driver_sql(_POLICIES.format(table=table, system=system))
        if table in _OF_TENANTS:
            connection.exec_driver_sql(_TENANT.format(table=table, system=system))
        if roles.application is not None:
            connection.exec_driver_sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {roles.application}")
        if roles.reader is not None:
            connection.exec_driver_sql(f"GRANT SELECT ON {table} TO {roles.reader}")
    connection.exec_driver_sql("GRANT INSERT, UPDATE ON retention_rules TO presswork_tenant")
    for function in _FUNCTIONS:
        connection.exec_driver_sql(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
        if roles.application is not None:
            connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION {function} TO {roles.application}")
