"""Every write about jobs: new, cancel, finish. Each verb is one UPDATE guarded by the states it may come from.

Functions take an open transaction and never commit.
"""

import json
import secrets
import time
from collections.abc import Sequence

from sqlalchemy import Connection, text

from services.core import states, tables
from services.core.errors import Conflict, NotFound
from services.core.specs import Shape
from services.core.states import JobState

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_DIGITS = {letter: value for value, letter in enumerate(_ALPHABET)}

_NEW = text("""
INSERT INTO jobs (id, tenant_id, state, priority, total, labels)
VALUES (:id, :tenant_id, 'queued', :priority, :total, CAST(:labels AS jsonb))
""")
_NEW_COUNTERS = text("INSERT INTO counters (job_id, queued) VALUES (:id, :total)")
_NEW_SEGMENTS = text("""
INSERT INTO segments (job_id, id, tenant_id, model_revision, width, height, steps, guided, priority, open, low, high)
VALUES (:job_id, :id, :tenant_id, :model_revision, :width, :height, :steps, :guided, :priority, true, :low, :high)
""")
_CANCEL = text("""
UPDATE jobs SET state = 'cancelling', cancel_requested_at = now()
WHERE id = :id AND tenant_id = :tenant_id AND state = ANY(:sources)
""")
_ALONE = text("SELECT pg_advisory_xact_lock(:id)")
_CLOSE = text("UPDATE segments SET open = false WHERE job_id = :id AND open")
_PAUSE = text("UPDATE jobs SET paused = :paused WHERE id = :id AND tenant_id = :tenant_id AND state = ANY(:sources)")
_OPEN = text("UPDATE segments SET open = :open WHERE job_id = :id")
_STATE = text("SELECT state FROM jobs WHERE id = :id AND tenant_id = :tenant_id")

_ALL_FINAL = """
SELECT j.id, c.done + d.done AS done FROM jobs j
JOIN counters c ON c.job_id = j.id
CROSS JOIN LATERAL (
  SELECT coalesce(sum(queued), 0) AS queued, coalesce(sum(rendering), 0) AS rendering, coalesce(sum(done), 0) AS done
  FROM counter_deltas WHERE job_id = j.id
) d
WHERE j.finished_at IS NULL AND j.state = ANY(:sources)
  AND c.queued + d.queued = 0 AND c.rendering + d.rendering = 0
"""
_FINALIZE = text(f"""
UPDATE jobs SET state = 'finalizing', finalizing_at = now(), started_at = coalesce(started_at, now())
FROM ({_ALL_FINAL}) ready WHERE jobs.id = ready.id AND state = ANY(:sources)
""")  # noqa: S608  our own text
_FINISH = text(f"""
UPDATE jobs SET state = CASE WHEN ready.done > 0 THEN 'completed' ELSE 'failed' END, finished_at = now()
FROM ({_ALL_FINAL}) ready WHERE jobs.id = ready.id AND state = ANY(:sources)
RETURNING jobs.id
""")  # noqa: S608  our own text
_FINISH_CANCELLED = text(f"""
UPDATE jobs SET state = 'cancelled', finished_at = now()
FROM ({_ALL_FINAL}) ready WHERE jobs.id = ready.id AND state = ANY(:sources)
RETURNING jobs.id
""")  # noqa: S608  our own text


def new_id() -> int:
    """A fresh job id: time-ordered, so that partitions are by age; hard to guess, and no right to anything."""
    milliseconds = int(time.time() * 1000) - int(tables.ID_EPOCH.timestamp() * 1000)
    return milliseconds << tables.ID_RANDOM_BITS | secrets.randbits(tables.ID_RANDOM_BITS)


def public_id(job_id: int) -> str:
    """How people see it: `job_` and 13 characters of Crockford's base 32."""
    return "job_" + "".join(_ALPHABET[job_id >> shift & 31] for shift in range(60, -1, -5))


def parse_id(public: str) -> int:
    """The inverse; NotFound for anything that is no job's id."""
    letters = public.removeprefix("job_")
    if len(public) != 17 or len(letters) != 13 or any(letter not in _DIGITS for letter in letters):
        raise NotFound("There is no such job.")
    value = 0
    for letter in letters:
        value = value << 5 | _DIGITS[letter]
    if value >= 2**63:
        raise NotFound("There is no such job.")
    return value


def create(
    connection: Connection,
    job_id: int,
    *,
    tenant_id: int,
    priority: int,
    total: int,
    labels: dict[str, str],
    segments: Sequence[tuple[Shape, int, int]],
) -> None:
    """Records a job with its segments: (shape, first index, last index) each, numbered in order."""
    values = {"id": job_id, "tenant_id": tenant_id, "priority": priority, "total": total}
    connection.execute(_NEW, values | {"labels": json.dumps(labels)})
    connection.execute(_NEW_COUNTERS, {"id": job_id, "total": total})
    rows = [
        {
            "job_id": job_id,
            "id": number,
            "tenant_id": tenant_id,
            "priority": priority,
            "model_revision": shape.model_revision,
            "width": shape.width,
            "height": shape.height,
            "steps": shape.steps,
            "guided": shape.guided,
            "low": low,
            "high": high,
        }
        for number, (shape, low, high) in enumerate(segments)
    ]
    connection.execute(_NEW_SEGMENTS, rows)


def cancel(connection: Connection, tenant_id: int, job_id: int) -> None:
    """From this commit on nothing of the job is claimed and nothing of it turns done. Calling it again is no error.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: the job has finished.
    """
    values = {"id": job_id, "tenant_id": tenant_id}
    connection.execute(_ALONE, {"id": job_id})  # waits for the claims and settles that hold the job, and for no later
    moved = connection.execute(_CANCEL, values | {"sources": states.sources(JobState.CANCELLING)}).rowcount
    if moved:
        connection.execute(_CLOSE, {"id": job_id})
        return
    state = connection.execute(_STATE, values).scalar_one_or_none()
    if state is None:
        raise NotFound("There is no such job.")
    if state not in (JobState.CANCELLING, JobState.CANCELLED):
        raise Conflict(f"The job is {state}; only a job that has not finished can be cancelled.")


def pause(connection: Connection, tenant_id: int, job_id: int, paused: bool) -> None:
    """Nothing of a paused job is claimed; what is being rendered goes on.

    Raises:
        NotFound: no such job of this tenant, or none that has work left.
    """
    values = {"id": job_id, "tenant_id": tenant_id, "paused": paused}
    live = sorted(state.value for state in states.CLAIMABLE_JOB_STATES)
    if not connection.execute(_PAUSE, values | {"sources": live}).rowcount:
        raise NotFound("There is no such job that could be paused.")
    connection.execute(_OPEN, {"id": job_id, "open": not paused})


def finish(connection: Connection) -> list[int]:
    """Ends every job whose images are all final; returns the ids of those that reached their final state."""
    finalize = states.sources(JobState.FINALIZING)
    connection.execute(_FINALIZE, {"sources": finalize})
    finished = connection.execute(_FINISH, {"sources": [JobState.FINALIZING.value]}).scalars().all()
    cancelled = connection.execute(_FINISH_CANCELLED, {"sources": [JobState.CANCELLING.value]}).scalars().all()
    return [*finished, *cancelled]
