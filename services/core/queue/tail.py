"""The tail of the work: how much of it a worker leaves to others that will be done with it sooner. Plain Python."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Pace:
    """How a worker renders images of one shape: `batch` of them in `seconds`, however full the batch is, and the next
    ones in `free` seconds from now."""

    free: float
    seconds: float
    batch: int

    @property
    def end(self) -> float:
        """Seconds from now until it has rendered a batch that it claims now."""
        return self.free + self.seconds


def left(own: Pace, others: Iterable[Pace]) -> int:
    """How many of the next images a worker leaves to others: those that they will have rendered before it would end a
    batch that it claims now. If more wait than that, it claims of what is behind them; else it claims nothing.

    So work ends when it would if the images went one by one to whoever ends them first. Three things hold however
    wrong a measured rate is. A worker without others leaves nothing. The one that would end first leaves nothing, so
    somebody takes what waits. And more images to render never turn a worker that claims into one that does not.
    """
    sooner = (other for other in others if other.end < own.end)
    return sum(max(ceil((own.end - other.free) / other.seconds) - 1, 1) * other.batch for other in sooner)
