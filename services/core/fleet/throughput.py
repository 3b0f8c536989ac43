"""How fast each device renders each shape, as its workers measure it: what estimates are made of.

A pass takes as long for one image as for a full batch, padding being rendered too. So a pass's seconds are shared by
all its slots: that is what an image costs while there are enough of them, however full this batch happened to be.
"""

from dataclasses import asdict

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.model.specs import Shape

WINDOW = 256  # images: the plain mean of so many, then exponentially weighted, so that old ones fade

# An observation weighs as much as the images that were asked for. One row a device: nobody waits for another's commit.
_RECORD = statement("throughput.record")(f"""
INSERT INTO render_rates AS r
  ({", ".join(columns.SHAPE)}, device, images, seconds_per_image, deviation)
VALUES (:{", :".join(columns.SHAPE)}, :device, :images, :seconds, 0)
ON CONFLICT ({", ".join(columns.SHAPE)}, device) DO UPDATE SET
  (images, seconds_per_image, deviation, measured_at) = (
    SELECT r.images + excluded.images, r.seconds_per_image + weight * surprise,
           sqrt((1 - weight) * (r.deviation ^ 2 + weight * surprise ^ 2)), now()
    FROM (SELECT excluded.seconds_per_image - r.seconds_per_image AS surprise,
                 excluded.images::double precision
                 / least(r.images + excluded.images, greatest(:window, excluded.images)) AS weight) AS seen
  )
""")  # noqa: S608  our own text


def record(connection: Connection, shape: Shape, device: str, *, images: int, seconds_per_image: float) -> None:
    """Takes in what a claim of `images` showed: weighted mean and standard deviation of the seconds an image takes."""
    connection.execute(
        _RECORD,
        asdict(shape)
        | {
            "device": device,
            "images": images,
            "seconds": seconds_per_image,
            "window": WINDOW,
        },
    )
