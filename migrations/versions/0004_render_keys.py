"""The index that finds an earlier image of the same render key. It is built concurrently, so no other session waits.

Postgres cannot build the index of a partitioned table concurrently, but it can build those of the partitions; the
table's index is then assembled from them. If the migration is interrupted and run again, it continues where it stopped.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

_LEAVES = """
SELECT leaf.relname, index.relname AS index, coalesce(indisvalid, false) AS valid
FROM pg_inherits JOIN pg_class leaf ON leaf.oid = inhrelid
LEFT JOIN pg_class index ON index.relname = leaf.relname || '_render_key_idx' AND index.relnamespace = leaf.relnamespace
LEFT JOIN pg_index ON indexrelid = index.oid
WHERE inhparent = 'results'::regclass ORDER BY 1
"""
_ON = "(render_key) WHERE render_key IS NOT NULL"


def upgrade() -> None:
    connection = op.get_bind()
    with op.get_context().autocommit_block():
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = '10min'")  # it waits for every transaction under way
        for leaf, index, valid in connection.exec_driver_sql(_LEAVES).all():
            if index and not valid:
                connection.exec_driver_sql(f'DROP INDEX CONCURRENTLY "{index}"')
            if not valid:
                connection.exec_driver_sql(f'CREATE INDEX CONCURRENTLY "{leaf}_render_key_idx" ON "{leaf}" {_ON}')
        connection.exec_driver_sql("SET statement_timeout = '10min'")
        connection.exec_driver_sql("SET lock_timeout = '10s'")
    connection.exec_driver_sql(f"CREATE INDEX results_render_key ON ONLY results {_ON}")
    for leaf, _, valid in connection.exec_driver_sql(_LEAVES).all():
        if not valid:  # a partition made in the meantime: it is empty
            connection.exec_driver_sql(f'CREATE INDEX "{leaf}_render_key_idx" ON "{leaf}" {_ON}')
        connection.exec_driver_sql(f'ALTER INDEX results_render_key ATTACH PARTITION "{leaf}_render_key_idx"')
