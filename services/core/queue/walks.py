"""Walks: how a worker gets past segments that it cannot serve, without reading all of them at each look.

A look reads at most WINDOW segments of a lane (a priority class of a tenant). Where it can serve none of them, the
worker's next look begins behind them, until it finds some or the lane ends. After FORGET_SECONDS it begins at the front
again, since a segment there may have been opened. So each segment is seen after a bounded time, whatever else waits.
"""

from collections.abc import Collection, Mapping

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.fleet import abilities
from services.core.fleet.abilities import Abilities

WINDOW = 1_000
FORGET_SECONDS = 60.0
PAUSE_SECONDS = 2.0  # between two steps of a walk while the worker has other work
STRIDE = 8  # windows that a worker without work walks at a time

Lane = tuple[int, int]
"""Priority class and tenant."""
After = Mapping[Lane, tuple[int, int]]
"""By lane, the job and the id of the last segment that was seen."""

# For statements with `class` and `t`, which know :revision and what `values` gives. An aggregate, so that the places
# are plain values where they are compared: row-level security lets an index be searched by nothing that might fail.
BEGUN = """
CROSS JOIN LATERAL (
  SELECT coalesce(max(job_id), 0) AS job_id, CAST(coalesce(max(id), -1) AS smallint) AS id
  FROM unnest(CAST(:after_priorities AS smallint[]), CAST(:after_tenants AS bigint[]),
              CAST(:after_jobs AS bigint[]), CAST(:after_ids AS smallint[])) AS walked (priority, tenant_id, job_id, id)
  WHERE walked.priority = class.priority AND walked.tenant_id = t.id
) begun"""
SEEN = f"""
    SELECT * FROM segments
    WHERE model_revision = :revision AND priority = class.priority AND tenant_id = t.id AND open AND low <= high
      AND (job_id, id) > (begun.job_id, begun.id)
    ORDER BY job_id, id LIMIT {WINDOW}"""  # noqa: S608  our own text
_STEP = statement("walks.step")(f"""
SELECT class.priority, t.id AS tenant_id, seen.job_id, seen.id
FROM (VALUES (0), (1), (2)) AS class (priority)
CROSS JOIN tenants t
{BEGUN}
CROSS JOIN LATERAL (
  SELECT count(*) AS segments, bool_or({abilities.SERVED}) AS served,
         (array_agg(job_id ORDER BY job_id DESC, id DESC))[1] AS job_id,
         (array_agg(id ORDER BY job_id DESC, id DESC))[1] AS id
  FROM ({SEEN}) seen
) seen
WHERE seen.segments = {WINDOW} AND NOT seen.served AND NOT EXISTS (
  SELECT FROM unnest(CAST(:found_priorities AS smallint[]), CAST(:found_tenants AS bigint[])) AS found (priority, id)
  WHERE found.priority = class.priority AND found.id = t.id)
""")  # noqa: S608  our own text


class Walk:
    """One worker's. Used by one thread at a time; times are of the monotonic clock."""

    def __init__(self) -> None:
        self.after: dict[Lane, tuple[int, int]] = {}
        self._rests: dict[Lane, float] = {}  # since when a lane's look begins where it does
        self._next = 0.0

    def go_on(
        self, connection: Connection, revision: str, able: Abilities, found: Collection[Lane], now: float
    ) -> bool:
        """After a look with `after` that found segments in some lanes: whether the next one begins further back in any
        other lane. A worker that found nothing may look again at once."""
        if now < self._next:
            return False
        lanes = {"found_priorities": [lane[0] for lane in found], "found_tenants": [lane[1] for lane in found]}
        rows = connection.execute(_STEP, {"revision": revision, **able.values(), **values(self.after), **lanes}).all()
        moved = {(row.priority, row.tenant_id): (row.job_id, row.id) for row in rows}
        for lane in moved.keys() & self._rests.keys():
            del self._rests[lane]
        for lane in self.after.keys() - moved.keys():
            if now - self._rests.setdefault(lane, now) > FORGET_SECONDS:
                del self.after[lane], self._rests[lane]
        self.after |= moved
        self._next = now if moved and not found else now + PAUSE_SECONDS
        return bool(moved)


def values(after: After) -> dict[str, list[int]]:
    """The parameters of BEGUN."""
    return {
        "after_priorities": [priority for priority, _ in after],
        "after_tenants": [tenant for _, tenant in after],
        "after_jobs": [job_id for job_id, _ in after.values()],
        "after_ids": [segment for _, segment in after.values()],
    }
