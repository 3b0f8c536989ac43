"""Indexes for lists and for turns by tenant, built concurrently, so no other session waits; and policies that no plan
turns into a scan of all jobs.

Postgres cannot build the index of a partitioned table concurrently, but it can build those of the partitions; the
table's index is then assembled from them. If the migration is interrupted and run again, it continues where it stopped.
"""

from alembic import op
from sqlalchemy import Connection

revision = "0011"
down_revision = "0010"

_PLAIN = {
    "jobs_state": "jobs (state, tenant_id, id)",
    "jobs_batches": "jobs (tenant_id, id) WHERE input_file_id IS NOT NULL",
    "jobs_overdue": "jobs (tenant_id, expires_at) WHERE expires_at IS NOT NULL AND finished_at IS NULL",
    "files_purpose": "files (tenant_id, purpose, id) WHERE deleted_at IS NULL",
    "files_doomed": "files (tenant_id, id) WHERE deleted_at IS NOT NULL",
    "files_expired": "files (tenant_id, expires_at) WHERE expires_at IS NOT NULL",
    "uploads_expired": "uploads (tenant_id, expires_at) WHERE state = 'pending'",
    "upload_parts_tenant": "upload_parts (tenant_id, upload_id)",
    "exports_waiting": "exports (tenant_id, id) WHERE finished_at IS NULL",
    "exports_expired": "exports (tenant_id, expires_at) WHERE expires_at IS NOT NULL",
    "exports_dropped": "exports (tenant_id, id) WHERE state IN ('failed','cancelled') AND next_shard >= 0",
}
_OF_IMAGES = {
    "images_rendering": "(job_id, claim_id) WHERE claim_id IS NOT NULL",
    "images_cancelled": "(job_id, index) WHERE state = 4",
}
_REPLACED = ("images_claim", "jobs_expiring", "files_deleted", "files_expiring", "uploads_pending", "exports_live")
_LEAVES = """
SELECT leaf.relname, index.relname, coalesce(indisvalid, false)
FROM pg_inherits JOIN pg_class leaf ON leaf.oid = inhrelid
LEFT JOIN pg_class index ON index.relname = leaf.relname || %(suffix)s AND index.relnamespace = leaf.relnamespace
LEFT JOIN pg_index ON indexrelid = index.oid
WHERE inhparent = 'images'::regclass ORDER BY 1
"""
# OFFSET 0: without it the planner may read all jobs of all tenants first, to hash them, for a page of a few rows.
_OF_A_JOB = "EXISTS (SELECT FROM jobs WHERE jobs.id = job_id OFFSET 0)"
_OF_JOBS = ("images", "payloads", "results", "failures", "counters", "counter_deltas")
_HAS_SYSTEM = "SELECT FROM pg_policy WHERE polrelid = 'images'::regclass AND polname = 'system'"
_INVALID = "SELECT FROM pg_index WHERE indexrelid = to_regclass(%(name)s) AND NOT indisvalid"


def upgrade() -> None:
    connection = op.get_bind()
    with op.get_context().autocommit_block():
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SET lock_timeout = '10min'")  # it waits for every transaction under way
        for name, on in _PLAIN.items():
            if connection.exec_driver_sql(_INVALID, {"name": name}).first() is not None:
                connection.exec_driver_sql(f"DROP INDEX CONCURRENTLY {name}")
            connection.exec_driver_sql(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {on}")
        for name, on in _OF_IMAGES.items():
            for leaf, index, valid in _leaves(connection, name):
                if index and not valid:
                    connection.exec_driver_sql(f'DROP INDEX CONCURRENTLY "{index}"')
                if not valid:
                    connection.exec_driver_sql(f'CREATE INDEX CONCURRENTLY "{leaf}_{name}" ON "{leaf}" {on}')
        apart = connection.exec_driver_sql(_HAS_SYSTEM).first() is not None
        for table in _OF_JOBS:  # each in a transaction of its own: nobody waits for two of them
            own = _OF_A_JOB if apart else f"(SELECT presswork_house()) OR {_OF_A_JOB}"
            connection.exec_driver_sql(f"ALTER POLICY tenant ON {table} USING ({own})")
        connection.exec_driver_sql("SET statement_timeout = '10min'")
        connection.exec_driver_sql("SET lock_timeout = '10s'")
    for name, on in _OF_IMAGES.items():
        connection.exec_driver_sql(f"CREATE INDEX {name} ON ONLY images {on}")
        for leaf, _, valid in _leaves(connection, name):
            if not valid:  # a partition made in the meantime: it is empty
                connection.exec_driver_sql(f'CREATE INDEX "{leaf}_{name}" ON "{leaf}" {on}')
            connection.exec_driver_sql(f'ALTER INDEX {name} ATTACH PARTITION "{leaf}_{name}"')
    for name in _REPLACED:
        connection.exec_driver_sql(f"DROP INDEX {name}")


def _leaves(connection: Connection, name: str) -> list[tuple[str, str | None, bool]]:
    """The partitions of images, each with its index of that name, if it has one, and whether that is valid."""
    return [tuple(row) for row in connection.exec_driver_sql(_LEAVES, {"suffix": f"_{name}"})]
