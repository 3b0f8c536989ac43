"""Runs the migrations: as the role that owns the tables, under a lock timeout, one process at a time."""

from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

from services.core.db import database, revisions, tables
from services.core.settings import Settings

# The newest revision of the release before this one: the schema serves its programs, and all that are newer.
OLDEST_PROGRAM = "0008"
MIGRATION_LOCK = 7_209_411  # any number that only Presswork uses: two migrators wait for each other


def include_name(name: str | None, type_: str, _parents: object) -> bool:
    """Leaves out partitions: a periodic task makes them, and the metadata does not list them."""
    return type_ != "table" or name in tables.metadata.tables


def note_oldest_program(ctx: MigrationContext, step: object, heads: object, run_args: object) -> None:  # noqa: ARG001
    """Runs in the transaction of each migration."""
    assert ctx.connection is not None
    revisions.note(ctx.connection, OLDEST_PROGRAM)


def run() -> None:
    url = context.config.attributes.get("url") or Settings.read().database_url
    engine = create_engine(database.driver_url(url))
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.execute(text("SET lock_timeout = '10s'"))
        connection.execute(text("SET statement_timeout = '10min'"))
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
    engine.dispose()


run()
