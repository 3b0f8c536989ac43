"""The timetable: what the leader does, and how often. Each periodic task is one short transaction, safe to repeat.

The workers' timers also expire leases, fold counters and number events, so images are rendered without a scheduler.
"""

from collections.abc import Callable
from dataclasses import dataclass

from services.core.auditing import audits
from services.core.bulk import bulk
from services.core.db import partitions
from services.core.db.connectivity import Connectivity
from services.core.db.database import Connection
from services.core.events import numbering, retention
from services.core.fleet import throughput, workers
from services.core.jobs import idempotency, lifecycle, queries
from services.core.notify import Notifier
from services.core.queue import claims, counters, expiry, job_states, segments
from services.core.retention import due, pruning
from services.core.schedules import deadlines, firing, runs
from services.core.settings import Settings
from services.core.tenants import fair_share
from services.core.trail import sealing
from services.core.webhooks import deliveries, deriving, endpoints


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """`run` gets the leader's open transaction; `every` is in seconds."""

    name: str
    every: float
    run: Callable[[Connection], object]


def timetable(settings: Settings, notifier: Notifier, connectivity: Connectivity) -> list[PeriodicTask]:
    def expire(connection: Connection) -> int:
        steady = connectivity.steady(settings.lease_seconds)
        return expiry.expire(connection, settings.lease_seconds) if steady else 0

    def notify(connection: Connection) -> None:
        for model in queries.waiting_models(connection):
            notifier.notify(model)

    def forget(connection: Connection) -> None:
        claims.forget(connection)
        idempotency.forget(connection)
        workers.forget(connection)

    def forget_events(connection: Connection) -> int:
        return retention.forget(connection, settings.event_days)

    def forget_trail(connection: Connection) -> int:
        return sealing.forget(connection, max(settings.trail_days, settings.event_days))

    def forget_runs(connection: Connection) -> int:
        return runs.forget(connection, settings.event_days)

    def forget_bulk_acts(connection: Connection) -> int:
        return bulk.forget(connection, settings.event_days)

    def reseal(connection: Connection) -> int:
        return endpoints.reseal(connection, settings.secrets)

    def forget_failures(connection: Connection) -> int:
        return pruning.forget_failures(connection, settings.event_days)

    return [
        PeriodicTask("finish", 0.5, lifecycle.finish),
        PeriodicTask("deadlines", 1.0, job_states.expire),
        PeriodicTask("sweep", 0.25, segments.sweep_cancelled),
        PeriodicTask("fold", 1.0, counters.fold),
        PeriodicTask("fair-shares", 2.0, fair_share.lift_idle),
        PeriodicTask("sizes", 5.0, counters.size_old),
        PeriodicTask("usage", 60.0, counters.recount_usage),
        PeriodicTask("number", 0.5, numbering.number),
        PeriodicTask("expire", 2.0, expire),
        PeriodicTask("low", 2.0, segments.Rounds().raise_low),
        PeriodicTask("notify", 5.0, notify),
        PeriodicTask("schedules", 0.5, firing.fire),
        PeriodicTask("schedule-runs", 0.5, runs.settle),
        PeriodicTask("schedule-deadlines", 5.0, deadlines.watch),
        PeriodicTask("schedule-zones", 3600.0, firing.renew),
        PeriodicTask("webhooks", 0.5, deriving.derive),
        PeriodicTask("webhook-secrets", 60.0, reseal),
        PeriodicTask("forget-webhooks", 60.0, deliveries.forget),
        PeriodicTask("forget-runs", 300.0, forget_runs),
        PeriodicTask("forget-bulk-acts", 300.0, forget_bulk_acts),
        PeriodicTask("forget", 300.0, forget),
        PeriodicTask("forget-rates", 300.0, counters.forget_rates),
        PeriodicTask("forget-events", 60.0, forget_events),
        PeriodicTask("seal-trail", 5.0, sealing.seal),
        PeriodicTask("forget-trail", 300.0, forget_trail),
        PeriodicTask("audit-storage", 3600.0, lambda connection: audits.request_due(connection, settings.audit_days)),
        PeriodicTask("forget-failures", 300.0, forget_failures),
        PeriodicTask("forget-render-rates", 3600.0, throughput.forget),
        PeriodicTask("retention", 60.0, due.find),
        PeriodicTask("drop-partitions", 600.0, partitions.drop_partitions),
        PeriodicTask("partitions", 3600.0, partitions.make_partitions),
    ]
