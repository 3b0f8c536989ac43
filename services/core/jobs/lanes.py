"""Lanes: what waits to be rendered, by shape, priority and tenant, and who can serve it.

Every read is bounded: it looks at up to MOST open segments, the next ones of each lane first, and at the folded counts
of their jobs. So a job's images cost the same however many there are.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.fleet import workers
from services.core.jobs import estimates
from services.core.model.specs import Shape

MOST = 1_000  # segments that are looked at; what waits behind them is not added up
_OF_EACH = 200  # of each model, priority and tenant

# `revisions` jumps through the index of open segments, from one model revision to the next. OFFSET 0 keeps the counts
# from being read for more jobs than are shown, and a job's segments from being looked for in the whole index of open
# ones. What is queued of a job with several shapes is divided among them in proportion to what their segments may still
# hold.
_WAITING = statement("lanes.waiting")(f"""
WITH RECURSIVE revisions (revision) AS (
  (SELECT model_revision FROM segments WHERE open AND low <= high ORDER BY model_revision LIMIT 1)
  UNION ALL
  SELECT next.model_revision FROM revisions CROSS JOIN LATERAL (
    SELECT model_revision FROM segments WHERE open AND low <= high AND model_revision > revisions.revision
    ORDER BY model_revision LIMIT 1
  ) next
), looked_at AS MATERIALIZED (
  SELECT s.*, t.name AS tenant FROM revisions CROSS JOIN (VALUES (0), (1), (2)) AS class (priority)
  CROSS JOIN (
    SELECT id, name FROM tenants WHERE id = :tenant_id OR CAST(:is_all AS boolean) ORDER BY id <> :tenant_id, id
  ) t
  CROSS JOIN LATERAL (
    SELECT job_id, id, tenant_id, priority, {", ".join(columns.SHAPE)}, high - low + 1 AS span FROM segments
    WHERE model_revision = revisions.revision AND priority = class.priority AND tenant_id = t.id
      AND open AND low <= high
    ORDER BY job_id, id LIMIT :of_each
  ) s
  LIMIT :most
), of_job AS MATERIALIZED (
  SELECT shown.job_id, whole.* FROM (SELECT DISTINCT job_id FROM looked_at) shown
  CROSS JOIN LATERAL (
    SELECT sum(high - low + 1) AS span, count(*) AS segments
    FROM (SELECT open, low, high FROM segments WHERE segments.job_id = shown.job_id OFFSET 0) own
    WHERE open AND low <= high
  ) whole
)
SELECT {columns.shape("l")}, l.priority, l.tenant_id, l.tenant, l.job_id, c.queued,
       c.queued * l.span::double precision / of_job.span AS images,
       of_job.segments = 1 OR c.queued = of_job.span AS exact,
       extract(epoch FROM now() - j.since)::double precision AS waited
FROM looked_at l
CROSS JOIN LATERAL (
  SELECT coalesce(opened_at, created_at) AS since FROM jobs
  WHERE jobs.id = l.job_id AND state IN ('queued', 'in_progress') AND NOT paused OFFSET 0
) j
CROSS JOIN LATERAL (SELECT queued FROM job_counts WHERE job_counts.job_id = l.job_id AND queued > 0 OFFSET 0) c
JOIN of_job ON of_job.job_id = l.job_id
""")  # noqa: S608  our own text
_NAMES = statement("lanes.names")("SELECT name, revision FROM models WHERE revision = ANY(:revisions)")


@dataclass(frozen=True, slots=True)
class Lane:
    """Images that wait and may share a batch; if a class was asked for, they are of no other. `exact` is false if what
    is left of a job was divided among its shapes in proportion. `devices`: how many live workers of each kind of device
    serve it. Seconds are None if nothing like it was measured; `seconds`, until all are done if nothing else is
    rendered, also if no worker serves it."""

    model: str
    shape: Shape
    priority: int
    tenant: str
    images: int
    exact: bool
    jobs: int
    oldest_seconds: float
    devices: dict[str, int]
    device_seconds: float | None
    seconds: float | None

    @property
    def workers(self) -> int:
        return sum(self.devices.values())


@dataclass(frozen=True, slots=True)
class Lanes:
    """`more`: there are jobs that were not looked at, so that the numbers are the least."""

    lanes: tuple[Lane, ...]
    more: bool


def waiting(connection: Connection, tenant_id: int, *, all_tenants: bool, most: int = 0, of_each: int = 0) -> Lanes:
    """What waits of that tenant, or of all: in order of priority, then what waits longest. Looks at `most` segments,
    MOST by default, `of_each` of a model, priority and tenant. Takes a system transaction, since the index of what
    waits holds every tenant's segments."""
    most, of_each = most or MOST, of_each or _OF_EACH
    values = {"tenant_id": tenant_id, "is_all": all_tenants, "of_each": of_each, "most": most}
    rows = connection.execute(_WAITING, values).all()
    revisions = sorted({row.model_revision for row in rows})
    measured = estimates.Measured(connection, revisions)
    names = {row.revision: row.name for row in connection.execute(_NAMES, {"revisions": revisions})}
    live = measured.serving
    grouped: dict[tuple[int, int, Shape], list[Any]] = {}
    for row in rows:
        grouped.setdefault((row.priority, row.tenant_id, columns.read_shape(row)), []).append(row)
    found = [
        _lane(members, shape, measured, names.get(shape.model_revision, ""), Counter(map(workers.kind, live.of(shape))))
        for (_, _, shape), members in grouped.items()
    ]
    counted: dict[tuple[str, int, int], int] = {}
    for row in rows:
        place = row.model_revision, row.priority, row.tenant_id
        counted[place] = counted.get(place, 0) + 1
    more = len(rows) >= most or max(counted.values(), default=0) >= of_each
    return Lanes(tuple(sorted(found, key=lambda lane: (lane.priority, -lane.oldest_seconds))), more)


def _lane(rows: Sequence[Any], shape: Shape, measured: estimates.Measured, name: str, devices: dict[str, int]) -> Lane:
    images = sum(row.images for row in rows)
    rate, count = measured.rate(shape), sum(devices.values())
    device_seconds = None if rate is None else rate.seconds * images
    return Lane(
        model=name or shape.model_revision,
        shape=shape,
        priority=rows[0].priority,
        tenant=rows[0].tenant,
        images=round(images),
        exact=all(row.exact for row in rows),
        jobs=len({row.job_id for row in rows}),
        oldest_seconds=max(0.0, *(row.waited for row in rows)),
        devices=devices,
        device_seconds=device_seconds,
        seconds=device_seconds / count if device_seconds is not None and count else None,
    )
