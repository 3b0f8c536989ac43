"""A run of the storage auditor that deletes nothing, done by whoever asks: no scheduler need be running.

After a restore nothing else should run yet. If a scheduler does, it may do the run instead: both hold the same lease.
"""

import contextvars
import threading
import time
from collections.abc import Callable

from services.core.auditing import audits, task
from services.core.auditing.audits import Audit
from services.core.db.database import Database
from services.core.db.leases import Lease, LeaseLost
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

_LEASE = "audit-storage/{}"  # the background task's
_LOOK_SECONDS = 0.5


def run(
    settings: Settings, database: Database, store: ImageStore, holder: str, *, share: float,
    say: Callable[[Audit], None] = lambda _: None,
) -> Audit:  # fmt: skip
    """Compares all records with all objects and returns the finished run. `share` of the images, 0 to 1, are read.
    `say` hears about twice a second how far it is. A run of somebody else that is under way is done first."""
    while True:
        with database.begin_system() as connection:
            asked = audits.request(connection, share, keeps_orphans=True)
        ended = _end(settings, database, store, holder, asked, say)
        if ended.keeps_orphans:
            return ended


def _end(
    settings: Settings, database: Database, store: ImageStore, holder: str, audit: Audit, say: Callable[[Audit], None]
) -> Audit:
    work = _Work(settings, store, audit, Lease(database, _LEASE.format(audit.id), holder))
    while True:
        with database.begin_system() as connection:
            audit = audits.show(connection, audit.id)
        say(audit)
        if audit.finished_at is not None:
            work.join()
            return audit
        work.go_on()
        time.sleep(_LOOK_SECONDS)


class _Work:
    """The run in a thread of its own, unless another process holds its lease."""

    def __init__(self, settings: Settings, store: ImageStore, audit: Audit, lease: Lease) -> None:
        self._settings, self._store, self._audit, self._lease = settings, store, audit, lease
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def go_on(self) -> None:
        """Begins, or begins again after the lease was lost. Raises what the run has raised."""
        if self._error is not None:
            raise self._error
        if (self._thread is None or not self._thread.is_alive()) and self._lease.take():
            context = contextvars.copy_context()  # who acts
            self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
            self._thread.start()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            task.run(self._settings, self._store, self._audit.id, self._lease)
            self._lease.release()
        except LeaseLost:  # the other process does it
            pass
        except Exception as error:
            self._error = error
