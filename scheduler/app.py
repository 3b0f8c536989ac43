"""Wiring: `python -m scheduler.app` runs the periodic tasks while it leads, and background tasks at any time.

Any number of schedulers may run; one of them leads."""

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time

from scheduler import figures, metrics
from scheduler.background_tasks import (
    THREADS,
    WEBHOOK_THREADS,
    BackgroundTaskRunner,
    background_tasks,
    webhook_runner,
)
from scheduler.periodic_tasks import PeriodicTask, timetable
from services.core import environment, logs, traces
from services.core.crash_points import crash_point
from services.core.db import database as databases
from services.core.db import leadership, leases
from services.core.db.connectivity import Connectivity
from services.core.metrics import endpoint, registry
from services.core.model.errors import PressworkError, SettingsError, Unavailable
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.settings import Settings
from services.core.storage import installation
from services.core.storage.s3 import S3Store

log = logging.getLogger(__name__)
TICK_SECONDS = 0.25
EXIT_SETTINGS = 2


class Scheduler:
    """Runs the periodic tasks while it leads."""

    def __init__(
        self,
        database: databases.Database,
        periodic_tasks: list[PeriodicTask],
        connectivity: Connectivity,
        holder: str | None = None,
    ) -> None:
        self.database = database
        self.periodic_tasks = periodic_tasks
        self.connectivity = connectivity
        self.holder = holder or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.epoch: int | None = None
        self._led_until = 0.0
        self._due: dict[str, float] = {}

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                self.run_once()
            except Unavailable as error:
                log.warning("periodic tasks postponed", extra={"error": str(error)})
                metrics.DATABASE_AWAY.inc()
                self.connectivity.lost()
                stopping.wait(1.0)
            stopping.wait(TICK_SECONDS)
        self.resign()

    def run_once(self) -> bool:
        """Takes or renews the lead, and runs the tasks that are due. Returns whether it leads."""
        if not self._lead():
            return False
        for periodic_task in self.periodic_tasks:
            if self._due.get(periodic_task.name, 0.0) <= time.monotonic() and not self._perform(periodic_task):
                return False
        metrics.TICKS.inc()
        return True

    @property
    def leads(self) -> bool:
        """Whether it holds the lead and has renewed it in time. Any thread may ask."""
        return self.epoch is not None and time.monotonic() < self._led_until

    def resign(self) -> None:
        if self.epoch is None:
            return
        try:
            with self.database.begin_system() as connection:
                leadership.resign(connection, self.holder, self.epoch)
        except Unavailable as error:
            log.warning("not resigned; the lead will expire", extra={"error": str(error)})
        self.epoch = None

    def _lead(self) -> bool:
        """Takes the lead, or renews it after a third of its time. Returns whether it leads."""
        if self.epoch is not None and time.monotonic() < self._led_until - leadership.SECONDS * 2 / 3:
            return True
        asked_at = time.monotonic()
        with self.database.begin_system() as connection:
            epoch = leadership.lead(connection, self.holder)
        if epoch is not None and epoch != self.epoch:
            crash_point("lead.taken")
            log.info("leads", extra={"epoch": epoch})
            metrics.LEADS.labels("taken").inc()
        elif epoch is None and self.epoch is not None:
            metrics.LEADS.labels("lost").inc()
        self.epoch, self._led_until = epoch, asked_at + leadership.SECONDS
        return epoch is not None

    def _perform(self, periodic_task: PeriodicTask) -> bool:
        assert self.epoch is not None
        self._due[periodic_task.name] = time.monotonic() + periodic_task.every
        try:
            with metrics.TASK_SECONDS.labels(periodic_task.name).time(), self.database.begin_system() as connection:
                leadership.assert_held(connection, self.holder, self.epoch)
                did = periodic_task.run(connection)
            crash_point("task.committed")
            if isinstance(did, int):
                metrics.TASK_ROWS.labels(periodic_task.name).inc(did)
        except leases.LeaseLost:
            log.warning("no longer leads", extra={"epoch": self.epoch})
            metrics.LEADS.labels("lost").inc()
            self.epoch = None
            return False
        except Unavailable:
            raise
        except Exception:
            metrics.TASK_FAILURES.labels(periodic_task.name).inc()
            log.exception("periodic task failed", extra={"task": periodic_task.name})
        return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scheduler.app", description="Runs periodic and background tasks.")
    parser.add_argument("--check", action="store_true", help="exit with 0 if some scheduler leads, else with 1")
    arguments = parser.parse_args(argv)
    logs.configure("scheduler")
    try:
        settings = Settings.read()
        if not settings.secret and not arguments.check:
            raise SettingsError(
                "PRESSWORK_SECRET is not set; it must be the secret of the web servers, which signs links."
            )
        database = databases.Database(settings.database_url, application="presswork scheduler", pool_size=6 + THREADS)
        if arguments.check:
            with database.begin_system() as connection:
                return 0 if leadership.exists(connection) else 1
        environment.check_temporary_folder()
        traces.configure("scheduler", settings.traces_endpoint, settings.traces_ratio)
        policies.check(settings)
        for warning in databases.assert_suitable(database):
            log.warning("%s", warning)
        store = S3Store(settings)
        _claim_prefix(database, store)
        shown = endpoint.listen(settings, registry.REGISTRY) if settings.metrics_port else None
    except PressworkError as error:
        print(f"scheduler: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_SETTINGS
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    connectivity = Connectivity()
    notifier = Notifier(settings.redis_url)
    scheduler = Scheduler(database, timetable(settings, notifier, connectivity), connectivity)
    tasks = background_tasks(settings, store, notifier)
    if shown is not None:
        metrics.expect([task.name for task in scheduler.periodic_tasks], [task.name for task in tasks] + ["webhook"])
        figures.show(lambda: scheduler.leads, database, tasks)
        shown.start()
    running = BackgroundTaskRunner(database, tasks, scheduler.holder)
    sending = webhook_runner(database, settings, scheduler.holder)
    threads = [threading.Thread(target=running.run, args=(stopping,), name="background-tasks") for _ in range(THREADS)]
    threads += [threading.Thread(target=sending.run, args=(stopping,), name="webhooks") for _ in range(WEBHOOK_THREADS)]
    for thread in threads:
        thread.start()
    try:
        scheduler.run(stopping)
    finally:  # a scheduler that cannot lead must end, not stay for its background tasks: a supervisor restarts it
        stopping.set()
        for thread in threads:
            thread.join()
    return 0


def _claim_prefix(database: databases.Database, store: S3Store) -> None:
    """Stops the start if the bucket is another installation's, and not if the store cannot be reached: leases must be
    expired all the same."""
    try:
        installation.claim_prefix(database, store)
    except Unavailable as error:
        log.warning("store unreachable at start", extra={"error": str(error)})


if __name__ == "__main__":
    sys.exit(main())
