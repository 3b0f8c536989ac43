"""How many images a claim holds: one batch, or several where the device renders them in half a second; and when the
next one is taken.

A device that was not measured at a shape claims one batch of it. Any thread may call.
"""

from collections.abc import Callable
from concurrent.futures import Future

from services.core.model.specs import Shape
from worker.heartbeat import HeldClaim

CLAIM_SECONDS = 0.5  # of rendering in one claim: about as long may high wait for what was claimed before it
AHEAD_SECONDS = 0.1  # before the end of a claim the next one is claimed
MOST_IMAGES = 256
MOST_BYTES = 64 << 20  # of pixels: the pictures of a claim wait together to be stored


class ClaimSizes:
    """One device's, by what its batches took."""

    def __init__(self) -> None:
        self._seconds: dict[Shape, float] = {}

    def measured(self, shape: Shape, seconds: float) -> None:
        """A batch took so many seconds a slot. A slower one counts at once, a faster one by half."""
        known = self._seconds.get(shape.timed)
        self._seconds[shape.timed] = seconds if known is None else max(seconds, (known + seconds) / 2)

    def images(self, shape: Shape, batch: int) -> int:
        """The most images of a claim: whole batches of `batch` images, one at least."""
        seconds = self._seconds.get(shape.timed)
        if seconds is None:
            return batch
        fit = min(MOST_IMAGES, MOST_BYTES // (shape.width * shape.height * 3))
        if seconds > 0:
            fit = min(fit, int(CLAIM_SECONDS / seconds))
        return max(fit // batch, 1) * batch

    def is_near_the_end(self, shape: Shape, images: int) -> bool:
        """Whether so many images that are left of a claim are rendered so soon that the next one should be claimed."""
        return images * self._seconds.get(shape.timed, 0.0) <= AHEAD_SECONDS


class Following:
    """The claim that follows the one that is being rendered: taken shortly before its end, so that what arrives
    meanwhile has its turn."""

    def __init__(self, shape: Shape, sizes: ClaimSizes, claim: Callable[[], Future[HeldClaim | None]]) -> None:
        self._shape, self._sizes, self._claim = shape, sizes, claim
        self._future: Future[HeldClaim | None] | None = None

    def ahead(self, images: int) -> None:
        """A batch begins, and so many images are left behind it."""
        if self._future is None and self._sizes.is_near_the_end(self._shape, images):
            self._future = self._claim()

    def claimed(self) -> Future[HeldClaim | None]:
        if self._future is None:
            self._future = self._claim()
        return self._future
