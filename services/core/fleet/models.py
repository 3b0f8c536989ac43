"""Models by name, each with its current revision: what clients may ask for, whether or not a worker is running.

Workers publish their model card when they are ready; submissions are checked against it. Functions take an open
transaction.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.fleet import workers
from services.core.model.specs import ModelCard

_REGISTER = statement("models.register")("""
INSERT INTO models (name, revision, default_width, default_height, default_steps, default_guidance_scale)
VALUES (:name, :revision, :width, :height, :steps, :guidance_scale)
ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, default_width = excluded.default_width,
  default_height = excluded.default_height, default_steps = excluded.default_steps,
  default_guidance_scale = excluded.default_guidance_scale
""")
_REGISTER_SHAPE = statement("models.register_shape")("""
INSERT INTO model_shapes (model_revision, width, height, max_steps) VALUES (:revision, :width, :height, :max_steps)
ON CONFLICT (model_revision, width, height) DO UPDATE SET max_steps = excluded.max_steps
""")
_NAMES = statement("models.names")("SELECT name FROM models ORDER BY name")
_CATALOGUE = statement("models.catalogue")("""
SELECT m.name, m.revision, m.default_width, m.default_height, m.default_steps, m.default_guidance_scale,
       m.registered_at, s.width, s.height, s.max_steps
FROM models m JOIN model_shapes s ON s.model_revision = m.revision
ORDER BY m.name, s.width * s.height, s.width
""")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that clients may ask for: current revision, defaults, and sizes (width, height) -> maximum of steps."""

    name: str
    revision: str
    default_size: tuple[int, int]
    default_steps: int
    default_guidance_scale: float
    sizes: dict[tuple[int, int], int]
    registered_at: datetime


class Catalogue(dict[str, Model]):
    """Models by name. If there is none, `reason` says why."""

    reason = "no worker has been up"


def register(connection: Connection, card: ModelCard) -> None:
    """Makes the card's revision the model's current one."""
    width, height = card.default_size
    values = {"name": card.name, "revision": card.revision, "width": width, "height": height}
    connection.execute(_REGISTER, values | {"steps": card.default_steps, "guidance_scale": card.default_guidance_scale})
    sizes = [
        {"revision": card.revision, "width": width, "height": height, "max_steps": card.max_steps}
        for width, height in card.sizes
    ]
    connection.execute(_REGISTER_SHAPE, sizes)


def names(connection: Connection) -> list[str]:
    return list(connection.execute(_NAMES).scalars())


def catalogue(connection: Connection) -> Catalogue:
    """Every model by name."""
    found = Catalogue()
    for row in connection.execute(_CATALOGUE):
        model = found.setdefault(
            row.name,
            Model(
                row.name,
                row.revision,
                (row.default_width, row.default_height),
                row.default_steps,
                row.default_guidance_scale,
                {},
                row.registered_at,
            ),
        )
        model.sizes[row.width, row.height] = row.max_steps
    if not found and (doing := workers.starting(connection)):
        found.reason = f"a worker is starting ({doing[0]}); submit again when it is ready"
    return found
