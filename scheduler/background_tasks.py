"""Background tasks: work that takes longer than a transaction, such as validating a file or writing an export.

Each run works on one item under a lease, on a thread beside the periodic tasks. Any scheduler may run any of them. If
one dies, another continues the item when the lease has expired.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.core.batches import finalization, validation
from services.core.db.database import Connection, Database
from services.core.db.leases import Lease, LeaseLost
from services.core.deletion import task as deletion
from services.core.exports import exports
from services.core.exports import task as exporting
from services.core.files import files, uploads
from services.core.model.errors import Unavailable
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.contract import ImageStore

log = logging.getLogger(__name__)
POLL_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 300.0
PAUSE_SECONDS = 5.0  # before an item is retried here, after it failed or while another scheduler has its lease


@dataclass(frozen=True, slots=True)
class BackgroundTask:
    """`pending` returns the ids of a few waiting items, excluding those given; `run` does the work for one item under
    its lease. `run` must accept an item that another scheduler has just finished."""

    name: str
    pending: Callable[[Connection, Sequence[int]], Sequence[int]]
    run: Callable[[int, Lease], object]


class BackgroundTaskRunner:
    """Runs background tasks on every thread that calls `run`."""

    def __init__(self, database: Database, background_tasks: list[BackgroundTask], holder: str) -> None:
        self.database, self.background_tasks, self.holder = database, background_tasks, holder
        self._guard = threading.Lock()
        self._running: set[tuple[str, int]] = set()
        self._not_before: dict[tuple[str, int | None], float] = {}  # None: the query for pending items
        self._pauses: dict[tuple[str, int | None], float] = {}  # the latest pause of items that failed

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                busy = self.run_once(stopping)
            except Unavailable as error:
                log.warning("background tasks postponed", extra={"error": str(error)})
                busy = False
                stopping.wait(1.0)
            if not busy:
                stopping.wait(POLL_SECONDS)

    def run_once(self, stopping: threading.Event | None = None) -> bool:
        """Works on every pending item once. Returns whether there was any."""
        busy = False
        for background_task in self.background_tasks:
            for item in self._find_pending(background_task):
                if stopping is not None and stopping.is_set():
                    return busy
                busy |= self._try(background_task, item)
        return busy

    def _find_pending(self, background_task: BackgroundTask) -> Sequence[int]:
        """The pending items, excluding those that are running or postponed, so that these never block the others."""
        now = time.monotonic()
        with self._guard:
            self._not_before = {key: moment for key, moment in self._not_before.items() if moment > now}
            if (background_task.name, None) in self._not_before:
                return []
            excluding = [item for name, item in (*self._running, *self._not_before)
                       if name == background_task.name and item is not None]  # fmt: skip
        try:
            with self.database.begin_system() as connection:
                return background_task.pending(connection, excluding)
        except Unavailable:
            raise
        except Exception:
            log.exception("pending items cannot be read", extra={"task": background_task.name})
            self._postpone(background_task, None)
            return []

    def _postpone(self, background_task: BackgroundTask, item: int | None, *, failed: bool = False) -> None:
        """Postpones the item; with `failed`, after an unexpected error, for twice as long each time."""
        key, pause = (background_task.name, item), PAUSE_SECONDS
        with self._guard:
            if failed:
                pause = self._pauses[key] = min(self._pauses.get(key, PAUSE_SECONDS / 2) * 2, LONGEST_PAUSE_SECONDS)
            self._not_before[key] = time.monotonic() + pause

    def _try(self, background_task: BackgroundTask, item: int) -> bool:
        key = background_task.name, item
        with self._guard:
            if key in self._running or self._not_before.get(key, 0.0) > time.monotonic():
                return False
            self._running.add(key)
        try:
            return self._perform(
                background_task, item, Lease(self.database, f"{background_task.name}/{item}", self.holder)
            )
        finally:
            with self._guard:
                self._running.discard(key)

    def _perform(self, background_task: BackgroundTask, item: int, lease: Lease) -> bool:
        began = time.monotonic()
        try:
            if not lease.take():
                self._postpone(background_task, item)
                return False
            background_task.run(item, lease)
            lease.release()
        except LeaseLost:
            log.warning("background task lost its lease", extra={"task": lease.name})
        except Unavailable as error:
            log.warning("background task postponed", extra={"task": lease.name, "error": str(error)})
            self._postpone(background_task, item)
        except Exception:
            log.exception("background task failed", extra={"task": lease.name})
            self._postpone(background_task, item, failed=True)
        else:
            self._pauses.pop((background_task.name, item), None)
            log.info("background task done", extra={"task": lease.name, "seconds": round(time.monotonic() - began, 3)})
        return True


def background_tasks(settings: Settings, store: ImageStore, notifier: Notifier) -> list[BackgroundTask]:
    """All background tasks; each one's module in services/core describes it."""

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
        BackgroundTask("delete-job", deletion.pending, lambda job_id, lease: deletion.run(store, job_id, lease)),
    ]
