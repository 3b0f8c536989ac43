"""For those who look at catalogues: what went wrong by cause, and where two versions differ, in order."""

from alembic import op

revision = "0028"
down_revision = "0027"

_INDEXES = {
    "catalogue_changes_code": "catalogue_changes (run_id, code, position) WHERE code IS NOT NULL",
    "catalogue_entries_from": "catalogue_entries (catalogue_id, from_version, item, variant)",
    "catalogue_entries_until": "catalogue_entries (catalogue_id, until_version, item, variant) "
    "WHERE until_version IS NOT NULL",
}
_REPLACED = ("catalogue_entries_open", "catalogue_entries_closed")


def upgrade() -> None:
    connection = op.get_bind()
    with op.get_context().autocommit_block():
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = '10min'")  # it waits for every transaction under way
        for name, columns in _INDEXES.items():
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")  # one that was cut off
            connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY {name} ON {columns}")
        for name in _REPLACED:
            connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        connection.exec_driver_sql("SET statement_timeout = '10min'")
        connection.exec_driver_sql("SET lock_timeout = '10s'")
    op.execute("ALTER TABLE catalogue_runs ADD COLUMN causes jsonb NOT NULL DEFAULT '{}'")
