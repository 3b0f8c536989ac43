"""What is due: the leader writes the run of each instant that has come, and when the schedule fires next.

A run's row and the schedule's next time are one transaction, and a schedule has one row for each instant. So whoever
looks, however often and however late, and wherever they are killed: an instant has one run.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from services.core.db import turns
from services.core.db.statements import statement
from services.core.model.errors import Conflict
from services.core.schedules import runs, schedules
from services.core.schedules.asked import Rule
from services.core.schedules.runs import MOST_WAITING, RunState
from services.core.schedules.schedules import Schedule

GRACE = timedelta(seconds=60)  # a run that is so late has not been missed
_DUE = statement("firing.due")(
    turns.first_of_each("""
  SELECT id FROM schedules WHERE tenant_id = t.id AND next_at <= :now AND id <> ALL(CAST(:excluding AS bigint[]))
  ORDER BY next_at LIMIT :first
""")
)
_LOCK = statement("firing.lock")("""
SELECT id, tenant_id, name, cron, at, timezone, misfire, misfire_limit, overlap, deadline, next_at FROM schedules
WHERE id = ANY(CAST(:ids AS bigint[])) AND next_at <= :now ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")
_ALL = statement("firing.all")("""
SELECT id, cron, at, timezone, deadline, next_at FROM schedules
WHERE next_at > :now AND cron IS NOT NULL ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")
_MOVE = statement("firing.move")("UPDATE schedules SET next_at = :next_at WHERE id = :id")


def fire(connection: Connection, now: datetime | None = None) -> int:
    """Records the runs that are due, a few schedules of each tenant at a time. Returns how many schedules fired. `now`
    is the database's clock, unless a test gives another."""
    now = schedules.clock(connection) if now is None else now
    due = turns.waiting(connection, _DUE, (), (), now=now)
    rows = connection.execute(_LOCK, {"ids": [one.id for one in due], "now": now}).all() if due else []
    for row in rows:
        rule = Rule.stored(row)
        _record(connection, row, rule, _chosen(row, rule, now), now)
        connection.execute(_MOVE, {"id": row.id, "next_at": rule.next(now)})
    return len(rows)


def renew(connection: Connection, now: datetime | None = None) -> int:
    """Finds the next times again, by the rules of zones that this program has, which may be newer than those by which
    they were found. Returns how many have changed."""
    now = schedules.clock(connection) if now is None else now
    moved = 0
    for row in connection.execute(_ALL, {"now": now}).all():
        next_at = Rule.stored(row).next(now)
        if next_at != row.next_at:
            connection.execute(_MOVE, {"id": row.id, "next_at": next_at})
            moved += 1
    return moved


def run_now(connection: Connection, schedule: Schedule) -> int:
    """Records a run beside the schedule's times; also while it is paused. The schedule must be locked. Returns the run.

    Raises:
        Conflict: a run has not ended, and the overlap is "skip"; or as many wait as may.
    """
    now = schedules.clock(connection)
    state, reason = _state(connection, schedule, now)
    if state is RunState.SKIPPED:
        raise Conflict(f"{reason} This schedule has no two runs at a time.", "schedule_running")
    found = runs.new(connection, schedule, now, state, now=now, deadline_at=schedule.rule.until(now), asked=True)
    if found is None:
        raise Conflict("The schedule has a run of this very moment.", "schedule_running")
    return found


def _chosen(row: Any, rule: Rule, now: datetime) -> list[datetime]:
    """The instants that get a run: those that are on time, and of the missed ones what the policy says."""
    due = rule.due(row.next_at, now, max(row.misfire_limit, MOST_WAITING))
    on_time = [instant for instant in due if now - instant <= GRACE]
    if row.misfire == "none":
        return on_time or due[-1:]
    return due[-max(len(on_time), row.misfire_limit if row.misfire == "all" else 1) :]


def _record(connection: Connection, row: Any, rule: Rule, instants: list[datetime], now: datetime) -> None:
    for number, instant in enumerate(instants):
        if number:  # what is made up for goes one by one
            state, reason = RunState.WAITING, None
        elif row.misfire == "none" and now - instant > GRACE:
            state, reason = RunState.SKIPPED, "It was missed: no scheduler looked in time."
        else:
            state, reason = _state(connection, row, now)
        runs.new(connection, row, instant, state, now=now, deadline_at=rule.until(instant), reason=reason)
        if state is RunState.SKIPPED:  # and so are those behind it
            return


def _state(connection: Connection, schedule: Any, now: datetime) -> tuple[RunState, str | None]:
    """What becomes of a run that is due now, with regard to the runs before it, as the overlap says."""
    before = runs.live(connection, schedule.id)
    if not before:
        return RunState.SUBMITTING, None
    if schedule.overlap == "cancel":  # those that have a job are cancelled when this one is submitted
        runs.drop_unsubmitted(connection, schedule, "The next run was due before it was submitted.", now)
        return RunState.SUBMITTING, None
    if schedule.overlap == "queue" and len(before) < MOST_WAITING:
        return RunState.WAITING, None
    if schedule.overlap == "queue":
        return RunState.SKIPPED, f"{MOST_WAITING} runs wait already."
    return RunState.SKIPPED, f"The run of {before[0].instant:%Y-%m-%d %H:%M} UTC has not ended."
