"""The background task of the storage auditor. Four steps: records, listing, requeue, orphans.

1. Of each finished job the bucket is listed and compared with its images; a share of them is read and compared with
its sha256. 2. The whole bucket is listed, and what no record names is noted. 3. What is missing or damaged is drawn
again, with the same seeds, in a job that is linked to the old one. 4. What has been an orphan for `ORPHAN_DAYS` is
looked up once more and deleted, if `mark` sees no restore. After a crash the records go on at the next thousand images,
and the listing at the next thousand keys. What is counted is counted once.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from services.core.auditing import audits, mark, owners, records
from services.core.auditing.audits import Audit
from services.core.crash_points import crash_point
from services.core.db import columns
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.jobs import reseeding
from services.core.model import ids
from services.core.model.errors import Conflict, NotAdmitted, NotFound
from services.core.model.specs import image_seed
from services.core.policy import policies
from services.core.policy.refusals import Door
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

if TYPE_CHECKING:
    from collections.abc import Callable

ORPHAN_DAYS = 7
_AT_ONCE = 1_000
_DROPPED_AT_ONCE = 100
_THREADS = 8
_WAITING = statement("task.waiting")("""
SELECT DISTINCT f.job_id, j.tenant_id, j.priority FROM storage_findings f JOIN jobs j ON j.id = f.job_id
WHERE f.requeued_as IS NULL AND j.deleted_at IS NULL AND j.objects_deleted_at IS NULL AND f.job_id > :after
ORDER BY f.job_id LIMIT 1
""")
_SEEDS = statement("task.seeds")(f"""
SELECT i.index AS place, p.index AS first, p.seed FROM (
  SELECT job_id, index FROM storage_findings WHERE job_id = :job_id AND requeued_as IS NULL ORDER BY index LIMIT :limit
) i {columns.payload_of("i")} ORDER BY i.index
""")  # noqa: S608  our own text
_REQUEUED = statement("task.requeued")("""
UPDATE storage_findings SET requeued_as = :child WHERE job_id = :job_id AND index = ANY(CAST(:indexes AS integer[]))
""")


def run(settings: Settings, store: ImageStore, audit_id: int, lease: Lease, *, orphan_days: int = ORPHAN_DAYS) -> None:
    """Does the whole run, or what is left of it. When the process is to stop, it ends early and is run again."""
    steps: dict[str, Callable[[Audit], bool]] = {  # each returns whether it is complete, and notes the next step
        "records": lambda audit: records.check(store, audit, lease),
        "listing": lambda audit: _list_bucket(store, audit, lease),
        "requeue": lambda audit: _requeue(settings, audit, lease),
        "orphans": lambda audit: _delete_orphans(store, audit, lease, orphan_days),
    }
    while True:
        with lease.begin() as connection:
            audit = audits.show(connection, audit_id)
        if audit.step == "done" or not steps[audit.step](audit):
            return


def _list_bucket(store: ImageStore, audit: Audit, lease: Lease) -> bool:
    prefixes = mark.own_prefixes(lease.database, store)
    batch: list[str] = []

    def note() -> None:
        with lease.begin() as connection:
            found = owners.orphans(connection, batch, prefixes)
            audits.see(connection, audit.id, found.orphans)
            audits.advance(
                connection, audit.id, at_key=batch[-1], objects=len(batch), orphans=len(found.orphans),
                foreign_objects=found.foreign,
            )  # fmt: skip
        batch.clear()

    for key in store.under("", audit.at_key):
        batch.append(key)
        if len(batch) == _AT_ONCE:
            note()
            if lease.stopping.is_set():
                return False
    if batch:
        note()
    with lease.begin() as connection:
        audits.forget_unseen(connection, audit.id)
        audits.advance(connection, audit.id, step="requeue")
    return True


def _requeue(settings: Settings, audit: Audit, lease: Lease) -> bool:
    more = True
    while more:
        with lease.begin() as connection:
            more = audits.forget_gone(connection, _AT_ONCE)
    after = 0
    while not lease.stopping.is_set():
        with lease.begin() as connection:
            job = connection.execute(_WAITING, {"after": after}).one_or_none()
            if job is None:
                audits.advance(connection, audit.id, step="orphans")
                return True
            rows = connection.execute(_SEEDS, {"job_id": job.job_id, "limit": _AT_ONCE}).all()
        wanted = [reseeding.Reseeded(row.place, image_seed(row.seed, row.place - row.first)) for row in rows]
        child = ids.new()
        try:
            with lease.begin() as connection:
                policy = policies.at(settings, connection, Door("repair", job.tenant_id))
                reseeding.draw(
                    connection, job.tenant_id, job.job_id, child, wanted, priority=job.priority, policy=policy
                )
                values = {"job_id": job.job_id, "child": child, "indexes": [one.index for one in wanted]}
                connection.execute(_REQUEUED, values)
                audits.advance(connection, audit.id, requeued=len(wanted))
        except (Conflict, NotAdmitted, NotFound):  # its prompts are erased, it was deleted, a quota: it stays found
            after = job.job_id
    return False


def _delete_orphans(store: ImageStore, audit: Audit, lease: Lease, days: int) -> bool:
    refusal = mark.refusal(lease.database, store)
    prefixes = mark.own_prefixes(lease.database, store)
    while refusal is None and not audit.keeps_orphans:
        if lease.stopping.is_set():
            return False
        with lease.begin() as connection:
            old = audits.old(connection, days, _AT_ONCE)
            lost = owners.orphans(connection, old, prefixes).orphans if old else []
        if not old:
            mark.renew(lease.database, store)
            break
        for first in range(0, len(lost), _DROPPED_AT_ONCE):
            with ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(store.drop, lost[first:][:_DROPPED_AT_ONCE]))
            lease.keep()
        crash_point("orphan.dropped")
        with lease.begin() as connection:
            audits.forget(connection, old)
            audits.advance(connection, audit.id, deleted=len(lost))
    with lease.begin() as connection:
        audits.end(connection, audit.id, refusal)
    return True
