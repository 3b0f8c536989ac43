"""An image's initial noise: decided by its seed alone, and drawn in float32 on the CPU for every device."""

import math

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
    high, low = divmod(seed, SEEDS_OF_TORCH)
    field = torch.randn(size, generator=torch.Generator().manual_seed(low))
    if high:
        second = torch.randn((2, *size), generator=torch.Generator().manual_seed(high))[1]
        field = (field + second) * math.sqrt(0.5)
    return field.numpy()
