"""The quarantine: finds out whether an image, a device or a deploy makes processes crash.

The Celery parent survives its child and reports the images that were being rendered, of one claim or two; those that
waited in the same claims are queued again. What was being rendered is quarantined: its images are rendered in ever
smaller batches, at last one by one, until every other image is done and the one that crashes has crashed alone on two
devices (or three times on the only one). That image is poison and fails. A device that crashes on different images each
time, or fails its canary, is sick; its crashes are then not counted against the images. Functions take an open system
transaction.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.events import log as events
from services.core.fleet import workers
from services.core.model.specs import FailedImage
from services.core.model.states import ClaimState
from services.core.queue import expiry, settlement

log = logging.getLogger(__name__)
SICK_CRASHES = 3  # in ten minutes, on images that had never crashed before: then the device looks sick
Rendering = Mapping[int, Collection[tuple[int, int]]]
"""By claim, the images that were being rendered: job and index."""
POISON_TIMES = 3
POISON_DEVICES = 2

_OPEN_CLAIMS = statement("quarantine.open_claims")("""
SELECT id, job_ids, images FROM claims WHERE worker_id = :worker_id AND state = 'open' ORDER BY id FOR UPDATE
""")
_CLAIMED = statement("quarantine.claimed")(
    "SELECT job_id, index FROM images WHERE claim_id = :claim_id AND job_id = ANY(:job_ids)"
)
# By device, the crashes of claims none of whose images had crashed before, since the device last completed a claim. A
# poison image causes one of these and is then quarantined; a sick device or a bad deploy causes one after another. The
# claims of one crash are recorded in one transaction, and so at one time.
_FRESH_CRASHES = statement("quarantine.fresh_crashes")("""
SELECT device, count(DISTINCT failed_at) AS crashes FROM failures f
WHERE code = 'crash' AND failed_at > now() - interval '10 minutes'
  AND failed_at > coalesce((
    SELECT max(ended_at) FROM claims JOIN workers ON workers.id = claims.worker_id
    WHERE claims.state = 'settled' AND ended_at > now() - interval '10 minutes' AND render_seconds > 0
      AND workers.host || ' ' || workers.device = f.device), '-infinity')
  AND NOT EXISTS (SELECT FROM failures e WHERE e.job_id = f.job_id AND e.index = f.index AND e.code = 'crash'
                  AND e.id < f.id AND e.claim_id <> f.claim_id)
GROUP BY device
""")
_LIVE_DEVICES = statement("quarantine.live_devices")("""
SELECT count(DISTINCT host || ' ' || device) FROM workers
WHERE state <> 'starting' AND seen_at BETWEEN now() - interval '10 minutes' AND now() + interval '10 minutes'
""")
_EVIDENCE = statement("quarantine.evidence")("""
SELECT count(*) AS times, count(DISTINCT device) AS devices FROM failures
WHERE job_id = :job_id AND index = :index AND code = 'crash' AND batch_images = 1
""")
_POISON = statement("quarantine.poison")("""
WITH moved AS (
  UPDATE images SET state = 3, attempt = attempt + 1 WHERE job_id = :job_id AND index = :index AND state = 0
  RETURNING job_id
)
INSERT INTO counter_deltas (job_id, queued, failed) SELECT job_id, -1, 1 FROM moved
""")
_LOCK_JOB = statement("quarantine.lock_job")("SELECT pg_advisory_xact_lock(7209413, hashint8(:job_id))")
_SHAPE = ", ".join(columns.SHAPE)
_QUARANTINE_SEGMENT = statement("quarantine.quarantine_segment")(f"""
SELECT s.id FROM segments s JOIN segments o USING (job_id, {_SHAPE})
WHERE o.job_id = :job_id AND o.id = :segment_id AND s.cap = :cap LIMIT 1
""")  # noqa: S608  our own text
_NEW_QUARANTINE_SEGMENT = statement("quarantine.new_quarantine_segment")(f"""
INSERT INTO segments (job_id, id, tenant_id, {_SHAPE}, priority, open, cap, low, high)
SELECT job_id, (SELECT max(id) + 1 FROM segments WHERE job_id = :job_id), tenant_id, {_SHAPE}, priority, open, :cap,
       low, high
