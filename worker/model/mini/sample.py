"""Prompts to pictures in a few lines: for presswork-mini's figures, not for serving.

The sampler's coefficients are the engine's; noise is drawn from a seed an image.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worker.model import sampler
from worker.model.checkpoint import Checkpoint
from worker.model.text import Prompts

LATENTS = (4, 16, 16)


@torch.inference_mode()
def pictures(
    model: Checkpoint, prompts: list[str], seeds: list[int], steps: int, guidance_scale: float
) -> NDArray[np.uint8]:
    """(B, 128, 128, 3) uint8 sRGB of a checkpoint loaded in float32."""
    latents: Any = torch.from_numpy(
        np.stack([np.random.default_rng(seed).standard_normal(LATENTS, np.float32) for seed in seeds])
    )
    tokens, _ = Prompts.of(model.tokenizer, model.max_tokens).tokens([""] * len(prompts) + prompts)
    text = model.text_encoder(torch.from_numpy(tokens)).last_hidden_state
    scales = torch.full((len(prompts), 1, 1, 1), guidance_scale)
    last = None
    for step in sampler.plan(model.rules, steps):
        timesteps = torch.full((2 * len(prompts),), step.timestep)
        predicted = model.unet(torch.cat([latents, latents]), timesteps, text)
        guided = sampler.guide(predicted, scales, model.rules.rescale)
        latents, last = sampler.advance(step, latents, guided, last)
    return to_bytes(model.vae.decode(latents).sample)


def to_bytes(made: torch.Tensor) -> NDArray[np.uint8]:
    """(B, 3, H, W) in -1..1 to (B, H, W, 3) uint8."""
    levels: NDArray[np.uint8] = ((made.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return levels
