"""Which shape a request gets: its model's revision, size, steps and guidance, if a model serves it."""

from dataclasses import dataclass

from services.core.fleet.models import Registry
from services.core.model import classes, requests, strict_json
from services.core.model.errors import Problem
from services.core.model.specs import DEFAULT_STRENGTH, Shape, first_step


@dataclass(frozen=True, slots=True)
class Served:
    """`model` is the name under which it was asked for."""

    model: str
    shape: Shape
    guidance_scale: float


def resolve(
    models: Registry, request: requests.Defaults, default_model: str, *, prefix: str = "", place: int | None = None
) -> Served | Problem:
    """Completes the request's shape by its model's defaults. A Problem, with names that begin with `prefix`, if no
    model serves it."""

    def refused(code: str, field: str, rule: str, found: object) -> Problem:
        param = prefix + field
        return Problem(code, f"{param} is {strict_json.describe(found)}; it {rule}.", param, place)

    name = default_model if request.model is None else request.model
    if not models:
        return Problem("unknown_model", f"There is no model yet: {models.reason}.", f"{prefix}model", place)
    model = models.get(name)
    if model is None:
        return refused("unknown_model", "model", f"must be one of: {', '.join(sorted(models))}", name)
    size = model.default_size if request.size is None else requests.size_pixels(request.size)
    max_steps = model.sizes.get(size)
    if max_steps is None:
        served = ", ".join(f"{w}x{h}" for w, h in model.sizes)
        return refused("unserved_size", "size", f"must be one of: {served}", request.size)
    steps = model.default_steps if request.num_inference_steps is None else request.num_inference_steps
    if steps > max_steps:
        return refused("unserved_steps", "num_inference_steps", f"must be a whole number from 1 to {max_steps}", steps)
    asked = request.reproducibility_class or ""
    if asked and (parts := classes.parse(asked)) is not None:
        if parts.revision != model.revision:
            rule = f'must be a class of the model\'s revision and begin with "{model.revision}/"'
            return refused("unserved_class", "reproducibility_class", rule, asked)
        if parts.is_of_single_images:
            rule = "must be the class of a worker: none renders a whole job with the second try of its decoder"
            return refused("unserved_class", "reproducibility_class", rule, asked)
    guidance = model.default_guidance_scale if request.guidance_scale is None else request.guidance_scale
    if request.image is None:
        if request.strength is not None:
            return refused("invalid_value", "strength", "needs an image beside it", request.strength)
        shape = Shape(model.revision, *size, steps, guidance > 1.0, reproducibility_class=asked)
        return Served(name, shape, guidance)
    if not model.redraws:
        message = f"The model {name} takes no input pictures; leave {prefix}image out."
        return Problem("unsupported_image", message, f"{prefix}image", place)
    strength = DEFAULT_STRENGTH if request.strength is None else request.strength
    first = first_step(steps, strength)
    if first > steps:
        least = f"must be at least {1 / steps:.2g}: with {steps} steps, less leaves none to render"
        return refused("invalid_value", "strength", least, strength)
    shape = Shape(model.revision, *size, steps, guidance > 1.0, first_step=first, reproducibility_class=asked)
    return Served(name, shape, guidance)
