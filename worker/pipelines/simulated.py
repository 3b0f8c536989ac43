"""The simulated pipeline: draws pictures without a model, with configurable timing and with faults on request.

It replaces an accelerator in the demo, the tests and the benchmarks of everything around the engine. Backend and device
are recorded as "simulated" with every image.
"""

import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from services.core.model.specs import ModelCard, Shape, Spec
from services.core.settings import Settings
from worker.pipeline import Batch, CompileFailed, InvalidOutput, OnStep, OutOfMemory, Picture, versions
from worker.pipelines.still_life import scene

REVISION = "simulated-1"  # raise it when the drawing changes, since the same spec must give the same file
SQUARES = (64, 128, 256, 512, 768, 1024)
SLOW_SECONDS = 1.0  # what `fault:slow` adds to each step

_FAULT = re.compile(r"fault:(raise|oom(?:>\d{1,4})?|hang|kill|nan|slow|flag)")


class SimulatedFault(Exception):
    """A prompt asked the simulated pipeline to fail, and PRESSWORK_SIMULATED_FAULTS lets it."""


class SimulatedPipeline:
    """Draws each image from its spec alone; a batch takes batch_ms + steps * step_ms + size * image_ms, all settings.

    With PRESSWORK_SIMULATED_FAULTS, these words in a wanted image's prompt cause faults: `fault:raise` (an exception
    that names no image), `fault:oom` and `fault:oom>N` (out of memory, at any batch size or above N), `fault:hang` and
    `fault:kill` (half way), `fault:nan` (invalid output for this image), `fault:slow` (one more second per step).
    `fault:flag` marks the picture as flagged by a safety checker.
    With PRESSWORK_SIMULATED_NOISE, the lowest bit of every value is drawn by chance: two renderings of one spec look
    alike and differ in bytes, as they do on devices that add in another order in another batch.
    A file named `sick` in PRESSWORK_MODEL_DIR makes every render raise, `sick-kill` ends the process, and
    `uncompilable` makes every `prepare` raise CompileFailed.
    """

    backend = "simulated"
    precision = "uint8"
    device: str  # "simulated", or "simulated:1 simulated" as the second of several
    device_kind = "simulated"
    checks = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        numbered = settings.device.startswith("simulated:")
        self.device = f"{settings.device} simulated" if numbered else "simulated"
        self.versions = versions()
        sizes = settings.sizes or (*((side, side) for side in SQUARES), (768, 512), (512, 768))
        self.card = ModelCard(
            name="simulated",
            revision=REVISION,
            sizes=sizes,
            max_steps=50,
            batch_sizes=settings.batch_sizes,
            default_size=(512, 512) if (512, 512) in sizes else sizes[0],
            default_steps=10,
            default_guidance_scale=7.5,
            redraws=True,
        )

    def prepare(self, shape: Shape, size: int) -> None:  # noqa: ARG002
        """There is nothing to compile."""
        if self._settings.model_dir and (Path(self._settings.model_dir) / "uncompilable").exists():
            raise CompileFailed("The simulated device has no compiler.")

    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture | InvalidOutput]:
        """Pictures uint8 (height, width, 3). Each step draws a share of them, within the configured time."""
        began = time.monotonic()
        self._fail_if_sick()
        faults = [self._faults(spec) if slot < batch.wanted else frozenset() for slot, spec in enumerate(batch.specs)]
        anywhere = frozenset[str]().union(*faults)
        _fail_at_once(anywhere, batch.size)
        steps = batch.shape.steps_done
        share = self._seconds(batch) / steps + (SLOW_SECONDS if "slow" in anywhere else 0.0)
        drawn: list[Picture | InvalidOutput] = []
        for step in range(1, steps + 1):
            if step == steps // 2 + 1:
                _fail_half_way(anywhere)
            due = range(len(drawn), batch.size * step // steps)
            outcomes = (_over_input(_outcome(batch.specs[slot], faults[slot]), batch, slot) for slot in due)
            drawn.extend(map(_noisy, outcomes) if self._settings.simulated_noise else outcomes)
            _sleep_until(began + share * step)
            on_step(step)
        return drawn

    def review(self, picture: Picture) -> Picture:
        """`fault:flag` has flagged it already."""
        return picture

    def memory(self) -> tuple[int, int] | None:
        """The machine's memory is used."""
        return None

    def close(self) -> None:
        """There is nothing to release."""

    def _seconds(self, batch: Batch) -> float:
        settings = self._settings
        steps = batch.shape.steps_done * settings.simulated_step_ms
        return (settings.simulated_batch_ms + steps + batch.size * settings.simulated_image_ms) / 1000

    def _faults(self, spec: Spec) -> frozenset[str]:
        return _faults_in(spec.prompt) if self._settings.simulated_faults else frozenset()

    def _fail_if_sick(self) -> None:
        if not self._settings.model_dir:
            return
        folder = Path(self._settings.model_dir)
        if (folder / "sick-kill").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (folder / "sick").exists():
            raise RuntimeError("simulated device failure")


def _outcome(spec: Spec, faults: frozenset[str]) -> Picture | InvalidOutput:
    if "nan" in faults:
        return InvalidOutput()
    return replace(_picture(spec), flagged=True) if "flag" in faults else _picture(spec)


def _over_input(drawn: Picture | InvalidOutput, batch: Batch, slot: int) -> Picture | InvalidOutput:
    """Over an input picture, what was drawn is as opaque as the share of the steps that were done."""
    if not batch.inputs or isinstance(drawn, InvalidOutput):
        return drawn
    below = batch.inputs[slot].astype(np.uint32) * (batch.shape.steps - batch.shape.steps_done)
    pixels = (drawn.pixels * np.uint32(batch.shape.steps_done) + below) // batch.shape.steps
    return replace(drawn, pixels=pixels.astype(np.uint8))


def _noisy(drawn: Picture | InvalidOutput) -> Picture | InvalidOutput:
    if isinstance(drawn, InvalidOutput):
        return drawn
    noise = np.random.default_rng().integers(0, 2, drawn.pixels.shape, dtype=np.uint8)
    return replace(drawn, pixels=drawn.pixels ^ noise)


@lru_cache(maxsize=1)
def _picture(spec: Spec) -> Picture:
    """Cached for the next slot, because padding repeats a spec."""
    pixels = scene.draw(spec)
    pixels.flags.writeable = False
    return Picture(pixels)


@lru_cache(maxsize=4096)
def _faults_in(prompt: str) -> frozenset[str]:
    """The fault words of a prompt, without their `fault:`."""
    return frozenset(_FAULT.findall(prompt)) if "fault:" in prompt else frozenset()


def _fail_at_once(faults: frozenset[str], size: int) -> None:
    for word in faults:
        kind, _, limit = word.partition(">")
        if kind == "oom" and size > int(limit or 0):
            raise OutOfMemory(f"The simulated device has too little memory for a batch of {size}.")
    if "raise" in faults:
        raise SimulatedFault


def _fail_half_way(faults: frozenset[str]) -> None:
    if "kill" in faults:
        os.kill(os.getpid(), signal.SIGKILL)
    while "hang" in faults:
        time.sleep(60)


def _sleep_until(deadline: float) -> None:
    remaining = deadline - time.monotonic()
    if remaining > 0:
        time.sleep(remaining)


def open_pipeline(settings: Settings) -> SimulatedPipeline:
    """Opens the pipeline; there is nothing to load."""
    return SimulatedPipeline(settings)
