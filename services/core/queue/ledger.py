"""Every write about images and claims: claim, start, extend, settle, expire.

A worker's verbs are fenced by the claim's id, which is never reused; the database's clock is the only clock. All
functions take an open transaction of the house and never commit.

Locks are taken in one order everywhere: claim, jobs, images, segments, engines. A job's lock is an advisory one, shared
by claims and settles and held alone by a cancel: unlike row locks these queue, so a cancel is not overtaken for ever.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, text

from services.core.model.errors import LedgerBroken
from services.core.model.specs import SEED_LIMIT, Claim, FailedImage, Image, Shape, Spec, StoredImage
from services.core.model.states import ClaimState, ImageState

# Which segments come first: the class whose turn it is, then the others by priority; within a class the tenant with
# the smallest virtual time; within a tenant the oldest job. One index probe for each class and tenant.
_CANDIDATES = text("""
SELECT s.*
FROM (VALUES (0), (1), (2)) AS class (priority)
CROSS JOIN tenants t
CROSS JOIN LATERAL (
  SELECT job_id, id, low, high, cap, width, height, steps, guided,
         extract(epoch FROM clock_timestamp() - created_at) AS age
  FROM segments
  WHERE model_revision = :revision AND priority = class.priority AND tenant_id = t.id AND open AND low <= high
  ORDER BY job_id, id LIMIT 16
) s
ORDER BY class.priority <> :turn, class.priority, t.virtual_time, s.job_id, s.id
""")

# The claim itself, under the jobs' locks: its snapshot is taken when they are held, so a cancel that committed first
# is seen, and one that comes later waits. `taken` is materialised: its LIMIT holds exactly.
# OFFSET 0 keeps the planner from joining the jobs in any other way than segment by segment, in the order given.
_TAKE = text("""
WITH taken AS MATERIALIZED (
  SELECT j.tenant_id, j.state AS job_state, j.embed_prompt, j.dedupe, i.*
  FROM unnest(CAST(:job_ids AS bigint[]), CAST(:segment_ids AS smallint[]), CAST(:lows AS integer[]))
       AS s (job_id, id, low)
  CROSS JOIN LATERAL (
    SELECT tenant_id, state, embed_prompt, dedupe FROM jobs
    WHERE jobs.id = s.job_id AND state IN ('queued', 'in_progress') AND NOT paused OFFSET 0
  ) j
  CROSS JOIN LATERAL (
    SELECT job_id, index, attempt, crashes FROM images
    WHERE images.job_id = s.job_id AND segment_id = s.id AND index >= s.low AND state = 0
      AND (not_before IS NULL OR not_before <= now())
    ORDER BY index LIMIT :seats FOR UPDATE SKIP LOCKED
  ) i
  LIMIT :seats
), claim AS (
  INSERT INTO claims (worker_id, images, job_ids, expires_at)
  SELECT :worker_id, count(*), array_agg(DISTINCT job_id), now() + make_interval(secs => :lease)
  FROM taken HAVING count(*) > 0
  RETURNING id
), moved AS (
  UPDATE images SET state = 1, claim_id = claim.id
  FROM taken, claim WHERE images.job_id = taken.job_id AND images.index = taken.index
), counted AS (
  INSERT INTO counter_deltas (job_id, queued, rendering)
  SELECT job_id, -count(*), count(*) FROM taken GROUP BY job_id
)
SELECT claim.id AS claim_id, taken.*, p.index AS first_index, p.seed, p.guidance_scale, p.output_format,
       p.output_compression, p.prompt, p.negative_prompt
FROM claim, taken
CROSS JOIN LATERAL (
  SELECT * FROM payloads WHERE payloads.job_id = taken.job_id AND payloads.index <= taken.index
  ORDER BY payloads.index DESC LIMIT 1
) p
ORDER BY taken.job_id, taken.index
""")

_START = text("""
UPDATE jobs SET state = 'in_progress', started_at = now() WHERE id = ANY(:job_ids) AND state = 'queued'
""")

_EXTEND = text("""
UPDATE claims SET expires_at = now() + make_interval(secs => :lease), step = beat.step
FROM unnest(CAST(:ids AS bigint[]), CAST(:steps AS smallint[])) AS beat (id, step)
WHERE claims.id = beat.id AND state = 'open'
RETURNING claims.id,
  ARRAY(SELECT jobs.id FROM jobs WHERE jobs.id = ANY(job_ids) AND cancel_requested_at IS NOT NULL) AS cancelled
""")

_LOCK_CLAIM = text("""
SELECT state, images, job_ids,
       (SELECT count(pg_advisory_xact_lock_shared(job_id)) FROM unnest(job_ids) AS job_id) AS jobs_held
