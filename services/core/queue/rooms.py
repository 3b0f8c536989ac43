"""Rooms: how many more images of a tenant with a quota may be rendered now. Claims pass over tenants that have none.

A tenant whose bytes stored are used up has no room: what it has queued goes over that quota by what is in flight
then, and by the pictures of the last seconds.

Images in flight are those of open claims, which are few. Two claims at once cannot both take the last room: a claim
locks the tenants with a quota that it takes from, and then reads what room there is. Without a quota nothing is paid.
"""

from collections.abc import Collection

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.tenants import usage

# MATERIALIZED: the open claims are read once for all tenants, and not at all if none has that quota.
_HELD = """
held AS MATERIALIZED (
  SELECT held.tenant_id, sum(held.images) AS images FROM claims
  CROSS JOIN LATERAL unnest(claims.tenant_ids, claims.tenant_images) AS held (tenant_id, images)
  WHERE claims.state = 'open' GROUP BY held.tenant_id
)"""
_ROOM = "max_images_in_flight - coalesce((SELECT images FROM held WHERE held.tenant_id = t.id), 0)"
# OFFSET 0: what a tenant uses is read once, and not again for each priority and each of its segments.
TENANTS = f"""
  SELECT * FROM (
    WITH {_HELD}
    SELECT id, virtual_time, weight, CASE WHEN max_images_in_flight IS NOT NULL THEN {_ROOM} END AS room FROM tenants t
    WHERE state = 'active'
      AND (max_device_seconds_per_day IS NULL OR max_device_seconds_per_day > {usage.SECONDS_TODAY})
      AND (max_bytes_stored IS NULL OR max_bytes_stored > {usage.STORED})
    OFFSET 0
  ) mine WHERE room IS NULL OR room > 0 OFFSET 0
"""  # noqa: S608  our own text
# What a claim may take of the images that it holds: of a tenant with a quota the first ones, up to its room.
WITHIN = """
  SELECT * FROM (SELECT held.*, row_number() OVER (PARTITION BY tenant_id ORDER BY job_id, index) AS nth FROM held) each
  WHERE nth <= coalesce(
    (SELECT room FROM unnest(CAST(:limited AS integer[]), CAST(:rooms AS bigint[])) AS l (id, room)
     WHERE id = tenant_id), nth)
"""
_LOCK = statement("rooms.lock")("SELECT pg_advisory_xact_lock(7209422, id) FROM unnest(CAST(:ids AS integer[])) AS id")
_ROOMS = statement("rooms.rooms")(f"""
WITH {_HELD}
SELECT id, greatest({_ROOM}, 0) AS room FROM tenants t WHERE id = ANY(:ids) AND max_images_in_flight IS NOT NULL
""")  # noqa: S608  our own text


def lock(connection: Connection, tenant_ids: Collection[int]) -> dict[int, int]:
    """Keeps other claims from taking images of these tenants until this transaction ends. Returns the room that each of
    them has."""
    if not tenant_ids:
        return {}
    values = {"ids": sorted(tenant_ids)}
    connection.execute(_LOCK, values)
    return {row.id: int(row.room) for row in connection.execute(_ROOMS, values)}
