"""Who may do what, and who did it: API keys have scopes and an expiry, and say when they were last used; the acts among
the events have indexes, built concurrently, so no other session waits; devices can be drained."""

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0015"

_ACTS = """kind NOT IN ('job.queued', 'job.started', 'job.finalizing', 'job.completed', 'job.failed', 'job.cancelled',
  'job.expired', 'job.refused', 'export.completed', 'export.failed')"""
_INDEXES = {
    "events_acts": "(tenant_id, seq)",
    "events_acts_actor": "(tenant_id, actor, seq)",
    "events_acts_kind": "(tenant_id, kind, seq)",
}
_INVALID = "SELECT FROM pg_index WHERE indexrelid = to_regclass(%(name)s) AND NOT indisvalid"


def upgrade() -> None:
    connection = op.get_bind()
    with op.get_context().autocommit_block():
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = '10min'")  # it waits for every transaction under way
        for name, columns in _INDEXES.items():
            if connection.exec_driver_sql(_INVALID, {"name": name}).first() is not None:
                connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
            connection.exec_driver_sql(
                f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON events {columns} WHERE {_ACTS}"
            )
        connection.exec_driver_sql("SET statement_timeout = '10min'")
        connection.exec_driver_sql("SET lock_timeout = '10s'")
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
