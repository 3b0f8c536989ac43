"""Training planned by wall time: the progress of a stage, and the learning rate's cosine schedule over it."""

import math
import time


class Clock:
    """Counts steps and seconds, including those of earlier runs.

    `share` is the part of the planned time that has passed, 0..1. `tick` takes it as an argument, so that processes
    that train together can agree on it.
    """

    def __init__(self, minutes: float) -> None:
        self.step = 0
        self.share = 0.0
        self._planned = 60 * minutes
        self._began = time.monotonic()

    def resume(self, step: int, seconds: float) -> None:
        self.step = step
        self._began = time.monotonic() - seconds
        self.share = self.now()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def now(self) -> float:
        return min(1.0, self.seconds() / self._planned)

    def running(self) -> bool:
        return self.share < 1.0

    def tick(self, share: float) -> None:
        self.step += 1
        self.share = max(self.share, share)

    def cosine(self, warmup: int) -> float:
        """The learning rate's factor: rises over `warmup` steps, then falls to zero at the end of the planned time."""
        return min(1.0, (self.step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * self.share))
