"""Fair shares: a tenant's virtual time advances with its usage, and the tenant with the smallest comes first.

A tenant without work saves nothing up: its virtual time is kept near that of the busy tenant which is furthest behind,
so that it starts as their equal whenever it has work again.
"""

from sqlalchemy import Connection

from services.core.db import leases
from services.core.db.statements import statement

CREDIT = 32.0  # what a tenant may be behind at most when it begins, in units of one 512x512 image at ten guided steps
_BUSY = "EXISTS (SELECT FROM segments WHERE tenant_id = t.id AND open AND low <= high)"
_CHARGE = statement("fair_share.charge")(
    "UPDATE tenants SET virtual_time = virtual_time + :cost / weight WHERE id = :id"
)
_LIFT = statement("fair_share.lift")(f"""
UPDATE tenants t SET virtual_time = busy.virtual_time
FROM (SELECT min(virtual_time) AS virtual_time FROM tenants t WHERE state = 'active' AND {_BUSY}) busy
WHERE t.virtual_time < busy.virtual_time - :credit AND NOT {_BUSY}
""")  # noqa: S608  our own text


def charge(connection: Connection, tenant_id: int, cost: float) -> None:
    """Advances a tenant's virtual time by `cost` over its weight."""
    connection.execute(_CHARGE, {"id": tenant_id, "cost": cost})


def lift_idle(connection: Connection) -> int:
    """Brings the tenants without work up to the busy one that is furthest behind; returns how many. Every few seconds:
    that long a tenant may save up. While another process does this, it does nothing."""
    if not leases.lock_maintenance(connection):
        return 0
    return connection.execute(_LIFT, {"credit": CREDIT}).rowcount
