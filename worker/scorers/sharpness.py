"""How sharp a picture is: the standard deviation of its Laplacian. 0 for a plain surface, lower for a blurred picture
than for the same in focus. It compares pictures of one size."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from worker.scorer import Scorer


def open_scorer() -> Scorer:
    return sharpness


def sharpness(pixels: NDArray[np.uint8], _prompt: str) -> float:
    """Of the grey levels from 0 to 1, with the Laplacian of the four neighbours."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.int16)
    if min(grey.shape) < 3:
        return 0.0
    laplacian = grey[1:-1, 1:-1] * np.int16(-4)
    for neighbours in (grey[1:-1, :-2], grey[1:-1, 2:], grey[:-2, 1:-1], grey[2:, 1:-1]):
        laplacian += neighbours
    levels = laplacian.astype(np.float32).ravel()
    variance = float(np.dot(levels, levels)) / levels.size - float(levels.mean()) ** 2
    return math.sqrt(max(0.0, variance)) / 255
