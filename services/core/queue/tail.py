"""The tail of the work: how much of it a worker leaves to others that will be done with it sooner, and for how long.

Others may have work that this worker does not see, so what it leaves is left once, for a bounded time. In a fleet of
more than 32 workers nothing is left: its tail is short, and each claim near the end would read a row of every worker.
Plain Python.
"""

from collections.abc import Collection, Iterable
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

    def rendering(self, images: int) -> float:
        """Seconds in which it renders so many, in whole batches."""
        return ceil(images / self.batch) * self.seconds


def left(own: Pace, others: Iterable[Pace]) -> int:
    """How many of the next images a worker leaves to others: those that they will have rendered before it would end a
    batch that it claims now. If more wait than that, it claims of what is behind them; else it claims nothing.

    So work ends when it would if the images went one by one to whoever ends them first. Three things hold however
    wrong a measured rate is. A worker without others leaves nothing. The one that would end first leaves nothing, so
    somebody takes what waits. And more images to render never turn a worker that claims into one that does not.
    """
    sooner = (other for other in others if other.end < own.end)
    return sum(max(ceil((own.end - other.free) / other.seconds) - 1, 1) * other.batch for other in sooner)


class Leaving:
    """The segments, by job and id, that a worker leaves to others, each with the time until which it does. From then on
    it takes of them for as long as they wait: who did not do what was expected of it is not trusted once more."""

    def __init__(self) -> None:
        self._until: dict[tuple[int, int], float] = {}

    def overdue(self, now: float) -> frozenset[tuple[int, int]]:
        return frozenset(segment for segment, until in self._until.items() if until <= now)

    def note(
        self, left: Collection[tuple[int, int]], looked_at: Iterable[tuple[int, int]], *, now: float, until: float
    ) -> None:
        """Of the segments it looked at, it leaves these until then, or until when it said first; and no others."""
        for segment in looked_at:
            if segment in left:
                self._until.setdefault(segment, until)
            elif self._until.get(segment, now) > now:
                del self._until[segment]

    def keep(self, waiting: Collection[tuple[int, int]]) -> None:
        """Forgets all segments but those that still wait."""
        self._until = {segment: until for segment, until in self._until.items() if segment in waiting}
