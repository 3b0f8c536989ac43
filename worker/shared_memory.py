"""State that a worker's parent and its child share, so that the parent knows what the child was doing when it died.

Anonymous memory, made before the fork. The child writes its id and the claims that it renders; the parent writes when
to stop. Fields have fixed offsets and one writer each.
"""

import mmap
import os
import struct
import time

_STOP, _READY, _PID, _CLAIM, _COOLDOWN, _CLAIM_BEFORE = 0, 8, 16, 24, 32, 40
_ID, _ID_LENGTH = 64, 128
_DEVICE, _DEVICE_LENGTH = 192, 256
_REASON, _REASON_LENGTH = 448, 512


class SharedState:
    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1024)
        self.parent = os.getpid()

    # Written by the parent.
    @property
    def stopping(self) -> bool:
        return self._number(_STOP) != 0

    def stop(self) -> None:
        self._set_number(_STOP, 1)

    def request_cooldown(self) -> None:
        """Makes the next child wait before it renders the canary, because the device looks sick."""
        self._set_number(_COOLDOWN, 1)

    def forget_child(self) -> None:
        """Clears the dead child's state, so that the next child can write its own."""
        for place in (_READY, _PID, _CLAIM, _CLAIM_BEFORE):
            self._set_number(place, 0)

    # Written by the child.
    def register_child(self, pid: int, worker_id: str, patience: float = 30.0) -> None:
        """Writes this child's id, after the parent has read the state of the previous child, which it overwrites."""
        deadline = time.monotonic() + patience
        while self.pid and time.monotonic() < deadline:
            time.sleep(0.01)
        self._set_number(_READY, 0)
        self.rendering()
        self._set_text(_ID, _ID_LENGTH, worker_id)
        self._set_text(_REASON, _REASON_LENGTH, "")
        self._set_number(_PID, pid)

    def take_cooldown(self) -> bool:
        """Whether the child must wait before the canary; True once per request."""
        wanted = self._number(_COOLDOWN) != 0
        self._set_number(_COOLDOWN, 0)
        return wanted

    def ready(self, device: str) -> None:
        self._set_text(_DEVICE, _DEVICE_LENGTH, device)
        self._set_number(_READY, 1)

    def rendering(self, *claim_ids: int) -> None:
        """The claims that are being rendered: none, one, or one whose last stage still runs and the next one."""
        before, claim_id = (0, 0, *claim_ids)[-2:]
        self._set_number(_CLAIM_BEFORE, before)
        self._set_number(_CLAIM, claim_id)

    def give_up(self, reason: str) -> None:
        """Writes why the child cannot start."""
        self._set_text(_REASON, _REASON_LENGTH, reason)

    # Read by both.
    @property
    def pid(self) -> int:
        return self._number(_PID)

    @property
    def is_ready(self) -> bool:
        return self._number(_READY) != 0

    @property
    def claim_ids(self) -> tuple[int, ...]:
        return tuple(filter(None, map(self._number, (_CLAIM_BEFORE, _CLAIM))))

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
