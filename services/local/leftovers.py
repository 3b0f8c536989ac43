"""Ends servers that an earlier start left running on this folder, found by program name and working folder.

Two servers on the same data would destroy it. Saved pids are not reliable after a crash or a reboot.
"""

import os
import signal
from pathlib import Path

from services.local import child
from services.local.errors import AlreadyRunning

PATIENCE = 8.0  # seconds: they got a signal to stop when their parent died
PROC = Path("/proc")


def clear(folder: Path, programs: frozenset[str], patience: float = PATIENCE) -> bool:
    """Waits, then ends them. Returns whether it is known that none is left. Raises AlreadyRunning."""
    if not (PROC / "self" / "exe").exists():
        return False
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        for pid in living(folder, programs) if number else ():
            _send(pid, number)
        if child.until(lambda: not living(folder, programs), patience):
            return True
    pids = ", ".join(map(str, living(folder, programs)))
    raise AlreadyRunning(f"An earlier server on {folder} does not end: kill process {pids}, then start again.")


def living(folder: Path, programs: frozenset[str]) -> list[int]:
    """Processes of these programs whose working folder is in `folder`."""
    return [int(path.name) for path in PROC.iterdir() if path.name.isdigit() and _is_ours(path, folder, programs)]


def _is_ours(path: Path, folder: Path, programs: frozenset[str]) -> bool:
    try:
        program = (path / "exe").readlink().name.removesuffix(" (deleted)")
        return program in programs and (path / "cwd").readlink().is_relative_to(folder.resolve())
    except OSError:  # it has ended, or belongs to another user
        return False


def _send(pid: int, number: signal.Signals | None) -> None:
    if number is not None:
        try:
            os.kill(pid, number)
        except OSError:
            pass
