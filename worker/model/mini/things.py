"""The twelve things as bold forms in one hue: `paint` draws one on a layer, light from the left.

Coordinates run from -1 to 1, x to the right and y down; a thing stands on y = 1.
"""

from collections.abc import Callable, Sequence
from math import cos, radians, sin

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = list[Point]

PALE, INK, CLAY = (246, 243, 236), (58, 56, 60), (186, 160, 138)


class Brush:
    """Draws in a thing's own coordinates. `tone` -1..1 goes from black through the thing's colour to white."""

    def __init__(self, draw: ImageDraw.ImageDraw, colour: Sequence[int], centre: Point, reach: Point) -> None:
        """`centre` in the layer's pixels; `reach` is half the thing's width and half its height there."""
        self._draw, self._colour, self._centre = draw, colour, centre
        self._wide, self._high = reach

    def polygon(self, points: Points, tone: float | Colour = 0.0) -> None:
        self._draw.polygon([self._at(x, y) for x, y in points], fill=self._fill(tone))

    def ellipse(self, left: float, top: float, right: float, bottom: float, tone: float | Colour = 0.0) -> None:
        self._draw.ellipse([self._at(left, top), self._at(right, bottom)], fill=self._fill(tone))

    def ring(self, left: float, top: float, right: float, bottom: float, width: float, tone: float = 0.0) -> None:
        box = [self._at(left, top), self._at(right, bottom)]
        self._draw.ellipse(box, outline=self._fill(tone), width=max(1, round(width * self._wide)))

    def block(
        self, left: float, top: float, right: float, bottom: float, tone: float | Colour = 0.0, radius: float = 0.0
    ) -> None:
        box = [self._at(left, top), self._at(right, bottom)]
        self._draw.rounded_rectangle(box, radius=radius * min(self._wide, self._high), fill=self._fill(tone))

    def line(self, points: Points, width: float, tone: float | Colour = 0.0) -> None:
        flat = [self._at(x, y) for x, y in points]
        self._draw.line(flat, fill=self._fill(tone), width=max(1, round(width * self._wide)), joint="curve")

    def _at(self, x: float, y: float) -> Point:
        return self._centre[0] + x * self._wide, self._centre[1] + y * self._high

    def _fill(self, tone: float | Colour) -> tuple[int, int, int, int]:
        if isinstance(tone, tuple):
            return (*tone, 255)
        end = 255 if tone > 0 else 0
        red, green, blue = (round(value + (end - value) * abs(tone)) for value in self._colour)
        return red, green, blue, 255


def paint(thing: str, brush: Brush) -> None:
    """Draws the thing; raises KeyError for one that is not in the grammar."""
    _PAINTERS[thing](brush)


def _mug(b: Brush) -> None:
    b.ring(0.05, -0.48, 1.0, 0.68, 0.22, -0.12)
    b.block(-0.85, -0.72, 0.5, 1.0, radius=0.2)
    b.ellipse(-0.85, -0.92, 0.5, -0.5, 0.25)
    b.ellipse(-0.75, -0.86, 0.4, -0.55, -0.4)
    b.block(-0.68, -0.3, -0.54, 0.72, 0.45, radius=0.07)


def _chair(b: Brush) -> None:
    b.block(-0.66, 0.1, -0.42, 1.0, -0.25)
    b.block(0.46, 0.1, 0.7, 1.0, -0.25)
    b.block(-0.72, -1.0, -0.36, 0.3, radius=0.12)
    b.block(-0.72, 0.02, 0.8, 0.34, radius=0.1)
    b.block(-0.36, -0.12, 0.76, 0.08, 0.25, radius=0.1)


def _lamp(b: Brush) -> None:
    b.block(-0.11, -0.1, 0.11, 0.9, -0.3)
    b.block(-0.52, 0.78, 0.52, 1.0, -0.15, radius=0.12)
    b.polygon([(-0.42, -1.0), (0.42, -1.0), (0.88, 0.06), (-0.88, 0.06)])
    b.polygon([(-0.36, -1.0), (-0.2, -1.0), (-0.42, 0.06), (-0.74, 0.06)], 0.35)
    b.block(-0.88, -0.02, 0.88, 0.1, -0.2, radius=0.04)


def _shoe(b: Brush) -> None:
    b.polygon(
        [(-0.92, -0.5), (-0.7, -0.55), (-0.5, -0.35), (-0.22, -0.42), (0.0, -0.46), (0.3, 0.08), (0.66, 0.26),
         (0.92, 0.4), (1.0, 0.66), (1.0, 0.84), (-0.96, 0.84)]
    )  # fmt: skip
    b.polygon([(0.56, 0.22), (0.92, 0.4), (1.0, 0.66), (1.0, 0.84), (0.6, 0.84)], -0.16)
    b.polygon([(-0.94, -0.1), (-0.6, 0.1), (-0.56, 0.84), (-0.96, 0.84)], -0.16)
    for x, y in ((0.06, -0.22), (0.2, 0.02), (0.36, 0.2)):
        b.line([(x - 0.24, y + 0.12), (x, y)], 0.09, PALE)
    b.block(-1.0, 0.74, 1.04, 1.0, PALE, radius=0.12)


