"""The background task that deletes a tenant: what makes work for it, its jobs, every other row, and then its objects.

Which tables hold rows of a tenant is read from the database's catalogue, so a new table is covered. What a
transaction that was under way adds is found by the next round; the tenant's own row goes last, and from then on the
database refuses any row that would belong to it. Whoever continues after a crash begins the same rounds again. An
export or an upload that was under way may store an object even later: an hour after the end the folders are looked at
once more.
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from sqlalchemy import Connection

from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.deletion import tenants
from services.core.exports import exports
from services.core.model import states
from services.core.queue import job_states
from services.core.storage import keys
from services.core.storage.contract import ImageStore

SLICE_SECONDS = 10.0  # then others get their turn
ROWS_AT_ONCE = 5_000
_JOBS_AT_ONCE = 200
_OBJECTS_AT_ONCE = 1_000
_DROPPERS = 8
_PAUSE_SECONDS = 0.5  # while others delete or end its jobs
_LONGEST_PAUSE = 0.25
# These go when the jobs are gone: a job's deletion and its end need them.
_LATER = frozenset(("jobs", "segments", "job_chunks", "counters", "events", "api_keys"))
_TABLES = statement("tenant_task.tables")("SELECT DISTINCT name FROM presswork_tenant_tables() ORDER BY name")
_ROWS = statement("tenant_task.rows")("SELECT presswork_delete_tenant_rows(:tenant_id, :tables, :most)")
_LEFT = statement("tenant_task.left")("SELECT presswork_count_tenant_rows(:tenant_id)")
_GONE = statement("tenant_task.gone")("SELECT presswork_delete_tenant(:tenant_id)")
_OPEN = statement("tenant_task.open")("""
SELECT id, state, total FROM jobs WHERE tenant_id = :tenant_id AND deleted_at IS NULL ORDER BY id LIMIT :limit
""")
_ANY = statement("tenant_task.any")("SELECT EXISTS (SELECT FROM jobs WHERE tenant_id = :tenant_id)")


def run(store: ImageStore, tenant_id: int, lease: Lease) -> None:
    """Deletes the tenant, or as much of it as a time slice allows. Call it again while it is pending."""
    until = time.monotonic() + SLICE_SECONDS
    with lease.begin() as connection:
        is_gone = tenants.is_gone(connection, tenant_id)
        tables = list(connection.execute(_TABLES).scalars())
    if is_gone:
        if _drop_objects(store, tenant_id, lease, until):
            with lease.begin() as connection:
                tenants.swept(connection, tenant_id)
        return
    if not _delete_rows(tenant_id, [name for name in tables if name not in _LATER], lease, until):
        return
    if not _delete_jobs(tenant_id, lease, until):
        lease.stopping.wait(_PAUSE_SECONDS)
        return
    with lease.begin() as connection:
        tenants.emptied(connection, tenant_id)
    crash_point("tenant.emptied")
    if not _delete_rows(tenant_id, tables, lease, until) or not _drop_objects(store, tenant_id, lease, until):
        return
    with lease.begin() as connection:
        left = connection.execute(_LEFT, {"tenant_id": tenant_id}).scalar_one()
        if not left and connection.execute(_GONE, {"tenant_id": tenant_id}).scalar_one():
            tenants.finish(connection, tenant_id, left)
            return
    lease.stopping.wait(_PAUSE_SECONDS)  # for events to be numbered, or a submission to end


def _delete_rows(tenant_id: int, tables: list[str], lease: Lease, until: float) -> bool:
    """Whether nothing was left that could be deleted."""
    while time.monotonic() < until and not lease.stopping.is_set():
        with lease.begin() as connection:
            began = time.monotonic()
            values = {"tenant_id": tenant_id, "tables": tables, "most": ROWS_AT_ONCE}
            deleted = connection.execute(_ROWS, values).scalar_one()
            if not deleted:
                return True
            tenants.add(connection, tenant_id, rows=deleted)
        lease.stopping.wait(min(time.monotonic() - began, _LONGEST_PAUSE))
    return False


def _delete_jobs(tenant_id: int, lease: Lease, until: float) -> bool:
    """Cancels the jobs, and marks those that have ended for the task that deletes them. Whether none is left."""
    while time.monotonic() < until and not lease.stopping.is_set():
        with lease.begin() as connection:
            found = connection.execute(_OPEN, {"tenant_id": tenant_id, "limit": _JOBS_AT_ONCE}).all()
        if not found:
            with lease.begin() as connection:
                return not connection.execute(_ANY, {"tenant_id": tenant_id}).scalar_one()
        marked = 0
        for job in found:
            with lease.begin() as connection:
                marked += _delete_job(connection, tenant_id, job.id, job.state, job.total)
        if not marked:  # they are being cancelled
            return False
    return False


def _delete_job(connection: Connection, tenant_id: int, job_id: int, state: str, total: int) -> bool:
    if state in states.FINAL_JOB_STATES:
        exports.remove_all(connection, tenant_id, job_id)
        if job_states.mark_deleted(connection, tenant_id, job_id):
            tenants.add(connection, tenant_id, images=total)
            return True
        return False
    job_states.cancel(connection, tenant_id, job_id)
    return False


def _drop_objects(store: ImageStore, tenant_id: int, lease: Lease, until: float) -> bool:
    """Deletes what is left under the tenant's folders. Whether all of it was."""
    with ThreadPoolExecutor(_DROPPERS) as pool:
        found = _under(store, keys.tenant_folders(tenant_id))
        while some := list(islice(found, _OBJECTS_AT_ONCE)):
            list(pool.map(store.drop, some))
            crash_point("tenant.dropped")
            with lease.begin() as connection:
                tenants.add(connection, tenant_id, objects=len(some))
            if lease.stopping.is_set() or time.monotonic() > until + SLICE_SECONDS:
                return False
    return True


def _under(store: ImageStore, folders: Iterable[str]) -> Iterator[str]:
    for folder in folders:
        yield from store.under(folder)
