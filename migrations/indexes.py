"""Builds indexes of tables that are in use, so that no other session waits for it.

Such a build stands in no transaction. If the migration is interrupted and run again, it begins anew.
"""

from collections.abc import Mapping

from alembic import op


def build(indexes: Mapping[str, str]) -> None:
    """Builds each index: its name, and its table with columns and condition. Each build waits for the transactions
    that were under way when it began. Call it before anything else of the migration: it commits what came before."""
    connection = op.get_bind()
    with op.get_context().autocommit_block():
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = '10min'")
        for name, on in indexes.items():
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # one that was cut off
            connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY {name} ON {on}")
        connection.exec_driver_sql("SET statement_timeout = '10min'")
        connection.exec_driver_sql("SET lock_timeout = '10s'")
