"""Runs the migrations: as the role that owns the tables, under a lock timeout, one process at a time."""

from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url, text

from migrations import rights
from services.core.db import database, revisions, sessions, tables
from services.core.model.errors import Conflict
from services.core.settings import Settings

# The newest revision of the release before this one: the schema serves its programs, and all that are newer.
OLDEST_PROGRAM = "0008"
MIGRATION_LOCK = 7_209_411  # any number that only Presswork uses: two migrators wait for each other
_PID = text("SELECT pg_backend_pid()")


def include_name(name: str | None, type_: str, _parents: object) -> bool:
    """Leaves out partitions: a periodic task makes them, and the metadata does not list them."""
    return type_ != "table" or name in tables.metadata.tables


def note_oldest_program(ctx: MigrationContext, step: object, heads: object, run_args: object) -> None:  # noqa: ARG001
    """Runs in the transaction of each migration."""
    assert ctx.connection is not None
    revisions.note(ctx.connection, OLDEST_PROGRAM)


def run() -> None:
    url = make_url(database.driver_url(context.config.attributes.get("url") or Settings.read().database_url))
    engine = create_engine(url, poolclass=NullPool, connect_args=sessions.connect_options(url))
    with engine.connect() as connection:
        refuse_transaction_pooler(engine, connection)
        connection.execute(text("SET search_path = public"))
        connection.execute(text("SET lock_timeout = '10min'"))
        connection.execute(text("SET statement_timeout = '10min'"))
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=tables.metadata,
            include_name=include_name,
            on_version_apply=note_oldest_program,
            transaction_per_migration=True,  # one that builds an index concurrently must hold no locks of another
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
        if revisions.of(connection) == context.get_head_revision():
            rights.apply(connection)


def refuse_transaction_pooler(engine: Engine, connection: Connection) -> None:
    """The lock and the timeouts stand in the session. Behind a pooler in transaction mode another client gets the same
    session, as soon as this one is between two transactions.

    Raises:
        Conflict: this is such a pooler.
    """
    driver = connection.connection.driver_connection
    if driver is None or not sessions.is_pooled(driver):
        return
    mine = connection.execute(_PID).scalar_one()
    connection.commit()
    with engine.connect() as other:
        shared = other.execute(_PID).scalar_one() == mine or connection.execute(_PID).scalar_one() != mine
    connection.commit()
    if shared:
        raise Conflict(
            "DATABASE_URL leads to a connection pooler in transaction mode, and a migration needs a session of its "
            "own: give `presswork migrate` the address of the server itself."
        )


run()
