"""The torch backend: on CUDA in half precision, compiled for each shape; on a CPU eagerly, in float32 or bfloat16."""

import contextlib
import copy
import gc
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from services.core.model.errors import SettingsError
from services.core.model.specs import Shape
from services.core.settings import Settings
from worker.model import checkpoint, directory
from worker.model.checkpoint import Checkpoint
from worker.model.kernel_norms import use_kernel_norms
from worker.model.stages import Decoder, Denoiser, Encoder, TextEncoder, TimeEmbedder, decode_batch_size
from worker.model.text import Prompts
from worker.pipeline import artefacts, versions
from worker.pipelines import diffusion, visible
from worker.pipelines.compiler import assert_compiles, compiling, keep_caches
from worker.pipelines.cpu import cpu_kind
from worker.pipelines.diffusion import Checker, DiffusionPipeline, ShapeKey, shape_key

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Images. At 16 a CUDA graph saves nothing in a process that only renders (H200, H100), but the threads of a worker hold
# the interpreter while kernels wait to be launched: without graphs 0.64 s a batch there and 0.49 s alone (H100).
GRAPHED_UP_TO = 16
NORM_KERNELS = True  # measured on an H200: 0.44 s a batch of 16 with them, 0.53 s without
GRAPH_RUNS = 3  # to compile, to record, to replay
DRIVER = Path("/proc/driver/nvidia/version")
# The first that can do it. By itself torch prefers one or the other by cuDNN's version, and the bytes differ.
ATTENTION: tuple[SDPBackend, ...] = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
CUDA_ARITHMETIC = 2  # raise it when the same spec gives other bytes on CUDA than before
REDUCED_PRECISION_REDUCTIONS = False  # whether a matrix product may sum its parts in half precision


class TorchBackend:
    """A checkpoint on one device. On CUDA the networks are compiled when a shape is first asked for."""

    def __init__(self, checkpoint: Checkpoint, device: str, precision: str, *, compiles: bool, cache: Path) -> None:
        """`precision` is fp32, bf16 or fp16; "" means fp16 on CUDA and fp32 on a CPU. `cache` is the folder for
        compiled kernels, which processes may share."""
        self._device = find_device(device)
        on_cuda = self._device.type == "cuda"
        self.name = backend_name(on_cuda=on_cuda, compiles=compiles)
        self.precision = precision or ("fp16" if on_cuda else "fp32")
        if self.precision == "fp16" and not on_cuda:
            raise SettingsError("PRESSWORK_PRECISION is fp16, which is not supported on a CPU; it can be fp32 or bf16.")
        self.device, self.device_kind = _names(self._device)
        self.versions = versions("diffusers", "transformers") + library_versions(on_cuda=on_cuda)
        self.latent_channels = checkpoint.unet.latent_channels
        self.steps_in_flight = 1 if on_cuda else 0
        # Measured: with several threads, CPU kernels split a batch across images, and an image's last bits then depend
        # on its slot. Running one image at a time avoids that.
        self._one_at_a_time = not on_cuda and torch.get_num_threads() > 1
        self._compiles, self._compiler = compiles and on_cuda, "inductor"
        self.warmup_runs = GRAPH_RUNS if self._compiles else 0
        if self._compiles:
            keep_caches(cache)
            assert_compiles()
            _choose_kernels_untimed()
        if on_cuda:
            fix_arithmetic()
        dtype = DTYPES[self.precision]
        unet = checkpoint.unet.to(self._device, dtype, memory_format=torch.channels_last)
        if self._compiles and NORM_KERNELS:
            use_kernel_norms(unet)
            use_kernel_norms(checkpoint.vae.decoder)
        self._text = TextEncoder(checkpoint.text_encoder.to(self._device, dtype), unet)
        self._time, self._denoiser = TimeEmbedder(unet), Denoiser(unet)
        self._decoder = Decoder(checkpoint.vae).to(self._device, dtype, memory_format=torch.channels_last)
        self._decodes_exactly = self.precision != "fp16"
        self._exact_decoder: Decoder | None = None
        # Not compiled, since it runs once for an input and not at every step.
        self._encoder = Encoder(checkpoint.vae).to(self._device, dtype, memory_format=torch.channels_last)
        self._cache: dict[ShapeKey, TorchCompiled] = {}

    def compiled(self, shape: Shape, batch: int) -> "TorchCompiled":
        key = shape_key(shape, batch)
        if key not in self._cache:
            text, denoiser, decoder = (
                self._compile(network, batch) for network in (self._text, self._denoiser, self._decoder)
            )
            self._cache[key] = TorchCompiled(
                text, denoiser, decoder, self._time, self._encoder, self._device, batch, self._one_at_a_time,
                None if self._decodes_exactly else self.exact_decoder,
            )  # fmt: skip
        return self._cache[key]

    def exact_decoder(self) -> Decoder:
        """The decoder in float32, made when it is first needed: 200 MB for a full-size model."""
        if self._exact_decoder is None:
            self._exact_decoder = copy.deepcopy(self._decoder).float()
        return self._exact_decoder

    def forget(self, shape: Shape, batch: int) -> None:
        if (found := self._cache.pop(shape_key(shape, batch), None)) is not None:
            found.close()
            del found
            gc.collect()  # compiled graphs are full of cycles
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def memory(self) -> tuple[int, int] | None:
        """On CUDA what all programs use of the device."""
        if self._device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free, total

    def close(self) -> None:
        """Drops the networks and gives their memory back to the device."""
        for found in self._cache.values():
            found.close()
        self._cache.clear()
        self._exact_decoder = None
        del self._text, self._time, self._denoiser, self._decoder, self._encoder
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _compile(self, network: nn.Module, batch: int) -> Callable[..., Any]:
        if not self._compiles:
            return network
        mode = "reduce-overhead" if batch <= GRAPHED_UP_TO else None
        return torch.compile(with_own_code(network), dynamic=False, fullgraph=True, mode=mode, backend=self._compiler)


