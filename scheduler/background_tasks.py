"""Errands: duties that take a while, such as validating a file or writing an export.

Each is about one thing, under a lease of its own, on a thread beside the timetable; any scheduler may run any of them,
and what one leaves half done by dying another goes on with when the lease has run out.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.core.batches import finalization, validation
from services.core.db.database import Connection, Database
from services.core.db.leases import Lease, LeaseLost
from services.core.exports import exports
from services.core.exports import task as exporting
from services.core.files import files, uploads
from services.core.model.errors import Unavailable
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 300.0
PAUSE_SECONDS = 5.0  # before the same thing is tried again here, after it went wrong or was in other hands


@dataclass(frozen=True, slots=True)
class BackgroundTask:
    """`pending` names the things that wait, a few at a time and besides those given; `run` does the work for one of
    them under its lease. It may be called for a thing that another has done in this very moment."""

    name: str
    pending: Callable[[Connection, Sequence[int]], Sequence[int]]
    run: Callable[[int, Lease], object]


class BackgroundTaskRunner:
    """Runs errands, on as many threads as `run` is called from."""

    def __init__(self, database: Database, background_tasks: list[BackgroundTask], holder: str) -> None:
        self.database, self.background_tasks, self.holder = database, background_tasks, holder
        self._guard = threading.Lock()
        self._in_hand: set[tuple[str, int]] = set()
        self._not_before: dict[tuple[str, int | None], float] = {}  # None: the look at what waits
        self._pauses: dict[tuple[str, int | None], float] = {}  # the last one of what has failed

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                busy = self.run_once(stopping)
            except Unavailable as error:
                log.warning("errands put off", extra={"error": str(error)})
                busy = False
                stopping.wait(1.0)
            if not busy:
                stopping.wait(LOOK_SECONDS)

    def run_once(self, stopping: threading.Event | None = None) -> bool:
        """Does all that waits, each thing once. Returns whether there was anything."""
        busy = False
        for background_task in self.background_tasks:
            for thing in self._look(background_task):
                if stopping is not None and stopping.is_set():
                    return busy
                busy |= self._try(background_task, thing)
        return busy

    def _look(self, background_task: BackgroundTask) -> Sequence[int]:
        """What waits, past all that is in hand or put off: however much of it there is, it keeps nothing waiting."""
        now = time.monotonic()
        with self._guard:
            self._not_before = {key: moment for key, moment in self._not_before.items() if moment > now}
            if (background_task.name, None) in self._not_before:
                return []
            excluding = [thing for name, thing in (*self._in_hand, *self._not_before)
                       if name == background_task.name and thing is not None]  # fmt: skip
        try:
            with self.database.begin_system() as connection:
                return background_task.pending(connection, excluding)
        except Unavailable:
            raise
        except Exception:
            log.exception("errands not found", extra={"errand": background_task.name})
            self._put_off(background_task, None)
            return []

    def _put_off(self, background_task: BackgroundTask, thing: int | None, *, failed: bool = False) -> None:
        """`failed`: in a way that nobody foresaw, so each time for twice as long."""
        key, pause = (background_task.name, thing), PAUSE_SECONDS
        with self._guard:
            if failed:
                pause = self._pauses[key] = min(self._pauses.get(key, PAUSE_SECONDS / 2) * 2, LONGEST_PAUSE_SECONDS)
            self._not_before[key] = time.monotonic() + pause

    def _try(self, background_task: BackgroundTask, thing: int) -> bool:
        key = background_task.name, thing
        with self._guard:
            if key in self._in_hand or self._not_before.get(key, 0.0) > time.monotonic():
                return False
            self._in_hand.add(key)
        try:
            return self._perform(
                background_task, thing, Lease(self.database, f"{background_task.name}/{thing}", self.holder)
            )
        finally:
            with self._guard:
                self._in_hand.discard(key)

    def _perform(self, background_task: BackgroundTask, thing: int, lease: Lease) -> bool:
        began = time.monotonic()
        try:
            if not lease.take():
                self._put_off(background_task, thing)
                return False
            background_task.run(thing, lease)
            lease.release()
        except LeaseLost:
            log.warning("errand lost", extra={"errand": lease.name})
        except Unavailable as error:
            log.warning("errand put off", extra={"errand": lease.name, "error": str(error)})
            self._put_off(background_task, thing)
        except Exception:
            log.exception("errand failed", extra={"errand": lease.name})
            self._put_off(background_task, thing, failed=True)
        else:
            self._pauses.pop((background_task.name, thing), None)
            log.info("errand done", extra={"errand": lease.name, "seconds": round(time.monotonic() - began, 3)})
        return True


def background_tasks(settings: Settings, store: ImageStore, notifier: Notifier) -> list[BackgroundTask]:
    """What there is to run; each one's file in the core says what it does."""

    def validate(job_id: int, lease: Lease) -> None:
        validation.run(settings, store, notifier, job_id, lease)

    def close(job_id: int, lease: Lease) -> None:
        finalization.run(settings, store, job_id, lease)

    def export(export_id: int, lease: Lease) -> None:
        exporting.run(settings, store, export_id, lease)

    return [
        BackgroundTask("validate", validation.pending, validate),
        BackgroundTask("close", finalization.pending, close),
        BackgroundTask("drop-file", files.doomed, lambda file_id, lease: files.drop(store, file_id, lease)),
        BackgroundTask("drop-upload", uploads.over, lambda upload_id, lease: uploads.drop(store, upload_id, lease)),
        BackgroundTask("export", exports.pending, export),
    ]
