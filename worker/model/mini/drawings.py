"""Draws a scene of the grammar: 128x128 catalogue pictures, soft shadow and light from the left, antialiased.

Deterministic: the same scene and the same generator state give the same pixels.
"""

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from worker.model.mini.grammar import COLOURS, Scene
from worker.model.mini.things import Brush, paint

SIDE = 128
SUPERSAMPLED = 4
PAPERS = {
    "white": (247, 247, 245),
    "grey": (178, 180, 184),
    "cream": (241, 226, 196),
    "blue": (172, 208, 238),
    "pink": (250, 208, 212),
    "mint": (186, 228, 200),
    "charcoal": (74, 76, 84),
    "wood": (238, 226, 206),
}
"""Background -> 8-bit sRGB of its paper; of its wall for wood."""
BOARDS = (196, 146, 96)
HORIZON = 76  # pixels from the top
GROUND = {"small": 94, "large": 114, "two": 100}  # where things stand, in pixels from the top; else:
USUAL_GROUND = 106
REACH = {"small": 27, "large": 50, "left": 33, "right": 33, "two": 27}  # half a thing's height in pixels; else:
USUAL_REACH = 41
CENTRES = {"left": (38,), "right": (90,), "two": (34, 94)}  # from the left; else the middle

Pixels = NDArray[np.uint8]
Canvas = NDArray[np.float32]
_DOWN, _ACROSS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)


def draw(scene: Scene, chance: random.Random) -> Pixels:
    """(128, 128, 3) uint8 sRGB. Place, size, proportion and tint vary a little with `chance`."""
    ground = GROUND.get(scene.arrangement, USUAL_GROUND) + chance.uniform(-2, 2)
    high = REACH.get(scene.arrangement, USUAL_REACH) * chance.uniform(0.95, 1.05)
    wide = high * chance.uniform(0.95, 1.05)
    tint = [chance.uniform(-6, 6) for _ in range(3)]
    colour = [int(min(255, max(0, value + by))) for value, by in zip(COLOURS[scene.colour], tint, strict=True)]
    picture = _background(scene.background, chance)
    layer = Image.new("RGBA", (SIDE * SUPERSAMPLED,) * 2)
    pen = ImageDraw.Draw(layer)
    middles = [middle + chance.uniform(-2, 2) for middle in CENTRES.get(scene.arrangement, (SIDE // 2,))]
    for x in middles:
        picture *= _shadow(x, ground, wide)
        centre = (x * SUPERSAMPLED, (ground - high) * SUPERSAMPLED)
        paint(scene.thing, Brush(pen, colour, centre, (wide * SUPERSAMPLED, high * SUPERSAMPLED)))
    things = np.asarray(layer.reduce(SUPERSAMPLED), np.float32)
    cover = things[..., 3:] / 255
    shade = 0.97 - 0.09 * _turned_away(middles, wide)[..., None]
    composed = picture * (1 - cover) + things[..., :3] * shade * cover
    return (np.clip(composed, 0, 255) + 0.5).astype(np.uint8)


def _turned_away(middles: list[float], wide: float) -> Canvas:
    """(128, 128): -1 at the left edge of the nearest thing, which the light falls on, to 1 at its right edge."""
    offsets = np.stack([(_ACROSS - middle) / wide for middle in middles])
    nearest = np.abs(offsets).argmin(axis=0)
    return np.clip(np.take_along_axis(offsets, nearest[None], 0)[0], -1, 1)


def _background(name: str, chance: random.Random) -> Canvas:
    """(128, 128, 3) float32 0..255, tinted a little at random."""
    warm = chance.uniform(-2, 2)
    tint = np.array([warm, 0, -warm], np.float32) + chance.uniform(-3, 3)
    if name != "wood":
        return empty(name, tint)
    return empty(name, tint, HORIZON + chance.uniform(-3, 3), chance.uniform(-5, 5))


def empty(name: str, tint: Canvas | float = 0.0, horizon: float = HORIZON, floor_tint: float = 0.0) -> Canvas:
    """(128, 128, 3) float32 0..255 with nothing on it: paper that darkens downwards, or boards before a wall."""
    fall = 1.02 - 0.05 * (_DOWN / SIDE) - 0.03 * ((_ACROSS - 50) / SIDE) ** 2
    picture = (np.array(PAPERS[name], np.float32) + tint) * fall[..., None]
    if name == "wood":
        floor = np.clip((_DOWN - horizon) / 1.5, 0, 1)[..., None]
        depth = np.clip((_DOWN - horizon) / (SIDE - horizon), 0, 1)
        seams = np.cos(2 * np.pi * np.sqrt(depth) * 4) ** 8
        boards = (np.array(BOARDS, np.float32) + floor_tint) * (0.9 + 0.14 * depth - 0.13 * seams)[..., None]
        picture = picture * (1 - floor) + boards * floor
    return np.asarray(picture, np.float32)


def _shadow(x: float, ground: float, wide: float) -> Canvas:
    """(128, 128, 1) factors: a soft ellipse on the ground, drawn out to the right."""
    away = ((_ACROSS - x - 0.14 * wide) / (1.15 * wide)) ** 2 + ((_DOWN - ground + 1) / (0.24 * wide)) ** 2
    return np.asarray(1 - 0.42 * np.exp(-1.6 * away), np.float32)[..., None]
