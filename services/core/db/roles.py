"""What the role that this process connects as may do beyond what Presswork's programs do."""

from sqlalchemy import Connection

from services.core.db.statements import statement

_SURPLUS = statement("roles.surplus")("""
SELECT rolname,
       rolsuper AS "is a superuser",
       rolbypassrls AND NOT rolsuper AS "bypasses row-level security",
       rolcreaterole AND NOT rolsuper AS "may create roles",
       rolcreatedb AND NOT rolsuper AS "may create databases",
       rolreplication AND NOT rolsuper AS "may read the whole server's log of changes",
       owns.jobs AND NOT rolsuper AS "owns the tables",
       has_schema_privilege('public', 'CREATE') AND NOT rolsuper AND NOT owns.jobs AS "may create tables",
       has_database_privilege(current_database(), 'CREATE') AND NOT rolsuper AND NOT owns.jobs AS "may create schemas"
FROM pg_roles, (SELECT pg_has_role(relowner, 'MEMBER') AS jobs FROM pg_class WHERE oid = 'jobs'::regclass) AS owns
WHERE rolname = current_user
""")


def surplus(connection: Connection) -> str:
    """A sentence about rights that no program needs; empty if there are none."""
    row = connection.execute(_SURPLUS).mappings().one()
    found = [str(right) for right, holds in row.items() if holds is True]
    if not found:
        return ""
    return (
        f"The role {row['rolname']} {', '.join(found)}: let web servers, schedulers and workers connect as "
        "presswork_web, presswork_scheduler and presswork_worker."
    )
