"""The ONNX backend: exported graphs, run on a CPU or by an execution provider of ONNX Runtime.

In float32; OpenVINO itself can do bfloat16. Once the artefacts exist, a start needs neither diffusers nor transformers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from services.core.model import long_prompts, runtimes
from services.core.model.errors import SettingsError
from services.core.model.specs import Shape
from services.core.settings import Settings
from worker.model import directory
from worker.model.directory import Index
from worker.model.exported import Exported
from worker.model.stages import decode_batch_size
from worker.pipeline import artefacts, versions
from worker.pipelines import diffusion
from worker.pipelines.cpu import cpu_kind, thread_count
from worker.pipelines.diffusion import Checker, DiffusionPipeline, ShapeKey, shape_key

Array = NDArray[Any]
PRECISIONS = {name: ("fp32", "bf16") if name == "openvino" else ("fp32",) for name in runtimes.NAMES}


class Network(Protocol):
    """A compiled graph."""

    def set(self, inputs: Mapping[str, Array]) -> None:
        """Sets inputs for all following runs. The arrays are not copied: each `run` reads them in place."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs for these inputs and those that were set, in new arrays."""
        ...


class Runtime(Protocol):
    """What runs graphs on one device. `kind` are the device's properties that decide bytes."""

    distribution: str  # the Python package
    device: str
    kind: str
    has_engines: bool  # whether what it compiles differs from one time to the next

    def start(self, file: Path) -> None:
        """Raises SettingsError, in one sentence, if not even this small graph can be run."""
        ...

    def build(self, files: Iterable[Path], cache: Path, model: str, revision: str) -> str:
        """Compiles these graphs once for all processes that share `cache`; gives the hash of what was made. Raises
        CompileFailed."""
        ...

    def graph(self, file: Path, precision: str) -> Network: ...


def open_pipeline(settings: Settings) -> DiffusionPipeline:
    """The model in PRESSWORK_MODEL_DIR by PRESSWORK_RUNTIME. Raises SettingsError as `open_onnx` does."""
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
    if device != "cpu" and runtime in runtimes.RUNTIMES:
        raise SettingsError(f"PRESSWORK_DEVICE is {device!r}; with {runtime} it can only be cpu.")
    exported = Exported(folder, cache)
    index = directory.with_sizes(folder, exported.index, sizes)
    backend = OnnxBackend(exported, runtime, precision, device)
    backend.fix_engines(index, batch_sizes, cache)
    return DiffusionPipeline(
        backend, index, exported.revision, exported.sampler_config, exported.prompts, batch_sizes, checker
    )


class OnnxBackend:
    """An exported model on this machine's CPU, or on the device of an execution provider."""

    steps_in_flight = 0
    warmup_runs = 0

    def __init__(self, exported: Exported, runtime: str, precision: str, device: str = "cpu") -> None:
        """Imports `runtime` (openvino or onnxruntime), and not the other. Raises SettingsError if this machine lacks
        the provider or the device."""
        self._runtime = _runtime(runtime, device)
        self.versions = versions(
            self._runtime.distribution, "torch", "onnxscript", "diffusers"
        )  # torch draws the noise; all of them export
        self.name, self.precision = runtime.replace(":", "-"), precision
        self.device, self.device_kind = self._runtime.device, self._runtime.kind
        self.latent_channels = exported.latent_channels
        self._exported = exported
        self._cache: dict[ShapeKey, OnnxCompiled] = {}
        self._networks: WeakValueDictionary[Path, Network] = WeakValueDictionary()

    def fix_engines(self, index: Index, batch_sizes: Sequence[int], cache: Path) -> None:
        """Builds all engines that the model can need, if the runtime has any: they are in the class, which must not
        change once images are claimed. Raises SettingsError if the runtime does not start."""
        self._runtime.start(self._exported.time)
        if not self._runtime.has_engines:
            return
        shapes = [
            Shape(self._exported.revision, width, height, 1, guided, chunks)
            for width, height in index.sizes
            for guided in (True, False)
            for chunks in range(1, (long_prompts.MAX_CHUNKS if index.long_prompts else 1) + 1)
        ]
        files = [self._exported.encoder(shape) for shape in shapes]
        for shape in shapes:
            for batch in batch_sizes:
                files += astuple(self._exported.graphs(shape, batch, decode_batch_size(batch)))
        self.device_kind += f" engines {self._runtime.build(files, cache, index.name, self._exported.revision)}"

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
        """The machine's memory is used, or the provider does not say."""
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
            network = self._networks[file] = self._runtime.graph(file, precision)
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


class CpuRuntime:
    """A runtime on this machine's CPU."""

    device = "cpu"
    has_engines = False

    def __init__(self, distribution: str, graph: Callable[[Path, str, int], Network]) -> None:
        self.distribution, self._graph, self._threads = distribution, graph, thread_count()
        self.kind = f"{cpu_kind()} x{self._threads}"

    def start(self, file: Path) -> None:
        """It is there."""

    def build(self, files: Iterable[Path], cache: Path, model: str, revision: str) -> str:  # noqa: ARG002
        """There is nothing to build."""
        return ""

    def graph(self, file: Path, precision: str) -> Network:
        return self._graph(file, precision, self._threads)


def _runtime(name: str, device: str) -> Runtime:
    """Imports what was chosen alone."""
    if name == "openvino":
        from worker.pipelines import openvino_graphs

        return CpuRuntime(name, openvino_graphs.Graph)
    from worker.pipelines import onnxruntime_graphs, onnxruntime_providers

    _, _, provider = name.partition(":")
    if not provider:
        return CpuRuntime(onnxruntime_providers.distribution()[0], onnxruntime_graphs.Graph)
    from worker.pipelines import accelerator

    return accelerator.Accelerator(onnxruntime_providers.choose(provider, device, thread_count()))
