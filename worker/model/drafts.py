"""A new folder that appears complete or not at all. What an interrupted process left is removed by the next one."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from services.core.model.errors import PressworkError


class FolderTaken(PressworkError):
    """The new directory's place is not empty."""


def check_free(into: Path, what: str) -> None:
    """Raises FolderTaken unless `into` is absent or an empty directory. `what`: "the merged model", say."""
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise FolderTaken(f"{into} is not empty; {what} needs an empty directory.")


@contextlib.contextmanager
def draft(into: Path) -> Iterator[Path]:
    """An empty folder beside `into`, which takes its place if nothing is raised and is removed otherwise.

    A lock keeps two processes apart; one that dies gives it up, and the next one removes what it left.
    """
    into = into.resolve()
    into.parent.mkdir(parents=True, exist_ok=True)
    folder = into.parent / f".{into.name}.draft"
    folder.mkdir(exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise PressworkError(f"Another process writes {into} now; wait until it has ended.") from None
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder
        if into.exists():
            into.rmdir()
        folder.rename(into)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
