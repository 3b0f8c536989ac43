"""The work that waits for a model, in seconds of one accelerator: what a fleet is scaled by.

It counts what workers may claim now and what they render: not what is paused, nor what belongs to tenants that are
suspended or have used up their day's accelerator-seconds. It is not divided by the number of workers. Functions take
a system transaction: the fleet is one for all tenants.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.jobs import estimates
from services.core.tenants import usage

_REVISION = statement("backlog.revision")("SELECT revision FROM models WHERE name = :model")
# A claim `c` holds images of one shape, so any of them tells it.
SHAPE_OF_CLAIM = """
CROSS JOIN LATERAL (
  SELECT segment_id FROM images WHERE images.job_id = c.job_ids[1] AND images.claim_id = c.id LIMIT 1
) one
JOIN segments s ON s.job_id = c.job_ids[1] AND s.id = one.segment_id
"""
# A job's queued images are divided among its open segments, as in `estimates.ahead`.
_WORK = statement("backlog.work")(f"""
WITH able AS MATERIALIZED (
  SELECT id FROM tenants t WHERE state = 'active' AND id = coalesce(CAST(:tenant_id AS integer), id)
    AND (max_device_seconds_per_day IS NULL OR max_device_seconds_per_day > {usage.SECONDS_TODAY})
), waiting AS (
  SELECT {columns.shape("s")}, c.queued * s.share AS queued, 0 AS rendering
  FROM (SELECT DISTINCT job_id FROM segments WHERE model_revision = :revision AND open AND low <= high) waits
  JOIN jobs j ON j.id = waits.job_id JOIN able ON able.id = j.tenant_id
  JOIN job_counts c ON c.job_id = j.id {estimates.SHARES}
  WHERE j.finished_at IS NULL AND j.state IN ('queued', 'in_progress') AND NOT j.paused
    AND c.queued > 0 AND s.model_revision = :revision
), held AS (
  SELECT {columns.shape("s")}, 0 AS queued, own.images AS rendering
  FROM (SELECT id, job_ids, tenant_ids, tenant_images FROM claims WHERE state = 'open') c
  CROSS JOIN LATERAL (
    SELECT sum(each.images) AS images FROM unnest(tenant_ids, tenant_images) AS each (tenant_id, images)
    WHERE each.tenant_id = coalesce(CAST(:tenant_id AS integer), each.tenant_id)
  ) own
  {SHAPE_OF_CLAIM}
  WHERE own.images > 0 AND s.model_revision = :revision
)
SELECT {columns.shape("work")}, sum(queued)::double precision AS queued, sum(rendering)::integer AS rendering
FROM (SELECT * FROM waiting UNION ALL SELECT * FROM held) work
GROUP BY {columns.shape("work")}
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Backlog:
    """Images, and the accelerator-seconds that they take. `registered`: a worker has published the model."""

    queued: int
    rendering: int
    accelerator_seconds: float
    registered: bool


def backlog(connection: Connection, model: str, seconds_per_image: float, *, tenant_id: int | None = None) -> Backlog:
    """What waits for the model's current revision, of one tenant or of all. `seconds_per_image` is for images of a
    model of which no shape was measured. A model that no worker has published counts as one image, so that its first
    worker is started, which publishes it: nothing can be submitted for it before."""
    revision = connection.execute(_REVISION, {"model": model}).scalar_one_or_none()
    if revision is None:
        return Backlog(0, 0, seconds_per_image, registered=False)
    queued, rendering, seconds = 0.0, 0, 0.0
    measured = estimates.Measured(connection, [revision])
    for row in connection.execute(_WORK, {"revision": revision, "tenant_id": tenant_id}):
        rate = measured.rate(columns.read_shape(row))
        queued += row.queued
        rendering += row.rendering
        seconds += (row.queued + row.rendering) * (seconds_per_image if rate is None else rate.seconds)
    return Backlog(round(queued), rendering, seconds, registered=True)
