"""Wiring: `python -m worker.app` checks the settings, then runs Celery with one child that holds the pipeline.

The parent never loads a model. It outlives its child and records in the database how the child died.
"""

import argparse
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from celery import signals
from celery.worker import state

from services.core import broker, cpus, logs
from services.core.db import database as databases
from services.core.fleet import workers
from services.core.model import devices
from services.core.model.errors import DatabaseUnavailable, PressworkError, SettingsError, Unavailable
from services.core.queue import quarantine
from services.core.settings import Settings
from services.core.storage import installation, s3
from worker import devices as each_device
from worker import exit_codes, judging, scorer
from worker.child import Child
from worker.consumer import Consumer
from worker.exposing import Exposing
from worker.pipeline import ModelUnusable
from worker.pipelines.registry import model_name
from worker.shared_memory import Rendering, SharedState

log = logging.getLogger(__name__)
WATCH_SECONDS = 0.25
FAILED_STARTS = 3
NO_CHILD_SECONDS = 10.0
LOCKS = 16  # more than Celery makes
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_child: Child | None = None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.app", description="Runs one worker on one device.")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 0 if a worker of this host has sent a heartbeat recently, else with 1",
    )
    arguments = parser.parse_args(argv)
    logs.configure("worker")
    try:
        settings = Settings.read()
        if arguments.check:
            return _check(settings)
        if settings.devices:
            devices.check(settings.devices, settings.pipeline)
            return each_device.run(settings.devices)
        cpus.set_threads(settings.threads, settings.workers)
        _check_shared_memory()
        scorer.check(settings.scorers)
        judging.check(settings)
        model = model_name(settings)
        database = databases.Database(
            settings.database_url, application=f"presswork worker {socket.gethostname()}", pool_size=1
        )
        for warning in _check_servers(settings, database):
            log.warning("%s", warning)
        parent = Parent(settings, model, database)
    except PressworkError as error:
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201
        return exit_codes.MODEL_UNUSABLE if isinstance(error, ModelUnusable) else exit_codes.SETTINGS
    return parent.run()


def _check_shared_memory() -> None:
    """Celery's locks between processes lie in /dev/shm. Raises SettingsError."""
    try:
        _ = [multiprocessing.Lock() for _ in range(LOCKS)]
    except OSError as error:
        raise SettingsError(
            f"Locks between processes cannot be made ({error.strerror}): "
            "a worker needs a /dev/shm that can be written, such as a tmpfs of 1 MB."
        ) from None


def _check_servers(settings: Settings, database: databases.Database) -> list[str]:
    """Checks database and store before the fork, so that a bad setting gives one sentence instead of a respawn loop.

    Returns warnings. Leaves no connection open that a child could inherit.
    """
    try:
        server_warnings = databases.assert_suitable(database)
        store = s3.S3Store(settings)
        store.prepare()
        installation.claim_prefix(database, store)
    finally:
        database.close()
    return server_warnings


def _check(settings: Settings) -> int:
    """For a container's health check: 0 if a worker of this host was seen within its last three ticks, else 1."""
    database = databases.Database(settings.database_url, application="presswork worker check", pool_size=1)
    try:
        with database.begin_system() as connection:
            return 0 if workers.seen(connection, socket.gethostname()) else 1
    except Unavailable as error:
        print(f"worker: {error}", file=sys.stderr)  # noqa: T201
        return 1


