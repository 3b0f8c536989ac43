"""Batch jobs: jobs that are submitted as a file.

A batch job is recorded at once and stays `validating` until a background task has read its file. It ends when another
background task has written its output and error files. Functions take an open transaction and never commit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.jobs import submissions
from services.core.model import ids
from services.core.model.states import JobState
from services.core.queue import job_states, segments
from services.core.queue.job_states import NewJob

MAX_DAYS = 30  # of a completion window
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])", re.ASCII)
_VALIDATING = statement("batch_jobs.validating")(
    turns.first_of_each("""
  SELECT id FROM jobs
  WHERE state = 'validating' AND tenant_id = t.id AND id <> ALL(CAST(:excluding AS bigint[])) ORDER BY id LIMIT :first
""")
)
_INPUT = statement("batch_jobs.input")("""
SELECT j.state, j.tenant_id, j.traceparent, f.object_key FROM jobs j
LEFT JOIN files f ON f.id = j.input_file_id AND f.deleted_at IS NULL WHERE j.id = :id
""")
_JOB = """
SELECT j.id, j.state, j.stop_reason, j.input_file_id, j.output_file_id, j.error_file_id, j.completion_window, j.labels,
       j.problems, j.total, j.requests, j.requests_done, j.requests_failed, j.created_at, j.expires_at, j.opened_at,
       j.finalizing_at, j.cancel_requested_at, j.finished_at, c.done, c.failed, c.cancelled
FROM jobs j JOIN job_counts c ON c.job_id = j.id
WHERE j.tenant_id = :tenant_id AND j.input_file_id IS NOT NULL
"""
_ONE = statement("batch_jobs.one")(_JOB + "AND j.id = :id")
_PAGE = statement("batch_jobs.page")(_JOB + "AND j.id < :before ORDER BY j.id DESC LIMIT :limit")
COUNTED_IMAGES = 1_000  # so many are read for the counts of a job in a list
# A request of several images is done if all of them are, and failed if all are final and at least one is not done.
_REQUESTS = statement("batch_jobs.requests")("""
SELECT count(*) FILTER (WHERE done = n) AS done, count(*) FILTER (WHERE done < n AND final = n) AS failed
FROM (
  SELECT p.n, count(*) FILTER (WHERE i.state = 2) AS done, count(*) FILTER (WHERE i.state >= 2) AS final
  FROM payloads p CROSS JOIN LATERAL (
    SELECT state FROM images
    WHERE images.job_id = p.job_id AND images.index >= p.index AND images.index < p.index + p.n OFFSET 0
  ) i
  WHERE p.job_id = :id GROUP BY p.index, p.n
) request
""")


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One batch job at one moment. `done` and `failed` count requests; requests that were never tried count as failed.
    While a large job with several images a request runs, they are estimated from the counts of its images."""

    id: int
    state: str
    stop_reason: str | None
    input_file_id: int
    output_file_id: int | None
    error_file_id: int | None
    completion_window: str
    labels: dict[str, str]
    problems: list[dict[str, Any]] | None
    requests: int
    done: int
    failed: int
    created_at: datetime
    expires_at: datetime
    opened_at: datetime | None
    finalizing_at: datetime | None
    cancel_requested_at: datetime | None
    finished_at: datetime | None


def window_seconds(window: str) -> int | None:
    """The seconds of a completion window such as "24h" or "7d". None: it is not one, or longer than 30 days."""
    found = _WINDOW.fullmatch(window)
    hours = int(found[1]) * (24 if found[2] == "d" else 1) if found else 0
    return hours * 3600 if 1 <= hours <= MAX_DAYS * 24 else None


def create(
    connection: Connection,
    tenant_id: int,
    *,
    job_id: int,
    input_file_id: int,
    priority: int,
    labels: dict[str, str],
    dedupe: bool,
    embed_prompt: bool,
    completion_window: str,
    window_seconds: int,
    output_expires_seconds: int | None,
    base_url: str,
    in_shards: bool = False,
) -> None:
    """Records a job whose file is not read yet. It must finish within `window_seconds`."""
    job = NewJob(
        id=job_id, tenant_id=tenant_id, state=JobState.VALIDATING, priority=priority, labels=labels, dedupe=dedupe,
        embed_prompt=embed_prompt, input_file_id=input_file_id, completion_window=completion_window,
        output_expires_seconds=output_expires_seconds, base_url=base_url, expires_seconds=window_seconds,
        in_shards=in_shards,
    )  # fmt: skip
    job_states.create(connection, job)


def validating(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Jobs whose file waits to be read, a few of the oldest of each tenant, without those in `excluding`."""
    return turns.waiting(connection, _VALIDATING, excluding, busy)


def source(connection: Connection, job_id: int) -> Any:
    """A row with state, tenant_id and object_key, which is None if the file was deleted."""
    return connection.execute(_INPUT, {"id": job_id}).one()


def accept(connection: Connection, submission: submissions.Submission) -> bool:
    """Records every image of a valid file and queues the job with its current priority. False: the job is no longer
    validating."""
    images = submission.total
    job = job_states.accept(
        connection, submission.job_id, images=images, requests=submission.requests, drawn_seeds=submission.drawn_seeds
    )
    if job is None:
        return False
    segments.new(
        connection, submission.job_id, tenant_id=job.tenant_id, priority=job.priority,
        segments=submission.new_segments,
    )  # fmt: skip
    submission.copy(connection)
    return True


def find(connection: Connection, tenant_id: int, job_id: int) -> BatchJob | None:
    row = connection.execute(_ONE, {"tenant_id": tenant_id, "id": job_id}).one_or_none()
    return None if row is None else _view(connection, row)


def page(connection: Connection, tenant_id: int, *, before: int | None, limit: int) -> list[BatchJob]:
    """The newest batch jobs with an id below `before`."""
    values = {"tenant_id": tenant_id, "before": before if before is not None else ids.LIMIT - 1, "limit": limit}
    return [_view(connection, row) for row in connection.execute(_PAGE, values).all()]


def _view(connection: Connection, row: Any) -> BatchJob:
    done, failed = row.requests_done, row.requests_failed
    if done is None and row.requests == row.total:  # one image each: requests are images
        done, failed = row.done, row.failed + row.cancelled
    elif done is None and row.total > COUNTED_IMAGES:
        done = row.requests * row.done // row.total
        failed = row.requests * (row.failed + row.cancelled) // row.total
    elif done is None:
        counted = connection.execute(_REQUESTS, {"id": row.id}).one()
        done, failed = counted.done, counted.failed
    return BatchJob(
        row.id, row.state, row.stop_reason, row.input_file_id, row.output_file_id, row.error_file_id,
        row.completion_window, row.labels, row.problems, row.requests, done, failed, row.created_at, row.expires_at,
        row.opened_at, row.finalizing_at, row.cancel_requested_at, row.finished_at,
    )  # fmt: skip
