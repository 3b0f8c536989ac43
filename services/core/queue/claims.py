"""Claims: a worker leases images, extends the lease while it renders, and learns which jobs were cancelled.

A worker's writes are fenced by the claim's id, which is never reused. The database's clock is the only clock. All
functions take an open system transaction and never commit.

A worker claims only what it is able to render. Near the end of the work it leaves what others will have rendered sooner
(`tail.py`), so a claim may find images and take none.

Locks are always taken in this order: claim, tenants, jobs, images, segments, engines. A job's lock is an advisory
lock: claims and settles share it, a cancel takes it exclusively. Advisory locks are granted in turn, row locks are not,
so a stream of claims cannot keep a cancel waiting.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.fleet import abilities
from services.core.fleet.abilities import Abilities
from services.core.model import classes, states
from services.core.model.specs import Claim, Image, Shape, Spec, image_seed
from services.core.queue import peers, rooms
from services.core.queue.peers import Peer
from services.core.queue.tail import Pace

ABLE = Abilities()  # to render everything but what asks for a class

LANE = 16  # segments that a look reads of a tenant's lane at most

# The order of segments: first the priority class whose turn it is, then the other classes by priority; within a class
# the tenant with the smallest virtual time; within a tenant the oldest job. One index probe per class and tenant. The
# first row brings the fleet, if the end of the work is near: not if a lane has as many segments as are read, since then
# more may wait in it.
_ORDER = "class.priority <> :turn, class.priority, t.virtual_time, s.job_id, s.id"
_CANDIDATES = statement("claims.candidates")(f"""
SELECT s.*, class.priority, t.id AS tenant_id, t.room, t.virtual_time, t.weight,
  CASE WHEN row_number() OVER (ORDER BY {_ORDER}) = 1
  AND NOT bool_or(s.nth = {LANE}) OVER ()
  AND sum(s.high - s.low + 1) OVER () <= ({peers.NEAR}) THEN ({peers.FLEET}) END AS fleet
