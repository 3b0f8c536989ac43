"""The second stage: trains the text encoder and the flexible U-Net together to predict v from noised latents.

v-prediction (Salimans and Ho, 2022), zero terminal SNR (Lin et al., 2023), min-SNR weights (Hang et al., 2023).
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from worker.model.mini import data, grammar, latents, networks, parallel
from worker.model.mini.clock import Clock
from worker.model.mini.config import Config
from worker.model.mini.optimizer import Muon

CHECKPOINT = "unet.pt"
NUM_TRAIN_TIMESTEPS = 1000


class Pair(nn.Module):
    """The two networks as one, for one optimizer and one moving average."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.text_encoder = networks.text_encoder(config)
        self.unet = networks.unet(config)

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """v (B, 4, 16, 16) of noised latents, timesteps (B,) and tokens (B, T) int64."""
        v_pred: torch.Tensor = self.unet(noised, timesteps, self.text_encoder(tokens).last_hidden_state)
        return v_pred


def train(config: Config, minutes: float) -> None:
    """Trains for `minutes`, including those of an interrupted run; saves the weights and their moving average."""
    torch.manual_seed(config.seed)
    model, average = Pair(config), Pair(config)
    average.load_state_dict(model.state_dict())
    optimizer = Muon(model, config.unet_rate, config.unet_decay)
    packed = torch.from_numpy(latents.of_drawings(config))  # before the clock starts
    clock = Clock(minutes)
    file = config.folder / CHECKPOINT
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        clock.resume(saved["step"], saved["seconds"])
    scenes = [data.training_scene(config, number) for number in range(len(packed))]
    tokenizer, alphas_cumprod = networks.tokenizer(config), zero_terminal_alphas_cumprod()
    losses: list[float] = []
    while clock.running():
        chance = np.random.default_rng((config.seed, clock.step, parallel.rank()))
        optimizer.set_rate(config.unet_rate * clock.cosine(config.warmup))
        picked = chance.integers(len(packed), size=config.unet_batch)
        prompts = _prompts(config, [scenes[number] for number in picked], f"{clock.step} {parallel.rank()}")
        loss = _loss(config, model, packed[picked], tokenize(tokenizer, prompts), alphas_cumprod, chance)
        optimizer.zero_grad()
        loss.backward()
        clock.tick(parallel.average(model.parameters(), clock.now()))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _update_average(average, model, min(config.ema, (1 + clock.step) / (10 + clock.step)))
        losses.append(loss.item())
        if clock.step % 50 == 0:
            mean = np.mean(losses[-200:])
            parallel.say(f"unet step {clock.step} {clock.seconds() / 60:.1f} min {clock.share:.0%} loss {mean:.4f}")
        if clock.step % 250 == 0 and parallel.rank() == 0:
            _save(file, model, average, optimizer, clock)
    if parallel.rank() == 0:
        _save(file, model, average, optimizer, clock)
        parallel.say(f"unet done: {clock.step} steps, loss {np.mean(losses[-200:]):.4f}")


def tokenize(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """(B, T) int64, padded or cut to the text encoder's length."""
    ids: torch.Tensor = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


def zero_terminal_alphas_cumprod() -> torch.Tensor:
    """(1000,) float32: alphas_cumprod of the squared-cosine betas, rescaled so that the last timestep is pure noise."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True)
    kept: torch.Tensor = scheduler.alphas_cumprod
    return kept


def _prompts(config: Config, scenes: list[grammar.Scene], step: str) -> list[str]:
    chance = random.Random(f"{config.seed} prompts {step}")
    return ["" if chance.random() < config.dropout else grammar.caption(scene, chance) for scene in scenes]


def _loss(
    config: Config,
    model: Pair,
    clean: torch.Tensor,
    tokens: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    chance: np.random.Generator,
) -> torch.Tensor:
    size = len(clean)
    spread = (
        chance.random() + np.arange(size) / size
    ) % 1.0  # evenly spread over the batch, for less noise in the loss
    timesteps = torch.from_numpy((spread * NUM_TRAIN_TIMESTEPS).astype(np.int64))
    noise = torch.from_numpy(chance.standard_normal(clean.shape, np.float32))
    kept = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    target = alpha * noise - sigma * clean
    with torch.autocast("cpu", torch.bfloat16, enabled=config.unet_bf16):
        v_pred = model(alpha * clean + sigma * noise, timesteps, tokens)
    snr = (kept / (1 - kept)).flatten()
    weights = snr.clamp(max=config.min_snr) / (snr + 1) if config.min_snr else torch.ones_like(snr)
    # min-SNR weights vanish for pure noise, where the layout is decided, so they get a minimum.
    weights = weights.clamp(min=config.least_weight)
    return ((v_pred.float() - target).square().mean(dim=(1, 2, 3)) * weights).mean()


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _save(file: Path, model: nn.Module, average: nn.Module, optimizer: Muon, clock: Clock) -> None:
    draft = file.with_suffix(".draft")
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "step": clock.step, "seconds": clock.seconds()}, draft)
    draft.rename(file)
