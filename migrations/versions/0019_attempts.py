"""What the page of an image needs for as long as its job, and a search for a custom_id in all jobs.

Claims are forgotten after a day. So a failure says which worker had claimed the image, and when; and an image whose
lease ran out has a row too, of code `lost`. Only what failed is written.

The index of custom_ids is one of Bloom filters, one for each 32 pages of payloads: an insert does not touch it, vacuum
adds what is new. A B-tree would make the COPY of a million requests take two thirds longer, and have 67 MB for each
million. Postgres cannot build the index of a partitioned table concurrently, so it is made of its partitions' (0004).
"""

from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0018"

_ON = (
    "USING brin (custom_id text_bloom_ops (n_distinct_per_range = 1500, false_positive_rate = 0.001)) "
    "WITH (pages_per_range = 32)"
)
_LEAVES = """
SELECT leaf.relname, index.relname AS index, coalesce(indisvalid, false) AS valid
FROM pg_inherits JOIN pg_class leaf ON leaf.oid = inhrelid
LEFT JOIN pg_class index ON index.relname = leaf.relname || '_custom_id_idx' AND index.relnamespace = leaf.relnamespace
LEFT JOIN pg_index ON indexrelid = index.oid
WHERE inhparent = 'payloads'::regclass ORDER BY 1
"""


def upgrade() -> None:
    connection = op.get_bind()
    with op.get_context().autocommit_block():
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = '10min'")  # it waits for every transaction under way
        for leaf, index, valid in connection.exec_driver_sql(_LEAVES).all():
            if index and not valid:
                connection.exec_driver_sql(f'DROP INDEX CONCURRENTLY "{index}"')
            if not valid:
                connection.exec_driver_sql(f'CREATE INDEX CONCURRENTLY "{leaf}_custom_id_idx" ON "{leaf}" {_ON}')
        connection.exec_driver_sql("SET statement_timeout = '10min'")
        connection.exec_driver_sql("SET lock_timeout = '10s'")
    connection.exec_driver_sql(f"CREATE INDEX payloads_custom_id ON ONLY payloads {_ON}")
    for leaf, _, valid in connection.exec_driver_sql(_LEAVES).all():
        if not valid:  # a partition made in the meantime: it is empty
            connection.exec_driver_sql(f'CREATE INDEX "{leaf}_custom_id_idx" ON "{leaf}" {_ON}')
        connection.exec_driver_sql(f'ALTER INDEX payloads_custom_id ATTACH PARTITION "{leaf}_custom_id_idx"')
    sql = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    connection.execution_options(no_parameters=True).exec_driver_sql(sql)
