"""The denoising loop, shared by all backends: a latent diffusion model as a Pipeline.

A backend supplies the three networks at fixed shapes; its contract is defined here.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from services.core.model.specs import ModelCard, Shape, Spec
from services.core.settings import Settings
from worker import activity
from worker.model import directory, noise, sampler
from worker.model.directory import SIZE_UNIT, Index
from worker.model.sampler import SamplerConfig
from worker.model.text import Prompts, unknown_words
from worker.pipeline import Batch, InvalidOutput, OnStep, OutOfMemory, Picture
from worker.pipelines import compile_turns
from worker.pipelines.out_of_memory import out_of_memory_for

Array = Any
"""The backend's array type: a numpy array, or a torch tensor on its device."""
ShapeKey = tuple[int, int, bool, int, int]


class Compiled(Protocol):
    """The networks at one shape and batch size.

    In every result a row depends only on the same row of the inputs, not on its position or on other rows.
    """

    def to_device(self, values: NDArray[np.float32]) -> Array:
        """Copies the values to the device."""
        ...

    def encode_text(self, tokens: NDArray[np.int64]) -> list[Array]:
        """From (batch, tokens) to keys and values (batch, heads, tokens, channels) for each cross-attention."""
        ...

    def concat_halves(self, uncond: list[Array], text: list[Array]) -> list[Array]:
        """Concatenates two texts to the two guidance halves (2 * batch, ...) of one batch.

        `uncond` may have one row, which is then used for every image.
        """
        ...

    def concat_chunks(self, chunks: list[list[Array]]) -> list[Array]:
        """Concatenates the results of `encode_text` for the chunks of long prompts to one text of as many tokens."""
        ...

    def encode_inputs(self, inputs: Sequence[NDArray[np.uint8]]) -> tuple[Array, Array]:
        """From pictures (height, width, 3), one for each row, to mean and deviation of their latents, float32 (batch,
        channels, height / 8, width / 8). Equal inputs are one object, and encoded once."""
        ...

    def time_table(self, timesteps: Sequence[int]) -> Sequence[Array]:
        """One time embedding for each timestep, as `denoise` takes it."""
        ...

    def denoise(self, latents: Array, time: Array, text: list[Array]) -> Array:
        """The U-Net's output, float32, for each text: (batch or 2 * batch, channels, height / 8, width / 8)."""
        ...

    def step_done(self) -> Callable[[], object]:
        """A function that waits until the device has done everything asked of it so far."""
        ...

    def decode(self, latents: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Pixels uint8 (batch, height, width, 3), and which images (batch,) are finite."""
        ...

    def decode_exactly(self, latents: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
        """The same in float32, one image after the other, for any number of rows; None if `decode` has that range."""
        ...


class Backend(Protocol):
    """One model's networks on one device."""

    name: str  # "torch", "openvino", ...
    precision: str  # "fp32", "bf16", "fp16"
    device: str  # for people
    device_kind: str  # the hardware properties that decide bytes
    versions: str  # of the libraries that decide bytes
    latent_channels: int
    steps_in_flight: int  # how many steps may be submitted before the first is done; 0 if calls block
    warmup_runs: int  # how often a new shape must run until it is compiled; 0 if `compiled` does it

    def compiled(self, shape: Shape, batch: int) -> Compiled:
        """The networks at that shape, the same objects at every call. The first call may take minutes."""
        ...

    def forget(self, shape: Shape, batch: int) -> None:
        """Drops the networks compiled for that shape, and frees their memory."""
        ...

    def memory(self) -> tuple[int, int] | None:
        """As a Pipeline's."""
        ...

    def close(self) -> None: ...


class Checker(Protocol):
    def flags(self, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether each picture (batch, height, width, 3) needs a person's review, bool (batch,). Any thread may ask."""
        ...


class DiffusionPipeline:
    """Classifier-free guidance with a scale per image, and the sampler of `worker/model/sampler.py`."""

    def __init__(
        self, backend: Backend, index: Index, revision: str, sampler_config: SamplerConfig, prompts: Prompts,
        batch_sizes: tuple[int, ...], checker: Checker | None = None,
    ) -> None:  # fmt: skip
        self._backend, self._sampler_config, self._prompts, self._checker = backend, sampler_config, prompts, checker
        self.checks = checker is not None
        self.backend, self.precision = backend.name, backend.precision
        self.device, self.device_kind, self.versions = backend.device, backend.device_kind, backend.versions
        self.card = ModelCard(
            name=index.name,
            revision=revision,
            sizes=index.sizes,
            max_steps=index.max_steps,
            batch_sizes=batch_sizes,
            default_size=index.default_size,
            default_steps=index.default_steps,
            default_guidance_scale=index.default_guidance_scale,
            license=index.license,
            long_prompts=prompts.describe_long() if index.long_prompts else None,
            redraws=True,
        )
        self._words = frozenset(index.words)
        self._prepared: set[tuple[ShapeKey, bool]] = set()  # with inputs, or without
        self._uncond: dict[int, list[Array]] = {}  # batch size -> the empty negative prompt, encoded

    def prepare(self, shape: Shape, size: int) -> None:
        """Compiles the networks for a batch of `size` images of that shape, and warms them up."""
        key = shape_key(shape, size), shape.first_step > 0
        if key in self._prepared:
            return
        spec = Spec(
            shape.model_revision, "", "", 0, shape.width, shape.height, shape.steps, 7.5 if shape.guided else 1,
            shape.prompt_chunks, first_step=shape.first_step,
        )  # fmt: skip
        blank = np.zeros((shape.height, shape.width, 3), np.uint8)
        batch = Batch(spec.shape, (spec,) * size, 0, (blank,) * size if shape.first_step else ())
        words = f"preparing {shape.width}x{shape.height} in batches of {size}"
        turn = self._turn(f"{size} {key}")
        with activity.doing(words), self._evict_if_out_of_memory(shape, size), out_of_memory_for(size), turn:
            compiled = self._backend.compiled(shape, size)
            if shape.first_step:
                compiled.encode_inputs(batch.inputs)
            for _ in range(self._backend.warmup_runs):
                # Exactly what a render does: compilers depend on memory layouts, which change after the first step.
                text, _ = self._encode(compiled, batch)
                compiled.decode(self._denoise(compiled, batch, text, _ignore_step))
        self._prepared.add(key)

    def _turn(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Of the workers of a host that share the compilers' caches, the first compiles alone."""
        cache = os.environ.get("TRITON_CACHE_DIR")
        if not self._backend.warmup_runs or not cache:
            return contextlib.nullcontext()
        backend = self._backend
        parts = (backend.name, backend.precision, backend.device_kind, backend.versions, self.card.revision, what)
        return compile_turns.first_alone(Path(cache), " ".join(parts))

    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture | InvalidOutput]:
        """Pictures uint8 (height, width, 3); an image with a NaN or Inf in its latents or pixels is InvalidOutput."""
        self.prepare(batch.shape, batch.size)
        compiled = self._backend.compiled(batch.shape, batch.size)
        with self._evict_if_out_of_memory(batch.shape, batch.size):
            with out_of_memory_for(batch.size):
                text, truncated = self._encode(compiled, batch)
            latents = self._denoise(compiled, batch, text, on_step)
            with out_of_memory_for(batch.size):
                pixels, finite = compiled.decode(latents)
                exact = decode_overflown(compiled, latents, finite[: batch.wanted])
        return self._pictures(batch.specs, truncated, pixels, finite, exact)

    def review(self, picture: Picture) -> Picture:
        """The picture with the safety checker's verdict, if there is one."""
        if self._checker is None:
            return picture
        with out_of_memory_for(1):
            (flagged,) = self._checker.flags(picture.pixels[None])
        return replace(picture, flagged=bool(flagged))

    def memory(self) -> tuple[int, int] | None:
        return self._backend.memory()

    def close(self) -> None:
        """Releases the device."""
        self._uncond.clear()
        self._prepared.clear()
        self._backend.close()

    @contextlib.contextmanager
    def _evict_if_out_of_memory(self, shape: Shape, size: int) -> Iterator[None]:
        """Drops the networks of a size that does not fit, since they would take memory from a smaller one."""
        try:
            yield
        except OutOfMemory:
            self._backend.forget(shape, size)
            self._prepared -= {(shape_key(shape, size), inputs) for inputs in (False, True)}
            self._uncond.pop(size, None)
            raise

    def _pictures(
        self, specs: Sequence[Spec], truncated: Sequence[bool], pixels: NDArray[np.uint8], finite: NDArray[np.bool_],
        exact: Mapping[int, NDArray[np.uint8]],
    ) -> list[Picture | InvalidOutput]:  # fmt: skip
        """`exact` has pixels by slot of images that only float32 could decode."""
        unknown = [unknown_words(spec.prompt, self._words) for spec in specs]
        return [
            Picture(pixels[slot], truncated[slot], unknown_words=unknown[slot])
            if finite[slot]
            else Picture(exact[slot], truncated[slot], unknown_words=unknown[slot], decoded_in="fp32")
            if slot in exact
            else InvalidOutput()
            for slot in range(len(specs))
        ]

    def _encode(self, compiled: Compiled, batch: Batch) -> tuple[list[Array], list[bool]]:
        """The text as `denoise` takes it, and which images had their prompt or negative prompt truncated."""
        text, truncated = self._encode_prompts(compiled, [spec.prompt for spec in batch.specs], batch.shape)
        if not batch.shape.guided:
            return text, truncated
        negatives = [spec.negative_prompt for spec in batch.specs]
        if not any(negatives):
            uncond = self._encode_empty_prompt(compiled, batch.size)
            return compiled.concat_halves(_repeat(compiled, uncond, batch.shape.prompt_chunks), text), truncated
        uncond, cut = self._encode_prompts(compiled, negatives, batch.shape)
        either = [one or other for one, other in zip(truncated, cut, strict=True)]
        return compiled.concat_halves(uncond, text), either

    def _encode_prompts(self, compiled: Compiled, prompts: list[str], shape: Shape) -> tuple[list[Array], list[bool]]:
        """Each chunk is encoded by itself, and the U-Net attends to all of them."""
        chunks, truncated = self._prompts.chunks(prompts, shape.prompt_chunks)
        texts = [compiled.encode_text(tokens) for tokens in chunks]
        return (texts[0] if len(texts) == 1 else compiled.concat_chunks(texts)), truncated

    def _encode_empty_prompt(self, compiled: Compiled, size: int) -> list[Array]:
        """One row for the empty negative prompt, the usual case: encoded once for each batch size."""
        if size not in self._uncond:
            encoded = compiled.encode_text(self._prompts.tokens([""] * size)[0])
            self._uncond[size] = [1 * array[:1] for array in encoded]  # a copy: a view would hold all rows
        return self._uncond[size]

    def _denoise(self, compiled: Compiled, batch: Batch, text: list[Array], on_step: OnStep) -> Array:
        solver, ahead = self._solver(compiled, batch), self._backend.steps_in_flight
        with out_of_memory_for(batch.size):
            latents, time = next(solver)
        asked: deque[Callable[[], object]] = deque()
        number, last = 0, None
        while last is None:
            number += 1
            with out_of_memory_for(batch.size):
                noise_pred = compiled.denoise(latents, time, text)
                try:
                    latents, time = solver.send(noise_pred)
                except StopIteration as end:
                    last = end.value
                asked.append(compiled.step_done())
            if len(asked) > ahead:
                self._report_step(asked, number - ahead, on_step)
        for reported in range(number - len(asked) + 1, number + 1):
            self._report_step(asked, reported, on_step)
        return last

    def _solver(self, compiled: Compiled, batch: Batch) -> Generator[tuple[Array, Array], Array, Array]:
        """Everything of the loop but the U-Net: gives the latents and the time of each step, takes the U-Net's output
        for them, and returns the last latents."""
        steps = sampler.plan(self._sampler_config, batch.shape.steps, max(batch.shape.first_step, 1))
        times = compiled.time_table([step.timestep for step in steps])
        fields = [noise.fields(spec.seed, self._latent_size(spec)) for spec in batch.specs]
        latents, x0 = self._first_latents(compiled, batch, fields), None
        scales = compiled.to_device(np.array([[[[spec.guidance_scale]]] for spec in batch.specs], np.float32))
        for step, time in zip(steps, times, strict=True):
            noise_pred = yield latents, time
            if batch.shape.guided:
                noise_pred = sampler.guide(noise_pred, scales, self._sampler_config.guidance_rescale)
            new = compiled.to_device(np.stack([next(field) for field in fields])) if step.from_noise else None
            latents, x0 = sampler.advance(step, latents, noise_pred, x0, new)
        return latents

    def _report_step(self, asked: deque[Callable[[], object]], step: int, on_step: OnStep) -> None:
        """Reports a step after the device has done it."""
        asked.popleft()()
        on_step(step)

    def _latent_size(self, spec: Spec) -> tuple[int, int, int]:
        return self._backend.latent_channels, spec.height // SIZE_UNIT, spec.width // SIZE_UNIT

    def _first_latents(self, compiled: Compiled, batch: Batch, fields: Sequence[Iterator[Array]]) -> Array:
        """Noise; or the inputs' latents with noise. Then, as in diffusers, a seed's first field samples the input's
        latents and its second one is the noise."""
        drawn = compiled.to_device(np.stack([next(field) for field in fields]))
        first = batch.shape.first_step
        if not first:
            return drawn
        added = compiled.to_device(np.stack([next(field) for field in fields]))
        mean, deviation = compiled.encode_inputs(batch.inputs)
        alpha, sigma = sampler.noise_level(self._sampler_config, batch.shape.steps, first)
        return alpha * (mean + deviation * drawn) + sigma * added


def decode_overflown(compiled: Compiled, latents: Array, finite: NDArray[np.bool_]) -> dict[int, NDArray[np.uint8]]:
    """A second try for images that are not finite: half precision ends at 65,504. The pixels by slot of those that
    float32 can decode."""
    found = {}
    for slot in map(int, np.flatnonzero(~finite)):
        decoded = compiled.decode_exactly(latents[slot : slot + 1])
        if decoded is not None and decoded[1][0]:
            found[slot] = decoded[0][0]
    return found


def shape_key(shape: Shape, batch: int) -> ShapeKey:
    """What networks are compiled for."""
    return shape.width, shape.height, shape.guided, shape.prompt_chunks, batch


def _repeat(compiled: Compiled, text: list[Array], chunks: int) -> list[Array]:
    """The text of one chunk, in as many."""
    return text if chunks == 1 else compiled.concat_chunks([text] * chunks)


def _ignore_step(_step: int) -> None:
    """Warm-up steps are not reported."""


def checked_folder(settings: Settings) -> Path:
    """The model directory of the settings. Raises SettingsError, in one sentence, if a part is missing."""
    return directory.check_model_dir(settings.model_dir, directory.SAFETY_COMPONENTS if settings.safety_checker else ())


def safety_checker(settings: Settings, folder: Path, device: str) -> Checker | None:
    """The checkpoint's safety checker on that device; None if the settings do not ask for one."""
    if not settings.safety_checker:
        return None
    from worker.model.safety import load_safety_checker  # imports transformers

    return load_safety_checker(folder, device)
