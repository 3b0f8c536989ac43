"""Runs the migrations: as the role that owns the tables, under a lock timeout, one process at a time."""

from alembic import context
from sqlalchemy import create_engine, text

from services.core.db import database, tables
from services.core.settings import Settings

MIGRATION_LOCK = 7_209_411  # any number that only Presswork uses: two migrators wait for each other


def include_name(name: str | None, type_: str, _parents: object) -> bool:
    """Leaves out partitions: a periodic task makes them, and the metadata does not list them."""
    return type_ != "table" or name in tables.metadata.tables


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
            transaction_per_migration=True,  # one that builds an index concurrently must hold no locks of another
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    engine.dispose()


run()
