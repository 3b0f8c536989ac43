"""The ONNX backend: exported graphs on a CPU, run by OpenVINO (float32, or bfloat16) or by ONNX Runtime (float32).

Once the artefacts exist, a start needs neither diffusers nor transformers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import SettingsError
from services.core.model.specs import Shape
from services.core.settings import Settings
from worker.model import directory
from worker.model.exported import Exported
from worker.model.stages import decode_batch_size
from worker.pipeline import artefacts, versions
from worker.pipelines import diffusion
from worker.pipelines.cpu import cpu_kind, thread_count
from worker.pipelines.diffusion import Checker, DiffusionPipeline, ShapeKey, shape_key

Array = NDArray[Any]
PRECISIONS = {"openvino": ("fp32", "bf16"), "onnxruntime": ("fp32",)}


class Network(Protocol):
    """A compiled graph."""

    def set(self, inputs: Mapping[str, Array]) -> None:
        """Sets inputs for all following runs. The arrays are not copied: each `run` reads them in place."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs for these inputs and those that were set, in new arrays."""
        ...


def open_pipeline(settings: Settings) -> DiffusionPipeline:
    """The model in PRESSWORK_MODEL_DIR on this machine's CPU. Raises SettingsError as `open_onnx` does."""
    folder = diffusion.checked_folder(settings)
    return open_onnx(
        folder, runtime=settings.runtime, precision=settings.precision, device=settings.device,
        batch_sizes=settings.batch_sizes, cache=artefacts(settings),
        checker=diffusion.safety_checker(settings, folder, "cpu"), sizes=settings.sizes,
    )  # fmt: skip


def open_onnx(
    folder: Path, *, runtime: str, precision: str, device: str, batch_sizes: tuple[int, ...], cache: Path,
    checker: Checker | None = None, sizes: tuple[tuple[int, int], ...] = (),
) -> DiffusionPipeline:  # fmt: skip
    """The checkpoint in `folder` as a pipeline. Exported graphs are kept in `cache`, which processes may share.
    `sizes` replace the model's own.

    `precision` is fp32 or, with OpenVINO, bf16; "" means fp32.

    Raises SettingsError, in one sentence, if runtime, precision or device is not supported or the model is unusable.
    """
    if runtime not in PRECISIONS:
        raise SettingsError(f"There is no ONNX runtime {runtime!r}; there are {' and '.join(PRECISIONS)}.")
    precision = precision or "fp32"
    if precision not in PRECISIONS[runtime]:
        served = " or ".join(PRECISIONS[runtime])
        raise SettingsError(f"PRESSWORK_PRECISION is {precision}; with {runtime} it can be {served}.")
    if device != "cpu":
        raise SettingsError(f"PRESSWORK_DEVICE is {device!r}; with {runtime} it can only be cpu.")
    exported = Exported(folder, cache)
    index = directory.with_sizes(folder, exported.index, sizes)
    return DiffusionPipeline(
        OnnxBackend(exported, runtime, precision), index, exported.revision, exported.sampler_config,
        exported.prompts, batch_sizes, checker,
    )  # fmt: skip


class OnnxBackend:
    """An exported model on this machine's CPU."""

    device = "cpu"
    steps_in_flight = 0
    warmup_runs = 0

    def __init__(self, exported: Exported, runtime: str, precision: str) -> None:
        """Imports `runtime` (openvino or onnxruntime), and not the other."""
        self._threads = thread_count()
        self._graph = _runtime(runtime)
        self.versions = versions(
            runtime, "torch", "onnxscript", "diffusers"
        )  # torch draws the noise; all of them export
        self.name, self.precision = runtime, precision
        self.device_kind = f"{cpu_kind()} x{self._threads}"
        self.latent_channels = exported.latent_channels
        self._exported = exported
        self._cache: dict[ShapeKey, OnnxCompiled] = {}
        self._networks: WeakValueDictionary[Path, Network] = WeakValueDictionary()

    def compiled(self, shape: Shape, batch: int) -> "OnnxCompiled":
        key = shape_key(shape, batch)
        if key not in self._cache:
            graphs = self._exported.graphs(shape, batch, decode_batch_size(batch))
            # The text encoder and the time table run once per batch and cost little, so they stay in float32.
            files = [(graphs.text, "fp32"), (graphs.time, "fp32")]
            files += [(graphs.denoiser, self.precision), (graphs.decoder, self.precision)]
            self._cache[key] = OnnxCompiled(
                batch, partial(self._encoder, shape), *(self._network(file, precision) for file, precision in files)
            )
        return self._cache[key]

    def forget(self, shape: Shape, batch: int) -> None:
        self._cache.pop(shape_key(shape, batch), None)

    def memory(self) -> tuple[int, int] | None:
        """The machine's memory is used."""
        return None

    def close(self) -> None:
        """Drops the networks."""
        self._cache.clear()
        self._networks.clear()

    def _encoder(self, shape: Shape) -> Network:
        """Exported when the first input of that size comes."""
        return self._network(self._exported.encoder(shape), self.precision)

    def _network(self, file: Path, precision: str) -> Network:
        """Each graph is compiled once for all shapes that use it, and dropped with the last of them."""
        network = self._networks.get(file)
        if network is None:
            network = self._networks[file] = self._graph(file, precision, self._threads)
        return network


