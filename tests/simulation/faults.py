"""Faults of the code that the histories must find: each changes one statement in one place, for as long as it lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from sqlalchemy import text

from services.core.queue import (
    claims,
    counters,
    dedupe,
    expiry,
    job_states,
    looks,
    quarantine,
    rooms,
    segments,
    settlement,
)
from services.core.tenants import admission


@dataclass(frozen=True, slots=True)
class Fault:
    """In `statement` of the module, `was` becomes `is_now`."""

    name: str
    module: ModuleType
    statement: str
    was: str
    is_now: str


FAULTS = (
    Fault("an open claim is not asked for", expiry, "_OVERDUE", "state = 'open'", "state <> 'crashed'"),
    Fault("a lease that has not run out is taken back", expiry, "_OVERDUE", "expires_at < now()", "expires_at > now()"),
    Fault(
        "a clock set back is not noticed",
        expiry,
        "_OVERDUE",
        "expires_at > now() + 2 *",
        "false AND now() = now() + 2 *",
    ),
    Fault(
        "no grace after a start",
        expiry,
        "_OVERDUE",
        "AND (pg_postmaster_start_time()",
        "AND (true OR pg_postmaster_start_time()",
    ),
    Fault("an expiry waits for a settle", expiry, "_OVERDUE", "FOR UPDATE SKIP LOCKED", "FOR UPDATE"),
    Fault("an expiry queues what is cancelled", expiry, "_TAKE_BACK", "THEN 4 ELSE 0 END", "THEN 0 ELSE 0 END"),
    Fault("a loss is not counted", expiry, "_TAKE_BACK", "least(lost + CAST(:lost AS integer), 32767)", "lost"),
    Fault(
        "a requeued image stays below the mark",
        expiry,
        "_TAKE_BACK",
        "least(segments.low, requeued.low)",
        "segments.low",
    ),
    Fault("a claim waits for another", claims, "_TAKE", "FOR UPDATE SKIP LOCKED", "FOR UPDATE"),
    Fault("a claim locks nothing", claims, "_TAKE", "FOR UPDATE SKIP LOCKED", ""),
    Fault("a claim takes of paused jobs", claims, "_TAKE", "AND NOT paused AND (SELECT holds", "AND (SELECT holds"),
    Fault(
        "a claim takes of stopped jobs",
        claims,
        "_TAKE",
        "WHERE jobs.id = s.job_id AND state = ANY(:claimable) AND NOT paused AND (",
        "WHERE jobs.id = s.job_id AND NOT paused AND (",
    ),
    Fault(
        "a claim begins its lease too early",
        claims,
        "_TAKE",
        "make_interval(secs => :lease), :lease",
        "make_interval(secs => :lease / 2), :lease",
    ),
    Fault("a claim counts nothing", claims, "_TAKE", "-count(*), count(*) FROM taken", "0, 0 FROM taken"),
    Fault("a heartbeat revives a claim that is lost", claims, "_EXTEND", "AND state = 'open'", ""),
    Fault("a heartbeat hears of no cancel", claims, "_EXTEND", "AND cancel_requested_at IS NOT NULL", "AND false"),
    Fault(
        "a settle of a lost claim is not fenced",
        settlement,
        "_LOCK_CLAIM",
        "state, images, job_ids",
        "'open' AS state, images, job_ids",
    ),
    Fault(
        "a settle does not look for a cancel",
        settlement,
        "_MOVE",
        "THEN 4 ELSE outcome.state END",
        "THEN outcome.state ELSE outcome.state END",
    ),
    Fault("an attempt is not counted", settlement, "_MOVE", "attempt + (outcome.state = 3)::integer", "attempt"),
    Fault(
        "a settle leaves its claim open",
        settlement,
        "_MOVE",
        "UPDATE claims SET state = :claim_state, ended_at = now(),",
        "UPDATE claims SET",
    ),
    Fault(
        "a settle counts done twice",
        settlement,
        "_MOVE",
        "-count(*), count(*) FILTER (WHERE state = 2)",
        "-count(*) - 1, 1 + count(*) FILTER (WHERE state = 2)",
    ),
    Fault(
        "a failure is not counted by its cause",
        settlement,
        "_FAILURES",
        "FROM failed WHERE final GROUP BY",
        "FROM failed GROUP BY",
    ),
    Fault(
        "an image has the remarks of another",
        settlement,
        "_RESULTS",
        "FROM stored JOIN kinds USING (kind)\n",
        "FROM stored JOIN kinds ON kinds.kind = greatest(stored.kind - 1, 1)\n",
    ),
    Fault(
        "a new version is not recorded",
        settlement,
        "_RESULTS",
        "(SELECT id FROM added WHERE",
        "(SELECT id FROM known WHERE",
    ),
    Fault(
        "what is let go stays in its claim",
        settlement,
        "_LET_GO",
        "images = images - (SELECT",
        "images = images - 0 * (SELECT",
    ),
    Fault(
        "a claim still names what it let go",
        settlement,
        "_LET_GO",
        "AS id WHERE id NOT IN (SELECT id FROM cancelled))",
        "AS id)",
    ),
    Fault(
        "what is let go counts towards the quota",
        settlement,
        "_LET_GO",
        "SELECT held.images - coalesce(",
        "SELECT held.images - 0 * coalesce(",
    ),
    Fault("what is let go is not counted", settlement, "_LET_GO", "-count(*), count(*) FROM moved", "0, 0 FROM moved"),
    Fault("what is let go costs nothing", settlement, "_SPENT", "AS real) * share, 0)", "AS real) * 0 * share, 0)"),
    Fault(
        "a cancel releases nothing", segments, "_SWEEP", "UPDATE images SET state = 4", "UPDATE images SET state = 0"
    ),
    Fault(
        "a sweep passes over a segment",
        segments,
        "_SWEEP",
        "AND images.index >= held.low AND state = 0\n    ORDER",
        "AND images.index > held.low AND state = 0\n    ORDER",
    ),
    Fault("a mark is raised too far", segments, "_RAISE_LOW", "SET low = waiting.low", "SET low = waiting.low + 1"),
    Fault(
        "a cancel comes twice",
        job_states,
        "_CANCEL",
        "AND state = ANY(:sources)",
        "AND state = ANY(:sources || ARRAY['cancelling'])",
    ),
    Fault(
        "a job ends before its images",
        job_states,
        "_FINALIZE",
        "AND c.queued = 0 AND c.rendering = 0",
        "AND c.queued = 0",
    ),
    Fault(
        "a job in which all failed is completed",
        job_states,
        "_FINISH_ALL",
        "WHEN ready.done > 0",
        "WHEN ready.done >= 0",
    ),
    Fault(
        "a completion window is forgotten",
        job_states,
        "_ACCEPT",
        "opened_at = now()",
        "opened_at = now(), expires_at = NULL",
    ),
    Fault("a job ends before its output is written", job_states, "_FINISH_ALL", "AND j.input_file_id IS NULL", ""),
    Fault("a retracted crash stays", quarantine, "_FORGIVE_ONE", "greatest(crashes - 1, 0)", "crashes"),
    Fault("what crashed is not halved", quarantine, "_MOVE_IMAGES", "SET segment_id = :new_segment,", "SET"),
    Fault("a neighbour of poison fails", quarantine, "_EVIDENCE", "AND batch_images = 1", ""),
    Fault("poison is never found", quarantine, "_EVIDENCE", "count(DISTINCT device) AS devices", "0 AS devices"),
    Fault("poison is counted twice", quarantine, "_POISON", "-1, 1 FROM moved", "-2, 2 FROM moved"),
    Fault(
        "old crashes make a device sick",
        quarantine,
        "_FRESH_CRASHES",
        "AND failed_at > now() - interval '10 minutes'\n  AND failed_at",
        "AND failed_at",
    ),
    Fault("a sick device is blamed on its images", quarantine, "_FORGIVE", "greatest(crashes - 1, 0)", "crashes"),
    Fault("a copy is made of another tenant's", dedupe, "_FIND", "AND jobs.tenant_id = wanted.tenant_id", ""),
    Fault("a copy is made of what is deleted", dedupe, "_FIND", "AND jobs.deleted_at IS NULL", ""),
    Fault("a copy is not counted", settlement, "_REUSED", "count(*)", "0 * count(*)"),
    Fault(
        "a quota is not looked at",
        rooms,
        "_ROOMS",
        "max_images_in_flight - coalesce(",
        "max_images_in_flight - 0 * coalesce(",
    ),
    Fault("a claim takes of suspended tenants", looks, "_CANDIDATES", "WHERE state = 'active'", "WHERE state <> ''"),
    Fault("new work of a suspended tenant is taken", admission, "_LOCK", "*/ state,", "*/ 'active' AS state,"),
    Fault(
        "a fold adds what it leaves",
        counters,
        "_FOLD",
        "DELETE FROM counter_deltas WHERE id IN",
        "UPDATE counter_deltas SET at = at WHERE id IN",
    ),
)


@contextmanager
def broken(fault: Fault) -> Iterator[None]:
    """Within, the code has that fault."""
    right = getattr(fault.module, fault.statement)
    assert fault.was in right.text, f"{fault.statement} of {fault.module.__name__} has changed: {fault.was}"
    setattr(fault.module, fault.statement, text(right.text.replace(fault.was, fault.is_now)))
    try:
        yield
    finally:
        setattr(fault.module, fault.statement, right)
