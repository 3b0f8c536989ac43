"""Tells when SeaweedFS met a full disk and still refuses writes though there is room.

Its index of names has eight parts, chosen by the folder. Once a write to a part's journal has failed, each later one
gives the same error until the process starts anew. What the log says only raises the suspicion, as it also holds text
of requests, anyone's: what counts is whether the disk takes a file and the store takes objects.
"""

import contextlib
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path

from services.local.child import Child

log = logging.getLogger(__name__)

JOURNAL_ERROR = re.compile(rb"\bfilerldb2/\d\d/[\w.-]+: no space left on device")
PROBES = 16  # objects in as many folders: by their names they reach all eight parts
ROOM_BYTES, ROOM_FILES = 64 << 20, 1_000  # with so much free a start and the writes after it succeed
ROOM_FILE_BYTES = 1 << 20
LOOK_SECONDS, CHECK_SECONDS = 1.0, 5.0
FIRST_PAUSE, LAST_PAUSE = 60.0, 600.0  # seconds from one end to the next


class Verdict(Enum):
    UNKNOWN = "no room, or no answer"
    WRITES = "took every object"
    REFUSES = "refused one"


def _in_a_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


class FullDisk:
    """`put` writes an empty object in the folder of this number and returns the HTTP status, or 0 for no answer."""

    def __init__(
        self,
        data: Path,
        put: Callable[[int], int],
        clock: Callable[[], float] = time.monotonic,
        run: Callable[[Callable[[], None]], None] = _in_a_thread,
    ) -> None:
        self._data, self._put, self._clock, self._run = data, put, clock, run
        self._suspected = False  # until it is seen to write, also over a restart
        self._logged_by: Child | None = None  # the process whose own log holds a journal's error
        self._checking = False
        self._verdict: tuple[Child, Verdict] | None = None
        self._look_at = self._check_at = 0.0
        self._ended_at, self._ends = -math.inf, 0  # the last end, and how many there were since it was seen to write

    def must_end(self, child: Child) -> bool:
        """Whether to end this process now. True at most once a minute; after each time that did not help, half as
        often, down to once in ten minutes. Returns at once: it checks in a thread."""
        now = self._clock()
        if now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS
        verdict = self._take_verdict(child)
        if verdict is Verdict.WRITES:
            self._suspected, self._logged_by, self._ends = False, None, 0
        if JOURNAL_ERROR.search(child.new_in_log()):
            self._suspected, self._logged_by = True, child
        if verdict is Verdict.REFUSES and self._logged_by is child and now >= self._ended_at + self._pause:
            self._ended_at, self._ends = now, self._ends + 1
            return True
        if self._suspected and not self._checking and now >= self._check_at:
            self._check_at = now + CHECK_SECONDS
            self._begin_check(child)
        return False

    @property
    def _pause(self) -> float:
        return min(FIRST_PAUSE * 2.0 ** min(max(0, self._ends - 1), 10), LAST_PAUSE)

    def _take_verdict(self, child: Child) -> Verdict:
        """What the last check found, if it was of this process. Each is taken once."""
        found, self._verdict = self._verdict, None
        return found[1] if found and found[0] is child else Verdict.UNKNOWN

    def _begin_check(self, child: Child) -> None:
        self._checking = True
        try:
            self._run(lambda: self._check(child))
        except RuntimeError as error:  # no thread can be started now
            self._checking = False
            log.warning("Whether the store takes objects cannot be checked now: %s", error)

    def _check(self, child: Child) -> None:
        try:
            self._verdict = (child, self._judge() if has_room(self._data) else Verdict.UNKNOWN)
        except Exception:
            log.exception("Whether the store takes objects cannot be checked")
        finally:
            self._checking = False

    def _judge(self) -> Verdict:
        for number in range(PROBES):
            status = self._put(number)
            if status != 200:
                return Verdict.REFUSES if status >= 500 else Verdict.UNKNOWN
        return Verdict.WRITES


def has_room(folder: Path) -> bool:
    """Whether the disk that really holds this folder has room, and takes a file: a quota, or a file system that has
    used up what it needs itself, refuses one while there seems to be room."""
    file = folder / ".room"
    try:
        disk = os.statvfs(folder)
        if disk.f_bavail * disk.f_frsize < ROOM_BYTES or (disk.f_files and disk.f_favail < ROOM_FILES):
            return False
        with file.open("wb", buffering=0) as written:
            whole = written.write(bytes(ROOM_FILE_BYTES)) == ROOM_FILE_BYTES
            os.fsync(written.fileno())
        return whole
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
