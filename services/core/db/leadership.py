"""One scheduler leads: by a lease whose epoch is the fencing token of all that the leader writes."""

from sqlalchemy import Connection

from services.core.db import leases

LEADER = "leader"


def lead(connection: Connection, holder: str, seconds: float) -> int | None:
    """Takes or keeps the lead for so many seconds; the epoch, or None while another holds it."""
    return leases.take(connection, LEADER, holder, seconds)


def assert_held(connection: Connection, holder: str, epoch: int) -> None:
    """First thing in every transaction of the leader. Raises leases.LeaseLost: a paused ex-leader writes nothing."""
    leases.assert_held(connection, LEADER, holder, epoch)


def resign(connection: Connection, holder: str, epoch: int) -> None:
    leases.end(connection, LEADER, holder, epoch)


def exists(connection: Connection) -> bool:
    """Whether some scheduler leads right now."""
    return leases.exists(connection, LEADER)
