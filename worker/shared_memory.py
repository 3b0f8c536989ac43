"""A few bytes that a worker's parent and its child share: what each must know of the other when it dies.

Anonymous memory, made before the fork. The child writes who it is and which claim it is rendering; the parent writes
that it is time to stop. Fixed offsets, one writer for each field.
"""

import mmap
import os
import struct
import time

_STOP, _READY, _PID, _CLAIM, _REST = 0, 8, 16, 24, 32
_ID, _ID_LENGTH = 64, 128
_DEVICE, _DEVICE_LENGTH = 192, 256
_REASON, _REASON_LENGTH = 448, 512


class SharedState:
    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1024)
        self.parent = os.getpid()

    # The parent's.
    @property
    def stopping(self) -> bool:
        return self._number(_STOP) != 0

    def stop(self) -> None:
        self._set_number(_STOP, 1)

    def rest(self) -> None:
        """The device looks sick: the next child waits before it tries the canary."""
        self._set_number(_REST, 1)

    def forget_child(self) -> None:
        """Before the next child is looked for."""
        for place in (_READY, _PID, _CLAIM):
            self._set_number(place, 0)

    # The child's.
    def introduce(self, pid: int, worker_id: str, patience: float = 30.0) -> None:
        """Waits until the parent has taken note of the one that died before us: it would be overwritten."""
        deadline = time.monotonic() + patience
        while self.pid and time.monotonic() < deadline:
            time.sleep(0.01)
        self._set_number(_READY, 0)
        self._set_number(_CLAIM, 0)
        self._set_text(_ID, _ID_LENGTH, worker_id)
        self._set_text(_REASON, _REASON_LENGTH, "")
        self._set_number(_PID, pid)

    def take_rest(self) -> bool:
        """Whether to rest; asked once."""
        wanted = self._number(_REST) != 0
        self._set_number(_REST, 0)
        return wanted

    def ready(self, device: str) -> None:
        self._set_text(_DEVICE, _DEVICE_LENGTH, device)
        self._set_number(_READY, 1)

    def rendering(self, claim_id: int) -> None:
        """0: nothing is being rendered."""
        self._set_number(_CLAIM, claim_id)

    def give_up(self, reason: str) -> None:
        """Why the child cannot start."""
        self._set_text(_REASON, _REASON_LENGTH, reason)

    # For both to read.
    @property
    def pid(self) -> int:
        return self._number(_PID)

    @property
    def is_ready(self) -> bool:
        return self._number(_READY) != 0

    @property
    def claim_id(self) -> int:
        return self._number(_CLAIM)

    @property
    def worker_id(self) -> str:
        return self._text(_ID, _ID_LENGTH)

    @property
    def device(self) -> str:
        return self._text(_DEVICE, _DEVICE_LENGTH)

    @property
    def reason(self) -> str:
        return self._text(_REASON, _REASON_LENGTH)

    def _number(self, place: int) -> int:
        return int(struct.unpack_from("=q", self._memory, place)[0])

    def _set_number(self, place: int, value: int) -> None:
        struct.pack_into("=q", self._memory, place, value)

    def _text(self, place: int, length: int) -> str:
        return bytes(self._memory[place : place + length]).rstrip(b"\0").decode("utf-8", "replace")

    def _set_text(self, place: int, length: int, value: str) -> None:
        self._memory[place : place + length] = value.encode()[:length].ljust(length, b"\0")
