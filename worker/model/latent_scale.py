"""How a VAE's config scales latents before they are decoded. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import SettingsError


@dataclass(frozen=True, slots=True)
class LatentScale:
    """The decoder's input is `latents * std / scaling + shift + mean`: `std` and `mean` one number a channel, or empty.

    A VAE has either a shift or means and deviations, as diffusers' pipelines use them.
    """

    scaling: float
    shift: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def for_decoder(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The decoder's input, of the sampler's latents (batch, channels, height, width)."""
        if self.std:
            return latents * _per_channel(self.std) / np.float32(self.scaling) + _per_channel(self.mean)
        return latents / np.float32(self.scaling) + np.float32(self.shift)

    def of_moments(self, moments: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and deviation of latents as the sampler scales them, of the encoder's output (batch, 2 * channels,
        height, width): means, then the logarithms of variances."""
        mean, log_variance = np.split(moments, 2, axis=1)
        deviation = np.exp(np.float32(0.5) * log_variance.clip(-30.0, 20.0))
        factor = np.float32(self.scaling) / (_per_channel(self.std) if self.std else np.float32(1.0))
        mean = mean - (_per_channel(self.mean) if self.std else np.float32(self.shift))
        return mean * factor, deviation * factor


def read(config: Mapping[str, Any], channels: int) -> LatentScale:
    """From a VAE's config. Raises SettingsError, in one sentence, for numbers that no latents have."""
    scaling, shift = config.get("scaling_factor", 0.18215), config.get("shift_factor") or 0.0
    if not _is_number(scaling) or scaling <= 0.0:
        raise SettingsError(
            f"The model's vae/config.json has scaling_factor {scaling!r}; it must be a number above 0, such as 0.18215."
        )
    if not _is_number(shift):
        raise SettingsError(f"The model's vae/config.json has shift_factor {shift!r}; it must be a number.")
    listed = {name: config.get(name) or () for name in ("latents_mean", "latents_std")}
    for name, values in listed.items():
        if values and (len(values) != channels or not all(map(_is_number, values))):
            raise SettingsError(f"The model's vae/config.json has {name} that are not {channels} numbers.")
    mean, std = (tuple(map(float, values)) for values in listed.values())
    if bool(mean) != bool(std) or any(value <= 0.0 for value in std) or (mean and shift):
        raise SettingsError(
            "The model's vae/config.json has latents_mean and latents_std that do not belong together: both or neither,"
            " deviations above 0, and no shift_factor beside them."
        )
    return LatentScale(float(scaling), float(shift), mean, std)


def _per_channel(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, np.float32)[:, None, None]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
