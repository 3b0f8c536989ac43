"""Deliveries of one state and one type are listed by an index."""

from alembic import op

revision = "0044"
down_revision = "0043"

_NAME = "webhook_deliveries_of_both"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        connection = op.get_bind()
        connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}")  # one that was cut off
        connection.exec_driver_sql(
            f"CREATE INDEX CONCURRENTLY {_NAME} ON webhook_deliveries (endpoint_id, state, type, id)"
        )
