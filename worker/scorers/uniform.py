"""How much of a picture is of one colour: 1 for a blank one, about 0.7 for a product on a plain background."""

import numpy as np
from numpy.typing import NDArray

from worker.scorer import Scorer

_SAMPLES = 128  # pixels looked at along each side
_LEVELS = 8  # that a channel may differ from the picture's usual colour, of 255


def open_scorer() -> Scorer:
    return uniform


def uniform(pixels: NDArray[np.uint8], _prompt: str) -> float:
    """The share of the pixels whose channels are all near those of the picture's median colour."""
    height, width = pixels.shape[:2]
    looked_at = pixels[:: max(1, height // _SAMPLES), :: max(1, width // _SAMPLES)].reshape(-1, 3)
    is_near = np.ones(len(looked_at), dtype=np.bool_)
    for channel in np.ascontiguousarray(looked_at.T):
        usual = int(np.searchsorted(np.bincount(channel, minlength=256).cumsum(), len(channel) / 2))
        is_near &= (channel >= max(0, usual - _LEVELS)) & (channel <= min(255, usual + _LEVELS))
    return float(is_near.mean())
