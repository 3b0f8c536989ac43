"""Cloud AI 100 pipelines on the stand-in, for tests: what they are asked, and what they draw."""

import dataclasses
from collections.abc import Callable, Sequence

from services.core.model.specs import Spec
from worker.pipeline import Batch, Picture, Pipeline
from worker.pipelines.ai100 import placement
from worker.pipelines.ai100_stand_in import machine
from worker.pipelines.cloud_ai100 import Ai100Pipeline
from worker.pipelines.diffusion import DiffusionPipeline

SERVERS = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"}
RECIPE = str(placement.RECIPE)
Open = Callable[..., Ai100Pipeline]


def specs(count: int, **changes: object) -> tuple[Spec, ...]:
    usual = Spec("revision", "a red mug", "blurred", 7, 64, 64, 3, 7.5)
    return tuple(dataclasses.replace(usual, seed=n, guidance_scale=changes.get("guidance", 2.0 + n), **{
        name: value for name, value in changes.items() if name != "guidance"
    }) for n in range(count))  # fmt: skip


def drawn(pipeline: Pipeline, wanted: tuple[Spec, ...], size: int = 0, serial: bool = False) -> list[bytes]:
    batch = Batch(wanted[0].shape, (*wanted, *wanted[-1:] * (size - len(wanted))), len(wanted))
    render = DiffusionPipeline.render if serial else type(pipeline).render
    found = render(pipeline, batch, lambda step: None)
    return [picture.pixels.tobytes() for picture in found if isinstance(picture, Picture)][: len(wanted)]


def consecutive(pipeline: Ai100Pipeline, batches: Sequence[tuple[Spec, ...]]) -> list[list[bytes]]:
    """What `drawn` gives for each batch, the pictures of one being taken after the next one has begun."""
    begun, found = None, []
    for wanted in batches:
        later = pipeline.begin(Batch(wanted[0].shape, wanted, len(wanted)), lambda step: None)
        found += [begun.pictures()] if begun is not None else []
        begun = later
    found += [begun.pictures()] if begun is not None else []
    return [[one.pixels.tobytes() for one in pictures if isinstance(one, Picture)] for pictures in found]


def milliseconds(pipeline: Ai100Pipeline, images: int, steps: int) -> float:
    """Of the stand-in's clock, for an image of a batch that waits for nothing of the one before; the second of two
    batches is measured, as on a machine that works."""
    wanted = specs(images, steps=steps, negative_prompt="")
    drawn(pipeline, wanted)
    began = machine.CLOCK.host
    drawn(pipeline, wanted)
    return (machine.CLOCK.host - began) / images


def sustained(pipeline: Ai100Pipeline, images: int, steps: int, batches: int = 4) -> float:
    """Of the stand-in's clock, for an image where one batch follows the other, as in a worker."""
    wanted = specs(images, steps=steps, negative_prompt="")
    consecutive(pipeline, [wanted] * 2)
    ends: list[float] = []
    begun = None
    for _ in range(batches):
        later = pipeline.begin(Batch(wanted[0].shape, wanted, len(wanted)), lambda step: None)
        if begun is not None:
            begun.pictures()
            ends.append(machine.CLOCK.host)
        begun = later
    assert begun is not None
    begun.pictures()
    return (ends[-1] - ends[0]) / (len(ends) - 1) / images
