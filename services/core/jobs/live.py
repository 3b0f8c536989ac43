"""What has changed since the last look, of all tenants at once: for those who watch jobs."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import queries as events
from services.core.events.queries import Event
from services.core.jobs import queries, remaining
from services.core.jobs.queries import JobView

EVENTS_AT_ONCE = 1_000
LIVE_JOBS = 100  # of each tenant, the newest

_LATEST = statement("live.latest")("SELECT coalesce(max(seq), 0) FROM events")
_LIVE = statement("live.live")("""
SELECT t.id AS tenant_id, mine.id
FROM unnest(CAST(:tenants AS integer[])) AS t (id)
CROSS JOIN LATERAL (
  SELECT id FROM jobs WHERE tenant_id = t.id AND finished_at IS NULL AND deleted_at IS NULL AND state <> 'draft'
  ORDER BY id DESC LIMIT :limit
) mine
""")


@dataclass(frozen=True, slots=True)
class Look:
    """`events` follow the last look's, in order. `jobs` are as they are now; a deleted one is left out. `owners` has
    the tenants of those found by tenant."""

    events: list[Event]
    jobs: dict[int, JobView]
    owners: dict[int, int]


def latest(connection: Connection) -> int:
    """The highest number of an event."""
    return int(connection.execute(_LATEST).scalar_one())


def look(connection: Connection, seq: int, *, jobs: Collection[int], tenants: Collection[int]) -> Look:
    """Looks at events with a number above `seq`, at these jobs, and at the newest unfinished jobs of these tenants.
    Takes a system transaction."""
    found = events.after(connection, seq, limit=EVENTS_AT_ONCE)
    owners: dict[int, int] = {}
    if tenants:
        live = connection.execute(_LIVE, {"tenants": sorted(tenants), "limit": LIVE_JOBS})
        owners = {row.id: row.tenant_id for row in live}
        for event in found:  # a job that has just finished is no longer among the live ones
            job_id = events.job_of(event)
            if job_id is not None and event.tenant_id is not None and event.tenant_id in tenants:
                owners[job_id] = event.tenant_id
    asked = {*jobs, *owners}
    views = remaining.estimated(connection, queries.any_jobs(connection, asked)) if asked else []
    return Look(found, {view.id: view for view in views}, owners)
