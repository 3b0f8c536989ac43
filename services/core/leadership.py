"""One scheduler leads: a lease in Postgres with an epoch, the fencing token of all that the leader writes."""

from sqlalchemy import Connection, text

from services.core.errors import PressworkError

_LEAD = text("""
INSERT INTO duties (name, holder, epoch, expires_at)
VALUES (:name, :holder, 1, clock_timestamp() + make_interval(secs => :seconds))
ON CONFLICT (name) DO UPDATE SET
  epoch = duties.epoch + (duties.holder <> excluded.holder)::integer,
  holder = excluded.holder, expires_at = excluded.expires_at
WHERE duties.holder = excluded.holder OR duties.expires_at < clock_timestamp()
RETURNING epoch
""")
_HELD = text("SELECT 1 FROM duties WHERE name = :name AND epoch = :epoch AND holder = :holder FOR SHARE")
_RESIGN = text("UPDATE duties SET expires_at = '-infinity' WHERE name = :name AND holder = :holder AND epoch = :epoch")
_SEEN = text("SELECT EXISTS (SELECT FROM duties WHERE name = :name AND expires_at > now())")
LEADER = "leader"


class NoLongerLeader(PressworkError):
    """Another scheduler leads by now; this write was not made."""


def lead(connection: Connection, holder: str, seconds: float) -> int | None:
    """Takes or keeps the lead for so many seconds; the epoch, or None while another holds it."""
    values = {"name": LEADER, "holder": holder, "seconds": seconds}
    epoch = connection.execute(_LEAD, values).scalar_one_or_none()
    return None if epoch is None else int(epoch)


def assert_held(connection: Connection, holder: str, epoch: int) -> None:
    """First thing in every transaction of the leader: no other can take the lead until it ends.

    Raises:
        NoLongerLeader: the lead was lost; a paused ex-leader writes nothing.
    """
    if connection.execute(_HELD, {"name": LEADER, "holder": holder, "epoch": epoch}).first() is None:
        raise NoLongerLeader


def resign(connection: Connection, holder: str, epoch: int) -> None:
    connection.execute(_RESIGN, {"name": LEADER, "holder": holder, "epoch": epoch})


def exists(connection: Connection) -> bool:
    """Whether some scheduler leads right now."""
    return bool(connection.execute(_SEEN, {"name": LEADER}).scalar_one())
