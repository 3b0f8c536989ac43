"""The timetable: what the leader does, and how often. Each duty is one short transaction, safe to run again.

Expiring leases and folding counters run on the workers' timers too, so a dead scheduler strands nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from services.core.db.connectivity import Contact
from services.core.db.database import Connection
from services.core.jobs import lifecycle, queries
from services.core.notify import Bell
from services.core.queue import ledger, maintenance
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
        return ledger.expire(connection, settings.lease_seconds) if steady else 0

    def ring(connection: Connection) -> None:
        for model in queries.waiting_models(connection):
            bell.ring(model)

    return [
        Duty("finish", 0.5, lifecycle.finish),
        Duty("deadlines", 1.0, lifecycle.expire),
        Duty("sweep", 1.0, maintenance.sweep_cancelled),
        Duty("fold", 1.0, maintenance.fold),
        Duty("expire", 2.0, expire),
        Duty("low", 2.0, maintenance.raise_low),
        Duty("ring", 5.0, ring),
        Duty("forget", 300.0, maintenance.forget),
        Duty("partitions", 3600.0, maintenance.make_partitions),
    ]
