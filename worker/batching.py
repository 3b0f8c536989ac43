"""Images -> padded batch, and whose turn it is. Plain Python.

A declared size is what the pipeline was compiled for. Always the largest that the device has room for serves, so that
an image's bytes do not depend on how many waited with it; padding repeats the last spec and is thrown away.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle

from services.core.model.specs import Image, Shape
from worker.pipeline import Batch

_WEIGHTS = {0: 8, 1: 4, 2: 1}  # priority class -> how often of 13 it goes first


def next_smaller(sizes: Sequence[int], size: int) -> int | None:
    """The next declared size below, or None."""
    return max((declared for declared in sizes if declared < size), default=None)


def form(images: Sequence[Image], shape: Shape, size: int) -> Batch:
    """A batch of `size` slots from at most as many images of that shape."""
    specs = [image.spec for image in images]
    padding = [specs[-1]] * (size - len(specs))
    return Batch(shape, tuple(specs + padding), len(specs))


def turns() -> Iterator[int]:
    """Priority classes in the order in which they go first: 8:4:1, spread evenly (smooth weighted round robin)."""
    credit = dict.fromkeys(_WEIGHTS, 0)
    order = []
    for _ in range(sum(_WEIGHTS.values())):
        for priority, weight in _WEIGHTS.items():
            credit[priority] += weight
        first = max(credit, key=lambda priority: (credit[priority], -priority))
        credit[first] -= sum(_WEIGHTS.values())
        order.append(first)
    return cycle(order)


def cost(shape: Shape, images: int) -> float:
    """What so many images cost their tenant, in images of 512x512 at ten guided steps."""
    return images * shape.width * shape.height * shape.steps * (2 if shape.guided else 1) / (512 * 512 * 20)
