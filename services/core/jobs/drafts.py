"""Drafts: jobs that grow by numbered chunks and are queued as a whole when they are finalized.

A chunk is committed once, however often it is sent. Its images are queued rows in segments that are not open, so they
are not claimed before `finalize` opens all segments. Parsing a chunk and looking for duplicates happen before the
transaction that writes, without a lock; if the draft's total has changed by then, another chunk was faster.

Functions that take a connection take an open transaction and never commit.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns, deadlines
from services.core.db.statements import statement
from services.core.jobs import idempotency, queries
from services.core.jobs.submissions import MAX_PROBLEMS, ExistingJob, Submission
from services.core.model import requests, strict_json
from services.core.model.errors import Conflict, InvalidSubmission, NotFound, Problem
from services.core.model.states import JobState
from services.core.queue import job_states, segments
from services.core.queue.job_states import NewJob

KEPT_DAYS = 7
_MAX_LISTED = 10  # numbers of missing chunks, in an error

_DRAFT = statement("drafts.draft")("""
SELECT state, total, priority, opened_at FROM jobs WHERE id = :id AND tenant_id = :tenant_id
""")
_LOCKED_DRAFT = statement("drafts.locked_draft")(f"{_DRAFT.text} FOR NO KEY UPDATE")
_SHAPES = statement("drafts.shapes")(f"SELECT {columns.shape('s')} FROM segments s WHERE job_id = :id ORDER BY s.id")  # noqa: S608  our own text
_CHUNK = statement("drafts.chunk")(
    "SELECT number, sha256, requests, images FROM job_chunks WHERE job_id = :id AND number = :number"
)
_CHUNKS = statement("drafts.chunks")("""
SELECT number, sha256, requests, images FROM job_chunks
WHERE job_id = :id AND number > :after ORDER BY number LIMIT :limit
""")
_NEW_CHUNK = statement("drafts.new_chunk")("""
INSERT INTO job_chunks (job_id, number, tenant_id, sha256, first_index, requests, images)
VALUES (:id, :number, :tenant_id, :sha256, :first_index, :requests, :images)
""")
_COUNT_CHUNKS = statement("drafts.count_chunks")("""
SELECT count(*) AS chunks, count(*) FILTER (WHERE number < :wanted) AS within FROM job_chunks WHERE job_id = :id
""")
_MISSING = statement("drafts.missing")("""
SELECT wanted.number FROM generate_series(0, :wanted - 1) AS wanted (number)
WHERE NOT EXISTS (SELECT FROM job_chunks WHERE job_id = :id AND job_chunks.number = wanted.number) LIMIT :limit
""")
_DUPLICATES = statement("drafts.duplicates")("""
WITH twice AS MATERIALIZED (
  SELECT custom_id, min(index) AS first, (array_agg(index ORDER BY index))[2] AS second
  FROM payloads WHERE job_id = :id AND custom_id IS NOT NULL GROUP BY custom_id HAVING count(*) > 1
  ORDER BY second LIMIT :limit
)
SELECT twice.custom_id, place.*
FROM twice CROSS JOIN LATERAL (
  SELECT array_agg(c.number ORDER BY indexes.index) AS chunks, array_agg((
    SELECT count(*) FROM payloads p WHERE p.job_id = :id AND p.index >= c.first_index AND p.index < indexes.index
  ) ORDER BY indexes.index) AS requests
  FROM unnest(ARRAY[first, second]) AS indexes (index)
  JOIN job_chunks c ON c.job_id = :id AND indexes.index >= c.first_index AND indexes.index < c.first_index + c.images
) place
ORDER BY second
""")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A committed chunk. `sha256`, in hex, covers what it asks for; white space and the order of keys do not matter."""

    number: int
    requests: int
    images: int
    sha256: str


