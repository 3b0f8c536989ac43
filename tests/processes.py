"""Our programs as processes of their own, ended with the test."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import programs

PRESSWORK = Path(sys.executable).with_name("presswork")  # the command as it is installed


PROGRAMS = {"services.web": "web", "scheduler.app": "scheduler", "worker.app": "worker"}


class Process:
    """`python -m MODULE` with an environment, in which a program has its own users; its output in a file."""

    def __init__(self, module: str, environ: Mapping[str, str], log: Path, *arguments: str) -> None:
        own = programs.environ(PROGRAMS[module], environ) if module in PROGRAMS else environ
        self._start([sys.executable, "-m", module, *arguments], own, log)

    def _start(
        self, command: Sequence[str | Path], environ: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PRESSWORK_", "AWS_"))}
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command, env={**clean, **environ}, cwd=cwd, stdout=output, stderr=output, process_group=0
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def children(self) -> list[int]:
        """The pids of its living children."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        try:
            return [int(pid) for pid in path.read_text().split()]
        except OSError:
            return []

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to it and to all its children at once, as a terminal and systemd do."""
        os.killpg(self.pid, number)

    def stop(self, timeout: float = 30.0) -> int:
        """TERM, and its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout)

    def kill(self) -> None:
        """KILL, of it and of its children."""
        children = self.children()
        self.popen.kill()
        self.popen.wait()
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


class Command(Process):
    """`presswork` as it is installed, started in a folder."""

    def __init__(self, environ: Mapping[str, str], log: Path, *arguments: str, cwd: Path) -> None:
        self._start([PRESSWORK, *arguments], environ, log, cwd)


def project_of_another(folder: Path) -> Path:
    """A folder with a project in it that uses the names of our packages for its own."""
    folder.mkdir()
    for name in ("services", "scheduler", "migrations", "presswork_client"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('this is the {name} of another project')\n")
    for name in ("worker", "celeryconfig"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('this is the {name} of another project')\n")
    return folder


def take_interrupts() -> None:
    """For `preexec_fn` of a command that is sent SIGINT: below a shell's `&` it is ignored, and so in every child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
