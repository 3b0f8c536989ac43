"""State that a worker's parent and its child share, so that the parent knows what the child was doing when it died.

Anonymous memory, made before the fork. The child writes its id and the images that it renders; the parent writes when
to stop. Fields have fixed offsets and one writer each. What is rendered is written twice, in turn, so that a child that
dies while it writes leaves the one before.
"""

import mmap
import os
import struct
import time
from collections.abc import Sequence

from services.core.model.specs import Image

_STOP, _READY, _PID, _COOLDOWN, _TURN = 0, 8, 16, 24, 32
_ID, _ID_LENGTH = 64, 128
_DEVICE, _DEVICE_LENGTH = 192, 256
_REASON, _REASON_LENGTH = 448, 512
_IMAGE = struct.Struct("=qqi")  # claim, job, index
_MOST_IMAGES = 2 * 256  # two batches of the largest size
_RENDERING, _RENDERING_LENGTH = 1024, 8 + _MOST_IMAGES * _IMAGE.size
Rendering = dict[int, list[tuple[int, int]]]
"""By claim, the images that are being rendered: job and index."""


class SharedState:
    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _RENDERING + 2 * _RENDERING_LENGTH)
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
        for place in (_READY, _PID):
            self._set_number(place, 0)
        self.rendering()

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

    def rendering(self, *claims: tuple[int, Sequence[Image]]) -> None:
        """What is being rendered of which claims: of none, one, or one whose last stage still runs and the next one."""
        turn = 1 - self._number(_TURN)
        place = _RENDERING + turn * _RENDERING_LENGTH
        rows = [(claim_id, image.job_id, image.index) for claim_id, images in claims for image in images]
        rows = rows[-_MOST_IMAGES:]
        self._set_number(place, len(rows))
        self._memory[place + 8 : place + 8 + len(rows) * _IMAGE.size] = b"".join(_IMAGE.pack(*row) for row in rows)
        self._set_number(_TURN, turn)

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
    def images(self) -> Rendering:
        """What was marked as being rendered."""
        place = _RENDERING + self._number(_TURN) * _RENDERING_LENGTH
        end = place + 8 + self._number(place) * _IMAGE.size
        found: Rendering = {}
        for claim_id, job_id, index in _IMAGE.iter_unpack(self._memory[place + 8 : end]):
            found.setdefault(claim_id, []).append((job_id, index))
        return found

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
