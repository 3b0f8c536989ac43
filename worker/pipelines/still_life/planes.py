"""Light, tints, shadows and grain of the simulated pipeline's pictures: planes made once per size and kept."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter


def step(pixels: float) -> int:
    """Rounded, so that few different sizes are made and the masks kept of the last ones serve again."""
    step = 8 if pixels > 128 else 2
    return max(step, round(pixels / step) * step)


@lru_cache(maxsize=8)
def glow(unit: int) -> Image.Image:
    """Light falling on a flat surface from the upper left: mode L, half as large again as the largest picture."""
    side = 128
    x, y = np.arange(side)[None, :] / side, np.arange(side)[:, None] / side
    far = (x - 0.3) * (x - 0.3) + 0.8 * (y - 0.25) * (y - 0.25)
    plane = Image.fromarray((225 - 150 * far / (0.25 + far)).astype(np.uint8))
    return plane.resize((unit * 2, unit * 2), Image.Resampling.BICUBIC)


@lru_cache(maxsize=64)
def mask(kind: str, side: int) -> Image.Image:
    """A disc or window of side x side pixels, or an arch of side x 2 side, in mode L."""
    plane = _plane(kind)
    return plane.resize((side, side * plane.height // plane.width), Image.Resampling.BILINEAR)


@lru_cache(maxsize=3)
def _plane(kind: str) -> Image.Image:
    a = (np.arange(1024) + 0.5) / 512 - 1
    x, y = a[None, :], a[:, None]
    if kind == "window":
        panes = (np.abs(x + 0.35 * y) < 0.5) & (np.abs(x + 0.35 * y) > 0.03) & (np.abs(y) < 0.85) & (np.abs(y) > 0.04)
        light = Image.fromarray((panes * 190).astype(np.uint8)).reduce(2)
        return light.filter(ImageFilter.BoxBlur(7)).filter(ImageFilter.BoxBlur(5))
    inside = x * x + y * y <= 1
    if kind == "arch":
        inside = np.concatenate([inside | (y > 0), np.ones_like(inside)])
    return Image.fromarray(inside.astype(np.uint8) * 255).reduce(2)


@lru_cache(maxsize=8)
def blur(strength: float) -> Image.Image:
    """A soft round spot, 96 pixels across, 255 * strength in the middle."""
    a = (np.arange(96) + 0.5) / 48 - 1
    near = np.maximum(0, 1 - a[None, :] * a[None, :] - a[:, None] * a[:, None])
    return Image.fromarray((near * near * 255 * strength).astype(np.uint8))


@lru_cache(maxsize=1)
def _noise() -> NDArray[np.uint8]:
    """Fine grain that hides the steps of 8-bit gradients: -2..2 (as uint8, modulo 256), (1088, 1088, 3), grey."""
    n = np.arange(1088 * 1088, dtype=np.uint32)
    for factor in (0x7FEB352D, 0x846CA68B):
        n = (n ^ (n >> np.uint32(16))) * np.uint32(factor)
    plane = ((n >> np.uint32(8)) % np.uint32(3) + (n >> np.uint32(20)) % np.uint32(3)).astype(np.uint8) - np.uint8(2)
    return np.repeat(plane.reshape(1088, 1088, 1), 3, axis=2)


def grain(x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 (height, width, 3), to be added modulo 256; `x` and `y`, 0..63, say which part of the noise."""
    return _noise()[y : y + height, x : x + width]
