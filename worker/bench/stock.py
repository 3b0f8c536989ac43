"""Stock diffusers, for comparison: its blocks and scheduler, run as its pipelines run them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.core.model.specs import Shape, Spec
from worker.model import sampler
from worker.model.checkpoint import Checkpoint
from worker.model.sampler import SamplerConfig
from worker.model.text import Prompts
from worker.pipeline import Batch


@dataclass(frozen=True)
class Work:
    """The batch that all contenders render: tokens to bytes."""

    specs: tuple[Spec, ...]

    @property
    def batch(self) -> Batch:
        return Batch(self.specs[0].shape, self.specs, len(self.specs))

    @property
    def shape(self) -> Shape:
        return self.specs[0].shape


class Stock:
    """Evaluates both guidance halves completely at every step; eagerly, or with a compiled U-Net."""

    def __init__(self, loaded: Checkpoint, device: torch.device, dtype: torch.dtype, *, compiles: bool) -> None:
        self._unet, self._vae, self._text = (
            network.to(device, dtype, memory_format=torch.channels_last)
            for network in (loaded.unet, loaded.vae, loaded.text_encoder)
        )
        self._predict = torch.compile(self._evaluate, dynamic=False) if compiles else self._evaluate
        self._device, self._dtype, self._sampler_config = device, dtype, loaded.sampler_config
        self._prompts = Prompts.of(loaded.tokenizer, loaded.text_encoder.config.max_position_embeddings)
        self._scheduler = scheduler(loaded.sampler_config)

    @torch.inference_mode()
    def render(self, work: Work) -> np.ndarray[Any, Any]:
        """uint8 (batch, height, width, 3)."""
        shape, specs = work.shape, work.specs
        halves = [[spec.negative_prompt for spec in specs], [spec.prompt for spec in specs]]
        tokens = np.concatenate([self._prompts.tokens(half)[0] for half in halves])
        text = self._text(torch.from_numpy(tokens).to(self._device)).last_hidden_state
        size = (self._unet.latent_channels, shape.height // 8, shape.width // 8)
        chance = [torch.Generator().manual_seed(spec.seed) for spec in specs]
        latents = torch.stack([torch.randn(size, generator=one) for one in chance]).to(self._device, self._dtype)
        more = {"generator": chance} if self._sampler_config.solver == "lcm" else {}
        scale = specs[0].guidance_scale
        set_timesteps(self._scheduler, self._sampler_config, shape.steps, self._device)
        for timestep in self._scheduler.timesteps:
            uncond, prompted = self._predict(torch.cat([latents] * 2), timestep, text).chunk(2)
            guided = uncond + scale * (prompted - uncond)
            guided = _rescaled(guided, prompted, self._sampler_config.guidance_rescale)
            latents = self._scheduler.step(guided, timestep, latents, **more).prev_sample
        image = self._vae.decode(latents / self._vae.config.scaling_factor).sample
        pixels = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return (pixels * 255).round().astype(np.uint8)

    def _evaluate(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The whole U-Net by its blocks' own forward passes, without shared or precomputed parts."""
        unet = self._unet
        embedded = unet.time_embedding(unet.time_proj(timestep.expand(latents.shape[0])).to(latents.dtype))
        x = unet.conv_in(latents)
        skips = [x]
        for kind, module in unet.program:
            if kind == "resnet":
                x = module(x, embedded)
            elif kind == "attention":
                x = module(x, encoder_hidden_states=text, return_dict=False)[0]
            elif kind == "save_skip":
                skips.append(x)
            elif kind == "concat_skip":
                x = torch.cat([x, skips.pop()], dim=1)
            else:
                x = module(x)
        predicted: Tensor = unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(x)))
        return predicted


def scheduler(sampler_config: SamplerConfig) -> Any:
    """diffusers' scheduler that samples as `sampler_config` says."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LCMScheduler

    trained: dict[str, Any] = {
        "beta_start": sampler_config.beta_start, "beta_end": sampler_config.beta_end,
        "beta_schedule": sampler_config.beta_schedule, "prediction_type": sampler_config.prediction_type,
        "trained_betas": sampler_config.trained_betas, "timestep_spacing": sampler_config.timestep_spacing,
        "rescale_betas_zero_snr": sampler_config.zero_terminal_snr, "steps_offset": sampler_config.steps_offset,
    }  # fmt: skip
    if sampler_config.solver == "lcm":
        return LCMScheduler(**trained, timestep_scaling=sampler_config.timestep_scaling)
    if sampler_config.solver == "ddim":
        return DDIMScheduler(**trained, clip_sample=False, set_alpha_to_one=sampler_config.set_alpha_to_one)
    karras = sampler_config.karras_sigmas
    return DPMSolverMultistepScheduler(
        **trained, lambda_min_clipped=sampler_config.lambda_min_clipped, solver_type="heun", use_karras_sigmas=karras,
        final_sigmas_type="zero" if karras else "sigma_min",
    )  # fmt: skip


def set_timesteps(scheduler: Any, sampler_config: SamplerConfig, steps: int, device: torch.device | None) -> None:
    """As the scheduler itself spaces them; squeezed ones must be listed."""
    if sampler_config.squeezed:
        scheduler.set_timesteps(timesteps=list(sampler.timesteps(sampler_config, steps)), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)


def _rescaled(guided: Tensor, text: Tensor, share: float) -> Tensor:
    axes = (1, 2, 3)
    back = guided * (text.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
    return share * back + (1 - share) * guided
