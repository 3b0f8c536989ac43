"""Background tasks: work that takes longer than a transaction, such as validating a file or writing an export.

Each run works on one item under a lease, on a thread beside the periodic tasks. Any scheduler may run any of them. If
one dies, another continues the item when the lease has expired.
"""

import functools
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler import metrics
from services.core.auditing import audits, mark
from services.core.auditing import task as auditing
from services.core.batches import finalization, validation
from services.core.bulk import bulk
from services.core.bulk import task as bulk_task
from services.core.catalogues import task as catalogues
from services.core.crash_points import crash_point
from services.core.datasets import dataset_task as collecting
from services.core.datasets import datasets
from services.core.db.database import Connection, Database
from services.core.db.leases import Lease, LeaseLost
from services.core.db.turns import Waiting
from services.core.deletion import task as deletion
from services.core.deletion import tenant_task, tenants
from services.core.exports import exports
from services.core.exports import task as exporting
from services.core.files import files, uploads
from services.core.model.errors import NotAdmitted, Unavailable
from services.core.notify import Notifier
from services.core.retention import due
from services.core.retention import task as retention
from services.core.schedules import submitting
from services.core.settings import Settings
from services.core.storage.contract import ImageStore
from services.core.webhooks import deliveries, sending

log = logging.getLogger(__name__)
THREADS = 6
WEBHOOK_THREADS = 16  # which mostly wait for others to answer
POLL_SECONDS = 0.25
LONGEST_PAUSE_SECONDS = 300.0
PAUSE_SECONDS = 5.0  # before an item is retried here, after it failed or while another scheduler has its lease


@dataclass(frozen=True, slots=True)
class BackgroundTask:
    """`pending` returns a few waiting items of each tenant, without the items and the tenants given; `run` does the
    work for one item under its lease. `run` must accept an item that another scheduler has just finished."""

    name: str
    pending: Callable[[Connection, Sequence[int], Sequence[int]], Sequence[Waiting]]
    run: Callable[[int, Lease], object]


