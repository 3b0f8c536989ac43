"""Deadlines of runs: the nearer one is, the higher its job's priority; and who watches hears early that it will be
missed, from the rates that were measured.

A priority is raised once for each step, so a person who lowers it again has the last word. A deadline stops nothing.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.jobs import lifecycle, queries, remaining
from services.core.jobs.queries import JobView
from services.core.model.errors import Conflict, NotFound
from services.core.model.requests import PRIORITIES
from services.core.schedules import schedules

AT_ONCE = 500
# From which part of the time on a job has at least that priority.
_STEPS = ((0.5, PRIORITIES["normal"]), (0.75, PRIORITIES["high"]))
_LEFT = statement("deadlines.left")("""
SELECT r.id, r.tenant_id, r.instant, coalesce(r.job_id, c.job_id) AS job_id, r.deadline_at, r.raised, r.warned_at,
       s.name
FROM schedule_runs r JOIN schedules s ON s.id = r.schedule_id
LEFT JOIN catalogue_runs c ON c.id = r.catalogue_run_id
WHERE r.finished_at IS NULL AND r.deadline_at IS NOT NULL AND r.missed_at IS NULL
ORDER BY r.deadline_at LIMIT :most
""")
_MISSED = statement("deadlines.missed")(
    "UPDATE schedule_runs SET missed_at = :now WHERE id = :id AND missed_at IS NULL"
)
_WARNED = statement("deadlines.warned")(
    "UPDATE schedule_runs SET warned_at = :now WHERE id = :id AND warned_at IS NULL"
)
_RAISED = statement("deadlines.raised")("UPDATE schedule_runs SET raised = :raised WHERE id = :id")


def watch(connection: Connection, now: datetime | None = None) -> None:
    """Looks at the runs that have a deadline and have not ended, the nearest deadlines first."""
    rows = connection.execute(_LEFT, {"most": AT_ONCE}).all()
    if not rows:
        return
    now = schedules.clock(connection) if now is None else now
    views = queries.any_jobs(connection, [row.job_id for row in rows if row.job_id is not None])
    jobs = {view.id: view for view in remaining.estimated(connection, views)}
    for row in rows:
        _look(connection, row, jobs.get(row.job_id), now)


def _look(connection: Connection, row: Any, job: JobView | None, now: datetime) -> None:
    if now >= row.deadline_at:
        if connection.execute(_MISSED, {"id": row.id, "now": now}).rowcount:
            _log(connection, "schedule.deadline_missed", row)
        return
    passed = (now - row.instant) / (row.deadline_at - row.instant)
    left = (row.deadline_at - now).total_seconds()
    eta = None if job is None else job.eta_seconds
    is_late = eta > left if eta is not None else passed >= _STEPS[-1][0]
    if is_late and connection.execute(_WARNED, {"id": row.id, "now": now}).rowcount:
        _log(connection, "schedule.deadline_at_risk", row, eta)
    step = len(_STEPS) if is_late or row.warned_at else sum(passed >= share for share, _ in _STEPS)
    if job is not None and step > row.raised:
        _raise(connection, row, job, _STEPS[step - 1][1])
        connection.execute(_RAISED, {"id": row.id, "raised": step})


def _raise(connection: Connection, row: Any, job: JobView, priority: int) -> None:
    if job.priority > priority:  # a smaller number comes first
        try:
            lifecycle.change(connection, row.tenant_id, job.id, priority=priority)
        except (Conflict, NotFound):  # it has just ended, or is deleted
            pass


def _log(connection: Connection, kind: str, row: Any, eta: float | None = None) -> None:
    """`seconds_left` is what the measured rates say; it is left out where nothing was measured or no worker is live."""
    data: dict[str, object] = {"instant": _text(row.instant), "deadline": _text(row.deadline_at)}
    data |= {} if row.job_id is None else {"job": row.job_id}
    data |= {} if eta is None else {"seconds_left": round(eta)}
    log.append(connection, kind, f"schedule/{row.name}", tenant_id=row.tenant_id, data=data)


def _text(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