class Parent:
    """The Celery parent: it consumes wake-ups, keeps one child, and watches it. Raises SettingsError if the port for
    metrics cannot be taken."""

    def __init__(self, settings: Settings, model: str, database: databases.Database) -> None:
        self.settings = settings
        self.database = database
        self.shared = SharedState()
        self.exposing = Exposing(settings, model, self.shared)
        self.app = broker.celery_app(settings.redis_url, model)
        self.exit_code = 0
        self._failed_starts = 0
        self._worker: Any = None

    def run(self) -> int:
        warnings.filterwarnings("ignore", message="(?s).*superuser privileges")
        self.app.task(name=broker.TASK, ignore_result=True)(_render)
        signals.setup_logging.connect(_leave_logging_alone, weak=False)
        signals.worker_process_init.connect(self._start_child, weak=False)
        signals.worker_process_shutdown.connect(_stop_child, weak=False)
        signals.worker_shutting_down.connect(self._shutting_down, weak=False)
        self._worker = self.app.Worker(
            pool="prefork", concurrency=1, loglevel="WARNING", without_gossip=True, without_mingle=True,
            without_heartbeat=True, quiet=True, optimization="fair",
            consumer_cls=partial(Consumer, take_signals=self._take_signals),
        )  # fmt: skip
        self.exposing.start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        self._worker.start()
        return self.exit_code or int(self._worker.exitcode or 0)

    def _take_signals(self) -> None:
        """After Celery has set its own handlers: its SIGHUP executes the program anew, as another program."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(signal.SIGQUIT, self._end)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """The child finishes its batch; a second Ctrl-C does not wait for that."""
        if self.shared.stopping and number == signal.SIGINT:
            self._end(number, frame)
        self.shared.stop()
        state.should_stop = 0

    def _end(self, number: int, _frame: FrameType | None) -> None:
        """The child, which ignores signals, dies with this process; its lease expires."""
        os._exit(128 + number)

    def _shutting_down(self, **_: object) -> None:
        self.shared.stop()

    def _start_child(self, **_: object) -> None:
        """In the child, right after the fork."""
        global _child  # noqa: PLW0603  Celery's task is a function and finds its child here
        for number in (*STOP_SIGNALS, signal.SIGQUIT):  # a signal to the whole group is the parent's to act on
            signal.signal(number, signal.SIG_IGN)
        try:
            self.exposing.in_child()
            child = Child(self.settings, self.shared)
            child.start()
            _child = child
        except BaseException:  # Celery would log it and keep a child that does nothing
            log.exception("child cannot start")
            os._exit(exit_codes.MODEL_UNUSABLE)

    def _watch(self) -> None:
        """Reports a child's death and has the child replaced. Celery alone looks for dead children every five seconds,
        and not at all while it connects to Redis. If no child comes up, the whole worker exits, to be restarted."""
        seen_at = time.monotonic()
        while not self.shared.stopping:
            time.sleep(WATCH_SECONDS)
            pid = self.shared.pid
            if pid and _is_running(pid):
                seen_at = time.monotonic()
            elif pid:
                self._child_died()
            elif time.monotonic() - seen_at > NO_CHILD_SECONDS and not self.shared.stopping:
                log.error("no child was started; exiting", extra={"seconds": NO_CHILD_SECONDS})
                os._exit(exit_codes.NO_CHILD)

    def _replace_child(self) -> None:
        hub, pool = getattr(self._worker, "hub", None), getattr(self._worker, "pool", None)
        maintain = getattr(getattr(pool, "_pool", None), "maintain_pool", None)
        if hub is not None and maintain is not None:
            hub.call_soon(maintain)

    def _child_died(self) -> None:
        worker_id, rendering, device = self.shared.worker_id, self.shared.images, self.shared.device
        was_ready, reason = self.shared.is_ready, self.shared.reason
        self.exposing.child_died(ready=was_ready)
        log.error("child died", extra={"worker": worker_id, "rendering": list(rendering), "reason": reason or None})
        if was_ready:
            self._failed_starts = 0
            if self._report(worker_id, rendering, device):
                self.shared.request_cooldown()
            self.shared.forget_child()  # the next child waits for this
            if not reason:
                self._replace_child()
            time.sleep(WATCH_SECONDS)  # a claim whose commit was in flight when the child died is visible only now
            self._report(worker_id, {}, device)
            if not reason:
                return
        else:
            self.shared.forget_child()
            self._replace_child()
            self._failed_starts += 1
        if reason or self._failed_starts >= FAILED_STARTS:
            print(f"worker: {reason or 'The child dies before it has loaded the pipeline.'}", file=sys.stderr)  # noqa: T201
            self.exit_code = exit_codes.MODEL_UNUSABLE
            self._worker.stop()
            os._exit(exit_codes.MODEL_UNUSABLE)

    def _report(self, worker_id: str, rendering: Rendering, device: str) -> bool:
        """Records the death; retries until that is committed or until the leases have expired anyway.

        Returns whether the device looks sick and should cool down before it renders its canary.
        """
        deadline = time.monotonic() + self.settings.lease_seconds
        while time.monotonic() < deadline:
            try:
                with self.database.begin_system() as connection:
                    return quarantine.child_died(connection, worker_id, rendering=rendering, device=device)
            except DatabaseUnavailable:
                time.sleep(1.0)
            except Exception:
                log.exception("death not reported; the leases will expire", extra={"worker": worker_id})
                return False
            finally:
                self.database.close()
        return False


def _leave_logging_alone(**_: object) -> None:
    """Keeps Celery from configuring logging: its lines are formatted like Presswork's."""


def _render(_model: str) -> None:
    if _child is not None:
        _child.render()


def _stop_child(**_: object) -> None:
    if _child is not None:
        _child.stop()


def _is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return _process_exists(pid)
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _process_exists(pid: int) -> bool:
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
