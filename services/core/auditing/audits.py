"""The runs of the storage auditor, and what they found. Functions take an open system transaction, and never commit."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.model.errors import NotFound

COUNTS = (
    "objects", "records", "sampled", "missing", "damaged", "orphans", "foreign_objects", "deleted", "requeued",
)  # fmt: skip
_NEW = statement("audits.new")(f"""
WITH made AS (
  INSERT INTO storage_audits (requested_by, share, keeps_orphans) VALUES ({log.ACTOR}, :share, :keeps_orphans)
  ON CONFLICT ((true)) WHERE finished_at IS NULL DO NOTHING
  RETURNING id, CAST(NULL AS integer) AS tenant_id
)
{log.of_each("made", "'storage.audit_requested'", subject="'audit/' || id")}
""")  # noqa: S608  our own text
_LAST = statement("audits.last")("SELECT * FROM storage_audits WHERE id = coalesce(:id, id) ORDER BY id DESC LIMIT 1")
_DUE = statement("audits.due")("""
SELECT NOT EXISTS (
  SELECT FROM storage_audits WHERE finished_at IS NULL OR finished_at > now() - make_interval(days => :days))
""")
_PENDING = statement("audits.pending")("""
SELECT id, (SELECT min(tenants.id) FROM tenants) AS tenant_id FROM storage_audits
WHERE finished_at IS NULL AND id <> ALL(CAST(:excluding AS bigint[]))
""")
_ADVANCE = statement("audits.advance")(f"""
UPDATE storage_audits SET step = coalesce(:step, step), at_job = coalesce(:at_job, at_job),
  in_job = coalesce(:in_job, in_job), at_index = coalesce(:at_index, at_index), at_key = coalesce(:at_key, at_key),
  {", ".join(f"{name} = {name} + :{name}" for name in COUNTS)}
WHERE id = :id
""")  # noqa: S608  our own text
_END = statement("audits.end")(f"""
WITH made AS (
  UPDATE storage_audits SET step = 'done', finished_at = now(), refusal = :refusal WHERE id = :id
  RETURNING id, CAST(NULL AS integer) AS tenant_id, missing, damaged, orphans, deleted
)
{
    log.of_each(
        "made",
        "'storage.audited'",
        subject="'audit/' || id",
        data="jsonb_build_object('missing', missing, 'damaged', damaged, 'orphans', orphans, 'deleted', deleted)",
    )
}
""")  # noqa: S608  our own text
_SEE = statement("audits.see")("""
INSERT INTO storage_orphans (object_key, audit_id) SELECT unnest(CAST(:keys AS text[])), :id
ON CONFLICT (object_key) DO UPDATE SET audit_id = excluded.audit_id
""")
_UNSEEN = statement("audits.unseen")("DELETE FROM storage_orphans WHERE audit_id < :id")
_OLD = statement("audits.old")("""
SELECT object_key FROM storage_orphans WHERE first_seen_at < now() - make_interval(days => :days) LIMIT :limit
""")
_FORGET = statement("audits.forget")("DELETE FROM storage_orphans WHERE object_key = ANY(CAST(:keys AS text[]))")
_GONE = statement("audits.gone")("""
DELETE FROM storage_findings WHERE (job_id, index) IN (
  SELECT job_id, index FROM storage_findings f WHERE NOT EXISTS (SELECT FROM jobs WHERE jobs.id = f.job_id)
  LIMIT :limit)
""")
_FIND = statement("audits.find")("""
INSERT INTO storage_findings (job_id, index, kind, audit_id)
SELECT :job_id, index, kind, :id FROM unnest(CAST(:indexes AS integer[]), CAST(:kinds AS text[])) AS f (index, kind)
ON CONFLICT DO NOTHING
""")


@dataclass(frozen=True, slots=True)
class Audit:
    """A run. `step` is records, listing, requeue, orphans or done. Of the records the jobs up to `at_job` are done, and
    of `in_job` the images up to `at_index`; the listing is done up to `at_key`. `refusal` says why no orphan may be
    deleted; `keeps_orphans`: none is, whatever was found."""

    id: int
    requested_by: str
    requested_at: datetime
    share: float
    step: str
    at_job: int
    in_job: int
    at_index: int
    at_key: str
    counts: dict[str, int]
    refusal: str | None
    finished_at: datetime | None
    keeps_orphans: bool = False


def request(connection: Connection, share: float, *, keeps_orphans: bool = False) -> Audit:
    """Begins a run, or returns the one under way. `share` of the images, 0 to 1, are read and compared."""
    connection.execute(_NEW, {"share": share, "keeps_orphans": keeps_orphans})
    return show(connection)


def request_due(connection: Connection, days: int, share: float = 0.001) -> None:
    """Begins a run if there was none for so many days; 0: never."""
    if days and connection.execute(_DUE, {"days": days}).scalar_one():
        connection.execute(_NEW, {"share": share, "keeps_orphans": False})


def show(connection: Connection, audit_id: int | None = None) -> Audit:
    """The run, or the last one. Raises NotFound."""
    row = connection.execute(_LAST, {"id": audit_id}).one_or_none()
    if row is None:
        raise NotFound("The store was not audited yet.")
    counts = {name: int(getattr(row, name)) for name in COUNTS}
    return Audit(
        row.id, row.requested_by, row.requested_at, row.share, row.step, row.at_job, row.in_job, row.at_index,
        row.at_key, counts,
        row.refusal, row.finished_at, row.keeps_orphans,
    )  # fmt: skip


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:  # noqa: ARG001
    """The run that is under way."""
    return [Waiting(row.id, row.tenant_id) for row in connection.execute(_PENDING, {"excluding": list(excluding)})]


def advance(
    connection: Connection, audit_id: int, *, step: str | None = None, at_job: int | None = None,
    in_job: int | None = None, at_index: int | None = None, at_key: str | None = None, **counts: int,
) -> None:  # fmt: skip
    """Notes how far the run is; the counts are added."""
    values = dict.fromkeys(COUNTS, 0) | counts
    where = {"at_job": at_job, "in_job": in_job, "at_index": at_index, "at_key": at_key}
    connection.execute(_ADVANCE, values | where | {"id": audit_id, "step": step})


def end(connection: Connection, audit_id: int, refusal: str | None) -> None:
    connection.execute(_END, {"id": audit_id, "refusal": refusal})


def see(connection: Connection, audit_id: int, keys: Sequence[str]) -> None:
    """These objects are orphans in this run."""
    connection.execute(_SEE, {"id": audit_id, "keys": list(keys)})


def forget_unseen(connection: Connection, audit_id: int) -> None:
    """What this run did not see is an orphan no more."""
    connection.execute(_UNSEEN, {"id": audit_id})


def old(connection: Connection, days: int, limit: int) -> list[str]:
    """Orphans that were first seen longer ago than that."""
    return list(connection.execute(_OLD, {"days": days, "limit": limit}).scalars())


def forget(connection: Connection, keys: Sequence[str]) -> None:
    connection.execute(_FORGET, {"keys": list(keys)})


def forget_gone(connection: Connection, limit: int) -> bool:
    """Deletes what was found of jobs that are gone, up to `limit`. Whether there may be more."""
    return connection.execute(_GONE, {"limit": limit}).rowcount == limit


def find(connection: Connection, audit_id: int, job_id: int, found: dict[int, str]) -> None:
    """Images whose objects are missing or damaged, by index."""
    values = {"id": audit_id, "job_id": job_id, "indexes": list(found), "kinds": list(found.values())}
    connection.execute(_FIND, values)
