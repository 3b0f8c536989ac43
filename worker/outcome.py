"""What became of a claim that was rendered, for the stage that stores its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.core.model.specs import Image
from worker.heartbeat import HeldClaim
from worker.pipeline import Picture
from worker.retries import RetryPlan
from worker.scoring import Pending


@dataclass(frozen=True, slots=True)
class Rendered:
    """One rendered image, waiting in the spool to be stored."""

    image: Image
    picture: Picture
    reproducibility_class: str
    seconds: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A rendered image as a file, which is not stored yet. `picture` has its verdict; `pending`: its scores, which are
    being computed."""

    rendered: Rendered
    picture: Picture
    data: bytes
    pending: Pending

    @property
    def image(self) -> Image:
        return self.rendered.image


@dataclass(slots=True)
class Outcome:
    """The result of rendering a claim. Images that are neither in `rendered` nor in `plan.failed` are released.

    `seconds` is the time that the device gave it, `pass_seconds` that of the passes that gave pictures, `slots` their
    batch sizes summed, padding included. `begun`: by job, its share of all batches that began, in slots.
    """

    held: HeldClaim
    rendered: list[Rendered] = field(default_factory=list)
    plan: RetryPlan | None = None
    seconds: float = 0.0
    pass_seconds: float = 0.0
    slots: int = 0
    begun: dict[int, float] = field(default_factory=dict)

    def begins(self, images: Sequence[Image], size: int) -> None:
        """A batch of `size` slots begins, for these images."""
        for image in images:
            self.begun[image.job_id] = self.begun.get(image.job_id, 0.0) + size / len(images)
