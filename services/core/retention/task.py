"""The background task that carries out the retention rules, job by job.

The moment from which something counts as gone is committed first; then it is deleted in batches, with a pause after
each. The work stays recorded until that is done, so whoever continues after a crash does all of it. What an export, a
dataset, a catalogue's run or another job still needs is left, with the reason, and looked at again later.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Connection

from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.deletion import jobs as deletion
from services.core.deletion import task as deletion_task
from services.core.exports import exports
from services.core.files import files
from services.core.model.errors import Conflict, NotFound
from services.core.queue import job_states
from services.core.retention import due
from services.core.retention.due import Work
from services.core.storage import members
from services.core.storage.contract import ImageStore

IMAGES_AT_ONCE = 1_000
_DROPPERS = 8
_LONGEST_PAUSE = 0.25  # seconds
_ERASE = statement("task.erase")("SELECT presswork_erase_payloads(:job_id, :first, :past)")
_KEYS = statement("task.object_keys")("""
SELECT index AS place, object_key FROM results WHERE job_id = :job_id AND index > :after ORDER BY index LIMIT :limit
""")


def run(store: ImageStore, job_id: int, lease: Lease) -> None:
    """Does what is due of the job. Call it again while the job is pending. If the process is to stop, it ends early."""
    with lease.begin() as connection:
        todo = due.work(connection, job_id)
    records = [work for work in todo if work.kind == "records" and work.is_due]
    for work in [*records, *(work for work in todo if work not in records)]:
        if not work.is_due:  # the rule has changed
            with lease.begin() as connection:
                due.done(connection, job_id, work.kind)
            continue
        try:
            if not _DO[work.kind](store, job_id, work, lease):
                return
        except Conflict as held:
            with lease.begin() as connection:
                due.hold(connection, job_id, work.kind, str(held))
        except NotFound:  # deleted meanwhile, with its work
            return


def _erase_payloads(_store: ImageStore, job_id: int, work: Work, lease: Lease) -> bool:
    with lease.begin() as connection:
        deletion.check(connection, work.tenant_id, job_id)
        job_states.erase_payloads(connection, job_id)
        files.delete_inputs_of(connection, job_id)
    for first in range(0, work.total, IMAGES_AT_ONCE):
        with lease.begin() as connection:
            began = time.monotonic()
            connection.execute(_ERASE, {"job_id": job_id, "first": first, "past": first + IMAGES_AT_ONCE})
        pause(lease, time.monotonic() - began)
        if lease.stopping.is_set():
            return False
    crash_point("retention.erased")
    with lease.begin() as connection:
        due.done(connection, job_id, work.kind)
    return True


def _delete_objects(store: ImageStore, job_id: int, work: Work, lease: Lease) -> bool:
    with lease.begin() as connection:
        deletion.check(connection, work.tenant_id, job_id)
        if job_states.delete_objects(connection, job_id):
            exports.remove_all(connection, work.tenant_id, job_id)
            deletion.delete_files(connection, work.tenant_id, job_id)
    crash_point("retention.begun")
    with ThreadPoolExecutor(_DROPPERS) as pool:

        def drop(some: Iterable[str]) -> None:
            list(pool.map(store.drop, members.objects_of(some)))
            lease.keep()

        after = -1
        while rows := _keys(lease, job_id, after):
            drop(key for _, key in rows)
            after = rows[-1][0]
            if lease.stopping.is_set():
                return False
        deletion_task.drop_the_rest(store, work.tenant_id, job_id, work.total, drop)
    crash_point("retention.dropped")
    with lease.begin() as connection:
        due.done(connection, job_id, work.kind)
    return True


def _delete_records(_store: ImageStore, job_id: int, work: Work, lease: Lease) -> bool:
    """Prompts and objects go with the job, so whatever else is due of it is done, too."""
    with lease.begin() as connection:
        deletion.check(connection, work.tenant_id, job_id)
        deletion.delete(connection, work.tenant_id, job_id)
        due.forget(connection, job_id)
    return False


_DO = {"payloads": _erase_payloads, "objects": _delete_objects, "records": _delete_records}


def _keys(lease: Lease, job_id: int, after: int) -> list[tuple[int, str]]:
    with lease.begin() as connection:
        return _page(connection, job_id, after)


def _page(connection: Connection, job_id: int, after: int) -> list[tuple[int, str]]:
    values = {"job_id": job_id, "after": after, "limit": IMAGES_AT_ONCE}
    return [(row.place, row.object_key) for row in connection.execute(_KEYS, values)]


def pause(lease: Lease, seconds: float) -> None:
    """Lets others have the database for as long as it was used, a quarter of a second at most."""
    lease.stopping.wait(min(seconds, _LONGEST_PAUSE))
