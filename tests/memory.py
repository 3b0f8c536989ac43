"""Folders in memory for the data of servers that live as long as a run: each test copies a database and commits."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
_ROOM = 4 << 30


@contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A new folder, gone afterwards: in memory if there is room, else where temporary files lie. What runs that were
    killed have left in memory goes first."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > _ROOM
    if roomy:
        for left in MEMORY.glob(f"{prefix}*"):
            _clear(left)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=MEMORY if roomy else None) as made,
        (Path(made) / "new").open("w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path(lock.name).rename(Path(made) / "lock")
        yield Path(made)


def _clear(left: Path) -> None:
    """Deletes the folder, if nobody lives who holds its lock."""
    with suppress(OSError), (left / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(left, ignore_errors=True)
