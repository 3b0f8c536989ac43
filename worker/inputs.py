"""Fetches the input pictures of a claim while the batch before it renders, and makes pixels of them.

An image whose input is gone or damaged fails alone. While the store is unavailable the others wait, and are then
released: an outage is no image's fault.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from services.core.files import pictures
from services.core.files.pictures import InvalidPicture
from services.core.model.errors import ObjectMissing, StoreUnavailable
from services.core.model.specs import Image
from services.core.settings import Settings
from services.core.storage.contract import ImageStore
from worker.heartbeat import HeldClaim
from worker.retries import failed

log = logging.getLogger(__name__)
FETCHES = 4  # at once
GONE = "Its input picture was deleted; upload it again and submit the image with it."
DAMAGED = "Its input picture is not the one that was submitted: the object has changed in the store."


class Inputs:
    """For claims without input pictures it costs nothing."""

    def __init__(
        self, settings: Settings, store: ImageStore, stopping: threading.Event, store_away: Callable[[], None]
    ) -> None:
        """`store_away` is called when pictures could not be fetched for as long as storing may take."""
        self._settings, self._store, self._stopping, self._store_away = settings, store, stopping, store_away
        self._fetching = ThreadPoolExecutor(FETCHES, "fetch")

    def fetch(self, held: HeldClaim) -> None:
        """Leaves in `held.remaining` the images whose input is in `held.inputs`, or that need none. Never raises, since
        the claim is held."""
        wanted = {image.spec.input_sha256: image for image in held.remaining if image.input_key is not None}
        if not wanted:
            return
        fetching = {sha256: self._fetching.submit(self._pixels, held, image) for sha256, image in wanted.items()}
        reasons: dict[str, tuple[str, str]] = {}
        for sha256, future in fetching.items():
            try:
                held.inputs[sha256] = future.result()
            except InvalidPicture as error:
                reasons[sha256] = "input_damaged", str(error)
            except ObjectMissing:
                reasons[sha256] = "input_gone", GONE
            except Exception as error:
                log.warning("inputs not fetched", extra={"claim": held.claim.id, "error": str(error)})
        ready = [i for i in held.remaining if i.input_key is None or i.spec.input_sha256 in held.inputs]
        held.failed = tuple(
            failed(image, *reasons[image.spec.input_sha256])
            for image in held.remaining
            if image.spec.input_sha256 in reasons
        )
        held.remaining = tuple(ready)

    def _pixels(self, held: HeldClaim, image: Image) -> NDArray[np.uint8]:
        """uint8 (height, width, 3). Raises InvalidPicture, ObjectMissing; StoreUnavailable in a long outage."""
        data = self._read(held, image)
        if hashlib.sha256(data).hexdigest() != image.spec.input_sha256:
            raise InvalidPicture(DAMAGED)
        size = image.spec.width, image.spec.height
        return np.array(pictures.decode(data, size, self._settings.max_input_pixels))

    def _read(self, held: HeldClaim, image: Image) -> bytes:
        assert image.input_key is not None
        pause, until = 0.2, time.monotonic() + self._settings.storing_seconds
        while True:
            try:
                return self._bounded(image.input_key)
            except ObjectMissing:
                raise
            except StoreUnavailable as error:
                if time.monotonic() > until:
                    self._store_away()
                    raise
                if self._stopping.is_set() or held.lost or not held.wants(image):
                    raise
                log.warning("store unavailable", extra={"claim": held.claim.id, "error": str(error)})
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    def _bounded(self, key: str) -> bytes:
        found = bytearray()
        for chunk in self._store.stream(key):
            found += chunk
            if len(found) > self._settings.max_input_bytes:
                raise InvalidPicture(DAMAGED)
        return bytes(found)
