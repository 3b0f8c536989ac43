"""Fair shares: a tenant's virtual time advances with its usage, and the tenant with the smallest comes first."""

from sqlalchemy import Connection

from services.core.db.statements import statement

_CHARGE = statement("fair_share.charge")("""
UPDATE tenants SET virtual_time = greatest(virtual_time,
  (SELECT coalesce(min(t.virtual_time), 0) FROM tenants t
   WHERE EXISTS (SELECT FROM segments WHERE tenant_id = t.id AND open AND low <= high))) + :cost / weight
WHERE id = :tenant_id
""")


def charge(connection: Connection, tenant_id: int, cost: float) -> None:
    """Advances a tenant's virtual time by `cost` over its weight. An idle tenant does not accumulate credit."""
    connection.execute(_CHARGE, {"tenant_id": tenant_id, "cost": cost})
