"""Forms padded batches from images, and says which priority class is claimed first. Plain Python.

A declared size is a batch size that the pipeline is compiled for. Every batch has the largest declared size that fits
the device's memory, so that an image's bytes do not depend on how many images were queued with it. Padding repeats the
last spec; its pictures are discarded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from services.core.model.specs import Image, Shape
from worker.pipeline import Batch

_WEIGHTS = {0: 8, 1: 4, 2: 1}  # priority class -> its share of the claims while images of all classes wait
# Low ages: what its weight is when the oldest of it has waited for so many seconds. It never has more than normal.
_LOW, _AGEING = 2, ((3600.0, 4), (600.0, 2))


def next_smaller(sizes: Sequence[int], size: int) -> int | None:
    """The next smaller declared size, or None."""
    return max((declared for declared in sizes if declared < size), default=None)


def form(images: Sequence[Image], shape: Shape, size: int, inputs: Mapping[str, Any] | None = None) -> Batch:
    """A batch of `size` slots from at most `size` images of that shape. `inputs`: their input pictures, by sha256."""
    specs = [image.spec for image in images]
    padded = (*specs, *[specs[-1]] * (size - len(specs)))
    given = tuple(inputs[spec.input_sha256] for spec in padded) if inputs and shape.first_step else ()
    return Batch(shape, padded, len(specs), given)


class Turns:
    """Which priority class comes first, claim by claim: as 8:4:1, spread evenly (smooth weighted round robin).

    Only classes of which something waits have credit. So high that arrives while others wait comes first at the next
    claim, and what waits alone saves nothing up. Low ages: it gets one claim in 13 at least, one in 7 when the oldest
    of it has waited for ten minutes, and one in 4 after an hour, as many as normal.
    """

    def __init__(self) -> None:
        self._credit: dict[int, float] = {}

    def choose(self, waiting: Mapping[int, float]) -> int:
        """The class that comes first. `waiting`: the classes of which something waits, with the age of the oldest."""
        weights = {priority: _WEIGHTS[priority] for priority in sorted(waiting)}
        if _LOW in weights:
            weights[_LOW] = next((weight for age, weight in _AGEING if waiting[_LOW] >= age), weights[_LOW])
        self._credit = {priority: self._credit.get(priority, 0) + weight for priority, weight in weights.items()}
        first = max(self._credit, key=lambda priority: (self._credit[priority], -priority))
        self._credit[first] -= sum(weights.values())
        return first


def cost(shape: Shape, images: int) -> float:
    """What `images` images cost their tenant, in units of one 512x512 image at ten guided steps."""
    return images * shape.work / (512 * 512 * 20)
