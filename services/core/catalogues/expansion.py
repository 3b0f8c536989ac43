"""From an item to its pictures: each variant's templates, its seed and its shape make one spec and its render key.

The texts are checked as a request's are, and the shape is completed as a submission's is, so a key is the one that a
job with this request has.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from services.core.catalogues.definition import Definition, Variant
from services.core.catalogues.templates import Condition, Inapplicable, Template
from services.core.catalogues.version_list import FileShape
from services.core.files import files
from services.core.fleet import served
from services.core.fleet.models import Registry
from services.core.fleet.served import Served
from services.core.model import requests, strict_json
from services.core.model.errors import Problem
from services.core.model.requests import ImageRequest
from services.core.model.specs import DRAWN_SEEDS, SEED_LIMIT

ID_LIMIT = 512  # bytes
_SOME_FILE = files.public_id(0)  # which one it is makes no difference to a shape
_LATER = (
    "image",
    "strength",
    "reproducibility_class",
)  # fields of a variant that say nothing where they are not set, as before there were any


class NotDrawn(Exception):
    """This item has no picture of this variant: the variant's condition does not hold."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What one item and one variant become."""

    render_key: bytes
    prompt: str
    negative_prompt: str
    seed: int
    input_sha256: bytes = b""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A variant that is ready to be applied. `model` is the name of its shape's model; `digest` changes with anything
    that its definition says. `image`: what it redraws, to that `strength`, or to the usual one for None.
    `reproducibility_class`: the one that its pictures are asked for in; it decides no key."""

    catalogue: str
    name: str
    prompt: Template
    negative_prompt: Template | None
    when: Condition | None
    seed: str | int
    model: str
    shape: FileShape
    digest: bytes
    image: Template | None = None
    strength: float | None = None
    reproducibility_class: str = ""

    @property
    def fields(self) -> frozenset[str]:
        """The item's fields that it reads."""
        parts = (self.prompt, self.negative_prompt, self.when, self.image)
        return frozenset().union(*(part.fields for part in parts if part is not None))

    def photograph(self, fields: Mapping[str, Any]) -> str:
        """What it redraws of an item, as `photographs.py` reads it; empty, if it redraws nothing. Raises as `picture`
        does."""
        if self.when is not None and not self.when.holds(fields):
            raise NotDrawn
        found = "" if self.image is None else self.image.render(fields)
        if self.image is not None and not found:
            raise Inapplicable("empty_result", "The template of image gives nothing; `when` leaves such items out.")
        return found

    def picture(
        self, item: str, fields: Mapping[str, Any], redraws: int = 0, input_sha256: bytes = b""
    ) -> Picture:  # fmt: skip
        """Raises NotDrawn; Inapplicable, whose code and sentence say what is wrong with the item."""
        if self.when is not None and not self.when.holds(fields):
            raise NotDrawn
        texts = {"prompt": self.prompt.render(fields)}
        if not texts["prompt"]:
            raise Inapplicable("empty_result", "The template gives nothing but spaces.")
        if self.negative_prompt is not None:
            texts["negative_prompt"] = self.negative_prompt.render(fields)
        try:
            request = ImageRequest.model_validate(texts)
        except ValidationError as error:
            found = requests.problems(error, texts)[0]
            raise Inapplicable(found.code, found.message) from None
        seed = seed_of(self.seed, self.catalogue, item, self.name, redraws)
        key = self.shape.render_key(request.prompt, request.negative_prompt, seed, input_sha256)
        return Picture(key, request.prompt, request.negative_prompt, seed, input_sha256)


def seed_of(rule: str | int, catalogue: str, item: str, variant: str, redraws: int) -> int:
    """The seed of an item's variant that was drawn again so often, by the definition's rule: a number, or by id."""
    if isinstance(rule, int):
        return (rule + redraws) % SEED_LIMIT
    words = (catalogue, item, variant, *([str(redraws)] if redraws else []))
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:8], "big") % DRAWN_SEEDS


def fields(definition: Definition, variants: Sequence[Compiled]) -> list[str]:
    """The fields that are read of each item: its id first, then those that the templates name."""
    named = frozenset().union(*(variant.fields for variant in variants))
    return [definition.id, *sorted(named - {definition.id})]


def compile_variants(
    name: str, definition: Definition, models: Registry, default_model: str
) -> tuple[list[Compiled], list[Problem]]:
    """The variants, or what is wrong with them: a model, size or number of steps that nobody serves."""
    compiled, problems = [], []
    for title, variant in definition.variants.items():
        asked = {
            "model": variant.model or definition.model, "size": variant.size,
            "num_inference_steps": variant.num_inference_steps, "guidance_scale": variant.guidance_scale,
            "image": None if variant.image is None else _SOME_FILE, "strength": variant.strength,
            "reproducibility_class": variant.reproducibility_class or definition.reproducibility_class,
        }  # fmt: skip
        found = served.resolve(
            models, requests.Defaults.model_validate(asked), default_model, prefix=f"variants.{title}."
        )
        if isinstance(found, Problem):
            problems.append(found)
        else:
            compiled.append(_compiled(name, title, definition, variant, found))
    return compiled, problems


def _compiled(name: str, title: str, definition: Definition, variant: Variant, found: Served) -> Compiled:
    shape = found.shape
    compression: int | None = variant.output_compression
    if variant.output_format == "png":
        compression = None  # 100 is true of every PNG
    seed = definition.seed_of(variant)
    unsaid = {"seed", *(field for field in _LATER if getattr(variant, field) is None)}
    said = [variant.model_dump(mode="json", exclude=unsaid), definition.model, definition.id, seed, name, title]
    said += filter(None, [definition.reproducibility_class])
    return Compiled(
        catalogue=name,
        name=title,
        prompt=Template(variant.prompt),
        negative_prompt=Template(variant.negative_prompt) if variant.negative_prompt else None,
        when=Condition(variant.when) if variant.when else None,
        seed=seed,
        model=found.model,
        shape=FileShape(
            shape.model_revision, shape.width, shape.height, shape.steps, found.guidance_scale, variant.output_format,
            compression, shape.first_step,
        ),
        image=Template(variant.image) if variant.image else None,
        strength=variant.strength,
        reproducibility_class=shape.reproducibility_class,
        digest=hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()[:16],
    )  # fmt: skip


def item_id(value: object, column: str) -> str:
    """The id as text. Raises Inapplicable if it cannot be one. An id is data: it is never a part of a path."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    rule = f"text of 1 to {ID_LIMIT} bytes without controls, or a whole number"
    if value is None:
        raise Inapplicable("missing_id", f"{column} is empty; it must be {rule}.")
    if not isinstance(text, str) or len(text.encode("utf-8", "replace")) > ID_LIMIT or requests.is_forbidden(text):
        raise Inapplicable("invalid_id", f"{column} is {strict_json.describe(value)}; it must be {rule}.")
    return text.strip()
