"""The VAE with normalized latents, and a file with the latents of the first `packed` training drawings."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worker.model.mini import data, networks, parallel, train_vae
from worker.model.mini.config import Config
from worker.model.mini.drawings import SIDE

FILE = "latents.npz"
_BATCH = 16


def trained_vae(config: Config) -> Any:
    """The trained VAE from its checkpoint, whose latents are not normalized."""
    model = networks.vae(config)
    model.load_state_dict(torch.load(config.folder / train_vae.CHECKPOINT, weights_only=True)["model"])
    return model.eval()


def normalised_vae(config: Config) -> Any:
    """The trained VAE whose latents have mean 0 and deviation 1 in each channel over the training drawings."""
    model = trained_vae(config)
    with np.load(config.folder / FILE) as saved:
        fold(model, torch.from_numpy(saved["mean"]), torch.from_numpy(saved["deviation"]))
    return model


def of_drawings(config: Config) -> NDArray[np.float32]:
    """(config.packed, 4, 16, 16) float32, normalised per channel. The file is made if it is missing."""
    file = config.folder / FILE
    if not file.exists():
        raw = _packed(config).numpy()
        mean, deviation = raw.mean(axis=(0, 2, 3)), raw.std(axis=(0, 2, 3))
        normal = (raw - mean[:, None, None]) / deviation[:, None, None]
        if parallel.rank() != 0:
            return normal
        np.savez(file, latents=normal.astype(np.float16), mean=mean, deviation=deviation)
    with np.load(file) as saved:
        found: NDArray[np.float32] = saved["latents"].astype(np.float32)
    return found


@torch.inference_mode()
def _packed(config: Config) -> torch.Tensor:
    """(config.packed, 4, 16, 16) as the VAE encodes them; each batch is encoded by one of the processes."""
    model, drawings = trained_vae(config), data.drawings(config)[: config.packed]
    packed = torch.zeros(len(drawings), networks.LATENT_CHANNELS, *(SIDE // networks.DOWNSAMPLING,) * 2)
    for number, start in enumerate(range(0, len(drawings), _BATCH)):
        if parallel.is_mine(number):
            with torch.autocast("cpu", torch.bfloat16):
                found = model.encode(train_vae.tensor(drawings[start : start + _BATCH])).latent_dist.mean
            packed[start : start + _BATCH] = found.float()
        if number % 100 == 0:
            parallel.say(f"latents of drawing {start} of {len(drawings)}")
    parallel.all_reduce(packed)
    return packed


@torch.no_grad()
def fold(vae: Any, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Folds (latents - mean) / deviation, both (4,), into the VAE's encoder, and the inverse into its decoder."""
    channels = len(mean)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.bias[:channels].sub_(mean).div_(deviation)
    into.weight[:channels].div_(deviation.view(-1, 1, 1, 1))
    into.bias[channels:].sub_(2 * deviation.log())
    out.bias.add_((out.weight[:, :, 0, 0] * mean).sum(dim=1))
    out.weight.mul_(deviation.view(1, -1, 1, 1))
