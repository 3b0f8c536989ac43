"""Every write about jobs: new, cancel, finish. Each verb is one UPDATE guarded by the states it may come from.

Functions take an open transaction and never commit.
"""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, text

from services.core.model import states
from services.core.model.errors import Conflict, NotFound
from services.core.model.specs import Shape
from services.core.model.states import JobState

_NEW = text("""
INSERT INTO jobs (id, tenant_id, state, priority, total, requests, labels, dedupe, embed_prompt, opened_at)
VALUES (:id, :tenant_id, 'queued', :priority, :total, :requests, CAST(:labels AS jsonb), :dedupe, :embed_prompt, now())
""")
_NEW_COUNTERS = text("INSERT INTO counters (job_id, queued) VALUES (:id, :total)")
_NEW_SEGMENTS = text("""
INSERT INTO segments (job_id, id, tenant_id, model_revision, width, height, steps, guided, priority, open, low, high)
VALUES (:job_id, :id, :tenant_id, :model_revision, :width, :height, :steps, :guided, :priority, :open, :low, :high)
""")
_CANCEL = text("""
UPDATE jobs SET state = 'cancelling', stop_reason = 'cancelled', cancel_requested_at = now()
WHERE id = :id AND tenant_id = :tenant_id AND state = ANY(:sources)
""")
_OVERDUE = text("""
SELECT id FROM jobs WHERE expires_at < now() AND finished_at IS NULL AND state = ANY(:sources)
ORDER BY expires_at LIMIT 50
""")
_EXPIRE = text("""
UPDATE jobs SET state = 'cancelling', stop_reason = 'expired', cancel_requested_at = now()
WHERE id = :id AND state = ANY(:sources) AND expires_at < now()
""")
_ALONE = text("SELECT pg_advisory_xact_lock(:id)")
_CLOSE = text("UPDATE segments SET open = false WHERE job_id = :id AND open")
_PAUSE = text("UPDATE jobs SET paused = :paused WHERE id = :id AND tenant_id = :tenant_id AND state = ANY(:sources)")
_OPEN = text("UPDATE segments SET open = :open WHERE job_id = :id")
_LABELS = text("UPDATE jobs SET labels = CAST(:labels AS jsonb) WHERE id = :id AND tenant_id = :tenant_id")
_PRIORITY = text("""
UPDATE jobs SET priority = :priority WHERE id = :id AND tenant_id = :tenant_id AND finished_at IS NULL
""")
_SEGMENTS_PRIORITY = text("UPDATE segments SET priority = :priority WHERE job_id = :id")
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
_END = """
UPDATE jobs SET finished_at = now(), output_file_id = :output_file_id, error_file_id = :error_file_id,
  state = CASE WHEN state = 'cancelling' THEN coalesce(stop_reason, 'cancelled')
               WHEN ready.done > 0 THEN 'completed' ELSE 'failed' END
"""
_FINISH = text(f"""{_END}
FROM ({_ALL_FINAL}) ready WHERE jobs.id = ready.id AND state = ANY(:sources) AND input_file_id IS NULL
RETURNING jobs.id
""")
_CLOSABLE = text(f"""
SELECT jobs.id FROM jobs, ({_ALL_FINAL}) ready
WHERE jobs.id = ready.id AND finished_at IS NULL AND input_file_id IS NOT NULL
  AND jobs.id <> ALL(CAST(:besides AS bigint[]))
ORDER BY jobs.id LIMIT 10
""")  # noqa: S608  our own text
_CLOSE_JOB = text(f"""{_END}
FROM ({_ALL_FINAL}) ready WHERE jobs.id = ready.id AND state = ANY(:sources) AND jobs.id = :id
""")
_ENDING = [JobState.FINALIZING.value, JobState.CANCELLING.value]


def create(
    connection: Connection,
    job_id: int,
    *,
    tenant_id: int,
    priority: int,
    total: int,
    requests: int,
    labels: dict[str, str],
    segments: Sequence[tuple[Shape, int, int]],
    dedupe: bool = False,
    embed_prompt: bool = False,
) -> None:
    """Records a job with its segments: (shape, first index, last index) each, numbered in order."""
    values = {"id": job_id, "tenant_id": tenant_id, "priority": priority, "total": total, "requests": requests}
    options = {"labels": json.dumps(labels), "dedupe": dedupe, "embed_prompt": embed_prompt}
    connection.execute(_NEW, values | options)
    connection.execute(_NEW_COUNTERS, {"id": job_id, "total": total})
    new_segments(connection, job_id, tenant_id=tenant_id, priority=priority, segments=segments)


