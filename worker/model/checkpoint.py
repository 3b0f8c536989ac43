"""A checkpoint in memory: every network whole and fitting the others, the tokenizer, and how it is sampled.

DeciDiffusion's layout and Stable Diffusion's load through this one door.
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
        """The longest prompt that the text encoder reads, its start and its end included."""
        return int(self.text_encoder.config.max_position_embeddings)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """Loads the model in `folder`, its weights as `dtype`.

    Raises SettingsError, in one sentence, where the directory, a network or what they must have in common is not right.
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

    with networks.told_in_a_sentence(f"{folder} cannot be loaded"):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _check_fit(checkpoint: Checkpoint) -> None:
    """Raises SettingsError unless the networks fit one another and the sizes that are served."""
    unet, vae, text = checkpoint.unet, checkpoint.vae, checkpoint.text_encoder.config
    if unet.text_width != text.hidden_size:
        raise SettingsError(
            f"The model's U-Net reads text states of width {unet.text_width}, and its text encoder's are of "
            f"{text.hidden_size}."
        )
    if unet.latent_channels != vae.config.latent_channels:
        raise SettingsError(
            f"The model's U-Net has {unet.latent_channels} latent channels, and its VAE {vae.config.latent_channels}."
        )
    if (per_latent := 2 ** (len(vae.config.block_out_channels) - 1)) != SIZE_UNIT:
        raise SettingsError(f"The model's VAE makes {per_latent} pixels of a latent; only {SIZE_UNIT} are known.")
    if len(checkpoint.tokenizer) > text.vocab_size:
        raise SettingsError(
            f"The model's tokenizer knows {len(checkpoint.tokenizer)} tokens, and its text encoder {text.vocab_size}."
        )
    unit = SIZE_UNIT * 2**unet.shrinks
    for width, height in checkpoint.index.sizes:
        if width % unit or height % unit:
            raise SettingsError(f"The model's size {width}x{height} does not do: its U-Net needs multiples of {unit}.")
