"""`<home>/run.json`: the processes of a folder with pids and ports, without secrets; and how they are stopped."""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.local import child
from services.local.child import Child
from services.local.errors import AlreadyRunning
from services.local.home import write_private
from services.local.server import Server

LAST_GRACE = 10.0


@dataclass(frozen=True, slots=True)
class Process:
    """A pid, with `born` to distinguish it from a later process with the same pid."""

    pid: int
    born: str
    log: str = ""
    ports: dict[str, int] = field(default_factory=dict)

    def alive(self) -> bool:
        return child.alive(self.pid, self.born)

    def orphans(self) -> list[int]:
        """Pids left in its session, if it is dead. As long as there are any, its number is not reused."""
        its_number_is_reused = child.stat(self.pid) and child.birth(self.pid) != self.born
        if self.alive() or its_number_is_reused or not child.boot_id() or not self.born.startswith(child.boot_id()):
            return []
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if pid != self.pid and child.stat(pid)[3:4] == [str(self.pid)]]


@dataclass(frozen=True, slots=True)
class Running:
    """A stack that is up: its supervisor, servers and programs by name."""

    supervisor: Process
    since: float  # seconds since 1970
    servers: dict[str, Process]
    programs: dict[str, Process]
    url: str = ""  # that they serve

    def living(self) -> list[Process]:
        """Its programs and servers that still run."""
        return [process for process in (*self.programs.values(), *self.servers.values()) if process.alive()]


def record(
    folder: Path,
    servers: Sequence[Server],
    programs: Mapping[str, Child],
    since: float | None = None,
    url: str = "",
) -> None:
    """Writes which processes run. `since` defaults to now."""
    this = Process(os.getpid(), child.birth(os.getpid()))
    running = Running(
        this,
        time.time() if since is None else since,
        {server.name: _process(server.child, server.ports) for server in servers if server.child},
        {name: _process(program, {}) for name, program in programs.items()},
        url,
    )
    write_private(folder / "run.json", json.dumps(asdict(running), indent=1) + "\n")


def forget(folder: Path) -> None:
    (folder / "run.json").unlink(missing_ok=True)


def read_running(home: Path) -> Running | None:
    """The processes of this folder, or None if its supervisor does not run."""
    running = _read(Path(home))
    return running if running and running.supervisor.alive() else None


def stop_running(home: Path, timeout: float = 60) -> bool:
    """Asks the supervisor to stop, and after `timeout` seconds kills everything. Returns False if nothing ran.

    Raises AlreadyRunning if the processes belong to another user.
    """
    running = read_running(home)
    if running is None:
        return False
    try:
        os.kill(running.supervisor.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        pid = running.supervisor.pid
        raise AlreadyRunning(f"Process {pid} belongs to another user: stop it as that user.") from None
    if not child.until(lambda: not running.supervisor.alive(), timeout, pause=0.05):
        _kill(running.supervisor.pid)
        _end(_read(Path(home)) or running)
    child.until(lambda: not running.supervisor.alive(), LAST_GRACE)
    return True


def clear(folder: Path) -> None:
    """Waits for the processes of a dead supervisor, then kills them. Raises AlreadyRunning if one does not end."""
    running = _read(folder)
    if running:
        _end(running)
        forget(folder)


def _end(running: Running) -> None:
    """Kills what still runs after a grace period: the kernel sent stop signals when the supervisor died."""
    for program in running.programs.values():
        for pid in program.orphans():
            _kill(pid)
    if not child.until(lambda: not running.living(), LAST_GRACE):
        for process in running.living():
            _kill(process.pid)
    if not child.until(lambda: not running.living(), LAST_GRACE):
        pids = ", ".join(str(process.pid) for process in running.living())
        raise AlreadyRunning(f"Processes of an earlier start do not end: kill {pids}, then start again.")


def _process(started: Child | None, ports: dict[str, int]) -> Process:
    assert started is not None
    return Process(started.pid, started.birth, str(started.log), ports)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _read(folder: Path) -> Running | None:
    try:
        value = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return Running(
            Process(**value["supervisor"]),
            float(value["since"]),
            {name: Process(**process) for name, process in value["servers"].items()},
            {name: Process(**process) for name, process in value["programs"].items()},
            str(value.get("url", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing or damaged: the file is only a record