def new_segments(
    connection: Connection,
    job_id: int,
    *,
    tenant_id: int,
    priority: int,
    segments: Sequence[tuple[Shape, int, int]],
    first: int = 0,
    opened: bool = True,
) -> None:
    """Segments (shape, first index, last index) with numbers from `first` on; what is not opened is not claimed."""
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
            "open": opened,
        }
        for number, (shape, low, high) in enumerate(segments, first)
    ]
    if rows:
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
    state = _state(connection, tenant_id, job_id)
    if state not in (JobState.CANCELLING, JobState.CANCELLED):
        raise Conflict(f"The job is {state}; only a job that has not finished can be cancelled.")


def pause(connection: Connection, tenant_id: int, job_id: int, paused: bool) -> None:
    """Nothing of a paused job is claimed; what is being rendered goes on. Asking again is no error.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: a draft, whose images nothing claims anyway, or a job that ends or has ended.
    """
    values = {"id": job_id, "tenant_id": tenant_id, "paused": paused}
    live = sorted(state.value for state in states.CLAIMABLE_JOB_STATES)
    if connection.execute(_PAUSE, values | {"sources": live}).rowcount:
        connection.execute(_OPEN, {"id": job_id, "open": not paused})
        return
    state = _state(connection, tenant_id, job_id)
    code = "job_finished" if state in states.FINAL_JOB_STATES else "job_not_queued"
    raise Conflict(f"The job is {state}; only one that is queued or in_progress can be paused and resumed.", code)


def change(
    connection: Connection,
    tenant_id: int,
    job_id: int,
    *,
    priority: int | None = None,
    labels: dict[str, str] | None = None,
) -> None:
    """Gives a job another priority, for all that is not claimed yet, or other labels. None: as it is.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: another priority for a job that has finished.
    """
    values = {"id": job_id, "tenant_id": tenant_id}
    state = _state(connection, tenant_id, job_id)
    if priority is not None:
        if not connection.execute(_PRIORITY, values | {"priority": priority}).rowcount:
            raise Conflict(f"The job is {state}; only one that has not finished has a priority.", "job_finished")
        connection.execute(_SEGMENTS_PRIORITY, {"id": job_id, "priority": priority})
    if labels is not None:
        connection.execute(_LABELS, values | {"labels": json.dumps(labels)})


def finish(connection: Connection) -> list[int]:
    """Ends every job whose images are all final; returns the ids of those that reached their final state. What came as
    a file stays `finalizing` until `close`, when its files are written."""
    connection.execute(_FINALIZE, {"sources": states.sources(JobState.FINALIZING)})
    values = {"sources": _ENDING, "output_file_id": None, "error_file_id": None}
    return list(connection.execute(_FINISH, values).scalars())


def closable(connection: Connection, besides: Sequence[int] = ()) -> list[int]:
    """Jobs that came as a file and of which every image is final: their output is to be written."""
    return list(connection.execute(_CLOSABLE, {"sources": _ENDING, "besides": list(besides)}).scalars())


def close(connection: Connection, job_id: int, *, output_file_id: int | None, error_file_id: int | None) -> bool:
    """Ends such a job, with its files. False: it has ended before."""
    values = {"id": job_id, "sources": _ENDING, "output_file_id": output_file_id, "error_file_id": error_file_id}
    return connection.execute(_CLOSE_JOB, values).rowcount == 1


def expire(connection: Connection) -> int:
    """Stops the jobs that are out of time, as a cancel does; what is done of them stays. Returns how many.

    Their locks are had in order of ids, as by claims; whatever was finalized meanwhile has all the time in the world.
    """
    sources = states.sources(JobState.CANCELLING)
    stopped = 0
    for job_id in sorted(connection.execute(_OVERDUE, {"sources": sources}).scalars()):
        connection.execute(_ALONE, {"id": job_id})
        if connection.execute(_EXPIRE, {"id": job_id, "sources": sources}).rowcount:
            connection.execute(_CLOSE, {"id": job_id})
            stopped += 1
    return stopped


def _state(connection: Connection, tenant_id: int, job_id: int) -> str:
    state = connection.execute(_STATE, {"id": job_id, "tenant_id": tenant_id}).scalar_one_or_none()
    if state is None:
        raise NotFound("There is no such job.")
    return str(state)
