"""The programs as processes that reach a crash point. They are forked from a process that has imported everything, so
each starts in a moment. A web server serves until it is asked to stop; the others do what waits, and end."""

import logging
import multiprocessing
import os
import signal
import socket
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import uvicorn

from scheduler.app import Scheduler
from scheduler.background_tasks import BackgroundTaskRunner, background_tasks, webhook_runner
from scheduler.periodic_tasks import timetable
from services.core import crash_points
from services.core.db.connectivity import Connectivity
from services.core.db.database import Database
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.web import application, server_config
from tests import programs
from tests.waiting import until
from worker.heartbeat import Heartbeat
from worker.pipelines.simulated import SimulatedPipeline
from worker.render import RenderLoop

log = logging.getLogger(__name__)
ROUNDS = 3  # of a scheduler: what one task makes, another one works on
# Of the timetable: what a job, an export and a message wait for.
TASKS = {"finish", "sweep", "fold", "number", "low", "schedule-runs", "webhooks"}
_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["tests.crash_preload"])


@dataclass(frozen=True)
class Fault:
    """What is to happen at which crash point, the `hit`-th time."""

    point: str
    action: str
    hit: int = 1


class Program:
    """A program that runs in a process of its own until it ends, or until `close`."""

    def __init__(self, name: str, settings: Settings, fault: Fault) -> None:
        self._told, own = _FORKING.Pipe(duplex=False)
        arguments = (name, programs.settings(name, settings), fault, own)
        self._process = _FORKING.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        own.close()
        self.url = f"http://127.0.0.1:{self._next()}" if name == "web" else ""
        self._reached = False
        self.verdicts: list[str] = []  # of a worker that has ended: what its settlements were answered

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def has_reached(self) -> bool:
        """Whether it has come to the crash point."""
        while self._told.poll():
            try:
                found = self._told.recv()
            except EOFError:
                break
            if found == "reached":
                self._reached = True
            else:
                self.verdicts = found
        return self._reached

    def wait_stopped(self) -> None:
        until(lambda: _state(self.pid) == "T", every=0.005)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """A web server ends the requests that it has."""
        self._process.terminate()

    def wait(self, seconds: float = 40) -> int:
        """Its exit code; below 0: the signal that ended it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, "it does not end"
        self.has_reached()
        return self._process.exitcode

    def close(self) -> None:
        self._process.kill()
        self._process.join(20)
        self._told.close()

    def _next(self) -> object:
        assert self._told.poll(40), "it does not start"
        return self._told.recv()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _run(name: str, settings: Settings, fault: Fault, told: Connection) -> None:
    crash_points.arm(fault.point, fault.action, fault.hit, lambda: told.send("reached"))
    _PROGRAMS[name](settings, told)


def _web(settings: Settings, told: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_config(application(settings)))
        told.send(listener.getsockname()[1])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which uvicorn raises again once it has stopped
        server.run([listener])


class _Verdicts(logging.Handler):
    """What settlements were answered, as the worker logs it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "settled":
            self.found.append(record.__dict__["verdict"])


def _worker(settings: Settings, told: Connection) -> None:
    verdicts, storing = _Verdicts(), logging.getLogger("worker.storing")
    storing.addHandler(verdicts)
    storing.setLevel(logging.INFO)
    work(settings, f"worker-{os.getpid()}")
    told.send(verdicts.found)


def _scheduler(settings: Settings, _told: Connection) -> None:
    keep_going(settings, f"scheduler-{os.getpid()}")


_PROGRAMS = {"web": _web, "worker": _worker, "scheduler": _scheduler}


def work(settings: Settings, name: str) -> None:
    """Renders what waits, twice: after an error a worker looks again on its timer."""
    database = Database(settings.database_url, application=name, pool_size=8, nested_loops=True)
    heartbeat = Heartbeat(database, settings)
    heartbeat.start()
    loop = RenderLoop(
        settings, SimulatedPipeline(settings), database, S3Store(settings), Notifier(settings.redis_url), heartbeat,
        worker_id=name, host=name,
    )  # fmt: skip
    for _ in range(2):
        try:
            loop.run()
        except Exception:
            log.exception("render loop failed")
    loop.stopping.set()
    loop.wait_idle()
    database.close()


def keep_going(settings: Settings, holder: str, rounds: int = ROUNDS) -> None:
    """Does what a scheduler does, and goes on after an error as its loops do."""
    database = Database(settings.database_url, application=holder, pool_size=6)
    notifier = Notifier(settings.redis_url)
    tasks = background_tasks(settings, S3Store(settings), notifier)
    working = BackgroundTaskRunner(database, tasks, holder)
    sending = webhook_runner(database, settings, holder)
    for _ in range(rounds):
        connectivity = Connectivity()
        periodic = [task for task in timetable(settings, notifier, connectivity) if task.name in TASKS]
        leading = Scheduler(database, periodic, connectivity, holder)
        for verb in (leading.run_once, working.run_once, sending.run_once):
            try:
                verb()
            except Exception:
                log.exception("scheduler failed")
    leading.resign()
    database.close()
