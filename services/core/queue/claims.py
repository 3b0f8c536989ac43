"""Claims: a worker leases images, says that it is still at it, and hears which jobs were cancelled.

A worker's verbs are fenced by the claim's id, which is never reused; the database's clock is the only clock. All
functions take an open transaction of the house and never commit.

Locks are taken in one order everywhere: claim, jobs, images, segments, engines. A job's lock is an advisory one, shared
by claims and settles and held alone by a cancel: unlike row locks these queue, so a cancel is not overtaken for ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.model import states
from services.core.model.specs import Claim, Image, Shape, Spec, image_seed

# Which segments come first: the class whose turn it is, then the others by priority; within a class the tenant with
# the smallest virtual time; within a tenant the oldest job. One index probe for each class and tenant.
_CANDIDATES = statement("claims.candidates")(f"""
SELECT s.*
FROM (VALUES (0), (1), (2)) AS class (priority)
CROSS JOIN tenants t
CROSS JOIN LATERAL (
  SELECT job_id, id, low, high, cap, {", ".join(columns.SHAPE)},
         extract(epoch FROM clock_timestamp() - created_at) AS age
  FROM segments
  WHERE model_revision = :revision AND priority = class.priority AND tenant_id = t.id AND open AND low <= high
  ORDER BY job_id, id LIMIT 16
) s
ORDER BY class.priority <> :turn, class.priority, t.virtual_time, s.job_id, s.id
""")  # noqa: S608  our own text

# The claim itself, under the jobs' locks: its snapshot is taken when they are held, so a cancel that committed first
# is seen, and one that comes later waits. `taken` is materialised: its LIMIT holds exactly.
# OFFSET 0 keeps the planner from joining the jobs in any other way than segment by segment, in the order given.
_TAKE = statement("claims.take")(f"""
WITH taken AS MATERIALIZED (
  SELECT j.tenant_id, j.state AS job_state, j.embed_prompt, j.dedupe, i.*
  FROM unnest(CAST(:job_ids AS bigint[]), CAST(:segment_ids AS smallint[]), CAST(:lows AS integer[]))
       AS s (job_id, id, low)
  CROSS JOIN LATERAL (
    SELECT tenant_id, state, embed_prompt, dedupe FROM jobs
    WHERE jobs.id = s.job_id AND state = ANY(:claimable) AND NOT paused OFFSET 0
  ) j
  CROSS JOIN LATERAL (
    SELECT job_id, index FROM images
    WHERE images.job_id = s.job_id AND segment_id = s.id AND index >= s.low AND state = 0
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
SELECT claim.id AS claim_id, taken.*, p.index AS first_index, {", ".join(f"p.{name}" for name in columns.RENDERED)}
FROM claim, taken {columns.payload_of("taken")}
ORDER BY taken.job_id, taken.index
""")  # noqa: S608  our own text

_EXTEND = statement("claims.extend")("""
UPDATE claims SET expires_at = now() + make_interval(secs => :lease), step = beat.step
FROM unnest(CAST(:ids AS bigint[]), CAST(:steps AS smallint[])) AS beat (id, step)
WHERE claims.id = beat.id AND state = 'open'
RETURNING claims.id,
  ARRAY(SELECT jobs.id FROM jobs WHERE jobs.id = ANY(job_ids) AND cancel_requested_at IS NOT NULL) AS cancelled
""")

_SHARE_JOBS = statement("claims.share_jobs")(
    "SELECT pg_advisory_xact_lock_shared(id) FROM unnest(CAST(:ids AS bigint[])) AS id"
)

_FORGET = statement("claims.forget")("""
DELETE FROM claims WHERE id IN (
  SELECT id FROM claims WHERE state <> 'open' AND ended_at < now() - interval '1 day' ORDER BY ended_at LIMIT 10000)
""")


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
    def max_waiting(self) -> int:
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


def claim(connection: Connection, chosen: Candidates, *, worker_id: str, seats: int, lease: float) -> Claim | None:
    """Leases up to `seats` images of one shape for `lease` seconds; None when these segments are drained.

    The first candidate decides the shape; free seats are filled from the others of that shape. Suspects of a crash
    ride alone, at most their cap.
    """
    if not chosen.rows:
        return None
    segments = _mates(chosen.rows)[:seats]
    first = segments[0]
    share_jobs(connection, [row.job_id for row in segments])
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
            "claimable": states.guard(states.CLAIMABLE_JOB_STATES),
        },
    ).all()
    if not rows:
        return None
    shape = columns.read_shape(first)
    fresh = sorted({row.job_id for row in rows if row.job_state in states.START.sources})
    return Claim(rows[0].claim_id, shape, tuple(_image(row, shape) for row in rows), lease, tuple(fresh))


def extend(connection: Connection, steps: dict[int, int], lease: float) -> Beat:
    """Keeps the claims alive for another `lease` seconds; `steps` is claim id -> denoising steps done."""
    rows = connection.execute(_EXTEND, {"ids": list(steps), "steps": list(steps.values()), "lease": lease})
    return Beat({row.id: frozenset(row.cancelled) for row in rows})


def share_jobs(connection: Connection, job_ids: Sequence[int]) -> None:
    """Until this transaction ends no cancel of these jobs can begin. In order of ids, in a statement of its own: the
    next one sees all that was committed before the locks were had."""
    connection.execute(_SHARE_JOBS, {"ids": sorted(set(job_ids))})


def forget(connection: Connection) -> None:
    """Drops claims that ended more than a day ago, a batch at a time."""
    connection.execute(_FORGET)


def _mates(rows: Sequence[Any]) -> list[Any]:
    """The segments that ride with the first: those of its shape; with suspects none."""
    first = rows[0]
    if first.cap is not None:
        return [first]
    shape = columns.read_shape(first)
    return [row for row in rows if row.cap is None and columns.read_shape(row) == shape]


def _image(row: Any, shape: Shape) -> Image:
    spec = Spec(
        model_revision=shape.model_revision,
        prompt=row.prompt,
        negative_prompt=row.negative_prompt,
        seed=image_seed(row.seed, row.index - row.first_index),
        width=shape.width,
        height=shape.height,
        steps=shape.steps,
        guidance_scale=row.guidance_scale,
    )
    return Image(
        row.job_id, row.index, row.tenant_id, spec, row.output_format, row.output_compression, row.embed_prompt,
        row.dedupe,
    )  # fmt: skip
