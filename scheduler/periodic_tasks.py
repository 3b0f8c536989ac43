"""The timetable: what the leader does, and how often. Each duty is one short transaction, safe to run again.

Expiring leases, folding counters and numbering events run on the workers' timers too, so a dead scheduler strands
nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from services.core.db import partitions
from services.core.db.connectivity import Contact
from services.core.db.database import Connection
from services.core.events import numbering
from services.core.fleet import workers
from services.core.jobs import idempotency, lifecycle, queries
from services.core.notify import Bell
from services.core.queue import claims, counters, expiry, job_states, segments
from services.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Duty:
    """`run` gets an open transaction of the leader; `every` in seconds."""

    name: str
    every: float
    run: Callable[[Connection], object]


def timetable(settings: Settings, bell: Bell, contact: Contact) -> list[Duty]:
    def expire(connection: Connection) -> int:
        steady = contact.steady(settings.lease_seconds)
        return expiry.expire(connection, settings.lease_seconds) if steady else 0

    def ring(connection: Connection) -> None:
        for model in queries.waiting_models(connection):
            bell.ring(model)

    def forget(connection: Connection) -> None:
        for table in (claims, idempotency, workers):
            table.forget(connection)

    return [
        Duty("finish", 0.5, lifecycle.finish),
        Duty("deadlines", 1.0, job_states.expire),
        Duty("sweep", 1.0, segments.sweep_cancelled),
        Duty("fold", 1.0, counters.fold),
        Duty("number", 0.5, numbering.number),
        Duty("expire", 2.0, expire),
        Duty("low", 2.0, segments.raise_low),
        Duty("ring", 5.0, ring),
        Duty("forget", 300.0, forget),
        Duty("partitions", 3600.0, partitions.make_partitions),
    ]
