"""Who serves what: the live workers of model revisions, and which of them may claim images of a shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.core.fleet import drains
from services.core.fleet.abilities import Abilities, reported
from services.core.model.specs import Shape

# SQL: the live workers that are not drained, as `read` takes them; a condition on their revision follows.
LIVE = f"""
SELECT json_agg(json_build_array(model_revision, device, {reported("workers")}) ORDER BY device) FROM workers
WHERE seen_at BETWEEN now() - interval '15 seconds' AND now() + interval '15 seconds'
  AND state IN ('ready', 'busy') AND {drains.NOT_DRAINED} AND model_revision
"""  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Serving:
    """The live workers of some revisions that are not drained: revision, device and what each is able to render."""

    workers: tuple[tuple[str, str, Abilities], ...]

    def of(self, shape: Shape) -> list[str]:
        """The devices of those that may claim images of that shape."""
        return [
            device for revision, device, able in self.workers if revision == shape.model_revision and able.serves(shape)
        ]

    def lacks(self, shape: Shape) -> bool:
        """Whether workers of its revision are up, and none may claim images of that shape."""
        return any(revision == shape.model_revision for revision, _, _ in self.workers) and not self.of(shape)

    def ignores_classes(self, shape: Shape) -> bool:
        """Whether a worker of its revision is up that renders any class: of a release that knows none."""
        return any(revision == shape.model_revision and not able.classes for revision, _, able in self.workers)


def read(rows: Sequence[Any] | None) -> Serving:
    """What LIVE found."""
    return Serving(tuple((revision, device, Abilities.read(able)) for revision, device, able in rows or ()))


def nobody(shape: Shape) -> str:
    """Why nobody of the workers that are up can render that shape, and what to do: the end of a sentence."""
    if shape.reproducibility_class:
        return f'no worker that is up renders in the class "{shape.reproducibility_class}": start one that does'
    picture = f"{shape.width}x{shape.height} in {shape.steps} steps"
    return f"no worker that is up is able to render {picture}{' over an input' if shape.first_step else ''}: start one"
