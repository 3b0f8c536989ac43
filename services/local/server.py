"""The base class of the embedded servers: start, wait until ready, stop."""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from services.local import leftovers
from services.local.child import Child
from services.local.errors import PortTaken, ServerFailed
from services.local.home import Home

Say = Callable[[str], None]
DIAGNOSTICS = ("MALLOC_PERTURB_",)  # makes the C library overwrite freed memory; the tests run the servers with it
IN_USE = ("address already in use", "could not bind", "bind: ")


class Server(ABC):
    """One server process on loopback with its data under the home folder."""

    name: str
    port: int  # for clients
    programs: frozenset[str]  # names of its processes
    stop_signal = signal.SIGTERM
    stop_seconds = 10.0

    def __init__(self, home: Home, ports: dict[str, int]) -> None:
        self.home, self.ports = home, ports
        self.folder = home.folder / self.name
        self.log = home.logs / f"{self.name}.log"
        self.child: Child | None = None

    @staticmethod
    @abstractmethod
    def wanted_ports() -> dict[str, bool]:
        """The ports it needs by name; True if it also needs port + 10000."""

    @abstractmethod
    def spawn(self) -> Child:
        """Writes its configuration and starts the process."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it answers a real request now; returns within seconds."""

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        return self.child.process if self.child else None

    def start(self) -> None:
        """Starts the process and returns. The calling thread must live as long as the server."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.forget_leftovers(known_gone=self._clear_leftovers())
        self.child = self.spawn()

    def forget_leftovers(self, *, known_gone: bool) -> None:  # noqa: B027 - optional
        """Deletes what a crashed process left in the folder, if it is known that none runs."""

    def wait_ready(self, timeout: float = 60) -> None:
        """Raises ServerFailed or PortTaken with the last line of its log."""
        child, deadline = self._child(), time.monotonic() + timeout
        while not self.ready():
            if child.poll() is not None:
                raise self._failure(child)
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.name} did not get ready within {timeout:g} s; its log is {self.log}.")
            time.sleep(0.02)

    def why_stuck(self) -> str:
        """Why it lives and yet refuses its work until it is started again; empty if it does not. It is asked often,
        returns at once, and gives a reason only when the process is to be ended now."""
        return ""

    def begin_stop(self) -> None:
        if self.child:
            self.child.signal(self.stop_signal)

    def finish_stop(self) -> None:
        if self.child and not self.child.wait(self.stop_seconds):
            self.child.kill()
        self.child = None

    def stop(self) -> None:
        self.begin_stop()
        self.finish_stop()

    def environment(self, **more: str) -> dict[str, str]:
        """A minimal environment: servers do not get the user's credentials or configuration."""
        home = str(self.folder)
        diagnostics = {name: os.environ[name] for name in DIAGNOSTICS if name in os.environ}
        path = os.environ.get("PATH", os.defpath)
        return {"PATH": path, "HOME": home, "LC_ALL": "C", "TZ": "UTC", **diagnostics, **more}

    def _clear_leftovers(self) -> bool:
        """Ends leftover processes. After an unknown end they get time to stop; after one that was observed, little."""
        patience = leftovers.PATIENCE if self.child is None else 0.5
        return leftovers.clear(self.folder, self.programs, patience)

    def _child(self) -> Child:
        if self.child is None:
            raise RuntimeError(f"{self.name} has not been started.")
        return self.child

    def _failure(self, child: Child) -> ServerFailed | PortTaken:
        words = child.last_error()
        if any(phrase in words.lower() for phrase in IN_USE):
            return PortTaken(
                f"{self.name} cannot listen, another program took its port just now; start again ({words})."
            )
        return ServerFailed(f"{self.name} {child.how_it_ended()} at its start: {words} (log: {self.log})")


def reachable_by_others(folder: Path) -> None:
    """Lets other users pass through a folder without listing it."""
    folder.chmod(folder.stat().st_mode | 0o011)
