"""Verifies a loaded model: its weights are finite, and it draws."""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from services.core.model.errors import SettingsError
from worker.model import noise, sampler
from worker.model.checkpoint import Checkpoint
from worker.model.stages import Decoder, Denoiser, TextEncoder, TimeEmbedder
from worker.model.text import Prompts

STEPS = 2


def verify(loaded: Checkpoint) -> None:
    """Raises SettingsError, in one sentence, if a tensor is not finite, or a small picture is not or differs the second
    time."""
    for name, network in (("text_encoder", loaded.text_encoder), ("unet", loaded.unet), ("vae", loaded.vae)):
        if bad := not_finite(network):
            raise SettingsError(
                f"The model's {name} has NaN or infinite numbers in {len(bad)} of its tensors, {bad[0]} for one."
            )
    for step in sampler.plan(loaded.sampler_config, loaded.index.default_steps):
        if not np.isfinite(dataclasses.astuple(step)).all():
            raise SettingsError(f"The model's betas give numbers that are not finite at timestep {step.timestep}.")
    first, second = draw(loaded), draw(loaded)
    if first is None or second is None:
        raise SettingsError("The model's picture is not finite: its weights or its scheduler's numbers are damaged.")
    if not np.array_equal(first, second):
        raise SettingsError("The model drew two different pictures from one prompt and seed.")


def not_finite(network: nn.Module) -> list[str]:
    """The names of the tensors that hold NaN or infinite numbers."""
    tensors = network.state_dict().items()
    return [name for name, tensor in tensors if tensor.is_floating_point() and not bool(tensor.isfinite().all())]


@torch.inference_mode()
def draw(loaded: Checkpoint) -> NDArray[np.uint8] | None:
    """The smallest picture that the networks can draw, uint8 (height, width, 3), after two guided steps; None if it is
    not finite."""
    side = 2 ** max(loaded.unet.num_downsamples, 1) * 4
    prompts = Prompts.of(loaded.tokenizer, loaded.max_tokens)
    tokens, _ = prompts.tokens(["", "a red mug on a wooden table"])
    text = TextEncoder(loaded.text_encoder, loaded.unet)(torch.from_numpy(tokens))
    steps = sampler.plan(loaded.sampler_config, STEPS)
    times = TimeEmbedder(loaded.unet)(torch.tensor([float(step.timestep) for step in steps])).split(1)
    fields = noise.fields(7, (loaded.unet.latent_channels, side, side))
    latents = torch.from_numpy(next(fields)[None])
    scales, x0 = torch.full((1, 1, 1, 1), 7.5), None
    for step, time in zip(steps, times, strict=True):
        predicted = sampler.guide(
            Denoiser(loaded.unet)(latents, time, text), scales, loaded.sampler_config.guidance_rescale
        )
        new = torch.from_numpy(next(fields)[None]) if step.from_noise else None
        latents, x0 = sampler.advance(step, latents, predicted, x0, new)
    pixels, finite = Decoder(loaded.vae)(latents)
    return pixels[0].numpy() if bool(finite.all()) else None
