"""The rights of the programs' roles at the database: each program's own statements, and nothing else.

The statements are those that a program's code reaches (tests/reach.py). Postgres checks rights when it explains one.
"""

from collections.abc import Iterator
from functools import cache

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.dialects import postgresql

from migrations import rights
from services.core.db import database as databases
from services.core.db import partitions
from tests import programs, reach

_DIALECT = postgresql.dialect(paramstyle="numeric_dollar")
_BY_ALEMBIC = "alembic_version"  # which reads it by a statement of its own
# What web servers do in a tenant's transactions alone.
_OF_TENANTS = {
    ("services.core.jobs.submissions", "Submission"),
    ("services.core.fleet.models", "registry"),
}


def _commands(*names: str) -> list[reach.Place]:
    """What the commands do that an operator runs with the address of a program's."""
    return [place for name in names for place in reach.places(f"services.cli.{name}")]


@cache
def statements(role: str) -> tuple[str, ...]:
    """The statements that a program runs as its role, as Postgres prepares them."""
    match role:
        case "presswork_web":
            roots = [
                *reach.with_system_transactions("services.api"),
                *reach.with_system_transactions("services.dashboard"),
                *_commands("doctor", "keys"),
            ]
        case "presswork_scheduler":
            roots = [*reach.places("scheduler"), *_commands("backup", "model_move", "storage")]
        case _:
            roots = [place for place in reach.places("worker") if not place[0].startswith("worker.model")]
    without = _OF_TENANTS if role == "presswork_web" else set()
    texts = reach.statements(roots, without)
    compiled = (str(text(sql).compile(dialect=_DIALECT)) for sql in texts.values())
    return tuple(sorted(sql for sql in compiled if not sql.startswith("SET ")))  # that takes no right


@pytest.fixture
def looking(stack, template) -> Iterator[psycopg.Connection]:
    """The owner of everything, in the database that others copy: for what is rolled back."""
    with psycopg.connect(f"{stack.superuser_url.rpartition('/')[0]}/{template}".replace("+psycopg", "")) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def admin(stack, database_url) -> Iterator[psycopg.Connection]:
    """The owner of everything, in the test's own database."""
    name = database_url.rpartition("/")[2]
    url = f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        yield connection


def refused(connection: psycopg.Connection, role: str, sql: str) -> str:
    """What the role lacks for the statement, or nothing."""
    connection.execute("SAVEPOINT before")
    try:
        connection.execute(f"SET LOCAL ROLE {role}")
        connection.execute(f"EXPLAIN (GENERIC_PLAN) {sql}".encode())
    except psycopg.errors.InsufficientPrivilege as error:
        return str(error)
    finally:
        connection.execute("ROLLBACK TO SAVEPOINT before")
    return ""


@pytest.mark.parametrize("role", rights.RIGHTS)
def test_a_program_may_run_each_of_its_statements(looking, role):
    assert len(statements(role)) > 20
    assert {sql: why for sql in statements(role) if (why := refused(looking, role, sql))} == {}


@pytest.mark.parametrize("role", rights.RIGHTS)
def test_every_right_is_one_that_a_statement_needs(looking, role):
    idle = set()
    for table, column, word in sorted(rights.wanted(role)):
        if table != _BY_ALEMBIC and not _is_needed(looking, role, table, column, word):
            idle.add((table, column, word))
    assert sorted(idle) == []


def test_migrating_again_gives_and_takes_until_the_rights_are_these(stack, database_url, admin):
    for statement in (
        "GRANT DELETE, TRUNCATE ON jobs TO presswork_worker",
        "GRANT UPDATE (name) ON tenants TO presswork_worker",
        "GRANT EXECUTE ON FUNCTION presswork_delete_job TO presswork_worker",
        "REVOKE ALL ON jobs, events, images_default FROM presswork_scheduler",
        "ALTER POLICY system ON jobs TO presswork_app, presswork_migrator",
    ):
        admin.execute(statement)
    admin.commit()
    databases.migrate(f"{stack.migrator_url.rpartition('/')[0]}/{database_url.rpartition('/')[2]}")
    right = "SELECT has_table_privilege('presswork_worker', 'jobs', 'DELETE, TRUNCATE'), "
    right += "has_column_privilege('presswork_worker', 'tenants', 'name', 'UPDATE'), "
    right += "has_function_privilege('presswork_worker', 'presswork_delete_job(bigint, integer)', 'EXECUTE')"
    assert admin.execute(right).fetchone() == (False, False, False)
    for role in rights.RIGHTS:
        assert [sql for sql in statements(role) if refused(admin, role, sql)] == []
    policy = "SELECT polroles @> ARRAY['presswork_web'::regrole, 'presswork_worker'::regrole]::oid[] FROM pg_policy "
    assert admin.execute(policy + "WHERE polname = 'system' AND polrelid = 'jobs'::regclass").fetchone() == (True,)


def test_of_the_partitions_a_scheduler_may_fill_those_that_a_file_becomes(stack, database_url, admin):
    scheduler = databases.Database(programs.address("scheduler", database_url), application="tests")
    with scheduler.begin_system() as connection:
        assert partitions.make_partitions(connection, weeks=8) == 9
    scheduler.close()
    found = admin.execute(
        "SELECT relname, grantee::regrole::text, privilege_type FROM pg_class, aclexplode(relacl) WHERE relispartition "
        "AND relkind = 'r' AND grantee IN (SELECT oid FROM pg_roles WHERE rolname = ANY(%s))",
        [list(rights.RIGHTS)],
    ).fetchall()
    leaves = admin.execute("SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'").fetchall()
    filled = {name for (name,) in leaves if not name.startswith("results")}
    assert len(filled) == 2 * 9
    assert set(found) == {(name, "presswork_scheduler", "INSERT") for name in filled}


def _is_needed(admin, role, table, column, word) -> bool:
    """Whether a statement is refused without that right. The view of the counts reads two tables."""
    names = (table, "job_counts") if table in ("counters", "counter_deltas") else (table,)
    concerned = [sql for sql in statements(role) if any(name in sql for name in names)]
    with admin.transaction(force_rollback=True):
        place = f"{word} ({column})" if column else word
        admin.execute(f"REVOKE {place} ON {table} FROM {role}")
        return any(refused(admin, role, sql) for sql in concerned)