def open_draft(
    connection: Connection,
    tenant_id: int,
    job_id: int,
    label: requests.JobOptions,
    *,
    idempotency_key: str | None = None,
) -> int | None:
    """Creates a draft without images. Returns None, or the id of the job that this Idempotency-Key created before."""
    if idempotency_key is not None:
        digest = idempotency.digest("draft", label.model_dump(exclude=label.not_set()))
        known = idempotency.remember(connection, tenant_id, idempotency_key, sha256=digest, thing=job_id)
        if known is not None:
            return known
    create(
        connection,
        tenant_id,
        job_id,
        priority=requests.PRIORITIES[label.priority],
        labels=label.labels,
        dedupe=label.dedupe,
        embed_prompt=label.embed_prompt,
        retention=label.retention,
        in_shards=label.in_shards,
    )
    return None


def create(
    connection: Connection,
    tenant_id: int,
    job_id: int,
    *,
    priority: int,
    labels: dict[str, str],
    dedupe: bool,
    embed_prompt: bool,
    parent_id: int | None = None,
    retention: dict[str, int | None] | None = None,
    in_shards: bool = False,
) -> None:
    """Records an empty draft."""
    draft = NewJob(
        id=job_id, tenant_id=tenant_id, state=JobState.DRAFT, priority=priority, labels=labels, dedupe=dedupe,
        embed_prompt=embed_prompt, parent_id=parent_id, expires_seconds=KEPT_DAYS * 86_400,
        retention=retention, in_shards=in_shards,
    )  # fmt: skip
    job_states.create(connection, draft)


def existing(connection: Connection, tenant_id: int, job_id: int, number: int) -> ExistingJob:
    """The draft to which the chunk of that number is added. If that chunk is already committed, its own images are not
    counted: sent again, it must not be refused as too large.

    Raises:
        NotFound: no such job of this tenant.
        Conflict: the job is not a draft.
    """
    row = _draft(connection, tenant_id, job_id, _DRAFT)
    known = connection.execute(_CHUNK, {"id": job_id, "number": number}).one_or_none()
    images = row.total - (known.images if known else 0)
    return ExistingJob(job_id, images, tuple(map(columns.read_shape, connection.execute(_SHAPES, {"id": job_id}))))


def append(connection: Connection, tenant_id: int, submission: Submission, number: int) -> tuple[Chunk, bool]:
    """Commits a parsed chunk with its images, once. Returns it, and whether it was already committed.

    Raises:
        InvalidSubmission: something is wrong with it.
        NotFound, Conflict: the draft no longer exists; this number was used for another content (`chunk_conflict`); or
            another chunk was appended since this one was parsed (`chunk_busy`).
    """
    digest = submission.close()
    job_id, first = submission.job_id, submission.existing.images
    row = _draft(connection, tenant_id, job_id, _LOCKED_DRAFT)
    known = connection.execute(_CHUNK, {"id": job_id, "number": number}).one_or_none()
    if known is not None:
        if bytes(known.sha256) != digest:
            message = f"Chunk {number} was appended before with other requests; give these another number."
            raise Conflict(message, "chunk_conflict")
        return _chunk(known), True
    if row.total != first:
        message = "Another chunk was appended in the meantime; append one chunk at a time, and this one again."
        raise Conflict(message, "chunk_busy")
    images, count = submission.total - first, submission.requests
    values = {"id": job_id, "number": number, "requests": count, "images": images}
    connection.execute(_NEW_CHUNK, values | {"tenant_id": tenant_id, "sha256": digest, "first_index": first})
    job_states.grow(connection, job_id, images=images, requests=count, drawn_seeds=submission.drawn_seeds)
    for segment, high in submission.grown_segments.items():
        segments.grow(connection, job_id, segment, high)
    segments.new(
        connection,
        job_id,
        tenant_id=tenant_id,
        priority=row.priority,
        segments=submission.new_segments,
        first=len(submission.existing.shapes),
        opened=False,
    )
    submission.copy(connection)
    return Chunk(number, count, images, digest.hex()), False


def chunks(connection: Connection, tenant_id: int, job_id: int, *, after: int, limit: int) -> list[Chunk]:
    """The job's chunks with a number above `after`, in order. Raises NotFound."""
    _row(connection, tenant_id, job_id, _DRAFT)
    return [_chunk(row) for row in connection.execute(_CHUNKS, {"id": job_id, "after": after, "limit": limit})]