def _bag(b: Brush) -> None:
    b.ring(-0.5, -1.0, 0.5, 0.35, 0.17, -0.25)
    b.polygon([(-0.74, -0.28), (0.74, -0.28), (0.94, 0.9), (0.86, 1.0), (-0.86, 1.0), (-0.94, 0.9)])
    b.polygon([(-0.74, -0.28), (0.74, -0.28), (0.8, 0.12), (0.0, 0.36), (-0.8, 0.12)], -0.2)
    b.ellipse(-0.12, 0.16, 0.12, 0.42, PALE)


def _bottle(b: Brush) -> None:
    b.block(-0.19, -0.9, 0.19, 0.0)
    b.ellipse(-0.46, -0.46, 0.46, 0.3)
    b.block(-0.46, -0.1, 0.46, 1.0, radius=0.14)
    b.block(-0.23, -1.0, 0.23, -0.74, -0.4, radius=0.05)
    b.block(-0.46, 0.16, 0.46, 0.66, 0.5)
    b.block(-0.34, -0.1, -0.24, 0.9, 0.35, radius=0.05)


def _table(b: Brush) -> None:
    b.block(-0.84, -0.2, -0.58, 1.0, -0.18)
    b.block(0.58, -0.2, 0.84, 1.0, -0.18)
    b.block(-0.84, -0.2, 0.84, 0.08, -0.3)
    b.block(-1.0, -0.44, 1.0, -0.12, radius=0.08)
    b.block(-0.96, -0.44, 0.96, -0.36, 0.35, radius=0.04)


def _hat(b: Brush) -> None:
    b.ellipse(-1.0, 0.36, 1.0, 1.0, -0.1)
    b.ellipse(-1.0, 0.3, 1.0, 0.88)
    b.block(-0.56, -0.5, 0.56, 0.7, radius=0.4)
    b.block(-0.56, 0.3, 0.56, 0.62, -0.45)
    b.ellipse(-0.44, -0.34, -0.2, 0.1, 0.35)


def _book(b: Brush) -> None:
    b.polygon([(0.5, -1.0), (0.76, -0.84), (0.76, 0.86), (0.5, 1.0)], PALE)
    b.block(-0.72, -1.0, 0.56, 1.0, radius=0.06)
    b.block(-0.72, -1.0, -0.46, 1.0, -0.28, radius=0.06)
    b.block(-0.26, -0.66, 0.36, -0.22, PALE)
    b.block(-0.14, -0.5, 0.24, -0.38, -0.4)


def _clock(b: Brush) -> None:
    b.line([(-0.42, 0.6), (-0.62, 0.98)], 0.2, -0.35)
    b.line([(0.42, 0.6), (0.62, 0.98)], 0.2, -0.35)
    b.ellipse(-0.86, -1.0, -0.16, -0.36, -0.15)
    b.ellipse(0.16, -1.0, 0.86, -0.36, -0.15)
    b.ellipse(-0.86, -0.78, 0.86, 0.94)
    b.ellipse(-0.52, -0.44, 0.52, 0.6, PALE)
    b.line([(0.0, -0.28), (0.0, 0.08), (0.26, 0.26)], 0.11, INK)


def _plant(b: Brush) -> None:
    for angle, long, tone in ((-66, 0.98, -0.2), (66, 0.98, -0.25), (-34, 1.24, 0.0), (34, 1.24, -0.1), (0, 1.36, 0.2)):
        b.polygon(_leaf(angle, long), tone)
    b.polygon([(-0.46, 0.36), (0.46, 0.36), (0.32, 1.0), (-0.32, 1.0)], CLAY)
    b.block(-0.52, 0.3, 0.52, 0.5, (206, 182, 160), radius=0.05)


def _leaf(angle: float, long: float) -> Points:
    """Pointed at both ends, from the rim of the pot outwards; `angle` in degrees from upright."""
    along, across = (sin(radians(angle)), -cos(radians(angle))), (cos(radians(angle)), sin(radians(angle)))
    outline = [(0.0, 0.07), (0.25, 0.17), (0.5, 0.25), (0.75, 0.19), (1.0, 0.0)]
    sides = outline + [(way, -wide) for way, wide in reversed(outline)]
    return [
        (along[0] * way * long + across[0] * wide, 0.36 + along[1] * way * long + across[1] * wide)
        for way, wide in sides
    ]


def _box(b: Brush) -> None:
    b.polygon([(-0.94, -0.52), (0.0, -0.08), (0.0, 1.0), (-0.94, 0.54)])
    b.polygon([(0.94, -0.52), (0.0, -0.08), (0.0, 1.0), (0.94, 0.54)], -0.28)
    b.polygon([(0.0, -0.96), (0.94, -0.52), (0.0, -0.08), (-0.94, -0.52)], 0.3)
    b.polygon([(-0.55, -0.7), (-0.4, -0.78), (0.55, -0.34), (0.4, -0.27)], PALE)


_PAINTERS: dict[str, Callable[[Brush], None]] = {
    "mug": _mug, "chair": _chair, "lamp": _lamp, "shoe": _shoe, "bag": _bag, "bottle": _bottle,
    "table": _table, "hat": _hat, "book": _book, "clock": _clock, "plant": _plant, "box": _box,
}  # fmt: skip
