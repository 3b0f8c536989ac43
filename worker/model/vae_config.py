"""Reads a VAE's config.json by an allow-list: what the decoder cannot follow is refused. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from services.core.model.errors import SettingsError
from worker.model import latent_scale

FILE = "The model's vae/config.json"
CLASS = "AutoencoderKL"
# Followed: they decide the network, or how latents are scaled.
FOLLOWED = frozenset(
    ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "scaling_factor", "shift_factor",
     "latents_mean", "latents_std", "use_post_quant_conv", "use_quant_conv", "mid_block_add_attention")
)  # fmt: skip
# They change nothing that is drawn: one size decodes like another, and every decoder that overflows has a second try.
WITHOUT_EFFECT = frozenset(("sample_size", "force_upcast"))
# Must have one of these values, each one if it is a list; or be absent.
ONLY: dict[str, tuple[Any, ...]] = {
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu", "swish"),
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
}


def check(config: Mapping[str, Any]) -> None:
    """Raises SettingsError, in one sentence, for anything that would be drawn otherwise than `config` says."""
    name = config.get("_class_name", CLASS)
    if name != CLASS:
        raise SettingsError(f"{FILE} is that of {name}; only {CLASS} is supported: use the model's usual VAE.")
    for field, value in config.items():
        if field.startswith("_") or field in FOLLOWED or field in WITHOUT_EFFECT:
            continue
        if field not in ONLY:
            raise SettingsError(f"{FILE} has {field} {_short(value)}, which is not known; leave it out.")
        values = value if isinstance(value, list | tuple) else [value]
        if any(one not in ONLY[field] for one in values):
            right = " or ".join(map(repr, ONLY[field]))
            raise SettingsError(f"{FILE} has {field} {_short(value)}; only {right} is supported.")
    channels = config.get("latent_channels", 4)
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise SettingsError(f"{FILE} has latent_channels {_short(channels)}; it must be a number of channels.")
    latent_scale.read(config, channels)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
