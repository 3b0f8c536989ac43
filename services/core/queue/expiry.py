"""Expiry: the images of overdue claims and of dead processes are queued again.

Functions take an open system transaction and never commit. `claims` says in which order locks are taken.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model import states
from services.core.model.states import ClaimState
from services.core.queue import claims
from services.core.queue.image_moves import CANCELLED, MOVED

LOST = "lost"
# An image that was lost keeps that attempt, for its page: claims are forgotten after a day.
_TAKE_BACK = statement("expiry.take_back")(f"""{CANCELLED}
  UPDATE images SET state = CASE WHEN job_id IN (SELECT id FROM cancelled) THEN 4 ELSE 0 END, claim_id = NULL,
         lost = least(lost + CAST(:lost AS integer), 32767)
  FROM unnest(CAST(:claim_ids AS bigint[])) AS held (id)
  WHERE claim_id = held.id AND job_id = ANY(:job_ids) AND state = 1
  RETURNING job_id, index, segment_id, state, held.id AS held, 0 AS bytes
), noted AS (
  INSERT INTO failures (job_id, index, code, message, claim_id, device, batch_images, worker_id, claimed_at)
  SELECT job_id, index, '{LOST}', :message, held, coalesce(w.host || ' ' || w.device, c.worker_id), c.images,
         c.worker_id, c.created_at
  FROM moved CROSS JOIN LATERAL (SELECT * FROM claims WHERE claims.id = moved.held OFFSET 0) c
  LEFT JOIN LATERAL (SELECT host, device FROM workers WHERE workers.id = c.worker_id OFFSET 0) w ON true
  WHERE :lost > 0 AND moved.state = 0
), {MOVED}""")  # noqa: S608  our own text
_REASON = "The lease ran out: the worker was stopped, died, or could not be reached."

_OVERDUE = statement("expiry.overdue")("""
SELECT id, job_ids FROM claims
WHERE state = 'open'
  AND (expires_at < now() OR expires_at > now() + 2 * make_interval(secs => coalesce(lease_seconds, 3600)))
  AND (pg_postmaster_start_time() + make_interval(secs => :grace) < now() OR pg_postmaster_start_time() > now())
ORDER BY expires_at LIMIT 50 FOR UPDATE SKIP LOCKED
""")


def expire(connection: Connection, lease: float) -> int:
    """Queues the images of overdue claims again; returns how many. An image's `lost` is a statistic: it has no limit.

    No lease can be extended while the database is down. So no claim is overdue until one lease after its start.

    A claim that ends later than any lease given now could is overdue too: its clock was set back. So is a start that is
    yet to come.
    """
    overdue = connection.execute(_OVERDUE, {"grace": lease}).all()
    return take_back(connection, overdue, ClaimState.EXPIRED, lost=1) if overdue else 0


def take_back(connection: Connection, held: Sequence[Any], state: ClaimState, *, lost: int) -> int:
    """Queues the images of these locked claims (rows with id, job_ids) again; cancels those of cancelled jobs."""
    job_ids = sorted({job_id for row in held for job_id in row.job_ids})
    claims.share_jobs(connection, job_ids)
    values = {"claim_ids": [row.id for row in held], "job_ids": job_ids, "lost": lost, "claim_state": state}
    values |= {"message": _REASON, "stopped": states.guard(states.STOPPED_JOB_STATES)}
    costs: dict[str, Any] = {"render_seconds": None, "slots": 0, "sharing": [], "shares": []}
    return int(connection.execute(_TAKE_BACK, values | costs).one().images)
