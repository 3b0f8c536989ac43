"""What each tenant uses of its quotas. Nothing is counted by reading images, pictures or files.

Whatever changes a number writes a delta in its own transaction: new images here (`QUEUED`), files and parts by
triggers of the database, which no way to delete them can forget. `fold` adds the deltas to one row per tenant. What the
fold of the counters says of a tenant's images and pictures (`queue/counters.py`) goes into that row in the same
statement, by `FOLDED`. So a read is one row and the deltas of the last second. Images that left the queue in that
second still count: the number is never too small.

Images in flight are those of open claims, and the day's accelerator-seconds those of its hours in `rates`.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.model import byte_sizes
from services.core.model.quotas import NAMES, Quotas

_COUNTED = ("images_queued", "bytes_stored", "bytes_spooled")
# New images of the job `:id`, for the WITH of the statement that counts them.
QUEUED = """used AS (
  INSERT INTO tenant_usage_deltas (tenant_id, images_queued)
  SELECT tenant_id, CAST(:images AS bigint) FROM jobs WHERE jobs.id = :id AND CAST(:images AS bigint) > 0
)"""
# What deltas of counters came to, for the WITH of the statement that folds them; `folded` has job_id, queued and bytes.
# Of a job from before, whose pictures are not added up yet, `SIZED` adds all at once.
FOLDED = """used AS (
  INSERT INTO tenant_usage AS u (tenant_id, images_queued, bytes_stored)
  SELECT tenant_id, sum(queued), sum(size) FROM folded
  CROSS JOIN LATERAL (
    SELECT tenant_id, CASE WHEN c.bytes IS NULL THEN 0 ELSE folded.bytes END AS size
    FROM jobs JOIN counters c ON c.job_id = jobs.id WHERE jobs.id = folded.job_id OFFSET 0
  ) of_job
  GROUP BY tenant_id HAVING sum(queued) <> 0 OR sum(size) <> 0 ORDER BY tenant_id
  ON CONFLICT (tenant_id) DO UPDATE SET images_queued = u.images_queued + excluded.images_queued,
    bytes_stored = u.bytes_stored + excluded.bytes_stored
)"""
# What jobs turned out to have stored, after the WITH of the statement that added it up; `sized` has job_id and bytes.
SIZED = """
INSERT INTO tenant_usage_deltas (tenant_id, bytes_stored)
SELECT tenant_id, sum(sized.bytes) FROM sized JOIN jobs ON jobs.id = sized.job_id GROUP BY tenant_id
"""
_FOLD = statement("usage.fold")(f"""
WITH folded AS (
  DELETE FROM tenant_usage_deltas WHERE id IN (
    SELECT id FROM tenant_usage_deltas ORDER BY id LIMIT 20000 FOR UPDATE SKIP LOCKED
  ) RETURNING tenant_id, {", ".join(_COUNTED)}
)
INSERT INTO tenant_usage AS u (tenant_id, {", ".join(_COUNTED)})
SELECT tenant_id, {", ".join(f"sum({name})" for name in _COUNTED)} FROM folded
WHERE EXISTS (SELECT FROM tenants WHERE tenants.id = folded.tenant_id)
GROUP BY tenant_id ORDER BY tenant_id
ON CONFLICT (tenant_id) DO UPDATE SET {", ".join(f"{name} = u.{name} + excluded.{name}" for name in _COUNTED)}
""")  # noqa: S608  our own text
IN_FLIGHT = """(
  SELECT coalesce(sum(held.images), 0) FROM claims
  CROSS JOIN LATERAL unnest(claims.tenant_ids, claims.tenant_images) AS held (tenant_id, images)
  WHERE claims.state = 'open' AND held.tenant_id = t.id
)"""
SECONDS_TODAY = """(
  SELECT coalesce(sum(device_seconds), 0) FROM rates
  WHERE rates.tenant_id = t.id AND grain = 'hour' AND at >= date_trunc('day', now(), 'UTC')
)"""
# What the fold of the counters does not know yet is missing: the pictures of a second or two.
STORED = """(
  SELECT coalesce((SELECT bytes_stored FROM tenant_usage WHERE tenant_usage.tenant_id = t.id), 0)
    + coalesce(sum(bytes_stored), 0)
  FROM tenant_usage_deltas WHERE tenant_usage_deltas.tenant_id = t.id
)"""
# MATERIALIZED: read once. What is below zero is a count that the release before had a part in.
READ = f"""
WITH t AS MATERIALIZED (
  SELECT id, name, state, {", ".join(f"max_{name}" for name in NAMES)} FROM tenants WHERE id = :tenant_id
)
SELECT t.*, {", ".join(f"greatest(coalesce(u.{name}, 0) + d.{name}, 0) AS {name}" for name in _COUNTED)},
       {IN_FLIGHT} AS images_in_flight, {SECONDS_TODAY} AS device_seconds_today,
       extract(epoch FROM date_trunc('day', now(), 'UTC') + interval '1 day' - now()) AS seconds_left_today