class TorchCompiled:
    """The networks for one shape and batch size. Everything runs without gradients and with deterministic kernels."""

    def __init__(
        self, text: Callable[..., Any], denoiser: Callable[..., Any], decoder: Callable[..., Any], time: nn.Module,
        encoder: nn.Module, device: torch.device, batch: int, one_at_a_time: bool,
        exact_decoder: Callable[[], nn.Module] | None = None,
    ) -> None:  # fmt: skip
        """`exact_decoder` gives the decoder in float32, if `decoder` has less range."""
        self._text, self._denoiser, self._decoder, self._time = text, denoiser, decoder, time
        self._exact_decoder = exact_decoder
        self._encoder = encoder
        self._device, self._batch, self._one_at_a_time = device, batch, one_at_a_time
        self._copying = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._tables: dict[tuple[int, ...], Tensor] = {}

    def to_device(self, values: NDArray[Any]) -> Tensor:
        host = torch.from_numpy(values)
        return host.pin_memory().to(self._device, non_blocking=True) if self._copying else host

    def encode_text(self, tokens: NDArray[np.int64]) -> list[Tensor]:
        with self._inference():
            if not self._one_at_a_time:
                return [array.clone() for array in self._text(self.to_device(tokens))]
            rows = [self._text(row) for row in torch.from_numpy(tokens).split(1)]
            return [torch.cat(arrays) for arrays in zip(*rows, strict=True)]

    def concat_halves(self, uncond: list[Tensor], text: list[Tensor]) -> list[Tensor]:
        return [torch.cat([a.expand_as(b), b]) for a, b in zip(uncond, text, strict=True)]

    def concat_chunks(self, chunks: list[list[Tensor]]) -> list[Tensor]:
        return [torch.cat(arrays, dim=2) for arrays in zip(*chunks, strict=True)]

    def encode_inputs(self, inputs: Sequence[NDArray[np.uint8]]) -> tuple[Tensor, Tensor]:
        """One at a time, so that no input's bytes depend on its neighbours."""
        with self._inference():
            distinct = {id(one): one for one in inputs}
            encoded = {key: self._encoder(self.to_device(one[None])) for key, one in distinct.items()}
            mean, deviation = (torch.cat([encoded[id(one)][n] for one in inputs]) for n in (0, 1))
        return mean, deviation

    def time_table(self, timesteps: Sequence[int]) -> Sequence[Tensor]:
        key = tuple(timesteps)
        if key not in self._tables:
            with self._inference():
                self._tables[key] = self._time(self.to_device(np.array(timesteps, np.float32)))
        return self._tables[key].split(1)

    def denoise(self, latents: Tensor, time: Tensor, text: list[Tensor]) -> Tensor:
        with self._inference():
            if not self._one_at_a_time:
                found: Tensor = self._denoiser(latents, time, text)
                return found
            halves = text[0].shape[0] // self._batch
            rows = [
                self._denoiser(latents[n : n + 1], time, [array[n :: self._batch] for array in text])
                for n in range(self._batch)
            ]
            return torch.stack(rows, dim=1).reshape(halves * self._batch, *latents.shape[1:])

    def step_done(self) -> Callable[[], object]:
        if self._copying is None:
            return lambda: None
        return _done(torch.cuda.current_stream(self._device)).synchronize

    def decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        with self._inference():
            parts = latents.split(1 if self._one_at_a_time else decode_batch_size(self._batch))
            decoded = []  # referenced until the copies are done, so that the device does not reuse their memory
            copies = []
            for part in parts:
                for tensor in self._decoder(part):
                    decoded.append(tensor)
                    copies.append(self._to_host(tensor))
            if self._copying:
                _done(self._copying).synchronize()
        pixels, finite = (torch.cat(copies[n::2]).numpy() for n in (0, 1))
        return pixels, finite

    def decode_exactly(self, latents: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
        if self._exact_decoder is None:
            return None
        with self._inference():
            found = [self._exact_decoder()(one) for one in latents.split(1)]
        pixels, finite = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return pixels, finite

    def close(self) -> None:
        """Frees what was compiled for this shape. Dropping the functions is not enough: Dynamo keeps what it compiled
        with their code, which others may refer to."""
        for network in (self._text, self._denoiser, self._decoder):
            code = getattr(getattr(network, "_torchdynamo_orig_callable", None), "__code__", None)
            if code is not None:
                torch._dynamo.reset_code(code)

    def _to_host(self, tensor: Tensor) -> Tensor:
        """A copy on the host. On CUDA it is asynchronous, on a separate stream."""
        if self._copying is None:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._copying.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copying):
            host.copy_(tensor, non_blocking=True)
        return host

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Runs without gradients, with deterministic kernels, and without TF32. On CUDA attention's kernels are
        pinned."""
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        here = torch.cuda.device(self._device) if self._copying else contextlib.nullcontext()
        attention = pinned_attention() if self._copying else contextlib.nullcontext()
        with compiling(), torch.inference_mode(), flags, here, attention:
            if self._copying:
                torch.compiler.cudagraph_mark_step_begin()
            yield


def open_pipeline(settings: Settings) -> DiffusionPipeline:
    """The model in PRESSWORK_MODEL_DIR on PRESSWORK_DEVICE.

    Raises SettingsError, in one sentence, if the model, device or precision is unusable.
    """
    folder = diffusion.checked_folder(settings)
    checker = diffusion.safety_checker(settings, folder, settings.device)
    loaded = checkpoint.load(folder)
    index = directory.with_sizes(folder, loaded.index, settings.sizes)
    return open_torch(
        replace(loaded, index=index), settings.device, settings.precision, settings.batch_sizes,
        compiles=settings.compile, cache=artefacts(settings), checker=checker,
    )  # fmt: skip


def open_torch(
    loaded: Checkpoint, device: str, precision: str, batch_sizes: tuple[int, ...], *, compiles: bool, cache: Path,
    checker: Checker | None = None,
) -> DiffusionPipeline:  # fmt: skip
    """A loaded checkpoint as a pipeline. Moves its networks to the device; the caller must not use them any more."""
    prompts = Prompts.of(loaded.tokenizer, loaded.max_tokens)
    backend = TorchBackend(loaded, device, precision, compiles=compiles, cache=cache)
    return DiffusionPipeline(
        backend, loaded.index, loaded.revision, loaded.sampler_config, prompts, batch_sizes, checker
    )


def library_versions(*, on_cuda: bool, driver: Path = DRIVER) -> str:
    """torch with its build, and on CUDA the compiler, cuBLAS, cuDNN and the driver: ", torch 2.11.0+cu130, ..."."""
    found = {"torch": torch.__version__}
    if on_cuda:
        triton = importlib.util.find_spec("triton") and metadata.version("triton")
        text = driver.read_text(encoding="utf-8", errors="replace") if driver.is_file() else ""
        said = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
        found |= {"triton": triton, "cublas": cublas_version(), "cudnn": torch.backends.cudnn.version()}
        found |= {"driver": said and said[1]}
    return "".join(f", {name} {version}" for name, version in found.items() if version)


def cublas_version() -> str | None:
    """Of the package that torch's wheels bring; None where torch was built with a system's own."""
    for package in ("nvidia-cublas", f"nvidia-cublas-cu{(torch.version.cuda or '').partition('.')[0]}"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


def with_own_code(network: nn.Module) -> Callable[..., Any]:
    """The network as a function whose code no other function has: Dynamo keeps what it compiles with the code, so that
    each shape's can be freed alone and none counts against the limit of another."""

    def run(*arguments: Any) -> Any:
        return network(*arguments)

    run.__code__ = run.__code__.replace()
    return run


