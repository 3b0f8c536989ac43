"""Pictures that could not be checked: the device may be sick or full, or the picture itself may be at fault.

The threads that store pictures tell of them. The device's thread asks before each claim, and renders its canary.
"""

import threading
from collections.abc import Iterable

from services.core.model.specs import FailedImage, Image, Shape

MOST = 10_000  # images at fault that are remembered; the others are tried once more


class Doubts:
    """Any thread may use it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._open: dict[tuple[int, int], FailedImage] = {}
        self._at_fault: dict[tuple[int, int], FailedImage] = {}
        self._too_large: set[tuple[Shape, int]] = set()

    def add(self, failed: FailedImage) -> None:
        """The image fails as `failed` says if the device turns out to be healthy."""
        with self._guard:
            self._open[failed.job_id, failed.index] = failed

    def add_too_large(self, shape: Shape, size: int) -> None:
        """A batch of `size` left no room to check its pictures."""
        with self._guard:
            self._too_large.add((shape, size))

    def take_too_large(self) -> set[tuple[Shape, int]]:
        """The shapes and sizes since the last call."""
        with self._guard:
            found, self._too_large = self._too_large, set()
            return found

    def still_open(self) -> list[FailedImage]:
        with self._guard:
            return list(self._open.values())

    def device_is_healthy(self, doubted: Iterable[FailedImage]) -> None:
        """Found after all of `doubted` were told of, so these images are at fault."""
        with self._guard:
            for failed in doubted:
                place = failed.job_id, failed.index
                if self._open.get(place) is failed:
                    del self._open[place]
                    self._at_fault[place] = failed
            if len(self._at_fault) > MOST:
                self._at_fault.clear()

    def take_at_fault(self, images: Iterable[Image]) -> list[FailedImage]:
        """Those of the images that are at fault. They are forgotten, so that a client may have them tried again."""
        with self._guard:
            found = (self._at_fault.pop((image.job_id, image.index), None) for image in images)
            return [failed for failed in found if failed is not None]