class BackgroundTaskRunner:
    """Runs background tasks on every thread that calls `run`. Tasks take turns, and so do the tenants within a task.

    `threads` is how many threads call it. Half of them may do the same task, fewer that task for one tenant, and all
    but two work for one tenant: whatever waits elsewhere finds a thread. `of_task` and `of_both` are
    other shares, for a runner of a single task.
    """

    def __init__(
        self, database: Database, background_tasks: list[BackgroundTask], holder: str, threads: int = THREADS,
        *, of_task: int | None = None, of_both: int | None = None,
    ) -> None:  # fmt: skip
        self.database, self.background_tasks, self.holder = database, background_tasks, holder
        self._of_task, self._of_tenant = of_task or max(1, threads // 2), max(1, threads - 2)
        self._of_both = of_both or max(1, threads // 2 - 1)
        self._guard = threading.Lock()
        self._looking = threading.Lock()
        self._idle_until = 0.0
        self._stopping = threading.Event()
        self._turn = itertools.count(1)
        self._served: dict[tuple[str, int | None], int] = {}  # the turn in which a task, or a tenant of it, was last
        self._running: dict[tuple[str, int], int] = {}  # whose each item is
        self._not_before: dict[tuple[str, int | None], float] = {}  # None: the query for pending items
        self._pauses: dict[tuple[str, int | None], float] = {}  # the latest pause of items that failed

    def run(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        while not stopping.is_set():
            try:
                chosen = self._choose()
                if chosen is not None:
                    self._try(*chosen)
            except Unavailable as error:
                log.warning("background tasks postponed", extra={"error": str(error)})
                chosen = None
                stopping.wait(1.0)
            if chosen is None:
                stopping.wait(POLL_SECONDS)

    def run_once(self) -> bool:
        """Works on every pending item once. Returns whether there was any."""
        done: set[tuple[str, int]] = set()
        busy = False
        while (chosen := self._choose(done)) is not None:
            background_task, item = chosen
            done.add((background_task.name, item.id))
            busy |= self._try(background_task, item)
        return busy

    def _choose(self, done: set[tuple[str, int]] | None = None) -> tuple[BackgroundTask, Waiting] | None:
        """The item whose turn it is, marked as running. After a look that found none, no thread looks for a moment."""
        with self._looking:
            if done is None and time.monotonic() < self._idle_until:
                return None
            for background_task in sorted(
                self.background_tasks, key=lambda task: self._served.get((task.name, None), 0)
            ):
                pending = self._find_pending(background_task, done or set())
                if pending:
                    with self._guard:
                        item = min(pending, key=functools.partial(self._rank, background_task.name))
                        self._running[background_task.name, item.id] = item.tenant_id
                    for place in (None, item.tenant_id):
                        self._served[background_task.name, place] = next(self._turn)
                    return background_task, item
            self._idle_until = time.monotonic() + POLL_SECONDS
            return None

    def _rank(self, name: str, item: Waiting) -> tuple[int, int]:
        """Less comes first: how many items of its tenant are running, and when the tenant's last turn was."""
        running = sum(tenant == item.tenant_id for tenant in self._running.values())
        return running, self._served.get((name, item.tenant_id), 0)

    def _find_pending(self, background_task: BackgroundTask, done: set[tuple[str, int]]) -> Sequence[Waiting]:
        """The pending items that may run now. Those that are running or postponed never block the others."""
        now, name = time.monotonic(), background_task.name
        with self._guard:
            self._not_before = {key: moment for key, moment in self._not_before.items() if moment > now}
            running = Counter(tenant for (task, _), tenant in self._running.items() if task == name)
            if (name, None) in self._not_before or running.total() >= self._of_task:
                return []
            in_all = Counter(self._running.values())
            busy = [tenant for tenant in in_all
                    if in_all[tenant] >= self._of_tenant or running[tenant] >= self._of_both]  # fmt: skip
            excluding = [item for task, item in (*self._running, *self._not_before, *done)
                         if task == name and item is not None]  # fmt: skip
        try:
            with self.database.begin_system() as connection:
                return background_task.pending(connection, excluding, busy)
        except Unavailable:
            raise
        except Exception:
            log.exception("pending items cannot be read", extra={"task": name})
            self._postpone(background_task, None)
            return []

    def _postpone(self, background_task: BackgroundTask, item: int | None, *, failed: bool = False) -> None:
        """Postpones the item; with `failed`, after an unexpected error, for twice as long each time."""
        key, pause = (background_task.name, item), PAUSE_SECONDS
        with self._guard:
            if failed:
                pause = self._pauses[key] = min(self._pauses.get(key, PAUSE_SECONDS / 2) * 2, LONGEST_PAUSE_SECONDS)
            self._not_before[key] = time.monotonic() + pause

    def _try(self, background_task: BackgroundTask, item: Waiting) -> bool:
        """Works on a chosen item. False: another scheduler does."""
        try:
            lease = Lease(
                self.database, f"{background_task.name}/{item.id}", self.holder, stopping=self._stopping
            )  # fmt: skip
            return self._perform(background_task, item.id, lease)
        finally:
            with self._guard:
                del self._running[background_task.name, item.id]
            self._idle_until = 0.0

    def _perform(self, background_task: BackgroundTask, item: int, lease: Lease) -> bool:
        began = time.monotonic()
        outcome = "done"
        try:
            if not lease.take():
                self._postpone(background_task, item)
                return False
            crash_point("lease.taken")
            background_task.run(item, lease)
            crash_point("work.done")
            lease.release()
        except LeaseLost:
            outcome = "fenced"
            log.warning("background task lost its lease", extra={"task": lease.name})
        except (Unavailable, NotAdmitted) as error:
            outcome = "postponed"
            log.warning("background task postponed", extra={"task": lease.name, "error": str(error)})
            self._postpone(background_task, item)
        except Exception:
            outcome = "failed"
            log.exception("background task failed", extra={"task": lease.name})
            self._postpone(background_task, item, failed=True)
        else:
            self._pauses.pop((background_task.name, item), None)
            log.info("background task done", extra={"task": lease.name, "seconds": round(time.monotonic() - began, 3)})
        metrics.BACKGROUND.labels(background_task.name, outcome).inc()
        metrics.BACKGROUND_SECONDS.labels(background_task.name).observe(time.monotonic() - began)
        return True


def background_tasks(settings: Settings, store: ImageStore, notifier: Notifier) -> list[BackgroundTask]:
    """All background tasks; each one's module in services/core describes it."""

    def validate(job_id: int, lease: Lease) -> None:
        validation.run(settings, store, notifier, job_id, lease)

    def close(job_id: int, lease: Lease) -> None:
        finalization.run(settings, store, job_id, lease)

    def export(export_id: int, lease: Lease) -> None:
        exporting.run(settings, store, export_id, lease)

    def collect(dataset_id: int, lease: Lease) -> None:
        collecting.run(settings, store, dataset_id, lease)

    def submit(run_id: int, lease: Lease) -> None:
        submitting.run(settings, store, notifier, run_id, lease)

    def tend(catalogue_id: int, lease: Lease) -> None:
        catalogues.run(settings, store, notifier, catalogue_id, lease)

    return [
        BackgroundTask("catalogue", catalogues.pending, tend),
        BackgroundTask("validate", validation.pending, validate),
        BackgroundTask("schedule", submitting.pending, submit),
        BackgroundTask("close", finalization.pending, close),
        BackgroundTask("drop-file", files.doomed, lambda file_id, lease: files.drop(store, file_id, lease)),
        BackgroundTask("drop-upload", uploads.over, lambda upload_id, lease: uploads.drop(store, upload_id, lease)),
        BackgroundTask("export", exports.pending, export),
        BackgroundTask("dataset", datasets.pending, collect),
        BackgroundTask("bulk", bulk.pending, lambda number, lease: bulk_task.run(settings, notifier, number, lease)),
        BackgroundTask("retention", due.pending, lambda job_id, lease: retention.run(store, job_id, lease)),
        BackgroundTask(
            "audit-storage", audits.pending, lambda number, lease: auditing.run(settings, store, number, lease)
        ),
        BackgroundTask("storage-mark", mark.pending, lambda _item, lease: mark.keep(store, lease)),
        BackgroundTask("delete-tenant", tenants.pending, lambda tenant, lease: tenant_task.run(store, tenant, lease)),
        BackgroundTask("delete-job", deletion.pending, lambda job_id, lease: deletion.run(store, job_id, lease)),
    ]


def webhook_runner(database: Database, settings: Settings, holder: str) -> BackgroundTaskRunner:
    """Sends messages to webhooks, with half of its threads at most for one tenant. They are its own: one that waits for
    an answer keeps no other work waiting."""
    task = BackgroundTask("webhook", deliveries.pending, sending.Sender(settings).run)
    return BackgroundTaskRunner(
        database, [task], holder, WEBHOOK_THREADS, of_task=WEBHOOK_THREADS, of_both=WEBHOOK_THREADS // 2
    )
