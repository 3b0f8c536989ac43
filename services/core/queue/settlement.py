"""Settlement: a worker ends its claim, and in one transaction every image of it becomes done, failed or queued again.

Functions take an open system transaction and never commit. `claims` says in which order locks are taken.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model import states
from services.core.model.errors import InvariantViolated
from services.core.model.specs import FailedImage, StoredImage
from services.core.model.states import ClaimState, ImageState
from services.core.queue.image_moves import CANCELLED, MOVED

_LOCK_CLAIM = statement("settlement.lock_claim")("""
SELECT state, images, job_ids,
       (SELECT count(pg_advisory_xact_lock_shared(job_id)) FROM unnest(job_ids) AS job_id) AS jobs_held
FROM claims WHERE id = :id FOR UPDATE
""")

_MOVE = statement("settlement.move")(f"""{CANCELLED}
  UPDATE images SET state = CASE WHEN images.job_id IN (SELECT id FROM cancelled) THEN 4 ELSE outcome.state END,
         claim_id = NULL, attempt = attempt + (outcome.state = 3)::integer
  FROM unnest(CAST(:in_jobs AS bigint[]), CAST(:firsts AS integer[]), CAST(:lasts AS integer[]),
              CAST(:states AS smallint[]), CAST(:sizes AS bigint[])) AS outcome (job_id, first, last, state, bytes)
  WHERE images.job_id = outcome.job_id AND images.index BETWEEN outcome.first AND outcome.last
    AND images.claim_id = ANY(:claim_ids) AND images.state = 1
  RETURNING images.job_id, images.index, images.segment_id, images.state,
            CASE WHEN images.index = outcome.first THEN outcome.bytes ELSE 0 END AS bytes
), {MOVED}""")  # noqa: S608  our own text

# The claim no longer counts as one of these jobs, nor their images towards the quota of their tenant.
_LET_GO = statement("settlement.let_go")(f"""{CANCELLED}
  UPDATE images SET state = 4, claim_id = NULL
  WHERE claim_id = :id AND job_id = ANY(:job_ids) AND job_id IN (SELECT id FROM cancelled) AND state = 1
  RETURNING job_id
), counted AS (
  INSERT INTO counter_deltas (job_id, rendering, cancelled)
  SELECT job_id, -count(*), count(*) FROM moved GROUP BY job_id
), of_tenant AS (
  SELECT tenant_id, count(*) AS images FROM moved JOIN jobs ON jobs.id = moved.job_id GROUP BY tenant_id
)
UPDATE claims SET images = images - (SELECT count(*) FROM moved),
  job_ids = ARRAY(SELECT id FROM unnest(job_ids) AS id WHERE id NOT IN (SELECT id FROM cancelled)),
  tenant_images = CASE WHEN tenant_ids IS NOT NULL THEN ARRAY(
    SELECT held.images - coalesce((SELECT images FROM of_tenant WHERE of_tenant.tenant_id = held.tenant_id), 0)
    FROM unnest(tenant_ids, tenant_images) WITH ORDINALITY AS held (tenant_id, images, nth) ORDER BY nth) END
WHERE id = :id
""")  # noqa: S608  our own text

_SPENT = statement("settlement.spent")("""
INSERT INTO counter_deltas (job_id, device_seconds, slots)
SELECT job_id, coalesce(CAST(:render_seconds AS real) * share, 0), CAST(:slots AS real) * share
FROM unnest(CAST(:job_ids AS bigint[]), CAST(:shares AS double precision[])) AS part (job_id, share)
""")

# Versions are inserted once and then looked up. DO UPDATE, because DO NOTHING would not return a row that another
# settle has just committed and that this snapshot does not see. What many images share is sent once, as a kind.
_RESULTS = statement("settlement.results")("""
WITH known AS MATERIALIZED (
  SELECT id, versions FROM engines WHERE versions = ANY(CAST(:versions AS text[]))
), added AS (
  INSERT INTO engines (versions)
  SELECT DISTINCT new FROM unnest(CAST(:versions AS text[])) AS new
  WHERE new IS NOT NULL AND new NOT IN (SELECT versions FROM known) ORDER BY new
  ON CONFLICT (versions) DO UPDATE SET versions = excluded.versions
  RETURNING id, versions
), kinds AS MATERIALIZED (
  SELECT kind, job_id, device, reproducibility_class, truncated, flagged, unknown_words, render_seconds, reused,
         coalesce((SELECT id FROM known WHERE known.versions = one.versions),
                  (SELECT id FROM added WHERE added.versions = one.versions)) AS engine_id
  FROM unnest(
    CAST(:job_id AS bigint[]), CAST(:device AS text[]), CAST(:reproducibility_class AS text[]),
    CAST(:versions AS text[]), CAST(:truncated AS boolean[]), CAST(:flagged AS boolean[]),
    CAST(:unknown_words AS jsonb[]), CAST(:render_seconds AS real[]), CAST(:reused AS boolean[])
  ) WITH ORDINALITY AS one (job_id, device, reproducibility_class, versions, truncated, flagged, unknown_words,
                            render_seconds, reused, kind)
), stored AS MATERIALIZED (
  SELECT * FROM unnest(
    CAST(:kind AS bigint[]), CAST(:index AS integer[]), CAST(:object_key AS text[]), CAST(:sha256 AS bytea[]),
    CAST(:bytes AS integer[]), CAST(:render_key AS bytea[]), CAST(:scores AS jsonb[]), CAST(:phash AS bigint[])
  ) AS one (kind, index, object_key, sha256, bytes, render_key, scores, phash)
), scored AS (
  INSERT INTO image_scores (job_id, name, value, index)
  SELECT job_id, name, CAST(value AS double precision), index
  FROM stored JOIN kinds USING (kind) CROSS JOIN LATERAL jsonb_each_text(scores) AS score (name, value)
  WHERE value IS NOT NULL
)
INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, engine_id, truncated,
                     flagged, unknown_words, render_seconds, render_key, reused, claim_id, scores, phash)
