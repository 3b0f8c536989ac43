"""The background task that does an act to one job after the other. Each job has a transaction of its own, in which the
act remembers how far it is: whoever continues it does nothing twice, and each job's events name who asked."""

import json
import time

from sqlalchemy import Connection

from services.core.bulk import bulk, matching, verbs
from services.core.bulk.bulk import BulkAct
from services.core.crash_points import crash_point
from services.core.db import actors, deferred
from services.core.db.leases import Lease
from services.core.db.statements import statement
from services.core.model import ids
from services.core.model.errors import Conflict, NotAdmitted, NotFound
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.policy.refusals import Door
from services.core.settings import Settings

SLICE_SECONDS = 10.0  # then others get their turn
AT_ONCE = 100  # jobs that are looked up together

_RUNS = statement("task.runs")("SELECT FROM bulk_acts WHERE id = :id AND state = 'running' FOR SHARE")
_MOVE_ON = statement("task.move_on")(f"""
UPDATE bulk_acts SET reached = :reached, done = done + :done, lost = lost + :lost,
  reasons = CASE WHEN jsonb_array_length(reasons) < {bulk.REASONS} THEN reasons || CAST(:reasons AS jsonb)
            ELSE reasons END
WHERE id = :id
""")  # noqa: S608  our own text
_COMPLETE = statement("task.complete_bulk")("""
UPDATE bulk_acts SET state = 'completed', finished_at = now() WHERE id = :id AND state = 'running'
""")


def run(settings: Settings, notifier: Notifier, number: int, lease: Lease) -> None:
    """Does it to all jobs, or to as many as a time slice allows. Call it again while the act is pending."""
    until = time.monotonic() + SLICE_SECONDS
    with lease.begin() as connection:
        asked = bulk.running(connection, number)
    if asked is None:
        return
    reached: int | None = asked.reached
    with actors.acting(asked.actor):
        while reached is not None and time.monotonic() < until:
            reached = _some(settings, notifier, asked, reached, lease, until)
    if reached is None:
        with lease.begin() as connection:
            connection.execute(_COMPLETE, {"id": number})


def _some(settings: Settings, notifier: Notifier, asked: BulkAct, after: int, lease: Lease, until: float) -> int | None:
    """Does it to the next jobs. Returns how far it is; None: it is through, or was stopped."""
    act = verbs.act(asked.verb, asked.options)
    with lease.begin() as connection:
        some = matching.following(
            connection, asked.tenant_id, asked.wanted, act, asked.options,
            after=after, last=asked.last_job, limit=AT_ONCE,
        )  # fmt: skip
    for job_id in some.ids:
        with lease.begin() as connection:
            if connection.execute(_RUNS, {"id": asked.id}).first() is None:
                return None
            models = _one(settings, connection, asked, act, job_id)
        crash_point("bulk.acted")
        for model in models:  # if it is lost, the workers' timers find the job within seconds
            notifier.notify(model)
        if time.monotonic() > until:
            return job_id
    if some.reached is not None:
        with lease.begin() as connection:
            _move_on(connection, asked.id, some.reached)
    return some.reached


def _one(settings: Settings, connection: Connection, asked: BulkAct, act: verbs.Act, job_id: int) -> list[str]:
    """Does it to one job. One that has changed since it was looked up, so that it cannot be, is counted as lost."""
    try:
        with connection.begin_nested():
            policy = policies.at(settings, connection, Door("retry", asked.tenant_id))
            models = act.run(connection, asked.tenant_id, job_id, asked.options, policy)
            deferred.run(connection)  # so that what goes over a quota takes back this act alone
    except (Conflict, NotFound, NotAdmitted) as error:
        reason = {"job": ids.public_job(job_id), "message": str(error)}
        _move_on(connection, asked.id, job_id, lost=1, reasons=[reason])
        return []
    _move_on(connection, asked.id, job_id, done=1)
    return models


def _move_on(
    connection: Connection,
    number: int,
    reached: int,
    *,
    done: int = 0,
    lost: int = 0,
    reasons: list[dict[str, str]] | None = None,
) -> None:
    values = {"id": number, "reached": reached, "done": done, "lost": lost, "reasons": json.dumps(reasons or [])}
    connection.execute(_MOVE_ON, values)
