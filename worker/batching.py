"""Forms padded batches from images, and says which priority class is claimed first. Plain Python.

A declared size is a batch size that the pipeline is compiled for. Every batch has the largest declared size that fits
the device's memory, so that an image's bytes do not depend on how many images were queued with it. Padding repeats the
last spec; its pictures are discarded.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from services.core.model.specs import Image, Shape
from worker.pipeline import Batch

_WEIGHTS = {0: 8, 1: 4, 2: 1}  # priority class -> how many of 13 turns are its


def next_smaller(sizes: Sequence[int], size: int) -> int | None:
    """The next smaller declared size, or None."""
    return max((declared for declared in sizes if declared < size), default=None)


def form(images: Sequence[Image], shape: Shape, size: int, inputs: Mapping[str, Any] | None = None) -> Batch:
    """A batch of `size` slots from at most `size` images of that shape. `inputs`: their input pictures, by sha256."""
    specs = [image.spec for image in images]
    padded = (*specs, *[specs[-1]] * (size - len(specs)))
    given = tuple(inputs[spec.input_sha256] for spec in padded) if inputs and shape.first_step else ()
    return Batch(shape, padded, len(specs), given)


def turns() -> Iterator[int]:
    """Endless priority classes, one per claim, as 8:4:1 and spread evenly (smooth weighted round robin)."""
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
    """What `images` images cost their tenant, in units of one 512x512 image at ten guided steps."""
    return images * shape.work / (512 * 512 * 20)
