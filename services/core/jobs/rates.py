"""How fast a tenant's images were finished, from the rows that every fold adds to (`queue/counters.py`).

Each read is one statement by key: it reads a row a minute or an hour, however many images there were.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import Connection

from services.core.db.statements import statement

Grain = Literal["minute", "hour"]
MOST_POINTS = 1_000

SOONEST = 15.0  # seconds: what a minute or an hour that has just begun counts at least, so that one batch is no peak

# A span begins with the minute or the hour in which it would, so that whole rows are added up, and is as long as that.
_RATES = statement("rates.rates")("""
SELECT span.name, coalesce(sum(r.done + r.failed), 0) / extract(epoch FROM now() - since)::double precision AS rate
FROM (VALUES ('now', 'minute', interval '1 minute'), ('hour', 'minute', interval '1 hour'),
             ('day', 'hour', interval '1 day'), ('week', 'hour', interval '7 days')) AS span (name, grain, length)
CROSS JOIN LATERAL (SELECT date_trunc(span.grain, now() - span.length, 'UTC') AS since) bound
LEFT JOIN rates r ON r.tenant_id = :tenant_id AND r.grain = span.grain AND r.at >= since AND r.at <= now()
GROUP BY span.name, since
""")
_SERIES = statement("rates.series")("""
SELECT point AS at, coalesce(r.done, 0) AS done, coalesce(r.failed, 0) AS failed, coalesce(r.reused, 0) AS reused,
       coalesce(r.device_seconds, 0) AS device_seconds, coalesce(r.slots, 0) AS slots,
       extract(epoch FROM least(step, now() - point))::double precision AS seconds
FROM (SELECT date_trunc(:grain, now(), 'UTC') AS last, CAST('1 ' || :grain AS interval) AS step) newest
CROSS JOIN LATERAL (SELECT last - nth * step AS point FROM generate_series(0, :points - 1) AS nth) points
LEFT JOIN rates r ON r.tenant_id = :tenant_id AND r.grain = :grain AND r.at = point
ORDER BY point
""")


@dataclass(frozen=True, slots=True)
class Rates:
    """Images done or failed per second: in the last one to two minutes, and over the last hour, day and week."""

    now: float
    hour: float
    day: float
    week: float


@dataclass(frozen=True, slots=True)
class Point:
    """What was finished in the minute or the hour that began at `at`, of which so many seconds have passed. `slots` are
    the sizes of the batches summed, so that (done - reused) / slots says how full they were."""

    at: datetime
    done: int
    failed: int
    reused: int
    device_seconds: float
    slots: float
    seconds: float

    @property
    def rate(self) -> float:
        """Images done or failed per second."""
        return (self.done + self.failed) / max(self.seconds, SOONEST)


def rates(connection: Connection, tenant_id: int) -> Rates:
    """The tenant's rates. An image counts once the deltas of its batch are folded: a second later, while anything
    runs."""
    found = {row.name: float(row.rate) for row in connection.execute(_RATES, {"tenant_id": tenant_id})}
    return Rates(**found)


def series(connection: Connection, tenant_id: int, grain: Grain, points: int) -> list[Point]:
    """The newest `points` minutes or hours, the oldest first and the current one last; those without images too."""
    values = {"tenant_id": tenant_id, "grain": grain, "points": min(points, MOST_POINTS)}
    return [Point(*row) for row in connection.execute(_SERIES, values)]