SELECT job_id, index, object_key, sha256, bytes, device, reproducibility_class, engine_id, truncated, flagged,
       unknown_words, render_seconds, render_key, reused, CAST(:claim_id AS bigint), scores, phash
FROM stored JOIN kinds USING (kind)
""")

_REUSED = statement("settlement.reused")("""
INSERT INTO counter_deltas (job_id, reused)
SELECT job_id, count(*) FROM unnest(CAST(:job_ids AS bigint[])) AS job_id GROUP BY job_id
""")

# Only those by which an image became failed are counted by cause. The claim is forgotten after a day, so its worker and
# its begin are copied.
_FAILURES = statement("settlement.failures")("""
WITH failed AS MATERIALIZED (
  SELECT * FROM unnest(CAST(:job_id AS bigint[]), CAST(:index AS integer[]), CAST(:code AS text[]),
                       CAST(:message AS text[]), CAST(:final AS boolean[])) AS one (job_id, index, code, message, final)
), counted AS (
  INSERT INTO failure_deltas (job_id, code, images, index, message)
  SELECT job_id, code, count(*), max(index), (array_agg(message ORDER BY index DESC))[1]
  FROM failed WHERE final GROUP BY job_id, code
)
INSERT INTO failures (job_id, index, code, message, claim_id, device, batch_images, worker_id, claimed_at)
SELECT job_id, index, code, message, :claim_id, :device, :batch_images, claim.worker_id, claim.created_at
FROM failed LEFT JOIN (SELECT worker_id, created_at FROM claims WHERE id = :claim_id) claim ON true
""")


_SHARED = (
    "job_id", "device", "reproducibility_class", "versions", "truncated", "flagged", "unknown_words", "render_seconds",
    "reused",
)  # fmt: skip
_OWN = ("index", "object_key", "sha256", "bytes", "render_key")
_KIND = attrgetter(*_SHARED)


class Verdict(StrEnum):
    OK = "ok"
    ALREADY = "already"  # it was settled before: the worker retries after a lost reply
    FENCED = "fenced"  # the lease was lost: none of its results may become visible


@dataclass(frozen=True, slots=True)
class Settlement:
    """`dropped` are stored images that never become visible: their objects may be deleted."""

    verdict: Verdict
    dropped: tuple[StoredImage, ...] = ()


def settle(
    connection: Connection,
    claim_id: int,
    *,
    device: str,
    stored: Sequence[StoredImage] = (),
    failed: Sequence[FailedImage] = (),
    released: Sequence[tuple[int, int]] = (),
    render_seconds: float | None = None,
    slots: int = 0,
    rendered: Mapping[int, float] | None = None,
) -> Settlement:
    """Ends a claim: every image of it becomes done, failed or queued again. `render_seconds` is how long the device was
    at it, and `slots` the sizes of its batches summed, padding included. Its jobs share both as `rendered` says, by
    job, or else by their images: what waited in the claim and was given back has cost nothing.

    Images of a cancelled job become cancelled, whatever their outcome; those that were let go are so already.

    Raises:
        InvariantViolated: the outcomes are not exactly the claim's images.
    """
    row = connection.execute(_LOCK_CLAIM, {"id": claim_id}).one_or_none()
    if row is None or row.state != ClaimState.OPEN:
        return Settlement(Verdict.ALREADY if row and row.state == ClaimState.SETTLED else Verdict.FENCED, tuple(stored))
    outcomes = [(image.job_id, image.index, int(ImageState.DONE), image.bytes) for image in stored]
    outcomes += [(image.job_id, image.index, int(ImageState.FAILED), 0) for image in failed]
    outcomes += [(job_id, index, int(ImageState.QUEUED), 0) for job_id, index in released]
    parts = rendered or Counter(job_id for job_id, *_ in outcomes)
    whole = sum(parts.values())
    shares = {job_id: part / whole for job_id, part in parts.items()}
    batch_images, gone = len(outcomes), {job_id for job_id, *_ in outcomes}.difference(row.job_ids)
    outcomes = [outcome for outcome in outcomes if outcome[0] not in gone]
    moved = connection.execute(
        _MOVE,
        {
            "claim_ids": [claim_id],
            "job_ids": [*row.job_ids, *gone],
            **_runs(outcomes),
            "claim_state": ClaimState.SETTLED,
            "render_seconds": render_seconds,
            "slots": slots,
            "sharing": list(shares),
            "shares": list(shares.values()),
            "stopped": states.guard(states.STOPPED_JOB_STATES),
        },
    ).one()
    if not moved.images == len(outcomes) == row.images or not gone.issubset(moved.cancelled):
        raise InvariantViolated(
            f"Claim {claim_id} holds {row.images} images; {len(outcomes)} outcomes moved {moved.images}."
        )
    if spent := {job_id: shares[job_id] for job_id in gone & shares.keys()}:
        values = {"job_ids": list(spent), "shares": list(spent.values())}
        connection.execute(_SPENT, values | {"render_seconds": render_seconds, "slots": slots})
    visible = [image for image in stored if image.job_id not in moved.cancelled]
    if visible:
        connection.execute(_RESULTS, {**_results(visible), "claim_id": claim_id})
    if reused := [image.job_id for image in visible if image.reused]:
        connection.execute(_REUSED, {"job_ids": reused})
    if failed:
        final = [image.job_id not in moved.cancelled for image in failed]
        record_failures(connection, claim_id, failed, device=device, batch_images=batch_images, final=final)
    return Settlement(Verdict.OK, tuple(image for image in stored if image.job_id in moved.cancelled))


def let_go(connection: Connection, claim_id: int, job_ids: Sequence[int]) -> None:
    """Ends the part of an open claim that is of these jobs, if they were cancelled: their images are final at once,
    however long the rest of the claim takes. What they cost is counted when that is settled."""
    row = connection.execute(_LOCK_CLAIM, {"id": claim_id}).one_or_none()
    if row is not None and row.state == ClaimState.OPEN:
        stopped = states.guard(states.STOPPED_JOB_STATES)
        connection.execute(_LET_GO, {"id": claim_id, "job_ids": list(job_ids), "stopped": stopped})


def _results(visible: Sequence[StoredImage]) -> dict[str, list[Any]]:
    """Values of _RESULTS: the kinds, each once, and the images with the number of theirs."""
    numbers: dict[tuple[Any, ...], int] = {}
    values: dict[str, list[Any]] = {name: [getattr(image, name) for image in visible] for name in _OWN}
    values["kind"] = [numbers.setdefault(_KIND(image), len(numbers) + 1) for image in visible]
    values["scores"] = [None if image.scores is None else json.dumps(dict(image.scores)) for image in visible]
    values["phash"] = [None if image.phash is None else _signed(image.phash) for image in visible]
    values |= zip(_SHARED, map(list, zip(*numbers, strict=True)), strict=True)
    values["unknown_words"] = [json.dumps(words) for words in values["unknown_words"]]
    return values


def _runs(outcomes: list[tuple[int, int, int, int]]) -> dict[str, list[int]]:
    """Values of _MOVE: the consecutive images of a job with one outcome are a range of an index. The bytes of a run
    count with its first image, since all of a job's images are cancelled, or none."""
    runs: list[list[int]] = []
    for job_id, index, state, size in sorted(outcomes):
        if runs and runs[-1][0] == job_id and runs[-1][2] == index - 1 and runs[-1][3] == state:
            runs[-1][2] = index
            runs[-1][4] += size
        else:
            runs.append([job_id, index, index, state, size])
    return {
        name: [run[at] for run in runs] for at, name in enumerate(("in_jobs", "firsts", "lasts", "states", "sizes"))
    }


def _signed(bits: int) -> int:
    """64 bits as a bigint holds them, whether they come from a scorer or from another result."""
    return (bits + (1 << 63)) % (1 << 64) - (1 << 63)


def record_failures(
    connection: Connection,
    claim_id: int,
    failed: Sequence[FailedImage],
    *,
    device: str,
    batch_images: int,
    final: bool | Sequence[bool] = False,
) -> None:
    """Records failures. `final`: the image, or each of them, is failed by it and not only under suspicion."""
    values: dict[str, Any] = {name: [getattr(image, name) for image in failed] for name in FailedImage.__slots__}
    values["final"] = [final] * len(failed) if isinstance(final, bool) else list(final)
    connection.execute(_FAILURES, values | {"claim_id": claim_id, "device": device, "batch_images": batch_images})