def inspect(connection: Connection, tenant_id: int, job_id: int, wanted: requests.FinalizeRequest) -> int | None:
    """Checks whether a draft can be finalized. Returns the number of its images, or None if it was finalized before.

    Raises:
        InvalidSubmission: chunks are missing or too many, the count of images differs, or custom_ids are duplicate.
        NotFound, Conflict: no such draft.
    """
    deadlines.lift(connection)
    row = _row(connection, tenant_id, job_id, _DRAFT)
    count = connection.execute(_COUNT_CHUNKS, {"id": job_id, "wanted": wanted.chunks}).one()
    if row.state != JobState.DRAFT and row.opened_at is not None and count.chunks == count.within == wanted.chunks:
        return None
    if row.state != JobState.DRAFT:
        raise _no_draft(row.state)
    problems = _gaps(connection, job_id, wanted, count)
    if not problems and wanted.images not in (None, row.total):
        message = f"The chunks hold {row.total:,} images; images says {wanted.images:,}."
        problems.append(Problem("images_mismatch", message, "images"))
    if not problems:
        found = connection.execute(_DUPLICATES, {"id": job_id, "limit": MAX_PROBLEMS + 1})
        problems = [_duplicate(entry) for entry in found]
    if problems:
        raise InvalidSubmission(problems[:MAX_PROBLEMS], more=len(problems) > MAX_PROBLEMS)
    return int(row.total)


def finalize(connection: Connection, tenant_id: int, job_id: int, images: int) -> list[str]:
    """Queues the inspected draft with all its images. Returns the names of its models.

    Raises:
        NotFound, Conflict: the draft no longer exists, or a chunk was appended since it was inspected.
    """
    row = _draft(connection, tenant_id, job_id, _LOCKED_DRAFT)
    if row.total != images:
        raise Conflict("A chunk was appended in the meantime; finalize it again.", "chunk_busy")
    return open_all(connection, job_id)


def open_all(connection: Connection, job_id: int) -> list[str]:
    """Queues a draft whose row is locked. Returns the names of its models."""
    job_states.open_draft(connection, job_id)
    return queries.models_of(connection, job_id)


def _draft(connection: Connection, tenant_id: int, job_id: int, statement: Any) -> Any:
    row = _row(connection, tenant_id, job_id, statement)
    if row.state != JobState.DRAFT:
        raise _no_draft(row.state)
    return row


def _row(connection: Connection, tenant_id: int, job_id: int, statement: Any) -> Any:
    row = connection.execute(statement, {"id": job_id, "tenant_id": tenant_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such job.")
    return row


def _no_draft(state: str) -> Conflict:
    return Conflict(f"The job is {state}; only a draft takes chunks and can be finalized.", "not_a_draft")


def _gaps(connection: Connection, job_id: int, wanted: requests.FinalizeRequest, count: Any) -> list[Problem]:
    if count.within < wanted.chunks:
        values = {"id": job_id, "wanted": wanted.chunks, "limit": _MAX_LISTED}
        missing = connection.execute(_MISSING, values).scalars().all()
        absent = wanted.chunks - count.within
        rest = f" and {absent - len(missing):,} more" if absent > len(missing) else ""
        message = f"Of {wanted.chunks:,} chunks {absent:,} are missing: {', '.join(map(str, missing))}{rest}."
        return [Problem("chunks_missing", message, "chunks")]
    if count.chunks > count.within:
        message = (
            f"There are {count.chunks:,} chunks and chunks says {wanted.chunks:,}: "
            f"{count.chunks - count.within:,} have numbers from {wanted.chunks:,} on."
        )
        return [Problem("chunks_mismatch", message, "chunks")]
    return []


def _duplicate(row: Any) -> Problem:
    places = [f"request {request} of chunk {chunk}" for chunk, request in zip(row.chunks, row.requests, strict=True)]
    message = (
        f"custom_id is {strict_json.describe(row.custom_id)} in {places[0]} and in {places[1]}, counted from 0; "
        "each must be used once in a job."
    )
    return Problem("duplicate_custom_id", message, "custom_id", row.chunks[1])


def _chunk(row: Any) -> Chunk:
    return Chunk(row.number, row.requests, row.images, bytes(row.sha256).hex())