FROM claims WHERE id = :id FOR UPDATE
""")
_SHARE_JOBS = text("SELECT pg_advisory_xact_lock_shared(id) FROM unnest(CAST(:ids AS bigint[])) AS id")

# `low` is lowered without a look at its value: a duty that is raising it right now holds the row's lock, and this
# statement must wait for it (a guard on the old value would let the image fall below the mark for ever).
_MOVED = """
counted AS (
  INSERT INTO counter_deltas (job_id, queued, rendering, done, failed, cancelled)
  SELECT job_id, count(*) FILTER (WHERE state = 0), -count(*), count(*) FILTER (WHERE state = 2),
         count(*) FILTER (WHERE state = 3), count(*) FILTER (WHERE state = 4)
  FROM moved GROUP BY job_id
), lowered AS (
  UPDATE segments SET low = least(segments.low, requeued.low)
  FROM (SELECT job_id, segment_id, min(index) AS low FROM moved WHERE state = 0 GROUP BY job_id, segment_id) requeued
  WHERE segments.job_id = requeued.job_id AND segments.id = requeued.segment_id
), ended AS (
  UPDATE claims SET state = :claim_state, ended_at = now(), render_seconds = :render_seconds WHERE id = ANY(:claim_ids)
)
SELECT (SELECT count(*) FROM moved) AS images, ARRAY(SELECT id FROM cancelled) AS cancelled
"""
_CANCELLED = """
WITH cancelled AS MATERIALIZED (
  SELECT id FROM jobs WHERE id = ANY(:job_ids) AND state IN ('cancelling', 'cancelled')
), moved AS ("""

_MOVE = text(f"""{_CANCELLED}
  UPDATE images SET state = CASE WHEN images.job_id IN (SELECT id FROM cancelled) THEN 4 ELSE outcome.state END,
         claim_id = NULL, attempt = attempt + (outcome.state = 3)::integer
  FROM unnest(CAST(:in_jobs AS bigint[]), CAST(:indexes AS integer[]), CAST(:states AS smallint[]))
       AS outcome (job_id, index, state)
  WHERE images.job_id = outcome.job_id AND images.index = outcome.index
    AND images.claim_id = ANY(:claim_ids) AND images.state = 1
  RETURNING images.job_id, images.index, images.segment_id, images.state
), {_MOVED}""")  # noqa: S608  our own text

_TAKE_BACK = text(f"""{_CANCELLED}
  UPDATE images SET state = CASE WHEN job_id IN (SELECT id FROM cancelled) THEN 4 ELSE 0 END, claim_id = NULL,
         lost = least(lost + :lost, 32767)
  WHERE claim_id = ANY(:claim_ids) AND job_id = ANY(:job_ids) AND state = 1
  RETURNING job_id, index, segment_id, state
), {_MOVED}""")  # noqa: S608  our own text

# Versions are written once and then only looked up. DO UPDATE, because DO NOTHING would not return the row that
# another settle has just committed and this snapshot does not see.
_RESULTS = text("""
WITH known AS MATERIALIZED (
  SELECT id, versions FROM engines WHERE versions = ANY(CAST(:versions AS text[]))
), met AS (
  INSERT INTO engines (versions)
  SELECT DISTINCT new FROM unnest(CAST(:versions AS text[])) AS new
  WHERE new IS NOT NULL AND new NOT IN (SELECT versions FROM known) ORDER BY new
  ON CONFLICT (versions) DO UPDATE SET versions = excluded.versions
  RETURNING id, versions
)
INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, engine_id, truncated,
                     flagged, unknown_words, render_seconds, render_key, reused, claim_id)
SELECT job_id, index, object_key, sha256, bytes, device, reproducibility_class,
       coalesce((SELECT id FROM known WHERE known.versions = stored.versions),
                (SELECT id FROM met WHERE met.versions = stored.versions)),
       truncated, flagged, unknown_words, render_seconds, render_key, reused, CAST(:claim_id AS bigint)
FROM unnest(CAST(:job_id AS bigint[]), CAST(:index AS integer[]), CAST(:object_key AS text[]),
            CAST(:sha256 AS bytea[]), CAST(:bytes AS integer[]), CAST(:device AS text[]),
            CAST(:reproducibility_class AS text[]), CAST(:versions AS text[]), CAST(:truncated AS boolean[]),
            CAST(:flagged AS boolean[]), CAST(:unknown_words AS jsonb[]), CAST(:render_seconds AS real[]),
            CAST(:render_key AS bytea[]), CAST(:reused AS boolean[]))
     AS stored (job_id, index, object_key, sha256, bytes, device, reproducibility_class, versions, truncated, flagged,
                unknown_words, render_seconds, render_key, reused)
