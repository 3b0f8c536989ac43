"""The auditor's first step: of each finished job, images whose objects are missing, or do not have their sha256.

A job may have fifty million images. So its listing is kept as eight bytes a key, its images are looked at and noted a
thousand at a time, and a run that was stopped goes on at the next thousand.
"""

import hashlib
import random
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from services.core.auditing import audits
from services.core.auditing.audits import Audit
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.model import ids
from services.core.model.errors import ObjectMissing
from services.core.storage import keys, members
from services.core.storage.contract import ImageStore
from services.core.storage.members import Span

_AT_ONCE = 1_000
_THREADS = 8
_NEXT_JOB = statement("records.next_job")("""
SELECT id, tenant_id, total FROM jobs
WHERE id > :after AND finished_at IS NOT NULL AND deleted_at IS NULL AND objects_deleted_at IS NULL ORDER BY id LIMIT 1
""")
_RESULTS = statement("records.results")("""
SELECT r.index AS place, r.object_key, r.sha256, f.job_id IS NOT NULL AS is_known
FROM results r LEFT JOIN storage_findings f ON f.job_id = r.job_id AND f.index = r.index
WHERE r.job_id = :job_id AND r.index > :after ORDER BY r.index LIMIT :limit
""")
_STILL = statement("records.still")("""
SELECT EXISTS (SELECT FROM jobs WHERE id = :job_id AND deleted_at IS NULL AND objects_deleted_at IS NULL)
""")


def check(store: ImageStore, audit: Audit, lease: Lease) -> bool:
    """Whether all jobs were looked at; else the process is to stop, and the run goes on where it was."""
    after = audit.at_job
    while True:
        with lease.begin() as connection:
            job = connection.execute(_NEXT_JOB, {"after": after}).one_or_none()
            if job is None:
                audits.advance(connection, audit.id, step="listing")
                return True
        if not _check_job(store, audit, job, lease):
            return False
        after = job.id


def _check_job(store: ImageStore, audit: Audit, job: Any, lease: Lease) -> bool:
    there = Listing(store, keys.image_folders(job.tenant_id, ids.public_job(job.id), job.total), lease.keep)
    at = audit.at_index if audit.in_job == job.id else -1
    with ThreadPoolExecutor(_THREADS) as pool:
        while not lease.stopping.is_set():
            lease.keep()
            with lease.database.read_system() as connection:
                rows = connection.execute(_RESULTS, {"job_id": job.id, "after": at, "limit": _AT_ONCE}).all()
            if not rows:
                with lease.begin() as connection:
                    audits.advance(connection, audit.id, at_job=job.id)
                return True
            # What is not listed was moved since, or lies under a prefix that is not listed, or is missing.
            chosen = [
                row for row in rows
                if not row.is_known
                and (random.random() < audit.share or members.object_of(row.object_key) not in there)
            ]  # fmt: skip
            found = _wrong(store, chosen, lease, pool)
            if found is None:
                return False
            at = rows[-1].place
            with lease.begin() as connection:
                if not connection.execute(_STILL, {"job_id": job.id}).scalar_one():  # deleted meanwhile
                    found = {}
                if found:
                    audits.find(connection, audit.id, job.id, found)
                kinds = list(found.values())
                audits.advance(
                    connection, audit.id, in_job=job.id, at_index=at, records=len(rows), sampled=len(chosen),
                    missing=kinds.count("missing"), damaged=kinds.count("damaged"),
                )  # fmt: skip
    return False


def _wrong(store: ImageStore, rows: Sequence[Any], lease: Lease, pool: ThreadPoolExecutor) -> dict[int, str] | None:
    """Which images are missing or damaged, by index. None: the process is to stop. Members of a shard that lie close
    are read at once."""
    reads = [pool.submit(_read, store, span, rows) for span in members.spans([row.object_key for row in rows])]
    found: dict[int, str] = {}
    try:
        for read in as_completed(reads):
            found |= read.result()
            lease.keep()
            if lease.stopping.is_set():
                return None
    finally:
        for read in reads:
            read.cancel()
    return found


def _read(store: ImageStore, span: Span, rows: Sequence[Any]) -> dict[int, str]:
    try:
        data = store.read_small(span.key)
    except ObjectMissing:
        return {rows[number].place: "missing" for number, _ in span.parts}
    found = {}
    for number, part in span.parts:
        own = data if part is None else data[part]
        if hashlib.sha256(own).digest() != bytes(rows[number].sha256):
            found[rows[number].place] = "damaged" if own or part is None else "missing"  # its shard ends before it
    return found


class Listing:
    """The objects of a job that are there, of each key 64 bits of a hash."""

    def __init__(self, store: ImageStore, folders: Sequence[str], keep: Callable[[], None]) -> None:
        """`keep` is called often meanwhile."""

        def listed(folder: str) -> "array[int]":
            return array("q", sorted(map(hash, store.under(folder))))

        self._hashes: dict[str, array[int]] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            for first in range(0, len(folders), _THREADS):
                some = folders[first:][:_THREADS]
                self._hashes |= zip(some, pool.map(listed, some), strict=True)
                keep()

    def __contains__(self, key: str) -> bool:
        hashes, wanted = self._hashes.get("/".join(key.split("/")[-4:-1]) + "/"), hash(key)
        if hashes is None:
            return False
        at = bisect_left(hashes, wanted)
        return at < len(hashes) and hashes[at] == wanted
