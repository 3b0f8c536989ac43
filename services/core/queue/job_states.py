"""Every write of the table `jobs`, above all every move from one state to the next.

Each move is one UPDATE, guarded by the states that `model.states` allows it to come from; the same statement logs the
event. If it moves no row, the caller finds out why.

Functions take an open transaction and never commit.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from services.core import traces
from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.model import states
from services.core.model.errors import Problem
from services.core.model.requests import PRIORITIES
from services.core.model.states import JobState
from services.core.queue import counters, segments
from services.core.tenants import admission

_NEW = statement("job_states.new")(f"""
WITH made AS (
  INSERT INTO jobs (id, tenant_id, state, priority, total, requests, labels, dedupe, embed_prompt, drawn_seeds,
                    traceparent, parent_id, input_file_id, completion_window, output_expires_seconds, base_url,
                    expires_at, opened_at, retention, in_shards)
  VALUES (:id, :tenant_id, :state, :priority, :total, :requests, CAST(:labels AS jsonb), :dedupe, :embed_prompt,
          :drawn_seeds, :traceparent, :parent_id, :input_file_id, :completion_window, :output_expires_seconds,
          :base_url, now() + make_interval(secs => :expires_seconds), CASE WHEN :opened THEN now() END,
          CAST(:retention AS jsonb), :in_shards)
  RETURNING id, tenant_id, state
), logged AS (
  SELECT id, tenant_id, state, kind FROM made CROSS JOIN unnest(CAST(:kinds AS text[])) AS kind
)
{log.of_jobs("logged", "kind", "jsonb_build_object('state', state)")}
""")  # noqa: S608  our own text
_TRACEPARENTS = statement("job_states.traceparents")(
    "SELECT traceparent FROM jobs WHERE id = ANY(:ids) AND traceparent IS NOT NULL ORDER BY id"
)
_GROW = statement("job_states.grow")(
    "UPDATE jobs SET total = total + :images, requests = requests + :requests, "
    "drawn_seeds = drawn_seeds + :drawn_seeds WHERE id = :id RETURNING tenant_id"
)
_LABELS = statement("job_states.labels")(f"""
WITH moved AS (
  UPDATE jobs SET labels = CAST(:labels AS jsonb)
  WHERE id = :id AND tenant_id = :tenant_id AND labels <> CAST(:labels AS jsonb) RETURNING id, tenant_id
)
{log.of_jobs("moved", "'job.labels_changed'")}
""")  # noqa: S608  our own text
_PRIORITY = statement("job_states.priority")(f"""
WITH moved AS (
  UPDATE jobs SET priority = :priority
  WHERE id = :id AND tenant_id = :tenant_id AND finished_at IS NULL AND priority <> :priority
  RETURNING id, tenant_id
)
{log.of_jobs("moved", "'job.priority_changed'", "jsonb_build_object('priority', CAST(:word AS text))")}
""")  # noqa: S608  our own text
_PAUSE = statement("job_states.pause")(f"""
WITH moved AS (
  UPDATE jobs SET paused = :paused
  WHERE id = :id AND tenant_id = :tenant_id AND state = ANY(:sources) AND paused <> :paused
  RETURNING id, tenant_id, paused
)
{log.of_jobs("moved", "CASE WHEN paused THEN 'job.paused' ELSE 'job.resumed' END")}
""")  # noqa: S608  our own text
_OPEN = statement("job_states.open")(f"""
WITH moved AS (
  UPDATE jobs SET state = 'queued', opened_at = now(), expires_at = NULL WHERE id = :id AND state = ANY(:sources)
  RETURNING id, tenant_id
), logged AS (
  SELECT id, tenant_id, kind FROM moved CROSS JOIN unnest(ARRAY['job.submitted', 'job.queued']) AS kind
), told AS (
  {log.of_jobs("logged", "kind")}
)
SELECT tenant_id FROM moved
""")  # noqa: S608  our own text
_ACCEPT = statement("job_states.accept")(f"""
WITH moved AS (
  UPDATE jobs SET state = 'queued', total = :images, requests = :requests, drawn_seeds = :drawn_seeds,
         opened_at = now()
  WHERE id = :id AND state = ANY(:sources) RETURNING id, tenant_id, priority
), logged AS (
  {log.of_jobs("moved", "'job.queued'")}
)
SELECT tenant_id, priority FROM moved
""")  # noqa: S608  our own text
_NO_COUNTS = "jsonb_build_object('done', 0, 'failed', 0, 'cancelled', 0, 'reused', 0, 'total', 0)"
# A part of WITH that nothing reads is run last, so the final event has the higher number.
_REFUSE = statement("job_states.refuse")(f"""
WITH moved AS (
  UPDATE jobs SET state = 'failed', finished_at = now(), problems = CAST(:problems AS jsonb)
  WHERE id = :id AND state = ANY(:sources) RETURNING id, tenant_id, jsonb_array_length(problems) AS found
), failed AS (
  {log.of_jobs("moved", "'job.failed'", _NO_COUNTS)}
)
{log.of_jobs("moved", "'job.refused'", "jsonb_build_object('problems', found)")}
""")  # noqa: S608  our own text
_START = statement("job_states.start")(f"""
WITH moved AS (
  UPDATE jobs SET state = 'in_progress', started_at = now() WHERE id = ANY(:ids) AND state = ANY(:sources)
  RETURNING id, tenant_id
)
{log.of_jobs("moved", "'job.started'")}
""")  # noqa: S608  our own text
_LOCK_JOB = statement("job_states.lock_job")("SELECT pg_advisory_xact_lock(:id)")
# A number that a client sent is looked up first, so that nobody holds the lock of another tenant's job.
_LOCK_OWN_JOB = statement("job_states.lock_own_job")(
    "SELECT pg_advisory_xact_lock(id) FROM jobs WHERE id = :id AND tenant_id = :tenant_id"
)
_STOP = f"""
WITH moved AS (
  UPDATE jobs SET state = 'cancelling', stop_reason = :reason, cancel_requested_at = now()
  WHERE id = :id AND state = ANY(:sources) AND {{rest}} RETURNING id, tenant_id, stop_reason
)
{log.of_jobs("moved", "'job.cancel_requested'", "jsonb_build_object('reason', stop_reason)")}
"""  # noqa: S608  our own text
_CANCEL = statement("job_states.cancel")(_STOP.format(rest="tenant_id = :tenant_id"))
_EXPIRE = statement("job_states.expire")(_STOP.format(rest="expires_at < now()"))
_OVERDUE = statement("job_states.overdue")(
    turns.first_of_each("""
  SELECT id FROM jobs
  WHERE tenant_id = t.id AND expires_at < now() AND finished_at IS NULL AND state = ANY(:sources)
  ORDER BY expires_at LIMIT :first
