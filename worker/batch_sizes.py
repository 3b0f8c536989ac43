"""Which declared batch sizes fit the device's memory, for each shape, as batches have shown."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.core.model.specs import Shape
from worker import batching

REGROW_BATCHES = 50  # after this many successful batches the next larger size is tried again
RETRY_SECONDS = 300.0  # until a class whose batch did not fit is tried again


@dataclass(slots=True)
class Memory:
    """What is known of the device's memory for one shape: the largest declared batch size that fits, and the number of
    batches that succeeded since it was found. `found_at`: when, by the monotonic clock."""

    max_size: int
    good_batches: int = 0
    found_at: float = field(default_factory=time.monotonic)


class BatchSizes:
    """Used by one thread at a time; any thread may ask for `too_large`."""

    def __init__(self, declared: Sequence[int]) -> None:
        self._declared = tuple(declared)
        self._memory: dict[Shape, Memory] = {}
        self._crowded: dict[tuple[Shape, int], float] = {}

    def largest(self, shape: Shape) -> int:
        """The largest declared batch size to try; the next larger one after REGROW_BATCHES successful batches."""
        memory = self._memory.get(shape)
        if memory is None:
            return max(self._declared)
        if memory.good_batches >= REGROW_BATCHES:
            return min((size for size in self._declared if size > memory.max_size), default=memory.max_size)
        return memory.max_size

    def remember(self, shape: Shape, tried: int, max_size: int) -> None:
        """Records that `max_size` fits after `tried` was tried; a larger one waits for REGROW_BATCHES."""
        if max_size == max(self._declared):
            self._memory.pop(shape, None)
            return
        memory = self._memory.setdefault(shape, Memory(max_size))
        memory.good_batches = memory.good_batches + 1 if memory.max_size == max_size == tried else 0
        memory.max_size = max_size
        if tried > max_size:
            memory.found_at = time.monotonic()

    def step_down(self, shape: Shape, size: int) -> None:
        """A batch of `size` does not fit; there may be no smaller one."""
        smaller = batching.next_smaller(self._declared, size)
        if smaller is not None and smaller < self.largest(shape):
            self.remember(shape, size, smaller)

    def beside(self, shape: Shape, size: int, *, is_fixed: bool) -> None:
        """A batch of `size` fits only while no other is in flight. The next ones are smaller; where the size is fixed
        or the smallest, they are rendered alone for RETRY_SECONDS. Alone it fits, so it is none of `too_large`."""
        if is_fixed or batching.next_smaller(self._declared, size) is None:
            self._crowded[shape, size] = time.monotonic()
        elif size <= self.largest(shape):
            self.step_down(shape, size)
            self._memory[shape].found_at = -math.inf

    def is_alone(self, shape: Shape, size: int) -> bool:
        """Whether a batch of `size` is to be rendered with nothing beside it."""
        return time.monotonic() < self._crowded.get((shape, size), -math.inf) + RETRY_SECONDS

    def too_large(self) -> dict[Shape, int]:
        """By shape, the least size that did not fit within the last RETRY_SECONDS."""
        retried = time.monotonic() - RETRY_SECONDS
        return {
            shape: min(size for size in self._declared if size > memory.max_size)
            for shape, memory in list(self._memory.items())
            if memory.found_at > retried
        }
