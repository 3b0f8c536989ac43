"""Turns: of several workers of a host that need the same networks compiled, one compiles, and the others then read what
it has left in the compilers' caches. Imports no torch."""

import contextlib
import fcntl
import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from worker import activity

log = logging.getLogger(__name__)
PATIENCE = 1800.0  # seconds: then a worker compiles beside the one that holds the lock
POLL_SECONDS = 0.2


@contextlib.contextmanager
def first_alone(cache: Path, key: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Lets one process after another through, until one has come out without an error: from then on all at once. `key`
    names everything that decides what is compiled. The kernel releases a dead process's turn. Does nothing if the
    folder cannot be written."""
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    done = cache / f"compiled-{name}"
    with contextlib.ExitStack() as stack:
        if not done.exists():
            try:
                cache.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((cache / f"compiling-{name}.lock").open("w"))
            except OSError as error:
                log.warning("workers may compile the same", extra={"folder": str(cache), "error": error.strerror})
            else:
                _wait(lock.fileno(), done, patience)
        if done.exists():
            stack.close()  # whoever waits need not wait for this one
        yield
        with contextlib.suppress(OSError):
            done.touch()


def _wait(lock: int, done: Path, patience: float) -> None:
    ends = time.monotonic() + patience
    while not _taken(lock) and not done.exists():
        if time.monotonic() >= ends:
            log.warning("compiles beside a worker that takes long", extra={"seconds": patience})
            return
        with activity.doing("waiting for another worker that compiles the same"):
            time.sleep(POLL_SECONDS)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
