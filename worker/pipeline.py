"""The Pipeline contract: what the worker's loop asks of whatever draws the pictures.

Implementations live in `worker/pipelines/`, where `registry.py` opens them by name. The contract suite in
`tests/contract/` is what they all pass.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import PressworkError, SettingsError
from services.core.model.specs import ModelCard, Shape, Spec
from services.core.settings import Settings


class OutOfMemory(PressworkError):
    """The device has no room for a batch of this size."""


class ModelUnusable(SettingsError):
    """The model directory does not fit."""


class DeviceSick(PressworkError):
    """The device failed on the known-good canary image."""


class CompileFailed(PressworkError):
    """What a batch needs cannot be compiled on this machine: neither a prompt nor the device is to blame."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A claim's images in the form a pipeline takes: `specs` is padded to a declared size, `wanted` are real.

    All specs share `shape`. Slots from `wanted` on are padding: rendered, and thrown away.
    """

    shape: Shape
    specs: tuple[Spec, ...]
    wanted: int

    @property
    def size(self) -> int:
        return len(self.specs)


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered image and what there is to say about it: `pixels` uint8 of shape (height, width, 3), RGB.

    `truncated`: the prompt was cut short. `flagged`: what the model's own safety checker says, None without one; the
    pixels are as they were drawn either way. `unknown_words`: words of the prompt, as it writes them and each once,
    that the model's vocabulary does not know.
    """

    pixels: NDArray[np.uint8]
    truncated: bool = False
    flagged: bool | None = None
    unknown_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InvalidOutput:
    """An image whose latents came out as NaN or Inf; it fails alone."""

    message: str = "The model's output for this image was not finite."


OnStep = Callable[[int], None]
"""Called after each denoising step with the number of steps done, 1..steps. May raise to stop the batch."""


class Pipeline(Protocol):
    """One compiled model on one device.

    Not thread-safe: the worker calls it from one thread at a time.
    """

    card: ModelCard
    backend: str  # "simulated", "torch", ...
    precision: str  # "fp32", "bf16", "fp16", ...
    device: str  # as people name it: "cpu", "cuda:0 NVIDIA H200"
    device_kind: str  # what decides bytes: "x86_64", "NVIDIA H200"
    versions: str  # of the programs that draw: "presswork 0.1.0, torch 2.13.0"

    def prepare(self, shape: Shape, size: int) -> None:
        """Compiles what a batch of `size` of that shape needs, if it is not compiled yet: it may take minutes.

        Raises:
            OutOfMemory: the device has no room for `size`; a smaller declared size may fit.
            CompileFailed: a compiler fails, or what it makes cannot be kept.
        """
        ...

    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture | InvalidOutput]:
        """Renders `batch.size` images, in order; what `on_step` raises passes through.

        Each image depends on its own spec and on `batch.size` alone, never on its slot or its neighbours.

        Raises:
            OutOfMemory: the device has no room for `batch.size`; a smaller declared size may fit.
            CompileFailed: as `prepare` does.
            Exception: anything else: some prompt of the batch cannot be rendered, or the device is sick.
        """
        ...

    def close(self) -> None:
        """Gives the device back."""
        ...


def versions(*packages: str) -> str:
    """Presswork's version and those of the packages that draw and encode, as they are installed here."""
    return ", ".join(f"{name} {_version(name)}" for name in ("presswork", "pillow", *packages))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a source tree that nobody installed
        return "source"


def reproducibility_class(pipeline: Pipeline, batch_size: int) -> str:
    """Within one class, the same spec gives the same file, byte for byte."""
    return "/".join(
        (pipeline.card.revision, pipeline.backend, pipeline.precision, pipeline.device_kind, str(batch_size))
    )


def canary(card: ModelCard, size: int) -> Batch:
    """The known-good image that tells a sick device from a bad prompt, alone in a batch of a declared `size`."""
    width, height = card.default_size
    spec = Spec(
        card.revision, "a red mug on a table", "", 7, width, height, card.default_steps, card.default_guidance_scale
    )
    return Batch(spec.shape, (spec,) * size, 1)


def artefacts(settings: Settings) -> Path:
    """The folder for what is compiled, shared by the workers of a host."""
    if settings.artefacts:
        return Path(settings.artefacts)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "presswork"
