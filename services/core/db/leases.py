"""Leases by name: who may do a thing that one at a time should do. Kept in Postgres, with an epoch as fencing token.

The leader of the schedulers holds one; so does whoever validates a file, closes a job or writes an export.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.model.errors import PressworkError

# Free when it has run out; or when it ends later than any lease given now could, since the clock was set back.
_FREE = """(leases.expires_at < clock_timestamp()
  OR leases.expires_at > clock_timestamp() + make_interval(secs => 2 * :seconds))"""
_TAKE = statement("leases.take")(f"""
INSERT INTO leases (name, holder, epoch, expires_at)
VALUES (:name, :holder, 1, clock_timestamp() + make_interval(secs => :seconds))
ON CONFLICT (name) DO UPDATE SET
  epoch = leases.epoch + (leases.holder <> excluded.holder)::integer,
  holder = excluded.holder, expires_at = excluded.expires_at
WHERE leases.holder = excluded.holder OR {_FREE}
RETURNING epoch
""")  # noqa: S608  our own text
_TAKEN = statement("leases.taken")(f"""
SELECT EXISTS (SELECT FROM leases WHERE name = :name AND holder <> :holder AND NOT {_FREE})
""")  # noqa: S608  our own text
_HELD = statement("leases.held")(
    "SELECT 1 FROM leases WHERE name = :name AND epoch = :epoch AND holder = :holder FOR SHARE"
)
_KEEP = statement("leases.keep")("""
UPDATE leases SET expires_at = clock_timestamp() + make_interval(secs => :seconds)
WHERE name = :name AND epoch = :epoch AND holder = :holder
""")
_END = statement("leases.end")(
    "UPDATE leases SET expires_at = '-infinity' WHERE name = :name AND holder = :holder AND epoch = :epoch"
)
_FORGET = statement("leases.forget")("DELETE FROM leases WHERE name = :name AND holder = :holder AND epoch = :epoch")
_SEEN = statement("leases.seen")("SELECT EXISTS (SELECT FROM leases WHERE name = :name AND expires_at > now())")

_ALONE = statement("leases.alone")("SELECT pg_try_advisory_xact_lock(7209412)")


class LeaseLost(PressworkError):
    """Another process holds this lease by now; this write was not made."""


def take(connection: Connection, name: str, holder: str, seconds: float) -> int | None:
    """Takes or keeps the lease for so many seconds; its epoch, or None while another holds it."""
    if connection.execute(
        _TAKEN, {"name": name, "holder": holder, "seconds": seconds}
    ).scalar_one():  # and may be long at a transaction
        return None
    epoch = connection.execute(_TAKE, {"name": name, "holder": holder, "seconds": seconds}).scalar_one_or_none()
    return None if epoch is None else int(epoch)


def assert_held(connection: Connection, name: str, holder: str, epoch: int) -> None:
    """First thing in every transaction of the holder: no other can take the lease until it ends.

    Raises:
        LeaseLost: a holder that was paused writes nothing.
    """
    if connection.execute(_HELD, {"name": name, "epoch": epoch, "holder": holder}).first() is None:
        raise LeaseLost


def end(connection: Connection, name: str, holder: str, epoch: int) -> None:
    """Others may take it at once."""
    connection.execute(_END, {"name": name, "holder": holder, "epoch": epoch})


def alone(connection: Connection) -> bool:
    """Whether nobody else keeps house right now; until this transaction ends nobody else will."""
    return bool(connection.execute(_ALONE).scalar_one())


def exists(connection: Connection, name: str) -> bool:
    """Whether somebody holds it right now."""
    return bool(connection.execute(_SEEN, {"name": name}).scalar_one())


class Lease:
    """One lease in one thread's hands, for work that takes a while. Whoever works calls `keep` on the way."""

    def __init__(self, database: Database, name: str, holder: str, seconds: float = 30.0) -> None:
        self.database, self.name, self.holder, self.seconds = database, name, holder, seconds
        self._epoch = 0
        self._kept_at = 0.0

    def take(self) -> bool:
        self._kept_at = time.monotonic()
        with self.database.begin_system() as connection:
            epoch = take(connection, self.name, self.holder, self.seconds)
        self._epoch = epoch or 0
        return epoch is not None

    def keep(self) -> None:
        """Costs nothing most of the time: asks the database once in a third of the lease.

        Raises:
            LeaseLost: others may be at it; stop.
        """
        if time.monotonic() - self._kept_at > self.seconds / 3:
            with self.begin():
                pass

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction of the house that only the holder can make; it keeps the lease as well."""
        asked_at = time.monotonic()
        with self.database.begin_system() as connection:
            values = {"name": self.name, "holder": self.holder, "epoch": self._epoch, "seconds": self.seconds}
            if not connection.execute(_KEEP, values).rowcount:
                raise LeaseLost
            yield connection
        self._kept_at = asked_at

    def release(self) -> None:
        """The work is done: nobody needs to know of it any more."""
        with self.database.begin_system() as connection:
            connection.execute(_FORGET, {"name": self.name, "holder": self.holder, "epoch": self._epoch})
