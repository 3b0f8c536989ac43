"""How fast each device renders each shape, as its workers measure it. Estimates are based on this.

A batch takes the same time whether it is full or not, because padding is rendered too. So its seconds are divided by
all of its slots. The result is the cost of an image in a full batch, however full the measured one was.
"""

import math
import threading
import time
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.model.specs import Shape

RECORD_SECONDS = 1.0  # a worker records no shape more often
WINDOW = 256  # images: the plain mean of the first ones, then an exponentially weighted mean

# An observation is weighted by its number of requested images. One row per device: workers do not wait for each other.
_RECORD = statement("throughput.record")(f"""
INSERT INTO render_rates AS r
  ({", ".join(columns.TIMED)}, device, images, seconds_per_image, deviation)
VALUES (:{", :".join(columns.TIMED)}, :device, :images, :seconds, 0)
ON CONFLICT ({", ".join(columns.TIMED)}, device) DO UPDATE SET
  (images, seconds_per_image, deviation, measured_at) = (
    SELECT r.images + excluded.images, r.seconds_per_image + weight * surprise,
           sqrt((1 - weight) * (r.deviation ^ 2 + weight * surprise ^ 2)), now()
    FROM (SELECT excluded.seconds_per_image - r.seconds_per_image AS surprise,
                 excluded.images::double precision
                 / least(r.images + excluded.images, greatest(:window, excluded.images)) AS weight) AS seen
  )
""")  # noqa: S608  our own text
_FORGET = statement("throughput.forget")("DELETE FROM render_rates WHERE measured_at < now() - interval '180 days'")


def record(connection: Connection, shape: Shape, device: str, *, images: int, seconds_per_image: float) -> None:
    """Updates the weighted mean and deviation of the seconds per image with the measurement of a claim of `images`."""
    connection.execute(
        _RECORD,
        {name: getattr(shape.timed, name) for name in columns.TIMED}
        | {
            "device": device,
            "images": images,
            "seconds": seconds_per_image,
            "window": WINDOW,
        },
    )


def forget(connection: Connection) -> int:
    """Deletes what was not measured for 180 days; returns how many."""
    return connection.execute(_FORGET).rowcount


@dataclass(frozen=True, slots=True)
class Measured:
    """Some images of one shape, and the mean of their seconds."""

    images: int = 0
    seconds_per_image: float = 0.0

    def plus(self, images: int, seconds_per_image: float) -> "Measured":
        total = self.images + images
        return Measured(total, self.seconds_per_image + (seconds_per_image - self.seconds_per_image) * images / total)


class Pending:
    """What one worker has measured and not recorded yet: so that a fast one writes once a second and not at each claim.
    Any thread may add."""

    def __init__(self) -> None:
        self._pending: dict[Shape, Measured] = {}
        self._recorded: dict[Shape, float] = {}
        self._guard = threading.Lock()

    def add(self, shape: Shape, images: int, seconds_per_image: float) -> Measured | None:
        """What is to be recorded now, this measurement among it; None: later."""
        now = time.monotonic()
        with self._guard:
            found = self._pending.pop(shape.timed, Measured()).plus(images, seconds_per_image)
            if now - self._recorded.get(shape.timed, -math.inf) < RECORD_SECONDS:
                self._pending[shape.timed] = found
                return None
            self._recorded[shape.timed] = now
        return found
