"""The runs of schedules: every write of the table `schedule_runs`, and what is read of it.

Functions take an open transaction and never commit. A run ends once: each move is guarded by the state it comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection

from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.model import ids

MOST_WAITING = 100  # runs of a schedule with the overlap "queue"


class RunState(StrEnum):
    WAITING = "waiting"  # for the run before it
    SUBMITTING = "submitting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"  # not submitted, as the policies say
    REFUSED = "refused"  # what was to be submitted was wrong


_COLUMNS = """id, schedule_id, tenant_id, instant, state, asked_by, job_id, reason, deadline_at, warned_at, missed_at,
  created_at, submitted_at, finished_at"""
_SUBJECT = "'schedule/' || name"
_INSTANT = """to_char(instant AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"""
_NEW = statement("runs.new")(f"""
WITH made AS (
  INSERT INTO schedule_runs (id, schedule_id, tenant_id, instant, state, asked_by, reason, deadline_at, created_at,
                             finished_at)
  SELECT :id, :schedule_id, :tenant_id, :instant, CAST(:state AS text), CASE WHEN :asked THEN {log.ACTOR} END,
         :reason, :deadline_at, :now, CASE WHEN CAST(:state AS text) = 'skipped' THEN CAST(:now AS timestamptz) END
  ON CONFLICT (schedule_id, instant) DO NOTHING
  RETURNING id, tenant_id, CAST(:name AS text) AS name, state, reason, asked_by, {_INSTANT} AS instant_text
), logged AS (
  {
    log.of_each(
        "made",
        "CASE WHEN state = 'skipped' THEN 'schedule.run_skipped' WHEN asked_by IS NULL THEN 'schedule.fired' "
        "ELSE 'schedule.run_requested' END",
        subject=_SUBJECT,
        data="jsonb_strip_nulls(jsonb_build_object('instant', instant_text, 'reason', reason))",
    )
}
)
SELECT id FROM made
""")  # noqa: S608  our own text
_LIVE = statement("runs.live")("""
SELECT id, instant, state, job_id, catalogue_run_id FROM schedule_runs
WHERE schedule_id = :schedule_id AND finished_at IS NULL ORDER BY instant
""")
_DROP_UNSUBMITTED = statement("runs.drop_unsubmitted")(f"""
WITH moved AS (
  UPDATE schedule_runs SET state = 'skipped', reason = :reason, finished_at = :now
  WHERE schedule_id = :schedule_id AND state IN ('waiting', 'submitting') RETURNING tenant_id, instant
), named AS (
  SELECT tenant_id, CAST(:name AS text) AS name, {_INSTANT} AS instant_text FROM moved
)
{
    log.of_each(
        "named",
        "'schedule.run_skipped'",
        subject=_SUBJECT,
        data="jsonb_build_object('instant', instant_text, 'reason', CAST(:reason AS text))",
    )
}
""")  # noqa: S608  our own text
_PENDING = statement("runs.pending")(
    turns.first_of_each("""
  SELECT id FROM schedule_runs
  WHERE state = 'submitting' AND tenant_id = t.id AND id <> ALL(CAST(:excluding AS bigint[])) ORDER BY id LIMIT :first
""")
)
_TO_SUBMIT = statement("runs.to_submit")("""
SELECT r.id, r.schedule_id, r.tenant_id, r.instant, s.name, s.target_kind, s.target, s.base_url, s.overlap,
       r.deadline_at
FROM schedule_runs r JOIN schedules s ON s.id = r.schedule_id WHERE r.id = :id AND r.state = 'submitting'
""")
_HOLD = statement("runs.hold")("SELECT 1 FROM schedule_runs WHERE id = :id AND state = 'submitting' FOR UPDATE")
_SUBMITTED = statement("runs.submitted")(
    "UPDATE schedule_runs SET state = 'running', job_id = :job_id, catalogue_run_id = :catalogue_run_id, "
    "submitted_at = now() WHERE id = :id AND state = 'submitting'"
)
_REFUSE = statement("runs.refuse")(f"""
WITH moved AS (
  UPDATE schedule_runs r SET state = 'refused', reason = :reason, finished_at = now()
  FROM schedules s WHERE s.id = r.schedule_id AND r.id = :id AND r.state = 'submitting'
  RETURNING r.tenant_id, s.name, {_INSTANT} AS instant_text
)
{
    log.of_each(
        "moved",
        "'schedule.run_refused'",
        subject=_SUBJECT,
        data="jsonb_build_object('instant', instant_text, 'reason', CAST(:reason AS text))",
    )
}
""")  # noqa: S608  our own text
# A run ends with its job, and if that was deleted; or with the run of its catalogue.
_END = statement("runs.end")("""
WITH over AS (
  SELECT r.id, coalesce(c.as_job, j.state, 'cancelled') AS state,
         coalesce(c.finished_at, j.finished_at, now()) AS finished_at,
         CASE WHEN c.id IS NOT NULL THEN c.error->>'message' WHEN j.id IS NULL THEN 'Its job was deleted.' END AS reason
  FROM schedule_runs r LEFT JOIN jobs j ON j.id = r.job_id
  LEFT JOIN LATERAL (
    SELECT id, finished_at, error, CASE state WHEN 'kept' THEN 'failed' WHEN 'failed' THEN 'failed'
      WHEN 'cancelled' THEN 'cancelled' ELSE 'completed' END AS as_job
    FROM catalogue_runs WHERE catalogue_runs.id = r.catalogue_run_id
  ) c ON true
  WHERE r.finished_at IS NULL AND r.state = 'running' AND CASE WHEN r.catalogue_run_id IS NULL
    THEN j.id IS NULL OR j.finished_at IS NOT NULL ELSE c.finished_at IS NOT NULL END
  LIMIT 1000
)
UPDATE schedule_runs r SET state = over.state, finished_at = over.finished_at, reason = over.reason
FROM over WHERE r.id = over.id AND r.state = 'running'
""")
_NEXT = statement("runs.next")("""
UPDATE schedule_runs SET state = 'submitting' WHERE state = 'waiting' AND id IN (
  SELECT DISTINCT ON (schedule_id) id FROM schedule_runs r
  WHERE finished_at IS NULL AND state = 'waiting' AND NOT EXISTS (
    SELECT FROM schedule_runs b
    WHERE b.schedule_id = r.schedule_id AND b.finished_at IS NULL AND b.state IN ('submitting', 'running'))
  ORDER BY schedule_id, instant)
""")
_PAGE = statement("runs.page")(f"""
SELECT {_COLUMNS} FROM schedule_runs
WHERE schedule_id = :schedule_id AND tenant_id = :tenant_id AND instant < :before ORDER BY instant DESC LIMIT :limit
""")  # noqa: S608  our own text
_LAST_OF = statement("runs.last_of")(f"""
SELECT {", ".join("r." + name.strip() for name in _COLUMNS.split(","))}
FROM unnest(CAST(:schedules AS bigint[])) AS wanted (id)
CROSS JOIN LATERAL (
  SELECT {_COLUMNS} FROM schedule_runs
  WHERE schedule_id = wanted.id AND tenant_id = :tenant_id ORDER BY instant DESC LIMIT :limit
) r ORDER BY r.schedule_id, r.instant DESC
""")  # noqa: S608  our own text
_ONE = statement("runs.one")(
    f"SELECT {_COLUMNS} FROM schedule_runs WHERE id = :id AND tenant_id = :tenant_id"  # noqa: S608  our own text
)
_FORGET = statement("runs.forget")("""
DELETE FROM schedule_runs WHERE id IN (
  SELECT id FROM schedule_runs
  WHERE finished_at IS NOT NULL AND finished_at < now() - make_interval(days => :days) LIMIT 10000)
""")


@dataclass(frozen=True, slots=True)
class Run:
    """`instant` is the time of the schedule that it stands for, or when it was asked for, which `asked_by` did."""

    id: int
    schedule_id: int
    tenant_id: int
    instant: datetime
    state: str
    asked_by: str | None
    job_id: int | None
    reason: str | None
    deadline_at: datetime | None
    warned_at: datetime | None
    missed_at: datetime | None
    created_at: datetime
    submitted_at: datetime | None
    finished_at: datetime | None


def public_id(run_id: int) -> str:
    return ids.public("run_", run_id)


def new(
    connection: Connection, schedule: Any, instant: datetime, state: RunState, *, now: datetime,
    deadline_at: datetime | None, reason: str | None = None, asked: bool = False,
) -> int | None:  # fmt: skip
    """Records the run of that instant, and that it fired. None: it was there already."""
    values = {"id": ids.new(), "schedule_id": schedule.id, "tenant_id": schedule.tenant_id, "name": schedule.name}
    values |= {"instant": instant, "state": state.value, "reason": reason, "asked": asked, "now": now}
    found = connection.execute(_NEW, values | {"deadline_at": deadline_at}).scalar_one_or_none()
    return None if found is None else int(found)


def live(connection: Connection, schedule_id: int) -> Sequence[Any]:
    """The runs that have not ended, as rows with id, instant, state, job_id and catalogue_run_id, in order."""
    return connection.execute(_LIVE, {"schedule_id": schedule_id}).all()


def drop_unsubmitted(connection: Connection, schedule: Any, reason: str, now: datetime) -> None:
    """Skips the runs that have no job yet."""
    values = {"schedule_id": schedule.id, "name": schedule.name, "reason": reason, "now": now}
    connection.execute(_DROP_UNSUBMITTED, values)


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    return turns.waiting(connection, _PENDING, excluding, busy)


def to_submit(connection: Connection, run_id: int) -> Any:
    """The run with what it submits. None: it is not to be submitted any more."""
    return connection.execute(_TO_SUBMIT, {"id": run_id}).one_or_none()


def hold(connection: Connection, run_id: int) -> bool:
    """Whether the run is still to be submitted; until the end of the transaction nobody else does."""
    return connection.execute(_HOLD, {"id": run_id}).first() is not None


def submitted(connection: Connection, run_id: int, job_id: int | None, catalogue_run_id: int | None) -> None:
    connection.execute(_SUBMITTED, {"id": run_id, "job_id": job_id, "catalogue_run_id": catalogue_run_id})


def refuse(connection: Connection, run_id: int, reason: str) -> None:
    connection.execute(_REFUSE, {"id": run_id, "reason": reason})


def settle(connection: Connection) -> int:
    """Ends the runs whose jobs or catalogues' runs have ended, and begins those that waited for them. Returns how many
    ended."""
    ended = connection.execute(_END).rowcount
    connection.execute(_NEXT)
    return ended


def page(connection: Connection, tenant_id: int, schedule_id: int, *, before: datetime, limit: int) -> list[Run]:
    """The schedule's runs of instants before that one, the newest first."""
    values = {"schedule_id": schedule_id, "tenant_id": tenant_id, "before": before, "limit": limit}
    return [Run(*row) for row in connection.execute(_PAGE, values)]


def last_of(connection: Connection, tenant_id: int, schedules: Sequence[int], limit: int) -> dict[int, list[Run]]:
    """The newest runs of each of these schedules, the newest first."""
    found: dict[int, list[Run]] = {schedule_id: [] for schedule_id in schedules}
    values = {"schedules": list(schedules), "tenant_id": tenant_id, "limit": limit}
    for row in connection.execute(_LAST_OF, values):
        found[row.schedule_id].append(Run(*row))
    return found


def find(connection: Connection, tenant_id: int, run_id: int) -> Run:
    return Run(*connection.execute(_ONE, {"id": run_id, "tenant_id": tenant_id}).one())


def forget(connection: Connection, days: int) -> int:
    """Deletes runs that ended so long ago, 10,000 at a time. Returns how many."""
    return connection.execute(_FORGET, {"days": days}).rowcount