class OnnxCompiled:
    """The networks for one shape and batch size.

    A batch runs as a whole with any number of threads, while torch must run image by image: rotating a batch changes
    no bit of any row. Measured on an AVX-512 CPU with both runtimes, in float32 and bfloat16: batches of 2, 4 and 8
    with one and two threads; U-Net and decoder at 8 also with three and four.
    """

    def __init__(
        self, batch: int, open_encoder: Callable[[], Network], text: Network, time: Network, denoiser: Network,
        decoder: Network,
    ) -> None:  # fmt: skip
        """`open_encoder` is called when the first input comes."""
        self._batch = batch
        self._open_encoder = open_encoder
        self._text, self._time, self._denoiser, self._decoder = text, time, denoiser, decoder
        self._last_text: list[Array] | None = None
        self._rows: dict[int, Array] = {}

    def to_device(self, values: NDArray[np.float32]) -> Array:
        return np.ascontiguousarray(values)

    def encode_text(self, tokens: NDArray[np.int64]) -> list[Array]:
        return self._text.run({"tokens": tokens})

    def concat_halves(self, uncond: list[Array], text: list[Array]) -> list[Array]:
        return [np.concatenate([np.broadcast_to(a, b.shape), b]) for a, b in zip(uncond, text, strict=True)]

    def concat_chunks(self, chunks: list[list[Array]]) -> list[Array]:
        return [np.concatenate(arrays, axis=2) for arrays in zip(*chunks, strict=True)]

    @cached_property
    def _encoder(self) -> Network:
        return self._open_encoder()

    def encode_inputs(self, inputs: Sequence[NDArray[np.uint8]]) -> tuple[Array, Array]:
        distinct = {id(one): one for one in inputs}
        encoded = {key: self._encoder.run({"pixels": one[None]}) for key, one in distinct.items()}
        mean, deviation = (np.concatenate([encoded[id(one)][n] for one in inputs]) for n in (0, 1))
        return mean, deviation

    def time_table(self, timesteps: Sequence[int]) -> Sequence[Array]:
        for timestep in timesteps:
            if timestep not in self._rows:
                (self._rows[timestep],) = self._time.run({"timesteps": np.array([timestep], np.float32)})
        return [self._rows[timestep] for timestep in timesteps]

    def denoise(self, latents: Array, time: Array, text: list[Array]) -> Array:
        if text is not self._last_text:  # keys and values are the same at every step of a batch
            named = {f"{'value' if n % 2 else 'key'}_{n // 2}": array for n, array in enumerate(text)}
            self._denoiser.set(named)
            self._last_text = text
        (noise_pred,) = self._denoiser.run({"latents": latents, "time": time})
        return noise_pred

    def step_done(self) -> Callable[[], object]:
        return lambda: None

    def decode(self, latents: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        parts = np.split(latents, len(latents) // decode_batch_size(self._batch))
        decoded = [self._decoder.run({"latents": np.ascontiguousarray(part)}) for part in parts]
        pixels, finite = (np.concatenate(arrays) for arrays in zip(*decoded, strict=True))
        return pixels, finite

    def decode_exactly(self, latents: Array) -> None:
        """float32 and bfloat16 have the range."""


def _runtime(name: str) -> Callable[[Path, str, int], Network]:
    """The runtime's Network class: takes an ONNX file, a precision and a number of threads."""
    if name == "openvino":
        from worker.pipelines import openvino_graphs

        return openvino_graphs.Graph
    from worker.pipelines import onnxruntime_graphs

    return onnxruntime_graphs.Graph
