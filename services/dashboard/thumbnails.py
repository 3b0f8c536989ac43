"""Small pictures, made when they are first looked at: a job pays nothing for them.

They are kept in the store, so that no web server makes them again; those that were looked at last also in memory.
"""

import io
import logging
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from PIL import Image

from services.core.model.errors import ObjectMissing, StoreRefused, StoreUnavailable
from services.core.storage.contract import ImageStore

log = logging.getLogger(__name__)
SIDE = 256
MEDIA_TYPE = "image/webp"
_MOST_BYTES = 16 << 20


def small(picture: bytes) -> bytes:
    """A WebP with no side longer than SIDE."""
    with Image.open(io.BytesIO(picture)) as image:
        return shrunk(image)


def shrunk(image: Image.Image) -> bytes:
    image.thumbnail((SIDE, SIDE))
    found = io.BytesIO()
    image.convert("RGB").save(found, "WEBP", quality=80)
    return found.getvalue()


def stored(store: ImageStore, picture: str, name: str, is_wanted: Callable[[], bool]) -> bytes:
    """The small picture of that name, made from the object `picture` and stored if there is none yet. A store that
    takes none is no trouble for whoever looks. If it is not wanted any more when it has been stored, its job was
    deleted meanwhile: then it is dropped, since the deletion may have passed by already.

    Raises StoreUnavailable: the picture cannot be read.
    """
    key = store.key(name)
    try:
        return store.read(key)
    except (ObjectMissing, StoreRefused):  # a key that may not list the bucket is refused what is not there
        made = small(store.read(picture))
    try:
        store.put_file(key, io.BytesIO(made), MEDIA_TYPE)
        if not is_wanted():
            store.drop(key)
    except StoreUnavailable as error:
        log.warning("thumbnail not stored", extra={"error": str(error)})
    return made


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
