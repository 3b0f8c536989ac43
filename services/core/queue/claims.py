"""Claims: a worker leases images, extends the lease while it renders, and learns which jobs were cancelled.

A worker's writes are fenced by the claim's id, which is never reused: it is made of time and chance, since a sequence
of a restored database would give a number again, for other images. The database's clock is the only clock of leases.
All functions take an open system transaction and never commit. What may be claimed: `looks.py`.

Locks are always taken in this order: claim, tenants, jobs, images, segments, engines. A job's lock is an advisory
lock: claims and settles share it, a cancel takes it exclusively. Advisory locks are granted in turn, row locks are not,
so a stream of claims cannot keep a cancel waiting.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.model import ids, states
from services.core.model.specs import Claim, Image, Shape, Spec, image_seed
from services.core.queue import looks, rooms
from services.core.queue.looks import Candidates

# Runs with the jobs' locks held, so its snapshot shows every cancel that committed before, and later cancels wait.
# MATERIALIZED makes the LIMIT of `taken` exact. OFFSET 0 forces the planner to join the jobs segment by segment, in the
# order given. `enough`: more than `leave` images wait in these segments and those before them; no more are read.
# What is taken is written and read on by runs of consecutive indexes, of which each is one range of an index: a lookup
# for each image would go through the index of every partition. The result has one row for each payload of a run.
# Of `runs` the planner expects hundreds, and once it has statistics it would rather walk over all images there are. So
# images are updated by an array of runs: a condition that always holds makes it expect one. OFFSET 0 forces it to read
# payloads run by run.
# The lease begins now, and not with the transaction: it may have looked for long, and waited for locks.
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
  SELECT j.tenant_id, j.state AS job_state, j.embed_prompt, j.dedupe, j.in_shards, i.*
  FROM unnest(CAST(:job_ids AS bigint[]), CAST(:segment_ids AS smallint[]), CAST(:lows AS integer[]))
       AS s (job_id, id, low)
  CROSS JOIN LATERAL (
    SELECT tenant_id, state, embed_prompt, dedupe, in_shards FROM jobs
    WHERE jobs.id = s.job_id AND state = ANY(:claimable) AND NOT paused AND (SELECT holds FROM enough) OFFSET 0
  ) j
  CROSS JOIN LATERAL (
    SELECT job_id, index FROM images
    WHERE images.job_id = s.job_id AND segment_id = s.id AND index >= s.low AND state = 0
    ORDER BY index LIMIT :seats FOR UPDATE SKIP LOCKED
  ) i
  LIMIT :seats
), taken AS MATERIALIZED ({rooms.WITHIN}), runs AS MATERIALIZED (
  SELECT tenant_id, job_id, job_state, embed_prompt, dedupe, in_shards, min(index) AS first, max(index) AS last
  FROM (SELECT *, index - row_number() OVER (PARTITION BY job_id ORDER BY index) AS run FROM taken) numbered
  GROUP BY tenant_id, job_id, job_state, embed_prompt, dedupe, in_shards, run
), bounds AS MATERIALIZED (
  SELECT array_agg(job_id) AS job_ids, array_agg(first) AS firsts, array_agg(last) AS lasts FROM runs
), of_tenant AS (
  SELECT tenant_id, count(*) AS images FROM taken GROUP BY tenant_id
), claim AS (
  INSERT INTO claims (id, worker_id, images, job_ids, expires_at, lease_seconds, free_at, tenant_ids, tenant_images)
  SELECT CAST(:claim_id AS bigint), :worker_id, count(*), array_agg(DISTINCT job_id),
         clock_timestamp() + make_interval(secs => :lease), :lease,
         clock_timestamp() + make_interval(secs => CAST(:free AS double precision)),
         (SELECT array_agg(tenant_id ORDER BY tenant_id) FROM of_tenant),
         (SELECT array_agg(images ORDER BY tenant_id) FROM of_tenant)
  FROM taken HAVING count(*) > 0
  RETURNING id
), moved AS (
  UPDATE images SET state = 1, claim_id = claim.id
  FROM claim, bounds CROSS JOIN LATERAL unnest(job_ids, firsts, lasts) AS run (job_id, first, last)
  WHERE run.first BETWEEN 0 AND 2147483647
    AND images.job_id = run.job_id AND images.index BETWEEN run.first AND run.last
), counted AS (
  INSERT INTO counter_deltas (job_id, queued, rendering)
  SELECT job_id, -count(*), count(*) FROM taken GROUP BY job_id
)
SELECT claim.id AS claim_id, runs.*, p.index AS first_index, p.n, {", ".join(f"p.{name}" for name in columns.RENDERED)}
FROM claim, runs
CROSS JOIN LATERAL (
  SELECT index FROM payloads WHERE payloads.job_id = runs.job_id AND payloads.index <= runs.first
  ORDER BY index DESC LIMIT 1
) begins
CROSS JOIN LATERAL (
  SELECT * FROM payloads WHERE payloads.job_id = runs.job_id AND payloads.index BETWEEN begins.index AND runs.last
  OFFSET 0
) p
ORDER BY runs.job_id, runs.first, p.index
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


def claim(connection: Connection, chosen: Candidates, *, worker_id: str, seats: int, lease: float) -> Claim | None:
    """Leases up to `seats` images of one shape for `lease` seconds. None: these segments have no queued image left, or
    others will have rendered all of them before this worker could.

    The first candidate decides the shape; free seats are filled from other segments of that shape. Quarantined images
    share no batch with others, and at most `cap` of them are in one batch.
    """
    if not chosen.rows:
        return None
    waiting, leave, pace = looks.same_shape(chosen.rows), chosen.leaves, chosen.pace
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
            "free": None if pace is None else pace.free + pace.rendering(seats),
            "seats": seats,
            "claim_id": ids.new(),
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
    images = tuple(image for row in rows for image in _images(row, shape))
    fresh = sorted({row.job_id for row in rows if row.job_state in states.START.sources})
    return Claim(
        rows[0].claim_id,
        shape.rendered,
        images,
        lease,
        tuple(fresh),
        shape.reproducibility_class,
        0.0 if pace is None else pace.rendering(len(images)),
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


def _images(row: Any, shape: Shape) -> Iterator[Image]:
    """The images of a run that are of one payload."""
    input_sha256 = "" if row.image_sha256 is None else bytes(row.image_sha256).hex()
    first, prompt, negative_prompt, scale = row.first_index, row.prompt, row.negative_prompt, row.guidance_scale
    for index in range(max(row.first, first), min(row.last + 1, first + row.n)):
        spec = Spec(
            shape.model_revision, prompt, negative_prompt, image_seed(row.seed, index - first), shape.width,
            shape.height, shape.steps, scale, shape.prompt_chunks, input_sha256, shape.first_step,
        )  # fmt: skip
        yield Image(
            row.job_id, index, row.tenant_id, spec, row.output_format, row.output_compression, row.embed_prompt,
            row.dedupe, row.image_key, row.in_shards,
        )  # fmt: skip
