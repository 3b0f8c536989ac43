"""A child process in its own session that logs to a file and dies with this process.

The thread that starts a child must live as long as the child: the kernel signals the child when that thread ends.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from services.local.errors import ServerFailed

LAUNCHER = Path(__file__).with_name("launch.py")
LOG_BYTES = 10 * 2**20  # a larger log is rotated; one old log is kept
_TAIL = 1 << 16  # bytes of a log that are read for what it says last
ERROR_WORDS = ("FATAL", "PANIC", "panic:", "Fatal", "ERROR", "Error", "error", "cannot")


SAME = "same"  # the child's user: see launch.py


class Child:
    """A started process. Once it has ended, `poll` kills the rest of its process group."""

    def __init__(
        self,
        argv: Sequence[object],
        *,
        env: Mapping[str, str],
        log: Path,
        cwd: Path | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
        identity: str = SAME,
    ) -> None:
        self.log = log
        self.log_start = self._log_read = _rotate(log)
        self.started = time.monotonic()
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                launched(argv, death_signal, identity),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
            )
        self.birth = birth(self.process.pid)

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it lives; -9 is death by signal 9."""
        if self.process.returncode is None and self._is_zombie():
            # Before the dead leader is reaped, its group id cannot be reused by another program.
            self._kill_group()
        return self.process.poll()

    def signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            self.process.send_signal(number)

    def wait(self, timeout: float) -> bool:
        return until(lambda: self.poll() is not None, timeout)

    def kill(self) -> None:
        if self.poll() is None:
            self._kill_group()
            self.process.kill()
            self.wait(10)

    def rotate_log(self) -> None:
        """Rotates a large log under the running process, which goes on at its new end, as it appends. What it writes
        between copy and cut is lost."""
        with contextlib.suppress(OSError):  # somebody has deleted it
            if self.log.stat().st_size > LOG_BYTES:
                with contextlib.suppress(OSError):  # the disk is full: then the old lines are given up
                    shutil.copy(self.log, _old(self.log))
                os.truncate(self.log, 0)
                self.log_start = 0

    def new_in_log(self) -> bytes:
        """What it has logged since the last call or its start; of much, the last 64 KiB."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:  # somebody has deleted it
            size = file.seek(0, os.SEEK_END)
            begin = self._log_read if self._log_read <= size else 0  # it was rotated
            self._log_read = size
            file.seek(max(begin, size - _TAIL))
            return file.read(_TAIL)
        return b""

    def how_it_ended(self) -> str:
        code = self.process.returncode
        if code is None:
            return "still runs"
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was ended by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:
            return f"was ended by signal {-code}"

    def last_error(self) -> str:
        """The last line about an error in the log since this start, or else the last line."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self.log_start, self.log.stat().st_size - _TAIL))
                text = file.read().decode(errors="replace")
        except OSError as error:  # somebody has deleted it
            return f"its log cannot be read ({error.strerror})"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if any(word in line for word in ERROR_WORDS)]
        return (errors or lines or ["its log is empty"])[-1][:300]

    def _is_zombie(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
            return False

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def launched(argv: Sequence[object], death_signal: signal.Signals, identity: str) -> list[str]:
    words = [sys.executable, "-I", "-S", LAUNCHER, os.getpid(), int(death_signal), identity, *argv]
    return [str(word) for word in words]


def run(
    argv: Sequence[object],
    *,
    env: Mapping[str, str],
    text: str = "",
    cwd: Path | None = None,
    identity: str = SAME,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Runs a short command that dies with this process. Output is text. Raises ServerFailed after `timeout` s."""
    try:
        return subprocess.run(
            launched(argv, signal.SIGKILL, identity),
            env=dict(env),
            input=text,
            cwd=cwd,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            start_new_session=True,
            umask=0o077,
        )
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"{argv[0]} did not end within {timeout:g} s; is the disk very slow, or full?") from None


def until(condition: Callable[[], bool], timeout: float, pause: float = 0.02) -> bool:
    """Waits for a condition. Returns whether it became true in time."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def birth(pid: int) -> str:
    """Identifies a process among all that had its pid: the boot and its start in ticks. Empty if unknown."""
    fields = stat(pid)
    return f"{boot_id()} {fields[19]}" if fields else ""


def alive(pid: int, born: str = "") -> bool:
    """Whether this process runs; a zombie does not, and another process with the same pid is not counted."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    fields = stat(pid)
    if not fields:
        return not boot_id()
    return fields[0] not in "ZX" and born in ("", f"{boot_id()} {fields[19]}")


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty if the process is gone, or on systems other than Linux."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


@functools.cache
def boot_id() -> str:
    """Identifies the boot and the pid namespace: a pid is meaningful only within them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _old(log: Path) -> Path:
    return log.with_name(log.name + ".1")


def _rotate(log: Path) -> int:
    """Rotates a large log. Returns the offset at which the lines of this start begin."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if not log.exists():
        log.touch(mode=0o600)
        return 0
    if log.stat().st_size > LOG_BYTES:
        log.replace(_old(log))
        return 0
    return log.stat().st_size