""")
)

_ALL_FINAL = """
SELECT j.id, j.tenant_id, c.done, c.failed, c.cancelled, c.reused FROM jobs j JOIN job_counts c ON c.job_id = j.id
WHERE j.finished_at IS NULL AND j.state = ANY(:sources) AND c.queued = 0 AND c.rendering = 0
"""
# The first job of every tenant, then the second, up to so many at once.
_SOME_FINAL = f"""
SELECT * FROM ({_ALL_FINAL} {{which}}) final
ORDER BY row_number() OVER (PARTITION BY tenant_id ORDER BY id), id LIMIT 1000
"""  # noqa: S608  our own text
_FINALIZE = statement("job_states.finalize")(f"""
WITH moved AS (
  UPDATE jobs SET state = 'finalizing', finalizing_at = now(), started_at = coalesce(started_at, now())
  FROM ({_SOME_FINAL.format(which="")}) ready WHERE jobs.id = ready.id AND state = ANY(:sources)
  RETURNING jobs.id, jobs.tenant_id
)
{log.of_jobs("moved", "'job.finalizing'")}
""")  # noqa: S608  our own text
_COUNTS = """jsonb_build_object(
  'done', done, 'failed', failed, 'cancelled', cancelled, 'reused', reused, 'total', total)"""
_FINISH = f"""
WITH moved AS (
  UPDATE jobs SET finished_at = now(), output_file_id = :output_file_id, error_file_id = :error_file_id,
    requests_done = :requests_done, requests_failed = :requests_failed,
    state = CASE WHEN state = 'cancelling' THEN coalesce(stop_reason, 'cancelled')
                 WHEN ready.done > 0 THEN 'completed' ELSE 'failed' END
  FROM ({_SOME_FINAL}) ready
  WHERE jobs.id = ready.id AND state = ANY(:sources)
  RETURNING jobs.id, jobs.tenant_id, state, total, ready.done, ready.failed, ready.cancelled, ready.reused
), logged AS (
  {log.of_jobs("moved", "'job.' || state", _COUNTS)}
)
SELECT id FROM moved
"""  # noqa: S608  our own text
_FINISH_ALL = statement("job_states.finish_all")(_FINISH.format(which="AND j.input_file_id IS NULL"))
_FINISH_ONE = statement("job_states.finish_one")(_FINISH.format(which="AND j.id = :id"))
_FINISHABLE = statement("job_states.finishable")(
    turns.first_of_each("""
  SELECT j.id FROM unnest(CAST(:sources AS text[])) AS source (state)
  CROSS JOIN LATERAL (
    SELECT id FROM jobs
    WHERE jobs.state = source.state AND tenant_id = t.id AND input_file_id IS NOT NULL
      AND id <> ALL(CAST(:excluding AS bigint[]))
      AND EXISTS (SELECT FROM job_counts c WHERE c.job_id = jobs.id AND c.queued = 0 AND c.rendering = 0)
    ORDER BY id LIMIT :first
  ) j ORDER BY j.id LIMIT :first
