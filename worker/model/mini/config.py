"""All parameters of presswork-mini's training, in one frozen config that each stage reads."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UNET: dict[str, Any] = {
    "sample_size": 16,
    "temb_dim": 128,
    "resnet_eps": 1e-05,
    "resnet_act_fn": "silu",
    "num_attention_heads": 4,
    "norm_num_groups": 8,
    "cross_attention_dim": 96,
    "mix_block_in_forward": True,
    "down_blocks_in_channels": [32, 32, 64],
    "down_blocks_out_channels": [32, 64, 128],
    "down_blocks_num_resnets": [1, 1, 1],
    "down_blocks_num_attentions": [0, 1, 2],
    "add_downsample": [True, True, False],
    "mid_num_resnets": 0,
    "mid_num_attentions": 0,
    "add_upsample_mid_block": False,
    "prev_output_channels": [128, 128, 64],
    "up_blocks_num_resnets": [2, 2, 2],
    "up_blocks_num_attentions": [2, 2, 0],
    "add_upsample": [True, True, False],
}
"""DeciDiffusion 2.0's shape at a tenth of its width: no attention at the highest resolution and no mid block."""


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes are pixels or channels; `folder` holds drawings, latents and checkpoints, some 1.5 GB."""

    folder: Path = Path("build/mini")
    seed: int = 0
    drawings: int = 24_000
    tests: int = 256  # drawings of held-out scenes on which the VAE is measured
    # VAE
    vae_channels: tuple[int, ...] = (16, 16, 32, 64)
    vae_groups: int = 8
    vae_batch: int = 16  # of each process
    vae_crop: int = 64
    vae_whole: float = 0.3  # the share of the time, at the end, that is spent on whole drawings
    vae_whole_batch: int = 8
    vae_rate: float = 6e-3
    vae_kl: float = 1e-6
    # Text encoder
    tokens: int = 24
    text_width: int = 96
    text_layers: int = 2
    text_heads: int = 4
    # U-Net
    packed: int = 12_000  # drawings that it is trained on, the first of those of the VAE
    unet: dict[str, Any] = field(default_factory=lambda: UNET)
    unet_batch: int = 32  # of each process
    unet_rate: float = 4e-3
    unet_decay: float = 0.01
    unet_bf16: bool = False  # no faster in the backward pass
    ema: float = 0.999
    dropout: float = 0.1  # the share of captions left out, for guidance
    min_snr: float = 5.0
    least_weight: float = 0.3
    warmup: int = 100  # steps