FROM t LEFT JOIN tenant_usage u ON u.tenant_id = t.id
CROSS JOIN LATERAL (
  SELECT {", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in _COUNTED)}
  FROM tenant_usage_deltas WHERE tenant_usage_deltas.tenant_id = t.id
) d
"""  # noqa: S608  our own text
_READ = statement("usage.read")(READ)
# Under the lock that every fold takes, so what is not folded yet is exactly what the deltas say, and is left to them.
_RECOUNT = statement("usage.recount")("""
INSERT INTO tenant_usage AS u (tenant_id, images_queued, bytes_stored, bytes_spooled, counted_at)
SELECT t.id, images.queued - d.images_queued,
       images.bytes + files.stored + others.stored - d.bytes_stored, files.spooled + parts.spooled - d.bytes_spooled,
       now()
FROM tenants t
CROSS JOIN LATERAL (
  SELECT coalesce(sum(queued), 0) AS queued,
         coalesce(sum(bytes) FILTER (WHERE jobs.objects_deleted_at IS NULL), 0) AS bytes
  FROM jobs JOIN counters ON counters.job_id = jobs.id WHERE jobs.tenant_id = t.id
) images
CROSS JOIN LATERAL (
  SELECT coalesce(sum(bytes) FILTER (WHERE purpose = 'batch_output'), 0) AS stored,
         coalesce(sum(bytes) FILTER (WHERE purpose <> 'batch_output'), 0) AS spooled
  FROM files WHERE files.tenant_id = t.id
) files
CROSS JOIN LATERAL (
  SELECT coalesce(sum(bytes), 0) AS spooled FROM upload_parts WHERE upload_parts.tenant_id = t.id
) parts
CROSS JOIN LATERAL (
  SELECT (SELECT coalesce(sum(bytes), 0) FROM export_files WHERE export_files.tenant_id = t.id)
    + (SELECT coalesce(sum(bytes), 0) FROM dataset_files WHERE dataset_files.tenant_id = t.id) AS stored
) others
CROSS JOIN LATERAL (
  SELECT coalesce(sum(images_queued), 0) AS images_queued, coalesce(sum(bytes_stored), 0) AS bytes_stored,
         coalesce(sum(bytes_spooled), 0) AS bytes_spooled
  FROM tenant_usage_deltas WHERE tenant_usage_deltas.tenant_id = t.id
) d
WHERE t.id = (
  SELECT tenants.id FROM tenants LEFT JOIN tenant_usage ON tenant_id = tenants.id
  WHERE counted_at IS NULL OR counted_at NOT BETWEEN now() - interval '1 hour' AND now()
  ORDER BY counted_at NULLS FIRST, tenants.id LIMIT 1
)
ON CONFLICT (tenant_id) DO UPDATE SET images_queued = excluded.images_queued, bytes_stored = excluded.bytes_stored,
  bytes_spooled = excluded.bytes_spooled, counted_at = excluded.counted_at
""")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant uses now. `device_seconds_today` are since 00:00 UTC."""

    images_queued: int
    images_in_flight: int
    bytes_stored: int
    bytes_spooled: int
    device_seconds_today: float


@dataclass(frozen=True, slots=True)
class Against:
    """A tenant's usage beside its quotas."""

    name: str
    state: str
    usage: Usage
    quotas: Quotas


def of_tenant(connection: Connection, tenant_id: int) -> Usage:
    """What the tenant uses. Takes a system transaction, since only that sees claims."""
    return against_quotas(connection, tenant_id).usage


def against_quotas(connection: Connection, tenant_id: int) -> Against:
    """The same beside its quotas."""
    row = connection.execute(_READ, {"tenant_id": tenant_id}).one()
    return Against(row.name, row.state, read(row), Quotas(**{name: getattr(row, f"max_{name}") for name in NAMES}))


def waits(connection: Connection, tenant_id: int) -> list[str]:
    """Why no image of the tenant is rendered now, as sentences: what claims pass over a tenant for
    (`queue/rooms.py`)."""
    found = against_quotas(connection, tenant_id)
    used, quotas, name = found.usage, found.quotas, f"Images of this job wait: the tenant {found.name}"
    reasons = []
    if found.state != "active":
        reasons.append(f"{name} is suspended; they go on when an administrator of the installation makes it active.")
    if quotas.bytes_stored is not None and used.bytes_stored >= quotas.bytes_stored:
        has = byte_sizes.rounded(used.bytes_stored, quotas.bytes_stored)
        reasons.append(
            f"{name} may have {byte_sizes.exact(quotas.bytes_stored)} stored and has {has}; they go on when jobs, "
            "exports or datasets are deleted, or the quota is raised."
        )
    seconds = quotas.device_seconds_per_day
    if seconds is not None and used.device_seconds_today >= seconds:
        reasons.append(f"{name} has used its {seconds:,.0f} accelerator-seconds of today; they go on from 00:00 UTC.")
    return reasons


def read(row: Any) -> Usage:
    """The usage in a row of `READ`."""
    return Usage(
        int(row.images_queued), int(row.images_in_flight), int(row.bytes_stored), int(row.bytes_spooled),
        float(row.device_seconds_today),
    )  # fmt: skip


def fold(connection: Connection) -> None:
    """Adds the deltas to the tenants' rows. The caller holds the maintenance lock."""
    connection.execute(_FOLD)


def recount(connection: Connection) -> int:
    """Counts anew what one tenant uses, the one that was not counted for longest, at most once an hour each: programs
    of the release before add work that they do not count. Reads the tenant's jobs, files and parts, not its images.
    Returns 1, or 0 if none is due. The caller holds the maintenance lock."""
    return connection.execute(_RECOUNT).rowcount
