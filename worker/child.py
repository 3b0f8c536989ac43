"""The process that holds the pipeline: starts it, does housekeeping on a timer, and renders with or without wake-ups.

Rendering always holds the render loop's lock: in the Celery task after a wake-up, else in the timer's thread. So the
worker renders even while Redis cannot be reached.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from services.core import traces
from services.core.db import database as databases
from services.core.db import leases
from services.core.db.connectivity import Connectivity
from services.core.events import numbering
from services.core.fleet import models, workers
from services.core.model.errors import DatabaseUnavailable, PressworkError
from services.core.notify import Notifier
from services.core.queue import counters, expiry, quarantine, segments
from services.core.settings import Settings
from services.core.storage import s3
from services.core.tenants import fair_share
from worker import activity, exit_codes
from worker.heartbeat import Heartbeat
from worker.judging import Judging
from worker.pipeline import CompileFailed
from worker.pipelines.registry import open_pipeline
from worker.render import RenderLoop
from worker.scoring import Scoring
from worker.shared_memory import SharedState
from worker.starting import Starting

log = logging.getLogger(__name__)
TICK_SECONDS = 2.0
SLICE_SECONDS = 60.0
END_SECONDS = 10.0  # how long a tick may take that is under way when the worker stops


class Child:
    """One worker process with its pipeline. Construct it after the fork."""

    def __init__(self, settings: Settings, shared: SharedState) -> None:
        self.settings, self.shared = settings, shared
        self.connectivity = Connectivity()
        self.host = socket.gethostname()
        self.worker_id = f"{self.host}-{os.getpid()}-{secrets.token_hex(4)}"
        shared.register_child(os.getpid(), self.worker_id)
        self.database = databases.Database(
            settings.database_url, application=f"presswork worker {self.worker_id}", pool_size=8, nested_loops=True
        )
        self._starting = Starting(self.database, self.worker_id, host=self.host, pid=os.getpid())
        try:
            traces.configure("worker", settings.traces_endpoint, settings.traces_ratio)
            with activity.doing("opening the scorers"):
                self._scoring = Scoring(settings)
            with activity.doing("opening the image policies"):
                self._judging = Judging(settings)
            self.pipeline = open_pipeline(settings)
        except PressworkError as error:
            self._give_up(str(error))
        except Exception as error:
            log.exception("pipeline cannot be loaded")
            self._give_up(f"The pipeline {settings.pipeline!r} cannot be loaded: {type(error).__name__}: {error}")
        self.store = s3.S3Store(settings)
        self.notifier = Notifier(settings.redis_url)
        self._rounds = segments.Rounds()
        self.heartbeat = Heartbeat(self.database, settings)
        self.render_loop = RenderLoop(
            settings, self.pipeline, self.database, self.store, self.notifier, self.heartbeat,
            worker_id=self.worker_id, host=self.host, mark=shared.rendering, scoring=self._scoring,
            judging=self._judging,
        )  # fmt: skip
        self._counts = self.render_loop.device.counts
        self._housekeeping = threading.Thread(target=self._housekeeping_loop, name="housekeeping", daemon=True)
        self._ended = threading.Event()
        self.heartbeat.start()

    def start(self) -> None:
        """Renders the canary, registers the model and the worker, and starts the threads that find work."""
        if self.shared.take_cooldown():
            log.warning("device cools down", extra={"seconds": self.settings.sick_seconds})
            with activity.doing("letting the device cool down"):
                self._cool_down()
        try:
            with activity.doing("rendering a test image"):
                self.render_loop.device.check()
        except CompileFailed as error:
            self._give_up(str(error))
        except PressworkError as error:
            log.error("device sick", extra={"error": str(error)})
            self.render_loop.device.sick = True
        self._counts.sick.set(self.render_loop.device.sick)
        self.shared.ready(self.render_loop.device.name)
        self._starting.end()
        self._retry_until_done(self._register)
        self._housekeeping.start()
        threading.Thread(target=self._look_for_work, name="timer", daemon=True).start()

    def render(self) -> None:
        """Renders after a wake-up, until the queue is empty or a time slice ends; then sends another wake-up."""
        deadline = time.monotonic() + SLICE_SECONDS
        worked = self.render_loop.run(lambda: time.monotonic() > deadline)
        if worked and time.monotonic() > deadline:
            self.notifier.notify_now(self.pipeline.card.name, again=True)

    def stop(self) -> None:
        """Finishes the batch being rendered, releases images not yet begun, and closes the device."""
        self.render_loop.stopping.set()
        self.render_loop.wait_idle()
        self._ended.set()
        self._housekeeping.join(END_SECONDS)  # its last heartbeat must not overwrite "stopped"
        try:
            self._beat("stopped")
        except DatabaseUnavailable as error:
            log.warning("stop not recorded", extra={"error": str(error)})
        self.pipeline.close()
        self._scoring.close()
        self._judging.close()
        self.database.close()

    def _cool_down(self) -> None:
        deadline = time.monotonic() + self.settings.sick_seconds
        while time.monotonic() < deadline and not self.shared.stopping:
            time.sleep(0.1)

    def _register(self) -> None:
        with self.database.begin_system() as connection:
            if self.render_loop.device.sick:
                quarantine.device_sick(connection, self.render_loop.device.name)
            else:
                models.register(connection, self.pipeline.card, self.render_loop.device.abilities().classes.values())
            workers.register(
                connection,
                self.worker_id,
                host=self.host,
                pid=os.getpid(),
                device=self.pipeline.device,
                model=self.pipeline.card.name,
                revision=self.pipeline.card.revision,
                state="sick" if self.render_loop.device.sick else "ready",
                report=self.render_loop.device.report.what_it_is(),
            )

    def _retry_until_done(self, verb: Callable[[], None]) -> None:
        while not self.shared.stopping:
            self._leave_if_orphaned()
            try:
                verb()
                return
            except DatabaseUnavailable as error:
                log.warning("start postponed", extra={"error": str(error)})
                time.sleep(1.0)

    def _look_for_work(self) -> None:
        while not self.render_loop.stopping.is_set():
            try:
                self.render_loop.run()
            except Exception:
                log.exception("render loop failed")
            self.render_loop.stopping.wait(TICK_SECONDS)

    def _housekeeping_loop(self) -> None:
        sick_since = None
        while not self._ended.is_set():
            self._leave_if_orphaned()
            if self.shared.stopping:
                self.render_loop.stopping.set()
            if self.render_loop.device.sick:
                sick_since = sick_since or time.monotonic()
                self._leave_if_sick(sick_since)
            if self.render_loop.device.unusable and not self.render_loop.busy:
                self._give_up(self.render_loop.device.unusable)
            try:
                self._tick()
            except DatabaseUnavailable as error:
                self.connectivity.lost()
                log.warning("housekeeping postponed", extra={"error": str(error)})
            except Exception:
                log.exception("housekeeping failed")
            self._pause()

    def _pause(self) -> None:
        """Waits for one tick, or until the parent asks to stop."""
        deadline = time.monotonic() + min(TICK_SECONDS, self.settings.lease_seconds / 2)
        while time.monotonic() < deadline and (self.render_loop.stopping.is_set() or not self.shared.stopping):
            if self._ended.wait(0.1):
                return

    def _tick(self) -> None:
        """Maintenance that every worker does for all, so that images are rendered without a scheduler, too."""
        self._beat(self.render_loop.state)
        for verb in (
            self._expire, counters.fold, numbering.number, self._rounds.raise_low, fair_share.lift_idle,
        ):  # fmt: skip
            with self.database.begin_system() as connection:
                if leases.lock_maintenance(connection):
                    verb(connection)
        for tenant_id, cost in self.render_loop.charges.unpaid().items():
            with self.database.begin_system() as connection:
                fair_share.charge(connection, tenant_id, cost)
            self.render_loop.charges.paid(tenant_id, cost)

    def _expire(self, connection: databases.Connection) -> int:
        steady = self.connectivity.steady(self.settings.lease_seconds)
        expired = expiry.expire(connection, self.settings.lease_seconds) if steady else 0
        self._counts.expired.inc(expired)
        return expired

    def _beat(self, state: str) -> None:
        with self.database.begin_system() as connection:
            report = self.render_loop.device.report.now() | {"scorers": self._scoring.troubles()}
            known = workers.beat(connection, self.worker_id, state, activity.now() or self.render_loop.trouble, report)
        if not known:  # its row was deleted after a long silence
            self._register()

    def _leave_if_sick(self, since: float) -> None:
        """Ends the process after the cool-down; the next one tries the canary on a freshly opened device."""
        if time.monotonic() - since > self.settings.sick_seconds and not self.render_loop.busy:
            os._exit(exit_codes.SICK)

    def _leave_if_orphaned(self) -> None:
        if os.getppid() != self.shared.parent:
            log.error("parent has ended")
            os._exit(exit_codes.ORPHAN)

    def _give_up(self, reason: str) -> NoReturn:
        self.shared.give_up(reason)
        os._exit(exit_codes.MODEL_UNUSABLE)
