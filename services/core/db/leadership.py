"""One scheduler leads. It holds a lease whose epoch is the fencing token of everything that the leader writes."""

from sqlalchemy import Connection

from services.core.db import leases

LEADER = "leader"
SECONDS = 10.0  # of the lease


def lead(connection: Connection, holder: str, seconds: float = SECONDS) -> int | None:
    """Takes or keeps the lead for `seconds`. Returns the epoch, or None while another scheduler leads."""
    return leases.take(connection, LEADER, holder, seconds)


def assert_held(connection: Connection, holder: str, epoch: int) -> None:
    """The first call in every transaction of the leader. Raises leases.LeaseLost, so a former leader writes nothing."""
    leases.assert_held(connection, LEADER, holder, epoch)


def resign(connection: Connection, holder: str, epoch: int) -> None:
    leases.end(connection, LEADER, holder, epoch)


def exists(connection: Connection) -> bool:
    """Whether a scheduler leads right now."""
    return leases.exists(connection, LEADER, SECONDS)
