"""Several devices in one container: a worker for each of PRESSWORK_DEVICES, as processes that die and start alone.

`presswork up --devices` has a supervisor of its own; this is for where one command starts all workers of a host.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from services.core.metrics import endpoint
from services.core.processes import python

log = logging.getLogger(__name__)
TICK_SECONDS = 0.1
STEADY_SECONDS = 30.0  # a worker that ends earlier is started again with growing pauses
MOST_PAUSE = 60.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
Start = Callable[[str], subprocess.Popen[bytes]]


class Worker:
    """The worker of one device: its process, or when it starts again."""

    def __init__(self, device: str, start: Start) -> None:
        self.device, self._start = device, start
        self.failures, self.code, self.is_steady = 0, 0, False
        self._due, self._began = 0.0, 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tick(self) -> None:
        if self.process is not None and (code := self.process.poll()) is not None:
            steady = time.monotonic() - self._began >= STEADY_SECONDS
            self.failures = 1 if steady else self.failures + 1
            pause = min(MOST_PAUSE, 2.0 ** (self.failures - 1))
            self.code, self.process, self._due = code, None, time.monotonic() + pause
            log.error("worker ended", extra={"device": self.device, "code": code, "starts_again_in": pause})
        elif self.process is not None:
            self.is_steady = self.is_steady or time.monotonic() - self._began >= STEADY_SECONDS
        if self.process is None and time.monotonic() >= self._due:
            self._began = time.monotonic()
            self.process = self._start(self.device)

    @property
    def is_hopeless(self) -> bool:
        """It is down, and has never been up for long."""
        return self.process is None and self.failures > 0 and not self.is_steady

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def run(devices: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Runs a worker on each device until INT, TERM or HUP, and returns 0 when all have finished their batches. If none
    of them comes up, returns the exit code of the last one. Raises SettingsError if they have no ports for metrics."""
    ports = endpoint.ports(int(environ.get("PRESSWORK_METRICS_PORT") or 0), len(devices))

    def start(device: str) -> subprocess.Popen[bytes]:
        own = {
            "PRESSWORK_DEVICE": device,
            "PRESSWORK_DEVICES": "",
            "PRESSWORK_WORKERS": str(len(devices)),
            "PRESSWORK_METRICS_PORT": str(ports[devices.index(device)]),
        }
        # In a group of its own, since a Ctrl-C at a terminal is passed on from here, once.
        return subprocess.Popen(python("worker.app"), env={**environ, **own}, process_group=0)

    stopping = threading.Event()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: stopping.set())
    workers = [Worker(device, start) for device in devices]
    while not stopping.wait(TICK_SECONDS):
        for worker in workers:
            worker.tick()
        if all(worker.is_hopeless for worker in workers):
            break
    _stop(workers)
    return 0 if stopping.is_set() else workers[-1].code


def _stop(workers: Sequence[Worker]) -> None:
    def again(number: int, _: FrameType | None) -> None:
        for worker in workers:
            worker.signal(number)

    for number in STOP_SIGNALS:
        signal.signal(number, again)
    again(signal.SIGTERM, None)
    for worker in workers:
        if worker.process is not None:
            worker.process.wait()
