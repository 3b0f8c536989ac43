"""Restarts the embedded servers and programs that end, and stops all of them in order."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.core.model.errors import PressworkError
from services.local import running
from services.local.child import Child
from services.local.errors import FolderUnusable
from services.local.running import Process, Running, read_running, stop_running
from services.local.server import Server
from services.local.stack import Stack

__all__ = ["Process", "Program", "Running", "Supervisor", "read_running", "stop_running"]

log = logging.getLogger(__name__)

TICK = 0.1
MIN_UPTIME = 5.0  # seconds: a process that ends earlier is restarted with growing pauses
MAX_PAUSE = 30.0


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run next to the servers. `env` is added to the stack's environment."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    grace: float = 30.0  # seconds from SIGTERM to SIGKILL: enough for a worker to finish its batch


class Supervised:
    """A process that is kept running: its failures in a row, and the time of its next start."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Child],
        child: Child | None = None,
        why_stuck: Callable[[], str] = str,
    ) -> None:
        self.name, self.start, self.child, self.why_stuck = name, start, child, why_stuck
        self.failures = 0
        self.due = 0.0

    def died(self) -> bool:
        return self.child is not None and self.child.poll() is not None

    def end_if_stuck(self) -> str:
        """Ends a process that refuses its work until it is started again. Returns why, or nothing."""
        if self.child is None:
            return ""
        try:
            why = self.why_stuck()
        except Exception:  # the others must not end because this one cannot be examined
            log.exception("Whether %s is stuck is unknown", self.name)
            return ""
        if why:
            self.child.kill()
        return why

    def schedule_restart(self) -> str:
        """Decides when it starts again. Returns a sentence about it."""
        child = self.child
        assert child is not None
        lived = time.monotonic() - child.started
        self.failures = self.failures + 1 if lived < MIN_UPTIME else 0
        pause = min(MAX_PAUSE, 2.0 ** (self.failures - 1)) if self.failures else 0.0
        self.child, self.due = None, time.monotonic() + pause
        when = f"starting it again in {pause:g} s" if pause else "starting it again"
        reason = "" if child.process.returncode <= 0 else f": {child.last_error().rstrip('.')}"
        return f"{self.name} {child.how_it_ended()} after {lived:.1f} s{reason}; {when} (log: {child.log})"


class Supervisor:
    """Runs programs next to a started stack. The thread that calls `run_until` starts every process."""

    def __init__(
        self, stack: Stack, programs: Sequence[Program], say: Callable[[str], None] = log.info, url: str = ""
    ) -> None:
        """`url` is the address that the programs serve, for `presswork status`."""
        self.url = url
        self.stack, self.programs, self.say = stack, list(programs), say
        self._servers = [self._keep_server(server) for server in stack.servers]
        self._programs = [self._keep_program(program) for program in self.programs]
        self._since = time.time()

    def run_until(self, stop_event: threading.Event) -> None:
        """Starts the programs, restarts any process that ends, and stops everything once the event is set."""
        try:
            for kept in self._programs:
                self._start(kept)
            self._record()
            while not stop_event.wait(TICK):
                self.tick()
        finally:
            self.stop()

    def tick(self) -> None:
        """Checks every process once."""
        changed = False
        for kept in (*self._servers, *self._programs):
            if why := kept.end_if_stuck():
                self.say(f"{kept.name} {why}; ending it")
            if kept.died():
                self.say(kept.schedule_restart())
            elif kept.child is not None:
                kept.child.rotate_log()
            if kept.child is None and time.monotonic() >= kept.due:
                self._start(kept)
                changed = True
        if changed:
            self._record()

    def stop(self) -> None:
        """Stops the programs, each within its grace, then the servers. May be called again."""
        pairs = [
            (program, kept.child) for program, kept in zip(self.programs, self._programs, strict=True) if kept.child
        ]
        asked = time.monotonic()
        for _, child in pairs:
            child.signal(signal.SIGTERM)
        for program, child in pairs:
            if not child.wait(max(0.0, asked + program.grace - time.monotonic())):
                self.say(f"{program.name} did not stop within {program.grace:g} s and is ended by force.")
                child.kill()
        self._programs = [self._keep_program(program) for program in self.programs]
        self.stack.stop()

    def _start(self, kept: Supervised) -> None:
        try:
            kept.child = kept.start()
        except (PressworkError, OSError) as error:
            kept.failures += 1
            pause = min(MAX_PAUSE, 2.0 ** (kept.failures - 1))
            kept.due = time.monotonic() + pause
            self.say(f"{kept.name} cannot be started ({error}); trying again in {pause:g} s")

    def _keep_server(self, server: Server) -> Supervised:
        def start() -> Child:
            server.start()
            assert server.child is not None
            return server.child

        return Supervised(server.name, start, server.child, server.why_stuck)

    def _keep_program(self, program: Program) -> Supervised:
        replaced = {f"{name}_FILE" for name in program.env}  # a NAME_FILE would take precedence over NAME
        inherited = {name: value for name, value in self.stack.environ.items() if name not in replaced}
        environment = {**inherited, **program.env}
        path = self.stack.home.logs / f"{program.name}.log"
        return Supervised(program.name, lambda: Child(program.argv, env=environment, log=path))

    def _record(self) -> None:
        programs = {kept.name: kept.child for kept in self._programs if kept.child}
        try:
            running.record(self.stack.home.folder, self.stack.servers, programs, self._since, self.url)
        except FolderUnusable as error:  # a full disk must not stop the servers
            self.say(f"The running processes cannot be recorded: {error}")
