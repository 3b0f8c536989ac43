"""The first stage: trains an AutoencoderKL that encodes a drawing as 16x16 latents."""

import math
from typing import Any

import numpy as np
import torch

from worker.model.mini import data, networks, parallel
from worker.model.mini.clock import Clock
from worker.model.mini.config import Config
from worker.model.mini.drawings import SIDE
from worker.model.mini.optimizer import Muon

CHECKPOINT = "vae.pt"


def train(config: Config, minutes: float) -> None:
    """Trains for `minutes`, including those of an interrupted run; saves the VAE."""
    torch.manual_seed(config.seed)
    model = networks.vae(config)
    optimizer = Muon(model, config.vae_rate)
    clock = Clock(minutes)
    file = config.folder / CHECKPOINT
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        clock.resume(saved["step"], saved["seconds"])
    drawings, tests = data.drawings(config), tensor(data.test_drawings(config)[:64])
    losses: list[float] = []
    while clock.running():
        chance = np.random.default_rng((config.seed, clock.step, parallel.rank()))
        optimizer.set_rate(config.vae_rate * clock.cosine(warmup=50))
        whole = clock.share > 1 - config.vae_whole
        loss = _loss(model, _batch(config, drawings, chance, whole), config.vae_kl)
        optimizer.zero_grad()
        loss.backward()
        clock.tick(parallel.average(model.parameters(), clock.now()))
        optimizer.step()
        losses.append(loss.item())
        if clock.step % 50 == 0:
            mean = np.mean(losses[-50:])
            parallel.say(f"vae step {clock.step} {clock.seconds() / 60:.1f} min {clock.share:.0%} loss {mean:.4f}")
        if clock.step % 250 == 0 and parallel.rank() == 0:
            _save(file, model, optimizer, clock)
            parallel.say(f"vae step {clock.step} psnr {psnr(model, tests):.2f} dB on held-out drawings")
    if parallel.rank() == 0:
        _save(file, model, optimizer, clock)
        parallel.say(f"vae done: {clock.step} steps, psnr {psnr(model, tests):.2f} dB on held-out drawings")


def psnr(model: Any, pictures: torch.Tensor) -> float:
    """PSNR in dB of (B, 3, 128, 128) in -1..1 after encoding, decoding and rounding to 8 bits; the mean."""
    with torch.inference_mode():
        made = model.decode(model.encode(pictures).latent_dist.mode()).sample
    levels = ((made.clamp(-1, 1) + 1) * 127.5).round()
    errors = (levels - (pictures + 1) * 127.5).square().mean(dim=(1, 2, 3))
    return float((20 * math.log10(255) - 10 * errors.log10()).mean())


def _loss(model: Any, pictures: torch.Tensor, kl_weight: float) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        packed = model.encode(pictures).latent_dist
        made = model.decode(packed.mean.float() + 0.02 * torch.randn_like(packed.mean)).sample
    made = made.float()
    error = made - pictures
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    mean, logvar = packed.mean.float(), packed.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + kl_weight * kl


def _batch(config: Config, drawings: Any, chance: np.random.Generator, whole: bool) -> torch.Tensor:
    """Whole drawings, or crops that are mostly near the middle, where the things are."""
    size = config.vae_whole_batch if whole else config.vae_batch
    picked = chance.integers(len(drawings), size=size)
    if whole:
        return tensor(drawings[np.sort(picked)])
    side, margin = config.vae_crop, SIDE - config.vae_crop
    corners = np.clip(chance.normal(0.5, 0.25, (size, 2)) * margin, 0, margin).astype(int)
    crops = [drawings[n, y : y + side, x : x + side] for n, (y, x) in zip(picked, corners, strict=True)]
    return tensor(np.stack(crops))


def tensor(pictures: Any) -> torch.Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float() / 127.5 - 1


def _save(file: Any, model: Any, optimizer: Any, clock: Any) -> None:
    draft = file.with_suffix(".draft")
    torch.save(
        {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "step": clock.step, "seconds": clock.seconds(),
        }, draft,
    )  # fmt: skip
    draft.rename(file)