""")
)
_MARK_DELETED = statement("job_states.mark_deleted")(f"""
WITH moved AS (
  UPDATE jobs SET deleted_at = now() WHERE id = :id AND tenant_id = :tenant_id AND deleted_at IS NULL
  RETURNING id, tenant_id, total
)
{log.of_jobs("moved", "'job.deleted'", "jsonb_build_object('total', total)")}
""")  # noqa: S608  our own text

_GONE = """
WITH moved AS (
  UPDATE jobs SET {moment} = now() WHERE id = :id AND finished_at IS NOT NULL AND deleted_at IS NULL
    AND {moment} IS NULL RETURNING id, tenant_id
)
"""
_ERASE_PAYLOADS = statement("job_states.erase_payloads")(
    _GONE.format(moment="payloads_erased_at") + log.of_jobs("moved", "'job.payloads_erased'")
)
_DELETE_OBJECTS = statement("job_states.delete_objects")(
    _GONE.format(moment="objects_deleted_at") + log.of_jobs("moved", "'job.objects_deleted'")
)
_DROP_WITH_WEEK = statement("job_states.drop_with_week")(
    "UPDATE jobs SET drops_with_week = true WHERE id = :id AND deleted_at IS NOT NULL AND finished_at IS NOT NULL"
)

EXPIRED_AT_ONCE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A new job. A draft, and a job whose file is not read yet, have no images. `expires_seconds` counts from now."""

    id: int
    tenant_id: int
    state: JobState
    priority: int
    labels: dict[str, str]
    dedupe: bool
    embed_prompt: bool
    total: int = 0
    requests: int = 0
    drawn_seeds: int = 0
    parent_id: int | None = None
    input_file_id: int | None = None
    completion_window: str | None = None
    output_expires_seconds: int | None = None
    base_url: str | None = None
    expires_seconds: int | None = None
    retention: dict[str, int | None] | None = None
    in_shards: bool = False


@dataclass(frozen=True, slots=True)
class Files:
    """The results of a job that was submitted as a file: its files, unless they are empty, and its request counts."""

    output_file_id: int | None = None
    error_file_id: int | None = None
    requests_done: int | None = None
    requests_failed: int | None = None


