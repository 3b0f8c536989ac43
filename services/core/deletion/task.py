"""The background task that deletes a deleted job: its objects, then its rows, and at last the job itself.

It takes the images in order, a thousand at a time: first their objects, then their rows, in short transactions with
pauses. So whoever continues after a crash begins at the first image that is left. If all jobs of a week are deleted and
the week is long over, it deletes only the objects, and a periodic task drops the week's partitions with the rows. The
rows are deleted by two functions of the database that touch nothing but a deleted job. Its exports and files have
background tasks of their own.

A worker that was stopped for longer than the job lived can store an object after all this, when it wakes up. Nobody
settles it, and the object is left over.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from sqlalchemy import Connection

from services.core.crash_points import crash_point
from services.core.db import turns
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.model import ids
from services.core.queue import job_states
from services.core.storage import keys, members
from services.core.storage.contract import ImageStore

SLICE_SECONDS = 10.0  # then other jobs get their turn
IMAGES_AT_ONCE = 1_000
_ROWS_AT_ONCE = 5_000  # of segments, chunks and the like
_DROPPERS = 8
_DELETED_AT_ONCE = 250  # images whose rows one statement deletes: a claim that comes meanwhile waits for so much
_LONGEST_PAUSE = 0.25  # seconds, after each of these

_PENDING = statement("task.pending")(
    turns.first_of_each("""
  SELECT id FROM jobs
  WHERE tenant_id = t.id AND deleted_at IS NOT NULL AND finished_at IS NOT NULL
    AND id <> ALL(CAST(:excluding AS bigint[]))
    AND NOT EXISTS (SELECT FROM exports WHERE exports.job_id = jobs.id)
    AND (NOT drops_with_week OR NOT EXISTS (SELECT FROM images WHERE images.job_id = jobs.id))
  ORDER BY random() LIMIT :first
""")
)
_JOB = statement("task.job")("""
SELECT tenant_id, total, drops_with_week, presswork_is_condemned(id) AS condemned FROM jobs
WHERE id = :id AND deleted_at IS NOT NULL AND finished_at IS NOT NULL
""")
_FIRST = statement("task.first")("SELECT index FROM images WHERE job_id = :id ORDER BY index LIMIT 1")
_KEYS = statement("task.keys")(
    "SELECT object_key FROM results WHERE job_id = :id AND index >= :first AND index < :past"
)
_NEXT_KEYS = statement("task.next_keys")(
    "SELECT index AS place, object_key FROM results WHERE job_id = :id AND index > :after ORDER BY index LIMIT :limit"
)
_DELETE_IMAGES = statement("task.delete_images")("SELECT presswork_delete_images(:id, :first, :past)")
_DELETE_JOB = statement("task.delete_job")("SELECT presswork_delete_job(:id, :most)")


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Deleted jobs of which something is left, a few of each tenant."""
    return turns.waiting(connection, _PENDING, excluding, busy)


def run(store: ImageStore, job_id: int, lease: Lease) -> None:
    """Deletes the job, or as much of it as a time slice allows. Call it again while the job is pending."""
    until = time.monotonic() + SLICE_SECONDS
    with lease.begin() as connection:
        job = connection.execute(_JOB, {"id": job_id}).one_or_none()
    if job is None:
        return
    with ThreadPoolExecutor(_DROPPERS) as pool:

        def drop(some: Iterable[str]) -> None:
            list(pool.map(store.drop, members.objects_of(some)))  # all images of a shard are of this job
            lease.keep()

        if job.condemned and not job.drops_with_week:
            _drop_objects(job_id, lease, drop)
            drop_the_rest(store, job.tenant_id, job_id, job.total, drop)
            with lease.begin() as connection:
                job_states.drop_with_week(connection, job_id)
            return
        while _delete_images(job_id, lease, drop):
            if time.monotonic() > until:
                return
        drop_the_rest(store, job.tenant_id, job_id, job.total, drop)
    crash_point("deletion.emptied")
    deleted = 1
    while deleted:
        with lease.begin() as connection:
            deleted = connection.execute(_DELETE_JOB, {"id": job_id, "most": _ROWS_AT_ONCE}).scalar_one()


def _drop_objects(job_id: int, lease: Lease, drop: Callable[[Iterable[str]], None]) -> None:
    """Deletes the objects and leaves the rows, which go with the partitions of their week. After a crash it begins
    again: an object that is gone already costs one request."""
    after = -1
    while True:
        with lease.begin() as connection:
            values = {"id": job_id, "after": after, "limit": IMAGES_AT_ONCE}
            rows = connection.execute(_NEXT_KEYS, values).all()
        if not rows:
            return
        drop(row.object_key for row in rows)
        after = rows[-1].place


def _delete_images(job_id: int, lease: Lease, drop: Callable[[Iterable[str]], None]) -> bool:
    """Deletes the first images that are left. False: there were none."""
    with lease.begin() as connection:
        first = connection.execute(_FIRST, {"id": job_id}).scalar_one_or_none()
        if first is None:
            return False
        past = first + IMAGES_AT_ONCE
        found = connection.execute(_KEYS, {"id": job_id, "first": first, "past": past}).scalars().all()
    drop(found)
    crash_point("deletion.dropped")
    for begin in range(first, past, _DELETED_AT_ONCE):
        with lease.begin() as connection:
            began = time.monotonic()
            values = {"id": job_id, "first": begin, "past": begin + _DELETED_AT_ONCE}
            connection.execute(_DELETE_IMAGES, values)
        lease.stopping.wait(min(2 * (time.monotonic() - began), _LONGEST_PAUSE))  # others get twice as much
    return True


def drop_the_rest(
    store: ImageStore, tenant_id: int, job_id: int, total: int, drop: Callable[[Iterable[str]], None]
) -> None:
    """Deletes the objects that no row named: thumbnails, and those of workers that lost their lease before they
    settled."""
    for folder in _folders(tenant_id, job_id, total):
        drop([])
        while some := list(islice(store.under(folder), IMAGES_AT_ONCE)):  # listed again until there are none
            drop(some)


def _folders(tenant_id: int, job_id: int, total: int) -> list[str]:
    job = ids.public_job(job_id)
    return [
        *keys.image_folders(tenant_id, job, total),
        keys.thumbnail_folder(tenant_id, job),
        f"files/{tenant_id}/{job}/",
    ]
