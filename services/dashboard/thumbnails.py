"""Small pictures, made when they are first looked at and kept in memory: a job pays nothing for them."""

import io
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from PIL import Image

SIDE = 256
MEDIA_TYPE = "image/webp"
_MOST_BYTES = 64 << 20


def small(picture: bytes) -> bytes:
    """A WebP with no side longer than SIDE."""
    with Image.open(io.BytesIO(picture)) as image:
        image.thumbnail((SIDE, SIDE))
        found = io.BytesIO()
        image.convert("RGB").save(found, "WEBP", quality=80)
    return found.getvalue()


class Kept:
    """The pictures that were looked at last, by the sha256 of the large one. Threads may share it."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most, self._held = most_bytes, 0
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, sha256: str, make: Callable[[], bytes]) -> bytes:
        """The small picture, made if it is not kept."""
        with self._lock:
            found = self._pictures.get(sha256)
            if found is not None:
                self._pictures.move_to_end(sha256)
                return found
        found = make()
        with self._lock:
            if sha256 not in self._pictures:
                self._pictures[sha256] = found
                self._held += len(found)
            while self._held > self._most and len(self._pictures) > 1:
                self._held -= len(self._pictures.popitem(last=False)[1])
        return found
