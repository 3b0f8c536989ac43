"""`presswork up` as a process, for tests of the whole system."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import psutil

from presswork_client import Client
from tests.processes import Command
from tests.waiting import until

READY_SECONDS = 90


class Up:
    """`presswork up` on a folder, started elsewhere. A folder that was used before is gone on with."""

    def __init__(self, home: Path, cwd: Path, *arguments: str, **environ: str) -> None:
        self.home, self._cwd, self._arguments = home, cwd, arguments
        self.port = free_port()
        self._environ = {"PRESSWORK_PORT": str(self.port), **environ}
        self.log = home.parent / "up.log"
        self.start()

    def start(self) -> None:
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        self.process = Command(
            self._environ, self.log, "up", "--home", str(self.home), *self._arguments, cwd=self._cwd
        )  # fmt: skip

    @property
    def is_running(self) -> bool:
        return self.process.popen.poll() is None

    def said(self) -> str:
        """What it has printed since its start."""
        return self.log.read_bytes()[self._seen :].decode(errors="replace")

    def wait(self) -> None:
        """Until it is ready."""
        until(lambda: "ready at" in self.said() or not self.is_running, seconds=READY_SECONDS)
        assert self.is_running, self.said()

    def client(self) -> Client:
        self.wait()
        return Client(self.values()["PRESSWORK_URL"], self.values()["PRESSWORK_API_KEY"])

    def values(self) -> dict[str, str]:
        """The variables of a shell that sourced its file."""
        shown = subprocess.run(
            ["sh", "-c", f". '{self.home}/env'; env"], capture_output=True, text=True, check=True, env={}
        )
        return dict(line.split("=", 1) for line in shown.stdout.splitlines())

    def pids(self) -> dict[str, int]:
        """Of those of its programs and servers that live, by name."""
        running = json.loads((self.home / "run.json").read_text())
        known = {name: entry["pid"] for name, entry in {**running["programs"], **running["servers"]}.items()}
        own = {process.pid for process in family(self.process.pid)}  # the file may be older than this start
        return {name: pid for name, pid in known.items() if pid in own}

    def pid(self, name: str) -> int:
        return until(lambda: self.pids().get(name))

    def cut_power(self) -> None:
        """Kills it and all that it has started, at once."""
        for process in family(self.process.pid):
            kill(process)
        self.process.popen.wait()


def family(pid: int) -> list[psutil.Process]:
    """The process and all below it that live."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
