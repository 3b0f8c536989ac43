"""The things that stand in the simulated pipeline's still lifes: their outlines, and their planes at any size.

Each is shaded once, on first use, and kept; colour comes later, when its light runs through a ramp.
"""

import math
from dataclasses import dataclass
from functools import cache, lru_cache

from PIL import Image

from worker.pipelines.still_life.canvas import BASE, Canvas, Outline, S

FROM_FOOT_TO_TOP = [k / 20 - 1 for k in range(41)]

# Outlines of turned things: (height, radius) from the foot up, in canvas widths. "open" shows the inside.
TURNED: dict[str, tuple[Outline, bool]] = {
    "mug": (((0, 0.19), (0.012, 0.205), (0.06, 0.215), (0.4, 0.215), (0.46, 0.22)), True),
    "cup": (((0, 0.1), (0.02, 0.11), (0.05, 0.16), (0.14, 0.225), (0.25, 0.262), (0.3, 0.27)), True),
    "bowl": (((0, 0.13), (0.025, 0.135), (0.05, 0.19), (0.13, 0.30), (0.21, 0.36), (0.25, 0.375)), True),
    "plate": (((0, 0.2), (0.02, 0.22), (0.05, 0.37), (0.062, 0.4)), True),
    "vase": (
        ((0, 0.105), (0.02, 0.115), (0.14, 0.19), (0.3, 0.225), (0.44, 0.19), (0.56, 0.1), (0.64, 0.075), (0.7, 0.1)),
        True,
    ),
    "jug": (((0, 0.15), (0.02, 0.165), (0.16, 0.225), (0.3, 0.215), (0.42, 0.14), (0.5, 0.125), (0.56, 0.15)), True),
    "bottle": (
        ((0, 0.12), (0.015, 0.135), (0.05, 0.14), (0.4, 0.14), (0.48, 0.115), (0.56, 0.055), (0.74, 0.048),
         (0.75, 0.058), (0.78, 0.058)),
        True,
    ),
    "jar": (((0, 0.17), (0.02, 0.19), (0.06, 0.2), (0.36, 0.2), (0.42, 0.175), (0.44, 0.16), (0.47, 0.165)), True),
    "ball": (tuple((0.25 + 0.25 * y, 0.25 * math.sqrt(1 - y * y)) for y in FROM_FOOT_TO_TOP), False),
    "egg": (tuple((0.21 + 0.21 * y, 0.158 * math.sqrt(1 - y * y) * (1 - 0.16 * y)) for y in FROM_FOOT_TO_TOP), False),
    "pear": (
        ((0, 0.04), (0.012, 0.09), (0.05, 0.16), (0.13, 0.2), (0.22, 0.185), (0.31, 0.125), (0.39, 0.093), (0.44, 0.07),
         (0.462, 0.03), (0.466, 0.008), (0.54, 0.008), (0.542, 0.0)),
        False,
    ),
    "cone": (((0, 0.235), (0.52, 0.006), (0.525, 0.0)), False),
    "drum": (((0, 0.2), (0.3, 0.2)), False),
    "candle": (((0, 0.075), (0.5, 0.075)), False),
    "lamp": (
        ((0, 0.14), (0.025, 0.14), (0.04, 0.03), (0.06, 0.017), (0.42, 0.017), (0.4201, 0.235), (0.43, 0.232),
         (0.76, 0.13)),
        True,
    ),
    "plinth": (((0, 0.36), (0.16, 0.36)), False),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Form:
    """Trimmed planes (cover, light) in mode L, for canvases of S, S/2, S/4 ... pixels.

    In canvas widths: `box` is what the planes span (left, top, right, bottom), `reach` the half width at the foot,
    `height` how far up the next thing would stand.
    """

    levels: tuple[tuple[Image.Image, Image.Image], ...]
    box: tuple[float, float, float, float]
    reach: float
    height: float

    def at(self, size: int) -> tuple[Image.Image, Image.Image]:
        """Cover and light for a canvas of `size` pixels, from the nearest kept level that is not smaller."""
        level = next((k for k in reversed(range(len(self.levels))) if S >> k >= size), 0)
        left, top, right, bottom = self.box
        box = (max(1, round((right - left) * size)), max(1, round((bottom - top) * size)))
        cover, light = (plane.resize(box, Image.Resampling.BILINEAR) for plane in self.levels[level])
        return cover, light


@lru_cache(maxsize=128)
def at(name: str, size: int) -> tuple[Image.Image, Image.Image]:
    """`form(name).at(size)`, the latest ones kept: ask for few different sizes, and copy before changing them."""
    return form(name).at(size)


@cache
def form(name: str) -> Form:
    """The form of that name, drawn on first use (about 0.1 s): one of TURNED, or box, books, sprig or bloom."""
    canvas = Canvas()
    reach, height = 0.01, 0.8
    if name in TURNED:
        points, is_open = TURNED[name]
        reach, height = max(points[0][1], points[1][1]), points[-1][0]
        if name in ("mug", "jug", "cup"):
            radius = max(radius for _, radius in points)
            canvas.ring(0.5 + radius * 0.97, BASE - height * 0.53, height * 0.27, 0.026)
        canvas.turn(points, is_open=is_open)
        if name == "candle":
            canvas.leaf(0.5, BASE - height + 0.01, 0.0, 1.0, 0.05, 0.005, 30)
            canvas.leaf(0.5, BASE - height - 0.02, 0.0, 1.0, 0.13, 0.03, 235)
    elif name == "box":
        canvas.stack(((0.3, 0.23, 0.0),))
        reach, height = 0.26, 0.3
    elif name == "books":
        canvas.stack(((0.075, 0.27, 0.0), (0.055, 0.25, -0.02), (0.065, 0.22, 0.012)), pages=True)
        reach, height = 0.27, 0.195
    elif name == "sprig":
        canvas.sprig()
    else:
        canvas.bloom()
    levels, box = canvas.trimmed()
    return Form(levels, box, reach, height)
