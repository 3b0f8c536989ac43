"""An image's noise: decided by its seed alone, and drawn in float32 on the CPU for every device."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

SEEDS_OF_TORCH = 2**32  # torch's CPU generator uses only the low 32 bits of a seed


def draw(seed: int, size: tuple[int, int, int]) -> NDArray[np.float32]:
    """Standard normal latents of `size` (channels, height / 8, width / 8) for a `seed` in 0..2^63-1.

    Below 2^32 they are what diffusers draws for that seed. torch uses only the low 32 bits of a seed; for larger seeds
    the high bits draw a second field, and the two are mixed. The second field skips one draw, so that equal halves of a
    seed do not give equal fields.
    """
    return next(fields(seed, size))


def fields(seed: int, size: tuple[int, int, int]) -> Iterator[NDArray[np.float32]]:
    """The initial latents as `draw` gives them, then the noise that a sampler adds at each step, without end."""
    high, low = divmod(seed, SEEDS_OF_TORCH)
    first = torch.Generator().manual_seed(low)
    second = torch.Generator().manual_seed(high) if high else None
    skipped = 1 if high else 0
    while True:
        field = torch.randn(size, generator=first)
        if second is not None:
            field = (field + torch.randn((1 + skipped, *size), generator=second)[-1]) * math.sqrt(0.5)
            skipped = 0
        yield field.numpy()
