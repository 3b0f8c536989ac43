"""Finds the thing's colour and the background of a picture from its pixels, without a network."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from worker.model.mini.drawings import empty
from worker.model.mini.grammar import BACKGROUNDS, COLOURS

Pictures = NDArray[np.uint8]
FRAME = 6  # width in pixels of the border, which shows only background
SHADES = (0.72, 0.86, 1.0)
DIFFERENT = 40.0  # of 441: the distance from the background above which a pixel belongs to the thing


def background(picture: Pictures) -> str:
    """Of (128, 128, 3) uint8: the background whose border is nearest on average."""
    distances = {name: np.abs(picture[_frame()] - _empty(name)[_frame()]).mean() for name in BACKGROUNDS}
    return min(distances, key=lambda name: float(distances[name]))


def colour(picture: Pictures) -> str:
    """Of (128, 128, 3) uint8: the colour nearest to most of the thing's pixels, shaded or not."""
    behind = _empty(background(picture))
    ratio = picture / np.maximum(behind, 1)
    spread = ratio.max(axis=-1) - ratio.min(axis=-1)
    shadow = (spread < 0.12) & (ratio.mean(axis=-1) > 0.5) & (ratio.mean(axis=-1) < 1.05)
    thing = (np.linalg.norm(picture - behind, axis=-1) > DIFFERENT) & ~shadow
    names, palette = _palette()
    pixels = picture[thing].astype(np.float32)
    if not len(pixels):
        return ""
    nearest = np.linalg.norm(pixels[:, None] - palette, axis=-1).argmin(axis=1)
    votes = np.bincount(nearest // len(SHADES), minlength=len(names))
    return names[int(votes.argmax())]


@lru_cache(maxsize=16)
def _empty(name: str) -> NDArray[np.float32]:
    return empty(name)


@lru_cache(maxsize=1)
def _frame() -> NDArray[np.bool_]:
    inside = np.zeros((128, 128), np.bool_)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    return ~inside


@lru_cache(maxsize=1)
def _palette() -> tuple[list[str], NDArray[np.float32]]:
    return list(COLOURS), np.array(
        [[value * shade for value in rgb] for rgb in COLOURS.values() for shade in SHADES], np.float32
    )