FROM (VALUES (0), (1), (2)) AS class (priority)
CROSS JOIN ({rooms.TENANTS}) t
CROSS JOIN LATERAL (
  SELECT job_id, id, low, high, cap, {", ".join(columns.SHAPE)},
         abs(extract(epoch FROM clock_timestamp() - created_at)) AS age,
         row_number() OVER (ORDER BY job_id, id) AS nth
  FROM segments
  WHERE model_revision = :revision AND priority = class.priority AND tenant_id = t.id AND open AND low <= high
    AND (:redraws OR first_step = 0) AND (:long_prompts OR prompt_chunks = 1) AND steps <= :max_steps
    AND (CAST(:sizes AS text[]) IS NULL OR width || 'x' || height = ANY(:sizes))
    AND (reproducibility_class = '' OR reproducibility_class = ANY(:classes)
         AND {abilities.WORDS} || ' ' || reproducibility_class <> ALL(:refused))
  ORDER BY job_id, id LIMIT {LANE}
) s
WHERE NOT EXISTS (SELECT FROM workers JOIN drains USING (host, device) WHERE workers.id = :worker_id)
ORDER BY {_ORDER}
""")  # noqa: S608  our own text

# Runs with the jobs' locks held, so its snapshot shows every cancel that committed before, and later cancels wait.
# MATERIALIZED makes the LIMIT of `taken` exact. OFFSET 0 forces the planner to join the jobs segment by segment, in the
# order given. `enough`: more than `leave` images wait in these segments and those before them; no more are read.
_TAKE = statement("claims.take")(f"""
WITH enough AS MATERIALIZED (
  SELECT CAST(:leave AS integer) = 0 OR :leave < (
    SELECT count(*) FROM (
      SELECT FROM unnest(CAST(:all_jobs AS bigint[]), CAST(:all_segments AS smallint[]), CAST(:all_lows AS integer[]))
           AS s (job_id, id, low)
      JOIN jobs ON jobs.id = s.job_id AND state = ANY(:claimable) AND NOT paused
      CROSS JOIN LATERAL (
        SELECT FROM images WHERE images.job_id = s.job_id AND segment_id = s.id AND index >= s.low AND state = 0
        LIMIT :leave + 1
      ) i LIMIT :leave + 1
    ) waiting
  ) AS holds
), held AS MATERIALIZED (
  SELECT j.tenant_id, j.state AS job_state, j.embed_prompt, j.dedupe, i.*
  FROM unnest(CAST(:job_ids AS bigint[]), CAST(:segment_ids AS smallint[]), CAST(:lows AS integer[]))
       AS s (job_id, id, low)
  CROSS JOIN LATERAL (
    SELECT tenant_id, state, embed_prompt, dedupe FROM jobs
    WHERE jobs.id = s.job_id AND state = ANY(:claimable) AND NOT paused AND (SELECT holds FROM enough) OFFSET 0
  ) j
  CROSS JOIN LATERAL (
    SELECT job_id, index FROM images
    WHERE images.job_id = s.job_id AND segment_id = s.id AND index >= s.low AND state = 0
    ORDER BY index LIMIT :seats FOR UPDATE SKIP LOCKED
  ) i
  LIMIT :seats
), taken AS MATERIALIZED ({rooms.WITHIN}), of_tenant AS (
  SELECT tenant_id, count(*) AS images FROM taken GROUP BY tenant_id
), claim AS (
  INSERT INTO claims (worker_id, images, job_ids, expires_at, lease_seconds, free_at, tenant_ids, tenant_images)
  SELECT :worker_id, count(*), array_agg(DISTINCT job_id), now() + make_interval(secs => :lease), :lease,
         now() + make_interval(secs => CAST(:free AS double precision)),
         (SELECT array_agg(tenant_id ORDER BY tenant_id) FROM of_tenant),
         (SELECT array_agg(images ORDER BY tenant_id) FROM of_tenant)
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
UPDATE claims SET expires_at = now() + make_interval(secs => :lease), lease_seconds = :lease, step = beat.step
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
    """The answer to a heartbeat: the claims that are still held, each with its cancelled jobs."""

    held: dict[int, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Segments that may have queued images, best first. `age` is that of the first one, in seconds.

    `fleet` are the live workers if little is left, this one among them, which will be free in `free` seconds.
    `spoken_for` is the share of the others' time that goes into what was left to them before. `overdue` are segments,
    by job and id, that were left to others for too long: nothing of what shares their batches is left any longer.
    """

    rows: tuple[Any, ...]
    worker_id: str = ""
    fleet: Mapping[str, Peer] = field(default_factory=dict)
    free: float = 0.0
    spoken_for: float = 0.0
    overdue: Collection[tuple[int, int]] = ()

    @property
    def age(self) -> float:
        return float(self.rows[0].age)

    @property
    def max_waiting(self) -> int:
        """An upper bound of the images queued in the segments that would share a batch."""
        return sum(_span(row) for row in _same_shape(self.rows))

    @property
    def waiting(self) -> dict[int, float]:
        """The priority classes of which something may wait, and the age of the oldest of it in seconds."""
        ages: dict[int, float] = {}
        for row in self.rows:
            ages[row.priority] = max(ages.get(row.priority, 0.0), float(row.age))
        return ages

    def in_turn(self, turn: int, uncharged: Mapping[int, float]) -> "Candidates":
        """The same with that class first. `uncharged` is what tenants have cost and the database does not know yet."""

        def place(row: Any) -> tuple[Any, ...]:
            used = row.virtual_time + uncharged.get(row.tenant_id, 0.0) / row.weight
            return row.priority != turn, row.priority, used, row.job_id, row.id

        return replace(self, rows=tuple(sorted(self.rows, key=place)))

    @property
    def segments(self) -> set[tuple[int, int]]:
        """All of them, by job and id."""
        return {_key(row) for row in self.rows}

    @property
    def alike(self) -> list[tuple[int, int]]:
        """The segments that would share a batch, by job and id."""
        return [_key(row) for row in _same_shape(self.rows)]

    @property
    def job_ids(self) -> list[int]:
        return sorted({row.job_id for row in _same_shape(self.rows)})

    @property
    def others(self) -> "Candidates":
        """The candidates that remain if the first one and those that share its batch have no queued image."""
        same = set(self.alike)
        rest = tuple(row for row in self.rows if _key(row) not in same)
        left = self._left
        share = min(self.max_waiting / left, 1.0) if left else 0.0
        return replace(self, rows=rest, spoken_for=min(self.spoken_for + share, 1.0))

    def batch(self, most: int) -> int:
        """How many images to claim of the first one's shape, where `most` are claimed of any other: a batch of the
        class that was asked for."""
        asked = classes.parse(self.rows[0].reproducibility_class)
        return most if asked is None else min(asked.batch_size, most)

    @property
    def pace(self) -> Pace | None:
        """How this worker renders the first one; None: nothing like it was measured, or much is left to render."""
        return peers.own_pace(self.fleet, self.worker_id, columns.read_shape(self.rows[0]), self.free)

    @property
    def leaves(self) -> int:
        """How many of the first images of its shape are left to other workers, which end them sooner. Suspects are
        not: it takes two devices to tell what is at fault."""
        return int(self._left * (1 - self.spoken_for))

    def left(self, claim: Claim | None) -> list[tuple[int, int]]:
        """The segments, by job and id, that this claim left to others: those in front of what it took of, or all."""
        if not self.leaves:
            return []
        return self.alike if claim is None else self.alike[: -len(self.behind)]

    @property
    def behind(self) -> list[Any]:
        """The segments that would share a batch and do not lie wholly within what is left to others."""
        waiting, leave = _same_shape(self.rows), self.leaves
        upto = accumulate(_span(row) for row in waiting)
        return [row for row, images in zip(waiting, upto, strict=True) if images > leave]

    @property
    def patience(self) -> float:
        """For how many seconds it leaves them: others should have taken them by when it would have rendered them."""
        return peers.PATIENCE + (self.pace.end if self.pace is not None else 0.0)

    @property
    def _left(self) -> int:
        first = self.rows[0]
        if first.cap is not None or not set(self.alike).isdisjoint(self.overdue):
            return 0
        return peers.left(self.fleet, self.pace, self.worker_id, columns.read_shape(first), self.age)


def candidates(
    connection: Connection,
    model_revision: str,
    turn: int,
    worker_id: str,
    able: Abilities = ABLE,
    *,
    free: float = 0.0,
    overdue: Collection[tuple[int, int]] = (),
) -> Candidates:
    """The open segments of that revision that the worker is able to render; none if it is drained. `turn` is the
    priority class that comes first: 0, 1 or 2. `free`: in how many seconds the worker has rendered what it holds.
    `overdue`: see Candidates."""
    values = {
        "revision": model_revision, "turn": turn, "worker_id": worker_id, "redraws": able.redraws,
        "long_prompts": able.long_prompts, "max_steps": able.max_steps,
        "sizes": None if able.sizes is None else list(able.sizes),
        "classes": list(able.classes.values()), "refused": able.refused(),
    }  # fmt: skip
    rows = tuple(connection.execute(_CANDIDATES, values))
    fleet = peers.read(model_revision, rows[0].fleet) if rows else {}
    return Candidates(rows, worker_id, fleet, free, overdue=overdue)


def claim(connection: Connection, chosen: Candidates, *, worker_id: str, seats: int, lease: float) -> Claim | None:
    """Leases up to `seats` images of one shape for `lease` seconds. None: these segments have no queued image left, or
    others will have rendered all of them before this worker could.

    The first candidate decides the shape; free seats are filled from other segments of that shape. Quarantined images
    share no batch with others, and at most `cap` of them are in one batch.
    """
    if not chosen.rows:
        return None
    waiting, leave, pace = _same_shape(chosen.rows), chosen.leaves, chosen.pace
    segments = chosen.behind[:seats]
    if not segments:
        return None
    first = segments[0]
    limited = rooms.lock(connection, {row.tenant_id for row in segments if row.room is not None})
    share_jobs(connection, [row.job_id for row in segments])
    if first.cap is not None:
        seats = min(seats, first.cap)
    rows = connection.execute(
        _TAKE,
        {
            "job_ids": [row.job_id for row in segments],
            "segment_ids": [row.id for row in segments],
            "lows": [row.low for row in segments],
            "leave": leave,
            "all_jobs": [row.job_id for row in waiting] if leave else [],
            "all_segments": [row.id for row in waiting] if leave else [],
            "all_lows": [row.low for row in waiting] if leave else [],
            "free": None if pace is None else pace.end,
            "seats": seats,
            "worker_id": worker_id,
            "lease": lease,
            "claimable": states.guard(states.CLAIMABLE_JOB_STATES),
            "limited": list(limited),
            "rooms": list(limited.values()),
        },
    ).all()
    if not rows:
        return None
    shape = columns.read_shape(first)
    fresh = sorted({row.job_id for row in rows if row.job_state in states.START.sources})
    return Claim(
        rows[0].claim_id,
        shape.rendered,
        tuple(_image(row, shape) for row in rows),
        lease,
        tuple(fresh),
        shape.reproducibility_class,
        0.0 if pace is None else pace.seconds,
        suspect=first.cap is not None,
    )


def extend(connection: Connection, steps: dict[int, int], lease: float) -> Beat:
    """Extends the claims by `lease` seconds from now. `steps` maps a claim's id to its denoising steps done."""
    rows = connection.execute(_EXTEND, {"ids": list(steps), "steps": list(steps.values()), "lease": lease})
    return Beat({row.id: frozenset(row.cancelled) for row in rows})


def share_jobs(connection: Connection, job_ids: Sequence[int]) -> None:
    """Keeps these jobs from being cancelled until this transaction ends.

    The locks are taken in order of ids, and in a statement of their own, so that the next statement sees everything
    that was committed before they were granted.
    """
    connection.execute(_SHARE_JOBS, {"ids": sorted(set(job_ids))})


def forget(connection: Connection) -> None:
    """Deletes claims that ended more than a day ago, up to 10,000 per call."""
    connection.execute(_FORGET)


def _same_shape(rows: Sequence[Any]) -> list[Any]:
    """The first segment and those that may share its batch: of its shape, and none with quarantined images."""
    first = rows[0]
    if first.cap is not None:
        return [first]
    shape = columns.read_shape(first)
    return [row for row in rows if row.cap is None and columns.read_shape(row) == shape]


def _key(row: Any) -> tuple[int, int]:
    return row.job_id, row.id


def _span(row: Any) -> int:
    """An upper bound of the images queued in a segment."""
    return int(row.high - row.low + 1)


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
        prompt_chunks=shape.prompt_chunks,
        input_sha256="" if row.image_sha256 is None else bytes(row.image_sha256).hex(),
        first_step=shape.first_step,
    )
    return Image(
        row.job_id, row.index, row.tenant_id, spec, row.output_format, row.output_compression, row.embed_prompt,
        row.dedupe, row.image_key,
    )  # fmt: skip
