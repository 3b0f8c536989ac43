"""Shades one thing by itself: turned bodies, boxes, leaves, under one sun.

Two 8-bit planes come of it: `cover` (255 inside, antialiased) and `light` (0 dark .. 200 lit, above that a highlight).
Arithmetic is float64 add, multiply, divide and square root alone, which IEEE 754 fixes, so that the planes are the
same on every machine. Lengths are in canvas widths.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float64]
Outline = tuple[tuple[float, float], ...]  # (height, radius) from the foot up

S = 512  # the largest canvas that is kept, in pixels
FINE = 2 * S  # drawn at twice that and reduced: the antialiasing
BASE = 0.9  # things stand in the middle, on this y
TILT = 0.17  # height over width of a horizontal circle: the camera looks down a little
SUN = (-0.58, 0.56, 0.59)  # towards the light: left, up, front
HALF = (-0.325, 0.314, 0.892)  # between the light and the eye: where highlights sit


class Canvas:
    """Paints back to front. Positions are in canvas widths, x to the right, y down; both planes are FINE x FINE."""

    def __init__(self) -> None:
        self.cover = np.zeros((FINE, FINE), np.uint8)
        self.light = np.full((FINE, FINE), 110, np.uint8)
        grid = (np.arange(FINE) + 0.5) / FINE
        self.x, self.y = grid[None, :], grid[:, None]

    def trimmed(self) -> tuple[tuple[tuple[Image.Image, Image.Image], ...], tuple[float, float, float, float]]:
        """(cover, light) in mode L at S, S/2, S/4 and S/8 pixels a canvas, and the box that they span."""
        left, top, right, bottom = Image.fromarray(self.cover).getbbox() or (0, 0, FINE, FINE)
        coarse = 16  # a pixel of the smallest level: every level is cut at whole pixels
        box = (left // coarse * coarse, top // coarse * coarse, right + -right % coarse, bottom + -bottom % coarse)
        cover, light = (Image.fromarray(plane).crop(box) for plane in (self.cover, self.light))
        levels = tuple((cover.reduce(2**k), light.reduce(2**k)) for k in (1, 2, 3, 4))
        return levels, (box[0] / FINE, box[1] / FINE, box[2] / FINE, box[3] / FINE)

    def paint(
        self, rows: slice, columns: slice, inside: NDArray[np.bool_], light: Plane, *, solid: bool = True
    ) -> None:
        """Paints `light` where `inside`; not `solid`: light only, under the edge, so that edges do not fray dark."""
        self.light[rows, columns][inside] = np.clip(light, 0, 255).astype(np.uint8)[inside]
        if solid:
            self.cover[rows, columns][inside] = 255

    def window(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice, Plane, Plane]:
        columns = slice(max(0, int(x0 * FINE) - 1), min(FINE, int(x1 * FINE) + 2))
        rows = slice(max(0, int(y0 * FINE) - 1), min(FINE, int(y1 * FINE) + 2))
        return rows, columns, self.x[:, columns], self.y[rows]

    def turn(self, points: Outline, *, is_open: bool) -> None:
        """A thing turned about its axis: discs from the foot up, each hiding all but the front rim of those below."""
        heights, radii = _smooth(points)
        slopes = np.gradient(radii, heights)
        for margin in (3 / FINE, 0.0):
            few = slice(None, None, 4 if margin else 1)
            for height, radius, slope in zip(heights[few], radii[few], slopes[few], strict=True):
                self.disc(height, radius + margin, min(max(slope, -30), 30), solid=not margin)
        top, height = float(radii[-1]), float(heights[-1])
        if points[-1][1] > 0.02:
            rows, columns, x, y = self.window(0.5 - top, 0.5 + top, BASE - height - top, BASE - height + top)
            u, v = (x - 0.5) / top, (y - BASE + height) / (top * TILT)
            square = u * u + v * v
            self.paint(rows, columns, square <= 1, 196 - 12 * u + 0 * v)
            if is_open:
                inner = (1 - 0.022 / top) ** 2
                self.paint(rows, columns, square <= inner, 96 + 62 * u + 26 * v)

    def disc(self, height: float, radius: float, slope: float, *, solid: bool) -> None:
        rows, columns, x, y = self.window(
            0.5 - radius, 0.5 + radius, BASE - height - radius * TILT, BASE - height + radius * TILT
        )
        u = (x - 0.5) / max(radius, 1e-6)
        v = (y - BASE + height) / max(radius * TILT, 1e-6)
        inside = u * u + v * v <= 1
        across = 1 / math.sqrt(1 + slope * slope)
        front = np.sqrt(np.maximum(0, 1 - u * u))
        self.paint(rows, columns, inside, _lit(u * across, -slope * across, front * across) + 0 * v, solid=solid)

    def ring(self, x0: float, y0: float, radius: float, thick: float) -> None:
        """A handle: a ring of `radius` and half thickness `thick` that faces the eye."""
        rows, columns, x, y = self.window(x0 - 2 * radius, x0 + 2 * radius, y0 - 2 * radius, y0 + 2 * radius)
        dx, dy = x - x0, y - y0
        away = np.sqrt(dx * dx + dy * dy)
        across = (away - radius) / thick
        for margin in (0.12, 0.0):
            inside = np.abs(across) <= 1 + margin
            bend = np.clip(across, -1, 1) / np.maximum(away, 1e-6)
            light = _lit(dx * bend, -dy * bend, np.sqrt(np.maximum(0, 1 - np.clip(across, -1, 1) ** 2)))
            self.paint(rows, columns, inside, light, solid=not margin)

    def stack(self, parts: tuple[tuple[float, float, float], ...], *, pages: bool = False) -> None:
        """Boxes upon one another: (height, half width, shift) each, turned so that two sides and the top show."""
        foot = BASE
        for height, half, shift in parts:
            x, y, up = 0.5 + shift, foot + half * 0.36, (0.0, -height)
            left, right, corner = (x - half, y - half * 0.3), (x + half, y - half * 0.42), (x - half * 0.28, y)
            back = (left[0] + right[0] - corner[0], left[1] + right[1] - corner[1])
            self.polygon([left, corner, _add(corner, up), _add(left, up)], 168, 24)
            self.polygon([corner, right, _add(right, up), _add(corner, up)], 92, 26)
            if pages:
                low, high = (0.0, -0.2 * height), (0.0, -0.82 * height)
                self.polygon([_add(corner, low), _add(right, low), _add(right, high), _add(corner, high)], 236, 10)
            self.polygon([_add(left, up), _add(corner, up), _add(right, up), _add(back, up)], 204, 12)
            foot -= height

    def polygon(self, corners: list[tuple[float, float]], light: float, fall: float) -> None:
        """A convex polygon, counter-clockwise on the screen; `light` falls by `fall` from its top to its foot."""
        xs, ys = [c[0] for c in corners], [c[1] for c in corners]
        for margin in (3 / FINE, 0.0):
            rows, columns, x, y = self.window(min(xs) - margin, max(xs) + margin, min(ys) - margin, max(ys) + margin)
            inside = np.ones((y.shape[0], x.shape[1]), np.bool_)
            for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
                length = math.sqrt((bx - ax) * (bx - ax) + (by - ay) * (by - ay))
                inside &= ((y - ay) * (bx - ax) - (x - ax) * (by - ay)) / length <= margin
            shade = light - fall * (y - min(ys)) / (max(ys) - min(ys)) + 0 * x
            self.paint(rows, columns, inside, shade, solid=not margin)

    def sprig(self) -> None:
        """Three stems with leaves in pairs, rising from the foot."""
        for lean, tall in ((-0.36, 0.56), (0.4, 0.5), (0.06, 0.74)):

            def stem(t: float, lean: float = lean, tall: float = tall) -> tuple[float, float]:
                return 0.5 + lean * tall * t * (0.6 + 0.4 * t), BASE - tall * t * (1 - 0.12 * abs(lean) * t)

            for k in range(80):
                x, y = stem(k / 79)
                self.leaf(x, y + 0.02, 0.0, 1.0, 0.03, 0.006, 90)
            for k in range(5):
                t = 0.34 + 0.14 * k
                x, y = stem(t)
                size = 0.17 - 0.016 * k
                for side in (-1.0, 1.0):
                    self.leaf(x, y + (0.02 if side > 0 else 0), side * 0.83, 0.56, size, size * 0.25, 150 - 26 * side)
            self.leaf(*stem(0.98), 0.15 + lean * 0.5, 0.95, 0.13, 0.034, 165)

    def bloom(self) -> None:
        """One round flower of three rings of petals, its middle at the canvas's middle."""
        for count, length, light in ((8, 0.47, 128), (8, 0.4, 150), (6, 0.24, 180)):
            for k in range(count):
                up, along = _circle(k, count)
                self.leaf(0.5, 0.5, along, up, length, length * 0.3, light + 14 * up)
        rows, columns, x, y = self.window(0.42, 0.58, 0.42, 0.58)
        square = ((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.0049
        self.paint(rows, columns, square <= 1, 238 - 20 * square)

    def leaf(self, x0: float, y0: float, along: float, up: float, length: float, width: float, light: float) -> None:
        """A leaf from (x0, y0) towards (along, up), a unit vector."""
        rows, columns, x, y = self.window(x0 - length, x0 + length, y0 - length, y0 + length)
        t = ((x - x0) * along - (y - y0) * up) / length
        s = ((x - x0) * up + (y - y0) * along) / width
        for margin in (0.12, 0.0):
            inside = (np.abs(s) <= 4 * t * (1 - t) * (1.25 - 0.5 * t) + margin) & (t >= 0) & (t <= 1)
            self.paint(rows, columns, inside, light + 22 * t - 20 * np.sign(s) * along, solid=not margin)


def _lit(x: Plane, y: Plane | float, z: Plane) -> Plane:
    """The light on a surface whose unit normal points right x, up y, to the front z."""
    facing = 0.5 + 0.5 * (x * SUN[0] + y * SUN[1] + z * SUN[2])
    shine = np.maximum(0, x * HALF[0] + y * HALF[1] + z * HALF[2])
    for _ in range(5):
        shine = shine * shine  # to the 32nd
    bounce = np.maximum(0, 0.85 * x - 0.4 * y)
    light: Plane = 24 + 168 * facing * facing * (1.6 - 0.6 * facing) + 26 * bounce * bounce * bounce + 55 * shine
    return light


def _smooth(points: Outline) -> tuple[Plane, Plane]:
    """Heights, one a fine row, and the radii on a curve through `points` that never overshoots them.

    Piecewise cubic Hermite with the harmonic mean of neighbouring slopes as tangents (Fritsch and Butland, 1984).
    """
    y, r = np.array([p[0] for p in points], np.float64), np.array([p[1] for p in points], np.float64)
    slopes = (r[1:] - r[:-1]) / (y[1:] - y[:-1])
    left, right = slopes[:-1], slopes[1:]
    same = left * right > 0
    middle = np.where(same, 2 * left * right / np.where(same, left + right, 1.0), 0.0)
    tangents = np.concatenate([slopes[:1], middle, slopes[-1:]])
    heights = np.linspace(0, y[-1], max(8, int(y[-1] * FINE)))
    k = np.clip(np.searchsorted(y, heights, side="right") - 1, 0, len(y) - 2)
    span = y[k + 1] - y[k]
    t = (heights - y[k]) / span
    rise = t * t * (3 - 2 * t)
    radii = r[k] * (1 - rise) + r[k + 1] * rise
    radii += span * t * (1 - t) * ((1 - t) * tangents[k] - t * tangents[k + 1])
    for reach in (29, 15) if len(points) < 20 else ():  # few points make corners
        padded = np.concatenate([np.full(reach, radii[0]), radii, np.full(reach, radii[-1])])
        sums = np.concatenate([[0.0], np.cumsum(padded)])
        means = (sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)
        radii = np.where(np.abs(means - radii) > 0.006, radii, means)  # a lampshade's rim stays sharp
    return heights, np.maximum(radii, 0)


def _circle(k: int, count: int) -> tuple[float, float]:
    """Cosine and sine of k / count turns, by a fixed series: the C library's may differ in the last bit."""
    turn = 2 * 3.141592653589793 * (k / count - 0.5)
    cosine = sine = 0.0
    term = 1.0
    for n in range(24):
        if n % 2 == 0:
            cosine += term * (-1) ** (n // 2)
        else:
            sine += term * (-1) ** (n // 2)
        term *= turn / (n + 1)
    return -cosine, -sine


def _add(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    return a[0] + b[0], a[1] + b[1]
