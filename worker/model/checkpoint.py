"""A checkpoint in memory: complete networks that match one another, the tokenizer, and the sampler's configuration.

DeciDiffusion's layout and Stable Diffusion's are both loaded here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.core.model.errors import SettingsError
from worker.model import directory, networks
from worker.model.directory import SIZE_UNIT, Index
from worker.model.sampler import SamplerConfig
from worker.model.unet import UNet


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`tokenizer` is transformers' CLIPTokenizer, `text_encoder` its CLIPTextModel, `vae` diffusers' AutoencoderKL; all
    networks are on the CPU, in eval mode, without gradients."""

    folder: Path
    index: Index
    revision: str
    sampler_config: SamplerConfig
    tokenizer: Any
    text_encoder: Any
    unet: UNet
    vae: Any

    @property
    def max_tokens(self) -> int:
        """The longest prompt that the text encoder reads, in tokens, including start and end."""
        return int(self.text_encoder.config.max_position_embeddings)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Loads the model in `folder`, its weights as `dtype`.

    Raises SettingsError, in one sentence, if the directory or a network is unusable, or if networks do not match.
    """
    directory.check(folder)
    index = directory.read_index(folder)
    loaded = {
        name: networks.load(name, folder, directory.read_object(folder / name / "config.json"), dtype)
        for name in directory.networks(folder)
    }
    checkpoint = Checkpoint(
        folder=folder,
        index=index,
        revision=directory.revision(folder),
        sampler_config=directory.read_sampler_config(folder),
        tokenizer=_tokenizer(folder / "tokenizer"),
        text_encoder=loaded["text_encoder"],
        unet=loaded[directory.unet(folder)],
        vae=loaded["vae"],
    )
    _check_fit(checkpoint)
    return checkpoint


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    with networks.as_settings_error(f"{folder} cannot be loaded"):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _check_fit(checkpoint: Checkpoint) -> None:
    """Raises SettingsError unless the networks match one another and the declared sizes."""
    unet, vae, text = checkpoint.unet, checkpoint.vae, checkpoint.text_encoder.config
    if unet.text_width != text.hidden_size:
        raise SettingsError(
            f"The model's U-Net reads text states of width {unet.text_width}, but its text encoder gives "
            f"{text.hidden_size}."
        )
    if unet.latent_channels != vae.config.latent_channels:
        raise SettingsError(
            f"The model's U-Net has {unet.latent_channels} latent channels, its VAE has {vae.config.latent_channels}."
        )
    if (per_latent := 2 ** (len(vae.config.block_out_channels) - 1)) != SIZE_UNIT:
        raise SettingsError(f"The model's VAE makes {per_latent} pixels per latent; only {SIZE_UNIT} are supported.")
    if len(checkpoint.tokenizer) > text.vocab_size:
        raise SettingsError(
            f"The model's tokenizer knows {len(checkpoint.tokenizer)} tokens, its text encoder knows {text.vocab_size}."
        )
    unit = SIZE_UNIT * 2**unet.num_downsamples
    for width, height in checkpoint.index.sizes:
        if width % unit or height % unit:
            raise SettingsError(f"The model's size {width}x{height} is unusable: its U-Net needs multiples of {unit}.")
