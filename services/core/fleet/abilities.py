"""What a worker can render, as it says in its report: the claim, the lanes and the tail of the work go by it."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from services.core.model.specs import ModelCard, Shape

ANY_STEPS = 10_000
# What `Abilities.read` reads of a report.
NAMES = ("sizes", "max_steps", "classes", "redraws", "long_prompts", "too_large")

_FIELDS = {field.name for field in fields(Shape)}
_REQUIRED = {field.name for field in fields(Shape) if field.default is MISSING}


def reported(alias: str) -> str:
    """SQL: what `Abilities.read` reads of the report of a row of workers."""
    fields = ", ".join(f"'{name}', {alias}.report->'{name}'" for name in NAMES)
    return f"json_build_object({fields})"


@dataclass(frozen=True, slots=True)
class Abilities:
    """`sizes` as "512x512"; None: any. `classes` maps each declared batch size to the reproducibility class of its
    batches; empty for a worker of the release before, which knows none. `too_large` maps a shape to the least batch
    size that did not fit the device's memory."""

    sizes: tuple[str, ...] | None = None
    max_steps: int = ANY_STEPS
    redraws: bool = True
    long_prompts: bool = True
    classes: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    too_large: Mapping[Shape, int] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, card: ModelCard, classes: Mapping[int, str], too_large: Mapping[Shape, int]) -> "Abilities":
        return cls(
            sizes=tuple(f"{width}x{height}" for width, height in card.sizes),
            max_steps=card.max_steps,
            redraws=card.redraws,
            long_prompts=card.long_prompts is not None,
            classes=classes,
            too_large=too_large,
        )

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> "Abilities":
        """From a report. Another release may say less: then nothing is known of it. A shape of which it says more is
        left out: this release does not know what that means."""
        said = {name: report[name] for name in NAMES if report.get(name) is not None}
        return cls(
            sizes=tuple(map(str, said["sizes"])) if "sizes" in said else None,
            max_steps=int(said.get("max_steps", ANY_STEPS)),
            redraws=bool(said.get("redraws", True)),
            long_prompts=bool(said.get("long_prompts", True)),
            classes={int(size): str(name) for size, name in said.get("classes", {}).items()},
            too_large={Shape(**shape): int(size) for shape, size in said.get("too_large", ()) if _is_known(shape)},
        )

    def as_report(self) -> dict[str, Any]:
        """What `read` reads."""
        return {
            "sizes": self.sizes,
            "max_steps": self.max_steps,
            "redraws": self.redraws,
            "long_prompts": self.long_prompts,
            "classes": {str(size): name for size, name in self.classes.items()},
            **self.limits(),
        }

    def limits(self) -> dict[str, Any]:
        """The part of the report that changes while the worker runs."""
        return {"too_large": [[asdict(shape), size] for shape, size in self.too_large.items()]}

    def serves(self, shape: Shape) -> bool:
        """Whether it may claim images of that shape, of its own revision, and in the class that was asked for."""
        return (
            (self.sizes is None or f"{shape.width}x{shape.height}" in self.sizes)
            and shape.steps <= self.max_steps
            and (self.redraws or not shape.first_step)
            and (self.long_prompts or shape.prompt_chunks == 1)
            and (not shape.reproducibility_class or self.batch_of(shape) > 0)
        )

    def batch_of(self, shape: Shape) -> int:
        """The size of its batches of that shape: of the class that was asked for, or else the largest that fits. 0: it
        has none, or says none."""
        limit = self.too_large.get(shape.rendered, 1 << 30)
        return max((size for size, name in self.classes.items() if size < limit and _suits(name, shape)), default=0)

    def values(self) -> dict[str, Any]:
        """The parameters of SERVED."""
        return {
            "redraws": self.redraws, "long_prompts": self.long_prompts, "max_steps": self.max_steps,
            "sizes": None if self.sizes is None else list(self.sizes),
            "classes": list(self.classes.values()), "refused": self.refused(),
        }  # fmt: skip

    def refused(self) -> list[str]:
        """The shapes, with their classes, that do not fit the device's memory, in words that the claim compares."""
        return [
            f"{words(shape)} {name}"
            for shape, limit in self.too_large.items()
            for size, name in self.classes.items()
            if size >= limit
        ]


def _is_known(shape: Mapping[str, Any]) -> bool:
    return _REQUIRED <= shape.keys() <= _FIELDS


def words(shape: Shape) -> str:
    """A shape as `WORDS` says it in SQL."""
    guided = "t" if shape.guided else "f"
    return f"{shape.width} {shape.height} {shape.steps} {guided} {shape.prompt_chunks} {shape.first_step}"


WORDS = "concat_ws(' ', width, height, steps, guided, prompt_chunks, first_step)"
# Of segments: what `serves` says, with the parameters of `values`.
SERVED = f"""
(:redraws OR first_step = 0) AND (:long_prompts OR prompt_chunks = 1) AND steps <= :max_steps
    AND (CAST(:sizes AS text[]) IS NULL OR width || 'x' || height = ANY(:sizes))
    AND (reproducibility_class = '' OR reproducibility_class = ANY(:classes)
         AND {WORDS} || ' ' || reproducibility_class <> ALL(:refused))"""


def _suits(name: str, shape: Shape) -> bool:
    return shape.reproducibility_class in ("", name)