def pinned_attention() -> contextlib.AbstractContextManager[None]:
    """Makes torch choose among ATTENTION, in that order; empty leaves the choice to torch."""
    return sdpa_kernel(list(ATTENTION), set_priority=True) if ATTENTION else contextlib.nullcontext()


def backend_name(*, on_cuda: bool, compiles: bool) -> str:
    """Compiled kernels give other bytes than eager ones. CUDA_ARITHMETIC is in the name on CUDA."""
    if not on_cuda:
        return "torch"
    return f"{'torch-compiled' if compiles else 'torch'}-{CUDA_ARITHMETIC}"


def fix_arithmetic() -> None:
    """Makes convolutions as exact and deterministic as `_inference` does, in this process and from now on: what other
    threads compute must not depend on whether a batch is being rendered. Matrix products in half precision sum in
    float32 alone; by default torch lets them do less."""
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = True, False, True, False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = REDUCED_PRECISION_REDUCTIONS
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = REDUCED_PRECISION_REDUCTIONS


def _done(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event after all that was asked of the stream; waiting for it leaves the core to others."""
    event = torch.cuda.Event(blocking=True)
    event.record(stream)
    return event


def _choose_kernels_untimed() -> None:
    """Keeps Inductor from timing kernels: workers could choose different ones, and so give different bytes.

    torch before 2.11 times some kernels regardless.
    """
    from torch._inductor import config  # importing it takes two seconds, which a CPU worker need not spend

    if hasattr(config, "deterministic"):
        config.deterministic = True


def find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"PRESSWORK_DEVICE is {name!r}; it can be cpu, cuda or cuda:N.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            asked = visible.known_as(name)
            found = f"torch finds {count} CUDA devices here" if asked == name else "there is no such GPU here"
            raise SettingsError(f"PRESSWORK_DEVICE is {asked!r}, but {found}.")
    return device


def _names(device: torch.device) -> tuple[str, str]:
    """The device's name for people, and what decides bytes: the GPU's model, or the CPU's instructions and threads."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
        return f"{visible.known_as(f'cuda:{device.index or 0}')} {kind}", kind
    # Measured: results with one and with two threads differ by one level in some pixels.
    return "cpu", f"{cpu_kind()} {torch.backends.cpu.get_cpu_capability()} x{torch.get_num_threads()}"
