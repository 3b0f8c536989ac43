"""What a run of the storage auditor found: images of which jobs, and which extra objects."""

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model import ids

_LOST = statement("findings.lost")("""
SELECT job_id, requeued_as, count(*) FILTER (WHERE kind = 'missing') AS missing,
  count(*) FILTER (WHERE kind = 'damaged') AS damaged
FROM storage_findings WHERE audit_id = :audit_id OR requeued_as IS NULL
GROUP BY job_id, requeued_as ORDER BY job_id, requeued_as
""")
_EXTRA = statement("findings.extra")("""
SELECT object_key FROM storage_orphans WHERE audit_id = :audit_id AND object_key > :after COLLATE "C"
ORDER BY object_key LIMIT :limit
""")
_OPEN = statement("findings.open")("""
SELECT count(*) FROM jobs WHERE finished_at IS NULL AND deleted_at IS NULL
""")
_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Lost:
    """Images of a job whose objects are missing or damaged. `drawn_in`: the linked job that draws them again; None: it
    could not be made, because the prompts are erased, the job is deleted, or its tenant is at a quota."""

    job: str
    missing: int
    damaged: int
    drawn_in: str | None


def lost(connection: Connection, audit_id: int) -> list[Lost]:
    """What this run found, and what none has queued yet."""
    return [
        Lost(
            ids.public_job(row.job_id), row.missing, row.damaged,
            None if row.requeued_as is None else ids.public_job(row.requeued_as),
        )
        for row in connection.execute(_LOST, {"audit_id": audit_id})
    ]  # fmt: skip


def extra_objects(connection: Connection, audit_id: int) -> Iterator[str]:
    """The keys of objects that no record names, in order."""
    after = ""
    while keys := list(connection.execute(_EXTRA, {"audit_id": audit_id, "after": after, "limit": _AT_ONCE}).scalars()):
        after = keys[-1]
        yield from keys


def open_jobs(connection: Connection) -> int:
    """Jobs that have not ended: the images that they have by now are compared once they have."""
    return int(connection.execute(_OPEN).scalar_one())
