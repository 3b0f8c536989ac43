"""Charts of throughput: the numbers that a script draws, and the same in words and in a table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from services.dashboard import words


class Point(Protocol):
    """What was finished in some seconds from a moment on, and how fast."""

    @property
    def at(self) -> datetime: ...
    @property
    def done(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def rate(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Chart:
    """`points` in order of time; `each` names what a point stands for: minute, hour, or span of any length."""

    points: Sequence[Point]
    each: str

    @property
    def numbers(self) -> str:
        """For the script (static/chart.js): the ends of the points are the beginnings of the next ones."""
        if not self.points:
            return ""
        last = self.points[-1]
        return json.dumps(
            {
                "each": self.each,
                "at": [int(point.at.timestamp()) for point in self.points],
                "end": int(last.at.timestamp() + last.seconds) + 1,
                "rate": [round(point.rate, 4) for point in self.points],
                "failing": [round(_failing(point), 4) for point in self.points],
                "done": [point.done for point in self.points],
                "failed": [point.failed for point in self.points],
            }
        )

    @property
    def busy(self) -> list[Point]:
        """The points in which something was finished, the newest first."""
        return [point for point in reversed(self.points) if point.done or point.failed]

    @property
    def has_failures(self) -> bool:
        return any(point.failed for point in self.points)

    @property
    def summary(self) -> str:
        if not self.busy:
            return "No image was finished."
        done, failed = (sum(getattr(point, name) for point in self.points) for name in ("done", "failed"))
        said = f"{words.plural(done, 'image')} done" + (f", {failed:,} failed" if failed else "")
        best = max(self.points, key=lambda point: point.rate)
        return f"{said}; at most {words.rate(best.rate)} a second."


def _failing(point: Point) -> float:
    """The part of the rate that failed."""
    return point.rate * point.failed / max(1, point.done + point.failed)
