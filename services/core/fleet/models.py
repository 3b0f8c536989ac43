"""Models by name, each with its current revision: what clients may ask for, whether or not a worker is running.

Workers publish their model card when they are ready; submissions are checked against it. Functions take an open
transaction.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.fleet import workers
from services.core.model import classes
from services.core.model.licenses import License
from services.core.model.long_prompts import LongPrompts
from services.core.model.specs import ModelCard

_REGISTER = statement("models.register")("""
INSERT INTO models (name, revision, default_width, default_height, default_steps, default_guidance_scale, long_prompts,
  license, redraws)
VALUES (:name, :revision, :width, :height, :steps, :guidance_scale, :long_prompts,
  CAST(:license AS jsonb), :redraws)
ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, default_width = excluded.default_width,
  default_height = excluded.default_height, default_steps = excluded.default_steps,
  default_guidance_scale = excluded.default_guidance_scale, long_prompts = excluded.long_prompts,
  license = excluded.license,
  redraws = excluded.redraws OR (models.redraws AND models.revision = excluded.revision)
""")
_REGISTER_SHAPE = statement("models.register_shape")("""
INSERT INTO model_shapes (model_revision, width, height, max_steps) VALUES (:revision, :width, :height, :max_steps)
ON CONFLICT (model_revision, width, height) DO UPDATE SET max_steps = excluded.max_steps
""")
_REGISTER_CLASS = statement("models.register_class")("""
INSERT INTO model_classes (model_revision, reproducibility_class, device_kind, batch_size)
VALUES (:revision, :name, :device_kind, :batch_size)
ON CONFLICT DO NOTHING
""")
_CLASSES = statement("models.classes")("""
SELECT m.name, c.reproducibility_class
FROM models m JOIN model_classes c ON c.model_revision = m.revision
ORDER BY m.name, c.device_kind, c.batch_size DESC, c.reproducibility_class LIMIT 1000
""")
_NAMES = statement("models.names")("SELECT name FROM models ORDER BY name")
_REGISTRY = statement("models.registry")("""
SELECT m.name, m.revision, m.default_width, m.default_height, m.default_steps, m.default_guidance_scale,
       m.registered_at, m.license, m.long_prompts IS NOT NULL AS reads_long_prompts, m.redraws, s.width, s.height,
       s.max_steps
FROM models m JOIN model_shapes s ON s.model_revision = m.revision
ORDER BY m.name, s.width * s.height, s.width
""")

_LONG_PROMPTS = statement("models.long_prompts")(
    "SELECT revision, long_prompts FROM models WHERE revision = ANY(:revisions) AND long_prompts IS NOT NULL"
)
_MOST_KEPT = 16
_counters: dict[str, LongPrompts] = {}  # by revision, which decides them: they are large, and remember words


@dataclass(frozen=True, slots=True)
class Model:
    """A model that clients may ask for: current revision, defaults, and sizes (width, height) -> maximum of steps.
    `long_prompts` counts the chunks of its prompts; None if it cuts them. `redraws`: it takes input pictures."""

    name: str
    revision: str
    default_size: tuple[int, int]
    default_steps: int
    default_guidance_scale: float
    sizes: dict[tuple[int, int], int]
    registered_at: datetime
    long_prompts: LongPrompts | None = None
    license: License | None = None
    redraws: bool = False


class Registry(dict[str, Model]):
    """Models by name. If there is none, `reason` says why. `classes` are for who shows them."""

    reason = "no worker has been up"
    classes: Mapping[str, list[str]] = MappingProxyType({})


def register(connection: Connection, card: ModelCard, served: Iterable[str] = ()) -> None:
    """Makes the card's revision the model's current one. `served` are the reproducibility classes of a worker."""
    width, height = card.default_size
    values = {"name": card.name, "revision": card.revision, "width": width, "height": height}
    values |= {"steps": card.default_steps, "guidance_scale": card.default_guidance_scale, "redraws": card.redraws}
    known = None if card.license is None else json.dumps(card.license.as_json())
    connection.execute(_REGISTER, values | {"long_prompts": card.long_prompts, "license": known})
    sizes = [
        {"revision": card.revision, "width": width, "height": height, "max_steps": card.max_steps}
        for width, height in card.sizes
    ]
    connection.execute(_REGISTER_SHAPE, sizes)
    rows = [
        {"revision": card.revision, "name": name, "device_kind": parts.device_kind, "batch_size": parts.batch_size}
        for name in sorted(served)
        if (parts := classes.parse(name)) is not None
    ]
    if rows:
        connection.execute(_REGISTER_CLASS, rows)


def names(connection: Connection) -> list[str]:
    return list(connection.execute(_NAMES).scalars())


def known_classes(connection: Connection) -> dict[str, list[str]]:
    """The reproducibility classes that workers have served of each model's current revision."""
    found: dict[str, list[str]] = {}
    for row in connection.execute(_CLASSES):
        found.setdefault(row.name, []).append(row.reproducibility_class)
    return found


def registry(connection: Connection) -> Registry:
    """Every model by name."""
    found = Registry()
    rows = connection.execute(_REGISTRY).all()
    counters = _counters_of(connection, {row.revision for row in rows if row.reads_long_prompts})
    for row in rows:
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
                counters.get(row.revision),
                None if row.license is None else License.from_json(row.license),
                row.redraws,
            ),
        )
        model.sizes[row.width, row.height] = row.max_steps
    if not found and (doing := workers.starting(connection)):
        found.reason = f"a worker is starting ({doing[0]}); submit again when it is ready"
    return found


def _counters_of(connection: Connection, revisions: set[str]) -> dict[str, LongPrompts]:
    known = ((revision, _counters.get(revision)) for revision in revisions)
    found = {revision: counter for revision, counter in known if counter is not None}
    if unknown := revisions - found.keys():
        rows = connection.execute(_LONG_PROMPTS, {"revisions": list(unknown)}).all()
        read = {row.revision: LongPrompts(row.long_prompts) for row in rows}
        if len(_counters) + len(read) > _MOST_KEPT:  # another thread may do the same: what is read is not in here alone
            _counters.clear()
        _counters.update(read)
        found |= read
    return found
