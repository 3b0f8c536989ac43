"""Plans which images of a claim to render next, and what to do when some fail: halve, step down, or give up.

Plain Python: it decides and renders nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.core.model.specs import FailedImage, Image
from worker import batching

OUT_OF_MEMORY = "The device has too little memory for even one image of this size."


@dataclass(frozen=True, slots=True)
class Part:
    """Images to render in one pass, padded to `size` slots."""

    images: tuple[Image, ...]
    size: int


@dataclass(slots=True)
class RetryPlan:
    """The parts of a claim that are still to be rendered, and the images that have failed.

    `max_size` is the largest declared batch size that is believed to fit the device. `alone`: nothing else may be in
    flight beside a part, so that what fails or crashes is known.
    """

    sizes: Sequence[int]
    max_size: int
    alone: bool = False
    failed: list[FailedImage] = field(default_factory=list)
    _parts: list[Part] = field(default_factory=list)

    def begin(self, images: Sequence[Image], at_fault: Sequence[FailedImage]) -> None:
        """Plans the images, except those that are known to be at fault."""
        self.failed += at_fault
        places = {(one.job_id, one.index) for one in at_fault}
        self.add([image for image in images if (image.job_id, image.index) not in places])

    def add(self, images: Sequence[Image]) -> None:
        for start in range(0, len(images), self.max_size):
            self._parts.append(Part(tuple(images[start : start + self.max_size]), self.max_size))

    def next(self) -> Part | None:
        return self._parts.pop(0) if self._parts else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to be rendered."""
        return not self._parts

    @property
    def images(self) -> int:
        """How many are left to be rendered."""
        return sum(len(part.images) for part in self._parts)

    def stop(self) -> None:
        """Nothing more is rendered; images without a result are released."""
        self._parts.clear()

    def again(self, part: Part) -> None:
        """Plans a part once more, and all that remains, with nothing beside it."""
        self.alone = True
        self._parts.insert(0, part)

    def step_down(self, part: Part) -> bool:
        """Plans all remaining images again in the next smaller declared size. Returns False if there is none."""
        smaller = batching.next_smaller(self.sizes, part.size)
        if smaller is None:
            return False
        self.max_size = smaller
        waiting = [image for other in (part, *self._parts) for image in other.images]
        self._parts.clear()
        self.add(waiting)
        return True

    def too_large(self, part: Part) -> None:
        self.failed += [failed(image, "resource", OUT_OF_MEMORY) for image in part.images]

    def is_single(self, part: Part) -> bool:
        return len(part.images) == 1

    def halve(self, part: Part) -> None:
        """Plans both halves, padded to the same size: bytes must not depend on another image's failure."""
        middle = len(part.images) // 2
        self._parts[:0] = [Part(part.images[:middle], part.size), Part(part.images[middle:], part.size)]

    def give_up(self, part: Part, error: Exception) -> None:
        self.failed += [failure(image, error) for image in part.images]

    def invalid_output(self, image: Image, message: str) -> None:
        self.failed.append(failed(image, "invalid_output", message))


def failure(image: Image, error: Exception) -> FailedImage:
    """An image that raised while it was the only one in its batch. Clients read the message, so the exception's text,
    which may hold paths of this machine, is only in the log."""
    kind = type(error).__name__[:80]
    return failed(image, "render_error", f"This image alone cannot be rendered: {kind}. The worker's log says more.")


def failed(image: Image, code: str, message: str) -> FailedImage:
    """An image that will not be rendered, for that reason."""
    return FailedImage(image.job_id, image.index, code, message.replace("\x00", ""))
