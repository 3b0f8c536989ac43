"""How many images a claim holds: one batch, or several where the device renders them in half a second and they are
stored soon enough; and when the next one is taken.

A shape of which nothing was rendered and stored yet is claimed by the batch. Any thread may call.
"""

from collections.abc import Callable
from concurrent.futures import Future

from services.core.model.specs import Shape
from worker.heartbeat import HeldClaim

CLAIM_SECONDS = 0.5  # of rendering in one claim: about as long may high wait for what was claimed before it
AHEAD_SECONDS = 0.1  # before the end of a claim the next one is claimed
STORING_SHARE = 0.1  # of the time after which what is not stored is given up: so long may a claim wait to be settled
MOST_IMAGES = 256
MOST_BYTES = 64 << 20  # of pixels: the pictures of a claim wait together to be stored
SPOOL_BYTES = 4 * MOST_BYTES  # of all claims that wait, unless their batches are larger


class ClaimSizes:
    """One device's, by what its batches took, and what storing them did. `storing_seconds`: after so long storing is
    given up. `spool`: so many claims may wait to be stored."""

    def __init__(self, storing_seconds: float, spool: int) -> None:
        self._storing_seconds = storing_seconds * STORING_SHARE
        self._most_bytes = min(MOST_BYTES, SPOOL_BYTES // spool)
        self._seconds: dict[Shape, float] = {}
        self._stored: dict[Shape, float] = {}
        self._fetching = 0.0

    def measured(self, shape: Shape, seconds: float) -> None:
        """A batch took so many seconds a slot. A slower one counts at once, a faster one by half."""
        _note(self._seconds, shape.timed, seconds)

    def stored(self, shape: Shape, images: int, seconds: float) -> None:
        """A claim of so many images was settled so long after its rendering. It had waited for those before it, so a
        store, a policy or a scorer that is slower than the device makes claims smaller."""
        _note(self._stored, shape.timed, seconds / images)

    def fetched(self, seconds: float) -> None:
        """So long it took to fetch what a claim needs of the store before it can be rendered."""
        self._fetching = max(seconds, (self._fetching + seconds) / 2)

    def images(self, shape: Shape, batch: int) -> int:
        """The most images of a claim: whole batches of `batch` images, one at least."""
        seconds = self._seconds.get(shape.timed)
        stored = self._stored.get(shape.timed)
        if seconds is None or stored is None:
            return batch
        fit = min(MOST_IMAGES, self._most_bytes // (shape.width * shape.height * 3))
        if seconds > 0:
            fit = min(fit, int(CLAIM_SECONDS / seconds))
        if stored > 0:
            fit = min(fit, int(self._storing_seconds / stored))
        return max(fit // batch, 1) * batch

    def is_near_the_end(self, shape: Shape, images: int) -> bool:
        """Whether so many images that are left of a claim are rendered so soon that the next one should be claimed."""
        return images * self._seconds.get(shape.timed, 0.0) <= AHEAD_SECONDS + self._fetching


def _note(known: dict[Shape, float], shape: Shape, seconds: float) -> None:
    before = known.get(shape)
    known[shape] = seconds if before is None else max(seconds, (before + seconds) / 2)


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
