"""The migrated schema against the tables that the code knows, and the walls that stand in it."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from services.core import database as databases
from services.core import leadership, tables
from services.core.errors import UnfitDatabase
from tests import factories


def test_the_migrations_make_exactly_the_tables_that_the_code_knows(stack, template):
    engine = create_engine(stack.migrator_url)
    ours = set(tables.metadata.tables)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_name": lambda name, kind, _parents: kind != "table" or name in ours,
            },
        )
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


def test_the_application_is_no_superuser_and_the_database_is_durable(database):
    assert databases.assert_fit(database) == []


def test_a_database_that_could_lose_commits_is_refused(stack, template, database_url):
    engine = create_engine(stack.superuser_url.rpartition("/")[0] + "/" + database_url.rpartition("/")[2])
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(
            text("ALTER ROLE presswork_app SET synchronous_commit = off")
        )
        try:
            with pytest.raises(UnfitDatabase, match="synchronous_commit = off"):
                databases.assert_fit(databases.Database(database_url, application="t"))
        finally:
            connection.execute(text("ALTER ROLE presswork_app RESET synchronous_commit"))
    engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE images SET state = 9",
        "UPDATE images SET state = 1",  # rendering, and no claim
        "UPDATE counters SET queued = -1",
        "INSERT INTO counter_deltas (job_id, queued) VALUES (1, 1)",
        "UPDATE jobs SET state = 'completed'",  # finished, and never ended
        "UPDATE jobs SET state = 'lost'",
    ],
)
def test_the_database_itself_forbids_impossible_rows(database, settings, statement):
    factories.register(database)
    factories.submit(database, settings, 1)
    with pytest.raises(IntegrityError), database.begin() as connection:
        connection.execute(text(statement))


def test_the_application_can_neither_read_a_partition_nor_drop_one(database, settings):
    factories.register(database)
    leaf = tables.partition_name("payloads", factories.submit(database, settings, 1))
    for statement in (f"SELECT * FROM {leaf}", f"DROP TABLE {leaf}", "DELETE FROM images", "TRUNCATE payloads"):
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"), database.begin() as connection:
            connection.execute(text(statement))


def test_one_scheduler_leads_and_an_ex_leader_writes_nothing(database):
    with database.begin() as connection:
        first = leadership.lead(connection, "a", 30.0)
        assert leadership.lead(connection, "b", 30.0) is None
        assert leadership.lead(connection, "a", 30.0) == first
    with database.begin() as connection:
        connection.execute(text("UPDATE duties SET expires_at = now() - interval '1 second'"))
    with database.begin() as connection:
        second = leadership.lead(connection, "b", 30.0)
    assert second == first + 1
    with pytest.raises(leadership.NoLongerLeader), database.begin() as connection:
        leadership.assert_held(connection, "a", first)
    with database.begin() as connection:
        leadership.assert_held(connection, "b", second)