FROM segments WHERE job_id = :job_id AND id = :segment_id RETURNING id
""")  # noqa: S608  our own text
_MOVE_IMAGES = statement("quarantine.move_images")("""
UPDATE images SET segment_id = :new_segment, crashes = least(crashes + 1, 32767)
WHERE job_id = :job_id AND index = ANY(:indexes) AND segment_id = :segment_id AND state = 0
""")
_WIDEN = statement("quarantine.widen")("""
UPDATE segments SET low = least(low, :low), high = greatest(high, :high) WHERE job_id = :job_id AND id = :segment_id
""")
_SEGMENTS_OF = statement("quarantine.segments_of")("""
SELECT segment_id, array_agg(index ORDER BY index) AS indexes FROM images
WHERE job_id = :job_id AND index = ANY(:indexes) AND state = 0 GROUP BY segment_id
""")
_FORGIVE = statement("quarantine.forgive")("""
UPDATE images SET crashes = greatest(crashes - 1, 0)
WHERE (job_id, index) IN (SELECT job_id, index FROM failures WHERE code = 'crash' AND device = :device
                          AND failed_at > now() - interval '10 minutes') AND state IN (0, 1)
""")
_DISCOUNT_CRASHES = statement("quarantine.discount_crashes")("""
UPDATE failures SET code = 'device' WHERE code = 'crash' AND device = :device
  AND failed_at > now() - interval '10 minutes'
""")
_FORGIVE_ONE = statement("quarantine.forgive_one")("""
UPDATE images SET crashes = greatest(crashes - 1, 0)
FROM failures WHERE failures.claim_id = :claim_id AND failures.code = 'crash'
  AND images.job_id = failures.job_id AND images.index = failures.index AND images.state IN (0, 1)