def create(connection: Connection, job: NewJob) -> None:
    """Records a job and its counters. Raises as `admission.ask_images` does, as everything does that adds images."""
    assert job.state in states.FIRST_JOB_STATES
    values = asdict(job) | {"labels": json.dumps(job.labels), "opened": job.state is JobState.QUEUED}
    values["retention"] = None if job.retention is None else json.dumps(job.retention)
    values["traceparent"] = traces.traceparent()
    values["kinds"] = ["job.created", *(["job.queued"] if job.state is JobState.QUEUED else [])]
    connection.execute(_NEW, values)
    counters.new(connection, job.id, job.total)
    admission.ask_images(connection, job.tenant_id, job.total)


def traceparents(connection: Connection, job_ids: Sequence[int]) -> list[str]:
    """The spans under which those of the jobs were submitted that have one, in order of ids."""
    return list(connection.execute(_TRACEPARENTS, {"ids": sorted(set(job_ids))}).scalars())


def grow(connection: Connection, job_id: int, *, images: int, requests: int, drawn_seeds: int = 0) -> None:
    """Adds images to a job whose row the caller has locked."""
    values = {"id": job_id, "images": images, "requests": requests, "drawn_seeds": drawn_seeds}
    tenant_id = connection.execute(_GROW, values).scalar_one()
    counters.grow(connection, job_id, images)
    admission.ask_images(connection, tenant_id, images)


def set_labels(connection: Connection, tenant_id: int, job_id: int, labels: dict[str, str]) -> None:
    connection.execute(_LABELS, {"id": job_id, "tenant_id": tenant_id, "labels": json.dumps(labels)})


def set_priority(connection: Connection, tenant_id: int, job_id: int, priority: int) -> bool:
    """Changes the priority of all images that are not claimed yet. False: the job has finished or has that priority."""
    word = next(word for word, number in PRIORITIES.items() if number == priority)
    values = {"id": job_id, "tenant_id": tenant_id, "priority": priority, "word": word}
    connection.execute(_LOCK_OWN_JOB, values)  # waits for a crash that is copying segments into quarantine
    if not connection.execute(_PRIORITY, values).rowcount:
        return False
    segments.set_priority(connection, job_id, priority)
    return True


def pause(connection: Connection, tenant_id: int, job_id: int, paused: bool) -> bool:
    """Stops or resumes the claiming of the job's images. False: nothing changes, or the job cannot be claimed from."""
    values = {"id": job_id, "tenant_id": tenant_id, "paused": paused}
    connection.execute(_LOCK_OWN_JOB, values)  # waits for a crash that is copying segments into quarantine
    if not connection.execute(_PAUSE, values | {"sources": states.guard(states.CLAIMABLE_JOB_STATES)}).rowcount:
        return False
    segments.set_open(connection, job_id, not paused)
    return True


def open_draft(connection: Connection, job_id: int) -> bool:
    """Queues a complete draft with all its images. False: the job is not a draft."""
    tenant_id = connection.execute(_OPEN, {"id": job_id, "sources": states.OPEN.guard}).scalar_one_or_none()
    if tenant_id is None:
        return False
    admission.ask_images(connection, tenant_id, 0)
    segments.set_open(connection, job_id, True)
    return True


def accept(connection: Connection, job_id: int, *, images: int, requests: int, drawn_seeds: int) -> Any:
    """Queues a job whose file is valid; the caller adds its segments and images in the same transaction. Returns a row
    with tenant_id and priority, or None if the job is no longer validating."""
    values = {"id": job_id, "images": images, "requests": requests, "drawn_seeds": drawn_seeds}
    job = connection.execute(_ACCEPT, values | {"sources": states.ACCEPT.guard}).one_or_none()
    if job is not None:
        counters.grow(connection, job_id, images)
        admission.ask_images(connection, job.tenant_id, images)
    return job


