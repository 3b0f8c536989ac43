"""The noise an image begins with: decided by its own seed alone, in float32, on the CPU, whatever the device."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

SEEDS_OF_TORCH = 2**32  # torch's CPU generator reads no more of a seed than this


def draw(seed: int, size: tuple[int, int, int]) -> NDArray[np.float32]:
    """Standard normal latents of `size` (channels, height / 8, width / 8) for a `seed` in 0..2^63-1.

    Below 2^32 they are what diffusers draws for that seed. torch reads only the low 32 bits of a seed, so above that
    the high bits draw a second field (skipping one, lest equal halves give equal fields), and the two are mixed.
    """
    high, low = divmod(seed, SEEDS_OF_TORCH)
    field = torch.randn(size, generator=torch.Generator().manual_seed(low))
    if high:
        second = torch.randn((2, *size), generator=torch.Generator().manual_seed(high))[1]
        field = (field + second) * math.sqrt(0.5)
    return field.numpy()