""")
_DISCOUNT_CRASH = statement("quarantine.discount_crash")(
    "UPDATE failures SET code = 'device' WHERE claim_id = :claim_id AND code = 'crash'"
)


def child_died(connection: Connection, worker_id: str, *, rendering: Rendering, device: str) -> bool:
    """Takes back the claims of a dead process. Only the images that it was rendering are quarantined; what waited in
    the same claims is queued again as if it had never been claimed. They are of two batches if the last stage of one
    ran beside the next: then either may be at fault, and each image counts as one of a batch of all of them. Returns
    whether the device looks sick: then its next process must pass the canary before it claims.
    """
    workers.beat(connection, worker_id, "crashed")
    claims = connection.execute(_OPEN_CLAIMS, {"worker_id": worker_id}).all()
    others = [row for row in claims if row.id not in rendering]
    crashed = [row for row in claims if row.id in rendering]
    # Before anything of a job is locked: who quarantines its images then waits for no one who waits for this.
    for job_id in sorted({job_id for row in crashed for job_id in row.job_ids}):
        connection.execute(_LOCK_JOB, {"job_id": job_id})
    if others:
        expiry.take_back(connection, others, ClaimState.EXPIRED, lost=1)
    return bool(crashed) and _handle_crash(connection, crashed, rendering, device)


def device_sick(connection: Connection, device: str) -> None:
    """The device is sick: its recent crashes no longer count against the images."""
    connection.execute(_FORGIVE, {"device": device})
    connection.execute(_DISCOUNT_CRASHES, {"device": device})
    events.append(connection, "device.sick", f"device/{device}", tenant_id=None)


def retract_crash(connection: Connection, claim_id: int) -> None:
    """Undoes the crash of a claim: it came to settle, so its process is alive."""
    connection.execute(_FORGIVE_ONE, {"claim_id": claim_id})
    connection.execute(_DISCOUNT_CRASH, {"claim_id": claim_id})


def _handle_crash(connection: Connection, crashed: list[Any], rendering: Rendering, device: str) -> bool:
    together = sum(len(rendering[claim.id]) for claim in crashed)
    found: list[tuple[int, Any, list[int]]] = []
    for claim in crashed:
        claimed: list[Any] = list(connection.execute(_CLAIMED, {"claim_id": claim.id, "job_ids": claim.job_ids}))
        images = [row for row in claimed if (row.job_id, row.index) in rendering[claim.id]]
        found += [
            (job_id, claim, [row.index for row in images if row.job_id == job_id])
            for job_id in {row.job_id for row in images}
        ]
        expiry.take_back(connection, [claim], ClaimState.CRASHED, lost=0)
        message = "The process died while rendering this image."
        evidence = [FailedImage(row.job_id, row.index, "crash", message) for row in images]
        settlement.record_failures(connection, claim.id, evidence, device=device, batch_images=together)
    sick = _device_looks_sick(connection, device)
    if sick:
        log.warning("device looks sick: it crashes on different images", extra={"device": device})
        device_sick(connection, device)
        return True
    for job_id, claim, indexes in sorted(found, key=lambda one: (one[0], one[1].id)):
        if together == 1 and _is_poison(connection, job_id, indexes[0]):
            _fail_as_poison(connection, claim.id, job_id, indexes[0], device)
        else:
            _quarantine(connection, job_id, indexes, cap=max(1, len(rendering[claim.id]) // 2))
    return False


def _device_looks_sick(connection: Connection, device: str) -> bool:
    crashes = {row.device: row.crashes for row in connection.execute(_FRESH_CRASHES)}
    bad = sum(1 for count in crashes.values() if count >= SICK_CRASHES)
    live = max(connection.execute(_LIVE_DEVICES).scalar_one(), 1)
    if live > 1 and bad * 2 > live:
        log.error("most devices crash: a bad deploy? no image is quarantined", extra={"devices": live, "crashing": bad})
        return True
    return bool(crashes.get(device, 0) >= SICK_CRASHES)


def _is_poison(connection: Connection, job_id: int, index: int) -> bool:
    row = connection.execute(_EVIDENCE, {"job_id": job_id, "index": index}).one()
    return bool(row.devices >= POISON_DEVICES or row.times >= POISON_TIMES)


def _fail_as_poison(connection: Connection, claim_id: int, job_id: int, index: int, device: str) -> None:
    failed = connection.execute(_POISON, {"job_id": job_id, "index": index}).rowcount == 1
    message = "The process died each time that it rendered this image alone."
    events.append_of_job(connection, "image.poison", job_id, {"index": index, "device": device})
    poison = FailedImage(job_id, index, "poison", message)
    settlement.record_failures(connection, claim_id, [poison], device=device, batch_images=1, final=failed)


def _quarantine(connection: Connection, job_id: int, indexes: list[int], *, cap: int) -> None:
    """Moves queued images into the job's quarantine segment of their shape, whose batches hold at most `cap` images."""
    for row in connection.execute(_SEGMENTS_OF, {"job_id": job_id, "indexes": indexes}).all():
        place = {"job_id": job_id, "segment_id": row.segment_id}
        found = connection.execute(_QUARANTINE_SEGMENT, place | {"cap": cap}).scalar_one_or_none()
        if found is None:
            found = connection.execute(_NEW_QUARANTINE_SEGMENT, place | {"cap": cap}).scalar_one()
        # Lower the mark first: it waits for a periodic task that is raising it, and only then images arrive below it.
        span = {"low": row.indexes[0], "high": row.indexes[-1]}
        connection.execute(_WIDEN, {"job_id": job_id, "segment_id": found} | span)
        connection.execute(_MOVE_IMAGES, place | {"indexes": row.indexes, "new_segment": found})
