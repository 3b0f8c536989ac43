"""Named leases: each lets one process at a time do a piece of work. Stored in Postgres; the epoch is the fencing token.

The leading scheduler holds one, and so does each background task while it validates a file, ends a job or writes an
export.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection

from services.core.crash_points import crash_point
from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.model.errors import PressworkError

# A lease is free if it has run out. It is also free if it ends later than any lease given now could: then the clock was
# set back.
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
_SEEN = statement("leases.seen")(f"SELECT EXISTS (SELECT FROM leases WHERE name = :name AND NOT {_FREE})")  # noqa: S608

_LOCK_MAINTENANCE = statement("leases.lock_maintenance")("SELECT pg_try_advisory_xact_lock(7209412)")


class LeaseLost(PressworkError):
    """Another process holds this lease now; nothing was written."""


def take(connection: Connection, name: str, holder: str, seconds: float) -> int | None:
    """Takes or keeps the lease for `seconds`. Returns its epoch, or None while another holds it."""
    values = {"name": name, "holder": holder, "seconds": seconds}
    if connection.execute(_TAKEN, values).scalar_one():  # _TAKE would wait for a long transaction of its holder
        return None
    epoch = connection.execute(_TAKE, values).scalar_one_or_none()
    return None if epoch is None else int(epoch)


def assert_held(connection: Connection, name: str, holder: str, epoch: int) -> None:
    """The first call in every transaction of the holder: until it ends, no other process can take the lease.

    Raises:
        LeaseLost: the lease was lost. A holder that was paused writes nothing.
    """
    if connection.execute(_HELD, {"name": name, "epoch": epoch, "holder": holder}).first() is None:
        raise LeaseLost


def end(connection: Connection, name: str, holder: str, epoch: int) -> None:
    """Gives the lease up: others may take it at once."""
    connection.execute(_END, {"name": name, "holder": holder, "epoch": epoch})


def lock_maintenance(connection: Connection) -> bool:
    """Tries to take the maintenance lock until this transaction ends. False: another transaction holds it."""
    return bool(connection.execute(_LOCK_MAINTENANCE).scalar_one())


def exists(connection: Connection, name: str, seconds: float) -> bool:
    """Whether a process holds the lease, which is given for `seconds`, right now."""
    return bool(connection.execute(_SEEN, {"name": name, "seconds": seconds}).scalar_one())


class Lease:
    """A lease held by one thread while it does a long piece of work. The work calls `keep` on the way. What takes very
    long ends early, to be done again by another process, when `stopping` is set."""

    def __init__(
        self, database: Database, name: str, holder: str, seconds: float = 30.0,
        stopping: threading.Event | None = None,
    ) -> None:  # fmt: skip
        self.database, self.name, self.holder, self.seconds = database, name, holder, seconds
        self.stopping = stopping or threading.Event()
        self._epoch = 0
        self._kept_at = 0.0

    def take(self) -> bool:
        self._kept_at = time.monotonic()
        with self.database.begin_system() as connection:
            epoch = take(connection, self.name, self.holder, self.seconds)
        self._epoch = epoch or 0
        return epoch is not None

    def keep(self) -> None:
        """Extends the lease if a third of it has passed; call it as often as you like.

        Raises:
            LeaseLost: another process may be doing the work; stop.
        """
        if time.monotonic() - self._kept_at > self.seconds / 3:
            with self.begin():
                pass

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A system transaction that only the holder can make. It also extends the lease."""
        asked_at = time.monotonic()
        with self.database.begin_system() as connection:
            values = {"name": self.name, "holder": self.holder, "epoch": self._epoch, "seconds": self.seconds}
            if not connection.execute(_KEEP, values).rowcount:
                raise LeaseLost
            yield connection
        crash_point("lease.committed")
        self._kept_at = asked_at

    @contextmanager
    def overwriting(
        self, doubt: Callable[[Connection], object], done: Callable[[Connection], object] | None = None
    ) -> Iterator[None]:
        """The block writes over what the next holder writes, too, an object at a fixed key. However the block ends, a
        lost lease is noted as in `confirm`: a write that failed may have been applied, too."""
        try:
            yield
        except BaseException:
            with suppress(LeaseLost):
                self.confirm(doubt)
            raise
        self.confirm(doubt, done)

    def confirm(
        self, doubt: Callable[[Connection], object], done: Callable[[Connection], object] | None = None
    ) -> None:
        """Right after the work wrote over what its next holder writes, too, an object at a fixed key. If the lease had
        been lost, that may have put the old over the new: `doubt` notes that it is to be written again. Else `done`
        records that it is written, in a transaction that only the holder can make.

        Raises:
            LeaseLost: so it was, and it is noted.
        """
        try:
            with self.begin() as connection:
                if done is not None:
                    done(connection)
        except LeaseLost:
            with self.database.begin_system() as connection:
                doubt(connection)
            raise

    def release(self) -> None:
        """Deletes the lease: the work is done."""
        with self.database.begin_system() as connection:
            connection.execute(_FORGET, {"name": self.name, "holder": self.holder, "epoch": self._epoch})
