"""Our programs as processes of their own, ended with the test."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Process:
    """`python -m MODULE` with an environment; its output in a file."""

    def __init__(self, module: str, environ: Mapping[str, str], log: Path, *arguments: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PRESSWORK_", "AWS_"))}
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env={**clean, **environ}, stdout=output, stderr=output
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
