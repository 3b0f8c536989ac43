"""The Pipeline contract: what the render loop needs from an implementation that draws pictures.

Implementations are in `worker/pipelines/`; `registry.py` opens them by name. All of them pass the contract suite in
`tests/contract/`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from services.core.model import classes
from services.core.model.errors import PressworkError, SettingsError
from services.core.model.specs import ModelCard, Shape, Spec
from services.core.settings import Settings


class OutOfMemory(PressworkError):
    """The device has too little memory for a batch of this size."""


class ModelUnusable(SettingsError):
    """The model directory is unusable."""


class DeviceSick(PressworkError):
    """The device failed on the known-good canary image."""


class CompileFailed(PressworkError):
    """What a batch needs cannot be compiled on this machine; neither a prompt nor the device is at fault."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The specs to render in one pass, padded to a declared size. All of them share `shape`.

    The first `wanted` slots are images; the others are padding, which is rendered and discarded. If the shape begins
    with input pictures, `inputs` has one for each slot, uint8 (height, width, 3), RGB; equal ones are one array.
    """

    shape: Shape
    specs: tuple[Spec, ...]
    wanted: int
    inputs: tuple[NDArray[np.uint8], ...] = ()

    @property
    def size(self) -> int:
        return len(self.specs)


@dataclass(frozen=True, slots=True)
class Picture:
    """A rendered image: `pixels` uint8 of shape (height, width, 3), RGB.

    `truncated`: the prompt was cut to the text encoder's length. `flagged`: the verdict of the model's safety checker,
    None before `review` or without one; it changes no pixels. `unknown_words`: the prompt's words that the model's
    vocabulary lacks, as written, each once. `decoded_in`: the decoder's precision, if it is not the pipeline's own,
    whose range was too small for this image; the picture is then of a class of its own.
    """

    pixels: NDArray[np.uint8]
    truncated: bool = False
    flagged: bool | None = None
    unknown_words: tuple[str, ...] = ()
    decoded_in: str = ""


@dataclass(frozen=True, slots=True)
class InvalidOutput:
    """An image with NaN or Inf in its latents or pixels; the rest of its batch is valid."""

    message: str = "The model's output for this image was not finite."


OnStep = Callable[[int], None]
"""Called after each denoising step with the number of steps done, 1..`steps_done`. May raise to stop the batch.

A pipeline that renders a batch in passes calls it after each of these, with the steps that all its images have done, so
that its silence is as long for a batch as for the canary: the same number comes more than once, and 0 too.
"""


class Pipeline(Protocol):
    """One compiled model on one device.

    Not thread-safe, except where it says so: the worker calls it from one thread at a time.
    """

    card: ModelCard
    backend: str  # "simulated", "torch", ...
    precision: str  # "fp32", "bf16", "fp16", ...
    device: str  # for people: "cpu", "cuda:0 NVIDIA H200"
    device_kind: str  # the hardware properties that decide bytes: "x86_64", "NVIDIA H200"
    versions: str  # of the software that draws: "presswork 0.1.0, torch 2.13.0"
    checks: bool  # whether `review` gives verdicts

    def prepare(self, shape: Shape, size: int) -> None:
        """Compiles what a batch of `size` images of that shape needs, unless it is compiled. May take minutes.

        Raises:
            OutOfMemory: a batch of `size` does not fit the device's memory; a smaller declared size may.
            CompileFailed: a compiler fails, or its output cannot be written.
        """
        ...

    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture | InvalidOutput]:
        """Renders `batch.size` images, in order; what `on_step` raises passes through.

        Each image depends only on its spec and on `batch.size`, not on its slot or on the other images.

        Raises:
            OutOfMemory: the batch does not fit the device's memory; a smaller declared size may.
            CompileFailed: as `prepare` does.
            Exception: some prompt of the batch cannot be rendered, or the device is sick.
        """
        ...

    def review(self, picture: Picture) -> Picture:
        """The picture with the verdict of the model's safety checker; the same without one. The threads that store
        pictures call it, any number at a time, while the next batch is rendered.

        Raises:
            OutOfMemory: the device has no room now.
            Exception: the picture cannot be checked.
        """
        ...

    def memory(self) -> tuple[int, int] | None:
        """Bytes of the device's memory that are used, and that there are; None if it has none of its own. Any thread
        may ask."""
        ...

    def close(self) -> None:
        """Releases the device."""
        ...


class Begun(Protocol):
    """A batch whose last stage still runs while its pipeline goes on with the next batch. Not thread-safe: it is asked
    by the thread that renders, also from within a later batch's `on_step`."""

    @property
    def ready(self) -> bool:
        """Whether `pictures` makes nothing wait that could go on."""
        ...

    def pictures(self) -> Sequence[Picture | InvalidOutput]:
        """As `render` returns them, once. Waits for them, and raises as `render` does for a fault of this batch."""
        ...

    def drop(self) -> None:
        """Waits for what still runs, and forgets it. Raises nothing."""
        ...


@runtime_checkable
class Overlapping(Protocol):
    """A Pipeline that can begin a batch while pictures of the batch before are still outstanding.

    Bytes are those of `render`. Whatever `begin` raises is the fault of its own batch, and leaves the batch before as
    it was, unless the device is lost: then both raise DeviceSick.
    """

    def begin(self, batch: Batch, on_step: OnStep) -> Begun:
        """Renders as `render` does, up to where the next batch can begin. Raises as it does."""
        ...


def versions(*packages: str) -> str:
    """The installed versions of Presswork, Pillow and `packages`, in one line."""
    return ", ".join(f"{name} {_version(name)}" for name in ("presswork", "pillow", *packages))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a source tree without installation
        return "source"


def reproducibility_class(pipeline: Pipeline, batch_size: int, decoded_in: str = "") -> str:
    """The name of the class within which the same spec gives the same file, byte for byte. `decoded_in` is
    Picture.decoded_in."""
    precision = classes.second_try(pipeline.precision, decoded_in) if decoded_in else pipeline.precision
    return classes.name(
        classes.Parts(pipeline.card.revision, pipeline.backend, precision, pipeline.device_kind, batch_size)
    )


def canary(card: ModelCard, size: int) -> Batch:
    """A batch of `size` with one known-good image, which tells a sick device from a bad prompt."""
    width, height = card.default_size
    spec = Spec(
        card.revision, "a red mug on a table", "", 7, width, height, card.default_steps, card.default_guidance_scale
    )
    return Batch(spec.shape, (spec,) * size, 1)


def artefacts(settings: Settings) -> Path:
    """The folder for compiled artefacts, shared by the workers of a host."""
    if settings.artefacts:
        return Path(settings.artefacts)
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "presswork"
    try:
        return Path.home() / ".cache" / "presswork"
    except RuntimeError:  # HOME is not set, and the user has no entry in the user database
        raise SettingsError(
            f"There is no folder for compiled models: user {os.getuid()} has no home folder and HOME is not set;"
            " set PRESSWORK_ARTEFACTS to a folder that can be written."
        ) from None
