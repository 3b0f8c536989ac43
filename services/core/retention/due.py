"""What the retention rules say should go now: found by a periodic task, kept as work, and shown by a dry run."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.retention import rules

LOOK_AGAIN_SECONDS = 600.0  # what is held is looked at again after so long
_FOUND_AT_ONCE = 1_000
_IS_THERE = {"payloads": "j.payloads_erased_at IS NULL", "objects": "j.objects_deleted_at IS NULL", "records": "true"}
_WHOSE = {  # whose days a job keeps that kind: its tenant's, or those that its submission gave
    "tenant": ("r.{column}", "retention_rules r", "r.tenant_id = t.id", "(j.retention IS NULL OR NOT {own})"),
    "own": ("(j.retention->>'{kind}')::integer", "(VALUES (0)) r", "true", "j.retention IS NOT NULL AND {own}"),
}


def _due(kind: str, whose: str) -> str:
    """Jobs of the tenant `t` that are due. An index by the moment of the end, of the jobs that have that kind still,
    finds them without those that are not. OFFSET 0: the rule is read first."""
    days, rule, of_tenant, which = (
        part.format(kind=kind, column=rules.COLUMN[kind], own=f"j.retention ? '{kind}'") for part in _WHOSE[whose]
    )
    return f"""
SELECT due.* FROM {rule} CROSS JOIN LATERAL (
  SELECT j.id, j.tenant_id, '{kind}' AS kind, j.finished_at + make_interval(days => {days}) AS due_at FROM jobs j
  WHERE j.tenant_id = t.id AND j.finished_at IS NOT NULL AND j.deleted_at IS NULL AND {_IS_THERE[kind]} AND {which}
    AND j.finished_at < now() + make_interval(days => :ahead) - make_interval(days => {days})
  OFFSET 0
) due WHERE {of_tenant}
"""  # noqa: S608  our own text


_ALL = " UNION ALL ".join(f"({_due(kind, whose)})" for kind in rules.KINDS for whose in _WHOSE)
_FIND = statement("due.find")(f"""
INSERT INTO retention_work (job_id, tenant_id, kind)
SELECT due.id, due.tenant_id, due.kind FROM tenants t CROSS JOIN LATERAL (
  SELECT * FROM ({_ALL}) every
  WHERE NOT EXISTS (SELECT FROM retention_work w WHERE w.job_id = every.id AND w.kind = every.kind)
  ORDER BY due_at LIMIT :most) due
ON CONFLICT DO NOTHING
""")  # noqa: S608  our own text
_PENDING = statement("due.pending")(
    turns.first_of_each("""
  SELECT job_id AS id FROM retention_work
  WHERE tenant_id = t.id AND look_again_at <= now() AND job_id <> ALL(CAST(:excluding AS bigint[]))
  GROUP BY job_id ORDER BY min(look_again_at) LIMIT :first
""")
)
_KINDS = statement("due.kinds")(f"""
SELECT w.kind, j.tenant_id, j.total,
  j.finished_at + make_interval(days => CASE w.kind WHEN 'payloads' THEN {rules.days("payloads")}
    WHEN 'objects' THEN {rules.days("objects")} ELSE {rules.days("records")} END) < now() AS is_due
FROM retention_work w JOIN jobs j ON j.id = w.job_id LEFT JOIN retention_rules r ON r.tenant_id = j.tenant_id
WHERE w.job_id = :job_id AND w.look_again_at <= now() AND j.deleted_at IS NULL
""")  # noqa: S608  our own text
_HOLD = statement("due.hold")("""
UPDATE retention_work SET look_again_at = now() + make_interval(secs => :seconds), reason = :reason
WHERE job_id = :job_id AND kind = :kind
""")
_DONE = statement("due.done")("DELETE FROM retention_work WHERE job_id = :job_id AND kind = :kind")
_FORGET = statement("due.forget")("DELETE FROM retention_work WHERE job_id = :job_id")
_STALE = statement("due.stale")("""
DELETE FROM retention_work w USING jobs WHERE w.job_id = :job_id AND jobs.id = w.job_id AND deleted_at IS NOT NULL
""")
_SHOWN = statement("due.shown")(f"""
SELECT every.id, every.kind, every.due_at, j.total, c.done, w.reason
FROM tenants t CROSS JOIN LATERAL ({_ALL}) every JOIN jobs j ON j.id = every.id JOIN job_counts c ON c.job_id = j.id
LEFT JOIN retention_work w ON w.job_id = every.id AND w.kind = every.kind
WHERE t.id = :tenant_id ORDER BY every.due_at, every.id, every.kind LIMIT :limit
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of thing that is to go from a job, if it `is_due` still."""

    kind: str
    tenant_id: int
    total: int
    is_due: bool


@dataclass(frozen=True, slots=True)
class Due:
    """What is to go, and when it was due. `reason`: what holds it at the moment."""

    job_id: int
    kind: str
    due_at: datetime
    images: int
    stored_images: int
    reason: str | None


def find(connection: Connection) -> int:
    """Records as work what has become due, up to a thousand things of each tenant; returns how many."""
    return connection.execute(_FIND, {"most": _FOUND_AT_ONCE, "ahead": 0}).rowcount


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Jobs of which something is to go now, a few of each tenant."""
    return turns.waiting(connection, _PENDING, excluding, busy)


def work(connection: Connection, job_id: int) -> list[Work]:
    """What is to go of the job now; of a job that is deleted anyway, nothing."""
    connection.execute(_STALE, {"job_id": job_id})
    rows = connection.execute(_KINDS, {"job_id": job_id})
    found = {row.kind: Work(row.kind, row.tenant_id, row.total, bool(row.is_due)) for row in rows}
    return [found[kind] for kind in rules.KINDS if kind in found]


def hold(connection: Connection, job_id: int, kind: str, reason: str) -> None:
    """Something needs it still: it is looked at again in ten minutes."""
    values = {"job_id": job_id, "kind": kind, "reason": reason[:500], "seconds": LOOK_AGAIN_SECONDS}
    connection.execute(_HOLD, values)


def done(connection: Connection, job_id: int, kind: str) -> None:
    connection.execute(_DONE, {"job_id": job_id, "kind": kind})


def forget(connection: Connection, job_id: int) -> None:
    """Nothing more is to go of the job: it is deleted."""
    connection.execute(_FORGET, {"job_id": job_id})


def shown(connection: Connection, tenant_id: int, *, ahead_days: int = 0, limit: int = 1_000) -> list[Due]:
    """What would go of the tenant's jobs now, or within so many days. Changes nothing."""
    values = {"tenant_id": tenant_id, "ahead": ahead_days, "limit": limit}
    return [
        Due(row.id, row.kind, row.due_at, row.total, row.done, row.reason) for row in connection.execute(_SHOWN, values)
    ]
