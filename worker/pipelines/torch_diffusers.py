"""The torch pipeline: a latent diffusion model in the diffusers layout, rendered eagerly in float32 on CPU or CUDA.

Components are loaded one by one from safetensors on this machine; nothing is fetched, and no code of a model's runs.
Within one reproducibility class an image depends on its spec and the batch's size alone.
"""

import contextlib
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from services.core.errors import SettingsError
from services.core.settings import Settings
from services.core.specs import ModelCard, Spec
from worker.model import directory
from worker.pipeline import Batch, OnStep, OutOfMemory, Picture, Spoiled, versions

LATENT_CHANNELS = 4
SEEDS_OF_TORCH = 2**32  # torch's CPU generator reads no more of a seed than this


class TorchPipeline:
    """Classifier-free guidance with a scale per image, DPM-Solver++ 2M (Lu et al., 2022) as diffusers implements it."""

    backend = "torch"
    precision = "fp32"

    def __init__(self, settings: Settings) -> None:
        folder = directory.check_model_dir(settings.model_dir)
        index = directory.read_index(folder)
        if index.flexible:
            raise SettingsError(f"The model directory {folder} holds a flexible_unet, which this pipeline cannot load.")
        self._device = _device(settings.device)
        self.device, self.device_kind = _names(self._device)
        self.versions = versions("torch", "diffusers", "transformers")
        # Measured: with several threads, CPU kernels cut a batch into pieces across its images, and what an image
        # looks like in the last bit then depends on its slot. One image at a time has no slots.
        self._singly = self._device.type == "cpu" and torch.get_num_threads() > 1
        self.card = ModelCard(
            name=index.name,
            revision=directory.revision(folder),
            sizes=index.sizes,
            max_steps=index.max_steps,
            batch_sizes=settings.batch_sizes,
            default_size=index.default_size,
            default_steps=index.default_steps,
            default_guidance_scale=index.default_guidance_scale,
        )
        self._tokenizer, self._text_encoder, self._unet, self._vae, self._scheduler = _load(folder, self._device)

    def render(self, batch: Batch, on_step: OnStep) -> Sequence[Picture | Spoiled]:
        """Pictures uint8 (height, width, 3); an image whose latents or pixels are NaN or Inf is Spoiled, alone."""
        shape, size = batch.shape, batch.size
        with torch.inference_mode(), _steady():
            with _room_for(size):
                tokens, truncated = self._tokens([spec.prompt for spec in batch.specs])
                text = self._encode(tokens)
                if shape.guided:
                    negative, _ = self._tokens([spec.negative_prompt for spec in batch.specs])
                    text = torch.cat([self._encode(negative), text])
                self._scheduler.set_timesteps(shape.steps, device=self._device)
                latents = torch.stack([noise(spec) for spec in batch.specs]).to(self._device)
                latents = latents * self._scheduler.init_noise_sigma
                scales = torch.tensor([spec.guidance_scale for spec in batch.specs], device=self._device)
            for step, timestep in enumerate(self._scheduler.timesteps, start=1):
                with _room_for(size):
                    predicted = self._predict(latents, timestep, text, scales if shape.guided else None)
                    latents = self._scheduler.step(predicted, timestep, latents).prev_sample
                    self._finish_step()
                on_step(step)
            with _room_for(size):
                pixels, finite = self._decode(latents)
        return [Picture(pixels[slot].numpy(), truncated[slot]) if finite[slot] else Spoiled() for slot in range(size)]

    def close(self) -> None:
        """Drops the networks and gives their memory back to the device."""
        self._text_encoder = self._unet = self._vae = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _tokens(self, prompts: list[str]) -> tuple[torch.Tensor, list[bool]]:
        """int64 (batch, tokens), each row start, prompt, end and padding; and which prompts were cut short."""
        most = min(self._tokenizer.model_max_length, self._text_encoder.config.max_position_embeddings)
        texts = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]  # no lone surrogates
        found = self._tokenizer(texts, verbose=False)["input_ids"]
        end, padding = self._tokenizer.eos_token_id, self._tokenizer.pad_token_id
        rows = [ids if len(ids) <= most else [*ids[: most - 1], end] for ids in found]
        rows = [[*ids, *[padding] * (most - len(ids))] for ids in rows]
        return torch.tensor(rows, device=self._device), [len(ids) > most for ids in found]

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 (batch, tokens, width)."""
        return self._run(lambda rows: self._text_encoder(input_ids=rows).last_hidden_state, tokens)

    def _predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor, scales: torch.Tensor | None
    ) -> torch.Tensor:
        """The network's output, float32 (batch, 4, height / 8, width / 8); guided where there are `scales` (batch,).

        Guidance after Ho and Salimans, 2022: unguided + scale * (guided - unguided).
        """

        def network(latents: torch.Tensor, text: torch.Tensor) -> Any:
            return self._unet(latents, timestep, encoder_hidden_states=text).sample

        if scales is None:
            return self._run(network, latents, text)
        without, with_prompt = self._run(network, torch.cat([latents, latents]), text).chunk(2)
        return without + scales[:, None, None, None] * (with_prompt - without)

    def _run(self, network: Callable[..., Any], *tensors: torch.Tensor) -> torch.Tensor:
        """`network` of the whole batch at once, or of one image after the other."""
        if not self._singly:
            whole: torch.Tensor = network(*tensors)
            return whole
        return torch.cat([network(*rows) for rows in zip(*(tensor.split(1) for tensor in tensors), strict=True)])

    def _finish_step(self) -> None:
        """A step that is reported is a step that was done: CUDA's queue is emptied first."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
        """uint8 (batch, height, width, 3) on the CPU, and which images are finite."""
        finite = latents.isfinite().flatten(1).all(1)
        # Where latents are not finite the decoder gets zeros: its kernels need not be asked what they make of NaN.
        sound = torch.where(finite[:, None, None, None], latents, 0.0) / self._vae.config.scaling_factor
        images = self._run(lambda latents: self._vae.decode(latents).sample, sound)
        finite &= images.isfinite().flatten(1).all(1)
        pixels = (images.nan_to_num() * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous().cpu(), finite.tolist()


def noise(spec: Spec) -> torch.Tensor:
    """Standard normal latents, float32 (4, height / 8, width / 8), of the image's own seed, drawn on the CPU.

    Below 2^32 they are what diffusers draws for that seed. torch reads only the low 32 bits of a seed, so above that
    the high bits draw a second field (skipping one, lest equal halves give equal fields), and the two are mixed.
    """
    size = (LATENT_CHANNELS, spec.height // directory.SIZE_UNIT, spec.width // directory.SIZE_UNIT)
    high, low = divmod(spec.seed, SEEDS_OF_TORCH)
    field = torch.randn(size, generator=torch.Generator().manual_seed(low))
    if not high:
        return field
    second = torch.randn((2, *size), generator=torch.Generator().manual_seed(high))[1]
    return (field + second) * math.sqrt(0.5)


@contextlib.contextmanager
def _room_for(size: int) -> Iterator[None]:
    """Turns torch's several ways of running out of memory into OutOfMemory."""
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
    # Outside the handlers: a context would keep the failed batch's tensors alive while a smaller one is tried.
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    raise OutOfMemory(f"The device has no room for a batch of {size}.")


@contextlib.contextmanager
def _steady() -> Iterator[None]:
    """The same kernels every time, and float32 that is float32: cuDNN neither searches nor rounds to TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"PRESSWORK_DEVICE is {name!r}; it can be cpu, cuda or cuda:N.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise SettingsError(f"PRESSWORK_DEVICE is {name!r}, but torch finds {count} CUDA devices here.")
    return device


def _names(device: torch.device) -> tuple[str, str]:
    """The device for people, and what of it decides bytes: the kind of GPU; of a CPU, instructions and threads."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
        return f"cuda:{device.index or 0} {kind}", kind
    # Measured: one thread and two give pixels that differ by a level here and there.
    return "cpu", f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} x{torch.get_num_threads()}"


def _load(folder: Path, device: torch.device) -> tuple[Any, Any, Any, Any, Any]:
    """Tokenizer, text encoder, U-Net, VAE and scheduler; the networks in float32 on `device`."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    with _quiet():
        networks = [
            _network(kind, folder / name).to(device).eval()
            for kind, name in ((CLIPTextModel, "text_encoder"), (UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        ]
        with _told_in_a_sentence(folder / "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        with _told_in_a_sentence(folder / "scheduler"):
            said = DPMSolverMultistepScheduler.load_config(folder / "scheduler", local_files_only=True)
            scheduler = DPMSolverMultistepScheduler.from_config(said, algorithm_type="dpmsolver++", solver_order=2)
    return tokenizer, *networks, scheduler


def _network(kind: Any, folder: Path) -> Any:
    """One network, every tensor of it from the file: the libraries would fill gaps with random numbers."""
    arguments = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    dtype = "dtype" if folder.name == "text_encoder" else "torch_dtype"
    with _told_in_a_sentence(folder):
        network, found = kind.from_pretrained(folder, **arguments, **{dtype: torch.float32})
    missing = sorted(str(name) for key in ("missing_keys", "mismatched_keys") for name in found[key])
    if missing:
        raise SettingsError(f"The model's {folder} lacks {len(missing)} of its tensors, {missing[0]} for one.")
    return network


@contextlib.contextmanager
def _told_in_a_sentence(folder: Path) -> Iterator[None]:
    """Whatever the libraries raise for files that are not what they should be, as a SettingsError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".")
        raise SettingsError(f"The model's {folder} cannot be loaded: {reason}.") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar of the library's in the worker's log."""
    from transformers.utils import logging

    talkative = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if talkative:
            logging.enable_progress_bar()