def refuse(connection: Connection, job_id: int, problems: Sequence[Problem]) -> bool:
    """Fails a job whose file is invalid, and records its problems. False: the job is no longer validating."""
    found = json.dumps([asdict(problem) for problem in problems])
    values = {"id": job_id, "problems": found, "sources": states.REFUSE.guard}
    return connection.execute(_REFUSE, values).rowcount == 1


def start(connection: Connection, job_ids: Sequence[int]) -> None:
    """Marks jobs as in progress. Call it after the claim's transaction, so that no claim waits for another's commit. If
    it is never called, `finalize` does its work."""
    connection.execute(_START, {"ids": list(job_ids), "sources": states.START.guard})


def cancel(connection: Connection, tenant_id: int, job_id: int) -> bool:
    """From this commit on, no image of the job is claimed or becomes done. False: the job is stopping or has ended."""
    values = {"id": job_id, "tenant_id": tenant_id, "reason": "cancelled", "sources": states.STOP.guard}
    connection.execute(_LOCK_OWN_JOB, values)  # waits for the claims and settles under way, not for later ones
    if not connection.execute(_CANCEL, values).rowcount:
        return False
    segments.close(connection, job_id)
    return True


def expire(connection: Connection) -> int:
    """Stops the jobs that are out of time, as a cancel does; their done images stay. Returns how many.

    Locks are taken in order of ids, as by claims. A job that was finalized in the meantime is not stopped.
    """
    stopped = 0
    limits = {"first": EXPIRED_AT_ONCE, "most": EXPIRED_AT_ONCE}
    overdue = turns.waiting(connection, _OVERDUE, (), (), sources=states.STOP.guard, **limits)
    for job_id in sorted(job.id for job in overdue):
        connection.execute(_LOCK_JOB, {"id": job_id})
        values = {"id": job_id, "reason": "expired", "sources": states.STOP.guard}
        if connection.execute(_EXPIRE, values).rowcount:
            segments.close(connection, job_id)
            stopped += 1
    return stopped


def mark_deleted(connection: Connection, tenant_id: int, job_id: int) -> bool:
    """Hides the job from its tenant from this commit on. False: there is none, or it is deleted already. The
    transaction must be the system's: a tenant's can write no row that it would not see."""
    return connection.execute(_MARK_DELETED, {"id": job_id, "tenant_id": tenant_id}).rowcount == 1


def erase_payloads(connection: Connection, job_id: int) -> bool:
    """From this commit on the prompts of a job that has ended count as gone. False: they do already."""
    return connection.execute(_ERASE_PAYLOADS, {"id": job_id}).rowcount == 1


def delete_objects(connection: Connection, job_id: int) -> bool:
    """From this commit on the objects of a job that has ended count as gone. False: they do already."""
    return connection.execute(_DELETE_OBJECTS, {"id": job_id}).rowcount == 1


def drop_with_week(connection: Connection, job_id: int) -> None:
    """The rows of a deleted job's images are left to be dropped with their partitions."""
    connection.execute(_DROP_WITH_WEEK, {"id": job_id})


def finalize(connection: Connection) -> int:
    """Moves every job whose images are all final to `finalizing`. Returns how many."""
    return connection.execute(_FINALIZE, {"sources": states.FINALIZE.guard}).rowcount


def finish_all(connection: Connection) -> list[int]:
    """Ends the jobs whose images are all final, except those that were submitted as a file. Returns their ids."""
    values = asdict(Files()) | {"sources": states.guard(states.ENDING_JOB_STATES)}
    return list(connection.execute(_FINISH_ALL, values).scalars())


def finishable(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Jobs that were submitted as a file and whose images are all final: their output files can be written."""
    sources = states.guard(states.ENDING_JOB_STATES)
    return turns.waiting(connection, _FINISHABLE, excluding, busy, sources=sources)


def finish(connection: Connection, job_id: int, files: Files) -> bool:
    """Ends a finishable job and records its files. False: it has already ended."""
    values = asdict(files) | {"id": job_id, "sources": states.guard(states.ENDING_JOB_STATES)}
    return connection.execute(_FINISH_ONE, values).first() is not None
