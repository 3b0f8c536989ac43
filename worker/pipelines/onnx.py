"""The ONNX backend: exported graphs on a CPU, run by OpenVINO (float32, or bfloat16) or by ONNX Runtime (float32).

A second start needs neither diffusers nor transformers: only the artefacts of the first.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import SettingsError
from services.core.model.specs import Shape
from services.core.settings import Settings
from worker.model.exported import Exported
from worker.model.stages import decoded_at_once
from worker.pipeline import artefacts, versions
from worker.pipelines import diffusion
from worker.pipelines.cpu import cpu_kind, threads_here
from worker.pipelines.diffusion import Checker, DiffusionPipeline

Array = NDArray[Any]
PRECISIONS = {"openvino": ("fp32", "bf16"), "onnxruntime": ("fp32",)}


class Network(Protocol):
    """A graph, ready to run."""

    def set(self, inputs: Mapping[str, Array]) -> None:
        """Inputs that stay until they are set again; the arrays are read where they lie, at each `run`."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs for these inputs and those that were set: arrays of the caller's own."""
        ...


def open_pipeline(settings: Settings) -> DiffusionPipeline:
    """The model in PRESSWORK_MODEL_DIR on this machine's CPU. Raises SettingsError, in one sentence, as `open_onnx`."""
    folder = diffusion.checked_folder(settings)
    return open_onnx(
        folder, runtime=settings.runtime, precision=settings.precision, device=settings.device,
        batch_sizes=settings.batch_sizes, cache=artefacts(settings),
        checker=diffusion.safety_checker(settings, folder, "cpu"),
    )  # fmt: skip


def open_onnx(
    folder: Path, *, runtime: str, precision: str, device: str, batch_sizes: tuple[int, ...], cache: Path,
    checker: Checker | None = None,
) -> DiffusionPipeline:  # fmt: skip
    """The checkpoint in `folder`. What is exported from it is kept in `cache`, which processes may share. `precision`
    is fp32 or, with OpenVINO, bf16; "" stands for fp32.

    Raises SettingsError, in one sentence, when runtime, precision or device are none of ours or the model does not fit.
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
    return DiffusionPipeline(
        OnnxBackend(exported, runtime, precision), exported.index, exported.revision, exported.sampler_config,
        exported.prompts,
        batch_sizes, checker,
    )  # fmt: skip


class OnnxBackend:
    """An exported model on this machine's CPU."""

    device = "cpu"
    steps_in_flight = 0
    warm_runs = 0

    def __init__(self, exported: Exported, runtime: str, precision: str) -> None:
        """Imports `runtime` (openvino or onnxruntime), and not the other."""
        self._threads = threads_here()
        self._graph = _runtime(runtime)
        self.versions = versions(runtime, "torch", "onnxscript", "diffusers")  # torch draws the noise; all export
        self.name, self.precision = runtime, precision
        self.device_kind = f"{cpu_kind()} x{self._threads}"
        self.latent_channels = exported.latent_channels
        self._exported = exported
        self._known: dict[tuple[int, int, bool, int], OnnxCompiled] = {}
        self._networks: WeakValueDictionary[Path, Network] = WeakValueDictionary()

    def compiled(self, shape: Shape, batch: int) -> "OnnxCompiled":
        place = shape.width, shape.height, shape.guided, batch
        if place not in self._known:
            graphs = self._exported.graphs(shape, batch, decoded_at_once(batch))
            # The text encoder and the time table are run once, and cost little: they keep float32.
            files = [(graphs.text, "fp32"), (graphs.time, "fp32")]
            files += [(graphs.denoiser, self.precision), (graphs.decoder, self.precision)]
            self._known[place] = OnnxCompiled(batch, *(self._network(file, precision) for file, precision in files))
        return self._known[place]

    def forget(self, shape: Shape, batch: int) -> None:
        self._known.pop((shape.width, shape.height, shape.guided, batch), None)

    def close(self) -> None:
        """Drops the networks."""
        self._known.clear()
        self._networks.clear()

    def _network(self, file: Path, precision: str) -> Network:
        """A graph is compiled once, whichever shapes it serves, and dropped with the last of them."""
        network = self._networks.get(file)
        if network is None:
            network = self._networks[file] = self._graph(file, precision, self._threads)
        return network


class OnnxCompiled:
    """The networks for one shape and batch size.

    Measured on an AVX-512 CPU, both runtimes, float32 and bfloat16: batches of 2, 4 and 8 with one and two threads,
    U-Net and decoder at 8 with three and four. Every row keeps its bits when the batch is rotated. So a batch is run
    whole, whatever the threads, where torch has to go image by image.
    """

    def __init__(self, batch: int, text: Network, time: Network, denoiser: Network, decoder: Network) -> None:
        self._batch = batch
        self._text, self._time, self._denoiser, self._decoder = text, time, denoiser, decoder
        self._given: list[Array] | None = None
        self._rows: dict[int, Array] = {}

    def place(self, values: NDArray[np.float32]) -> Array:
        return np.ascontiguousarray(values)

    def encode_text(self, tokens: NDArray[np.int64]) -> list[Array]:
        return self._text.run({"tokens": tokens})

    def pair(self, uncond: list[Array], text: list[Array]) -> list[Array]:
        return [np.concatenate([np.broadcast_to(a, b.shape), b]) for a, b in zip(uncond, text, strict=True)]

    def time_table(self, timesteps: Sequence[int]) -> Sequence[Array]:
        for timestep in timesteps:
            if timestep not in self._rows:
                (self._rows[timestep],) = self._time.run({"timesteps": np.array([timestep], np.float32)})
        return [self._rows[timestep] for timestep in timesteps]

    def denoise(self, latents: Array, time: Array, text: list[Array]) -> Array:
        if text is not self._given:  # keys and values are the same at every step of a batch
            named = {f"{'value' if n % 2 else 'key'}_{n // 2}": array for n, array in enumerate(text)}
            self._denoiser.set(named)
            self._given = text
        (prediction,) = self._denoiser.run({"latents": latents, "time": time})
        return prediction

    def step_done(self) -> Callable[[], object]:
        return lambda: None

    def decode(self, latents: Array) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        parts = np.split(latents, len(latents) // decoded_at_once(self._batch))
        decoded = [self._decoder.run({"latents": np.ascontiguousarray(part)}) for part in parts]
        pixels, finite = (np.concatenate(arrays) for arrays in zip(*decoded, strict=True))
        return pixels, finite


def _runtime(name: str) -> Callable[[Path, str, int], Network]:
    """The class of its networks: made of an ONNX file, a precision and a number of threads."""
    if name == "openvino":
        from worker.pipelines import openvino_graphs

        return openvino_graphs.Graph
    from worker.pipelines import onnxruntime_graphs

    return onnxruntime_graphs.Graph
