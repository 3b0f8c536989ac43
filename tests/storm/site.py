"""What the storm strikes: `presswork up` with two workers, and two workers that reach its servers through a network
that can be cut. Whatever dies is started again, by `up` or, as a service manager would, by this module."""

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from tests.processes import Process
from tests.proxy import Proxy
from tests.up import Up

LEASE = 2.0
LOCAL, REMOTE = 2, 2  # workers
DISK_BYTES = 6 << 30
SETTINGS = {
    "PRESSWORK_LEASE_SECONDS": str(LEASE),
    "PRESSWORK_SIMULATED_BATCH_MS": "500",  # so that the work lasts as long as the faults
    "PRESSWORK_SIMULATED_FAULTS": "1",
    "PRESSWORK_SIMULATED_NOISE": "1",  # whoever writes an image for the second time changes its bytes
    "PRESSWORK_SICK_SECONDS": "0.1",
    "PRESSWORK_STORE_SECONDS": "1",
    "OMP_NUM_THREADS": "1",
}
_SERVERS = {"DATABASE_URL": "database", "REDIS_URL": "redis", "AWS_ENDPOINT_URL": "store"}


class Site:
    """A thread of its own starts again what has ended, every tenth of a second, unless the power is off."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.folder, self.disk = folder, disk
        self.guard = threading.Lock()  # whoever ends the supervisor or the power holds it
        self._going = True
        self._numbers = count(1)
        self.up = Up(disk / "home", folder, "--workers", str(LOCAL), "--pipeline", "simulated", **SETTINGS)
        self.up.wait()
        self.values = self.up.values()
        self.proxies: dict[str, Proxy] = {}
        remote = dict(self.values)
        for variable, name in _SERVERS.items():
            parts = urlsplit(self.values[variable])
            self.proxies[name] = Proxy("127.0.0.1", parts.port or 0)
            remote[variable] = self.values[variable].replace(f":{parts.port}", f":{self.proxies[name].port}")
        self._environ = remote | SETTINGS | {"PRESSWORK_PIPELINE": "simulated"}
        self.remote = [self._start() for _ in range(REMOTE)]
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def workers(self) -> list[int]:
        """The pids of all workers, without their children."""
        try:
            local = [pid for name, pid in self.up.pids().items() if name.startswith("worker-")]
        except (OSError, ValueError, KeyError):  # `up` is just starting
            local = []
        return local + [worker.pid for worker in self.remote if worker.popen.poll() is None]

    def log(self) -> str:
        """What all workers have logged."""
        logs = [*(self.disk / "home" / "logs").glob("worker*.log*"), *self.folder.glob("remote-*.log")]
        return "\n".join(log.read_text(errors="replace") for log in logs)

    def restart(self) -> None:
        """Starts again what `up` does not, and `up` itself, which ends when a server dies at its start."""
        with self.guard:
            if not self.up.is_running:
                self.up.start()
            for number, worker in enumerate(self.remote):
                if worker.popen.poll() is not None:
                    self.remote[number] = self._start()

    def heal(self) -> None:
        for proxy in self.proxies.values():
            proxy.mend()
        self.restart()

    def end(self) -> None:
        self._going = False
        self._keeper.join()
        for worker in self.remote:
            worker.kill()
        self.up.process.stop(60)
        for proxy in self.proxies.values():
            proxy.close()

    def _keep(self) -> None:
        while self._going:
            self.restart()
            time.sleep(0.1)

    def _start(self) -> Process:
        return Process("worker.app", self._environ, self.folder / f"remote-{next(self._numbers)}.log")


def unmountable() -> str:
    """Why no disk of a limited size can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "only root can make a small disk"
    return "" if shutil.which("mount") else "there is no mount"


@contextmanager
def small_disk(folder: Path, size: int = DISK_BYTES, files: int = 0) -> Iterator[Path]:
    """A disk of its own, in memory, for so many files if given; or just the folder where none can be made."""
    folder.mkdir()
    if unmountable():
        yield folder
        return
    options = f"size={size},mode=755" + (f",nr_inodes={files}" if files else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "storm", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def fenced(log: str) -> int:
    """How many settlements were refused, because the lease had been lost."""
    return len(re.findall(r'"verdict": "fenced"', log))


def eventually(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
