"""The role of a tenant's transactions, presswork_tenant. The application's own role sees every tenant's rows.

Each table is changed in a transaction of its own: nobody waits for two of them, so nothing can deadlock. If the
migration is interrupted and run again, it repeats what it has done.
"""

from pathlib import Path

from alembic import op
from sqlalchemy import Connection, exc, text

from services.core.model.errors import Conflict

revision = "0009"
down_revision = "0008"

_ROLES = text("""
SELECT to_regrole('presswork_tenant') IS NOT NULL AS is_there,
       coalesce(to_regrole('presswork_app')::text, quote_ident(current_user)) AS application,
       quote_ident(pg_get_userbyid((SELECT relowner FROM pg_class WHERE oid = 'jobs'::regclass))) AS owner,
       to_regrole('presswork_reader')::text AS reader, quote_ident(current_user) AS me
""")
_IS_MEMBER = text("SELECT pg_has_role(CAST(CAST(:role AS regrole) AS oid), 'presswork_tenant', 'MEMBER')")
_OF_A_JOB = "EXISTS (SELECT FROM jobs WHERE jobs.id = job_id)"
_OF_A_TENANT = "tenant_id = (SELECT presswork_tenant())"
_OWN_ROWS = {
    "tenants": "id = (SELECT presswork_tenant())",
    **dict.fromkeys(("api_keys", "jobs", "idempotency", "segments", "files", "uploads", "upload_parts"), _OF_A_TENANT),
    **dict.fromkeys(("job_chunks", "exports", "export_files", "events"), _OF_A_TENANT),
    **dict.fromkeys(("images", "payloads", "results", "failures", "counters", "counter_deltas"), _OF_A_JOB),
}
_POLICIES = """
DROP POLICY IF EXISTS system ON {table};
CREATE POLICY system ON {table} TO {system} USING ((SELECT presswork_house()));
ALTER POLICY tenant ON {table} TO {system}, presswork_tenant USING ({own_rows});
"""


def upgrade() -> None:
    connection = op.get_bind()
    roles = connection.execute(_ROLES).one()
    _make_role(connection, roles.application, is_there=roles.is_there)
    named = {roles.application, roles.reader, roles.owner, roles.me}
    system = ", ".join(sorted(named - {None}))
    with op.get_context().autocommit_block():
        for table, own_rows in _OWN_ROWS.items():
            connection.exec_driver_sql(_POLICIES.format(table=table, system=system, own_rows=own_rows))
        connection.exec_driver_sql(f"ALTER POLICY house ON claims TO {system}")
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)


def _make_role(connection: Connection, application: str, *, is_there: bool) -> None:
    """Creates the role, if it is missing, and lets the application's role act as it.

    Raises:
        Conflict: the migrator's role may not do that; says what an administrator has to run.
    """
    wanted = [] if is_there else ["CREATE ROLE presswork_tenant"]
    if not is_there or not connection.execute(_IS_MEMBER, {"role": application}).scalar_one():
        wanted.append(f"GRANT presswork_tenant TO {application}")
    try:
        with connection.begin_nested():
            for statement in wanted:
                connection.exec_driver_sql(statement)
    except exc.ProgrammingError as error:
        raise Conflict(
            "The migration may not make the database's role for tenants: let an administrator run "
            f"`{'; '.join(wanted)};`, then run `presswork migrate` again."
        ) from error