""")
_REUSED = text("""
INSERT INTO counter_deltas (job_id, reused)
SELECT job_id, count(*) FROM unnest(CAST(:job_ids AS bigint[])) AS job_id GROUP BY job_id
""")

_FAILURES = text("""
INSERT INTO failures (job_id, index, code, message, claim_id, device, batch_images)
SELECT *, :claim_id, :device, :batch_images
FROM unnest(CAST(:job_id AS bigint[]), CAST(:index AS integer[]), CAST(:code AS text[]), CAST(:message AS text[]))
""")

_OVERDUE = text("""
SELECT id, job_ids FROM claims
WHERE state = 'open' AND expires_at < now()
  AND pg_postmaster_start_time() + make_interval(secs => :grace) < now()
ORDER BY expires_at LIMIT 50 FOR UPDATE SKIP LOCKED
""")


class Verdict(StrEnum):
    OK = "ok"
    ALREADY = "already"  # settled before: a retry after a lost reply
    FENCED = "fenced"  # the lease was lost; nothing of it may become visible


@dataclass(frozen=True, slots=True)
class Settlement:
    """`dropped` are stored images that nobody will see: their objects may go."""

    verdict: Verdict
    dropped: tuple[StoredImage, ...] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat heard: the claims still held, each with its jobs that were cancelled."""

    held: dict[int, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Segments that may have work, best first. `age` in seconds, of the first one."""

    rows: tuple[Any, ...]

    @property
    def age(self) -> float:
        return float(self.rows[0].age)

    @property
    def most_waiting(self) -> int:
        """No more images than this can wait in the segments that would share a batch."""
        return sum(row.high - row.low + 1 for row in _mates(self.rows))

    @property
    def job_ids(self) -> list[int]:
        return sorted({row.job_id for row in _mates(self.rows)})

    @property
    def others(self) -> "Candidates":
        """What is left when the first and those that ride with it have nothing."""
        gone = {(row.job_id, row.id) for row in _mates(self.rows)}
        return Candidates(tuple(row for row in self.rows if (row.job_id, row.id) not in gone))


def candidates(connection: Connection, model_revision: str, turn: int) -> Candidates:
    """The open segments of that revision. `turn` is the priority class that goes first: 0, 1 or 2."""
    return Candidates(tuple(connection.execute(_CANDIDATES, {"revision": model_revision, "turn": turn})))


def claim(
    connection: Connection, chosen: Candidates, *, model_revision: str, worker_id: str, seats: int, lease: float
) -> Claim | None:
    """Leases up to `seats` images of one shape for `lease` seconds; None when these segments are drained.

    The first candidate decides the shape; free seats are filled from the others of that shape. Suspects of a crash
    ride alone, at most their cap.
    """
    if not chosen.rows:
        return None
    segments = _mates(chosen.rows)[:seats]
    first = segments[0]
    _share_jobs(connection, [row.job_id for row in segments])
    if first.cap is not None:
        seats = min(seats, first.cap)
    rows = connection.execute(
        _TAKE,
        {
            "job_ids": [row.job_id for row in segments],
            "segment_ids": [row.id for row in segments],
            "lows": [row.low for row in segments],
            "seats": seats,
            "worker_id": worker_id,
            "lease": lease,
        },
    ).all()
    if not rows:
        return None
    shape = Shape(model_revision, *_shape(first))
    fresh = sorted({row.job_id for row in rows if row.job_state == "queued"})
    return Claim(rows[0].claim_id, shape, tuple(_image(row, shape) for row in rows), lease, tuple(fresh))


def start(connection: Connection, job_ids: Sequence[int]) -> None:
    """Marks jobs as in progress, after the claim's own transaction: no claim waits for another's commit. If it is never
    called, the finishing duty does it."""
    connection.execute(_START, {"job_ids": list(job_ids)})


def extend(connection: Connection, steps: dict[int, int], lease: float) -> Beat:
    """Keeps the claims alive for another `lease` seconds; `steps` is claim id -> denoising steps done."""
    rows = connection.execute(_EXTEND, {"ids": list(steps), "steps": list(steps.values()), "lease": lease})
    return Beat({row.id: frozenset(row.cancelled) for row in rows})


def settle(
    connection: Connection,
    claim_id: int,
    *,
    device: str,
    stored: Sequence[StoredImage] = (),
    failed: Sequence[FailedImage] = (),
    released: Sequence[tuple[int, int]] = (),
    render_seconds: float | None = None,
) -> Settlement:
    """Ends a claim: every one of its images becomes done, failed or queued again, in one go.

    Images of a cancelled job become cancelled, whatever came of them.

    Raises:
        LedgerBroken: the outcomes are not exactly the claim's images.
    """
    row = connection.execute(_LOCK_CLAIM, {"id": claim_id}).one_or_none()
    if row is None or row.state != ClaimState.OPEN:
        return Settlement(Verdict.ALREADY if row and row.state == ClaimState.SETTLED else Verdict.FENCED, tuple(stored))
    outcomes = [(image.job_id, image.index, ImageState.DONE) for image in stored]
    outcomes += [(image.job_id, image.index, ImageState.FAILED) for image in failed]
    outcomes += [(job_id, index, ImageState.QUEUED) for job_id, index in released]
    moved = connection.execute(
        _MOVE,
        {
            "claim_ids": [claim_id],
            "job_ids": row.job_ids,
            "in_jobs": [job_id for job_id, _, _ in outcomes],
            "indexes": [index for _, index, _ in outcomes],
            "states": [int(state) for _, _, state in outcomes],
            "claim_state": ClaimState.SETTLED,
            "render_seconds": render_seconds,
        },
    ).one()
    if not moved.images == len(outcomes) == row.images:
        raise LedgerBroken(
            f"Claim {claim_id} holds {row.images} images; {len(outcomes)} outcomes moved {moved.images}."
        )
    visible = [image for image in stored if image.job_id not in moved.cancelled]
    if visible:
        values = {name: [getattr(image, name) for image in visible] for name in StoredImage.__slots__}
        words = [json.dumps(image.unknown_words) for image in visible]
        connection.execute(_RESULTS, values | {"unknown_words": words, "claim_id": claim_id})
    if reused := [image.job_id for image in visible if image.reused]:
        connection.execute(_REUSED, {"job_ids": reused})
    if failed:
        record_failures(connection, claim_id, failed, device=device, batch_images=row.images)
    return Settlement(Verdict.OK, tuple(image for image in stored if image.job_id in moved.cancelled))


def expire(connection: Connection, lease: float) -> int:
    """Takes back what overdue claims hold; returns how many images. `lost` counts, and never against an image.

    Nobody could extend a lease while the database was down, so none is overdue until a lease after its start.
    """
    overdue = connection.execute(_OVERDUE, {"grace": lease}).all()
    return take_back(connection, overdue, ClaimState.EXPIRED, lost=1) if overdue else 0


def take_back(connection: Connection, claims: Sequence[Any], state: ClaimState, *, lost: int) -> int:
    """Queues the images of these locked claims (rows with id, job_ids) again; those of cancelled jobs are cancelled."""
    job_ids = sorted({job_id for row in claims for job_id in row.job_ids})
    _share_jobs(connection, job_ids)
    values = {"claim_ids": [row.id for row in claims], "job_ids": job_ids, "lost": lost, "claim_state": state}
    return int(connection.execute(_TAKE_BACK, values | {"render_seconds": None}).one().images)


def record_failures(
    connection: Connection, claim_id: int, failed: Sequence[FailedImage], *, device: str, batch_images: int
) -> None:
    values = {name: [getattr(image, name) for image in failed] for name in FailedImage.__slots__}
    connection.execute(_FAILURES, values | {"claim_id": claim_id, "device": device, "batch_images": batch_images})


def _mates(rows: Sequence[Any]) -> list[Any]:
    """The segments that ride with the first: those of its shape; with suspects none."""
    first = rows[0]
    if first.cap is not None:
        return [first]
    return [row for row in rows if row.cap is None and _shape(row) == _shape(first)]


def _share_jobs(connection: Connection, job_ids: Sequence[int]) -> None:
    """Until this transaction ends no cancel of these jobs can begin. In order of ids, in a statement of its own: the
    next one sees all that was committed before the locks were had."""
    connection.execute(_SHARE_JOBS, {"ids": sorted(set(job_ids))})


def _shape(row: Any) -> tuple[int, int, int, bool]:
    return row.width, row.height, row.steps, row.guided


def _image(row: Any, shape: Shape) -> Image:
    spec = Spec(
        model_revision=shape.model_revision,
        prompt=row.prompt,
        negative_prompt=row.negative_prompt,
        seed=(row.seed + row.index - row.first_index) % SEED_LIMIT,
        width=shape.width,
        height=shape.height,
        steps=shape.steps,
        guidance_scale=row.guidance_scale,
    )
    return Image(
        row.job_id, row.index, row.tenant_id, spec, row.output_format, row.attempt, row.crashes,
        row.output_compression, row.embed_prompt, row.dedupe,
    )  # fmt: skip
