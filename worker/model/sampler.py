"""The sampler: timesteps, coefficients and guidance for n denoising steps, shared by all backends.

DPM-Solver++ 2M (Lu et al., 2022, heun variant) with DeciDiffusion 2.0's squeezed timesteps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.core.model.errors import SettingsError
from worker.model import scheduler_config

NUM_TRAIN_TIMESTEPS = 1000
MAX_STEPS = 50
SQUEEZED = {10: 6, 11: 7}  # requested steps -> how many of the 16 unsqueezed timesteps are used
UNSQUEEZED_STEPS = 16
LOWER_ORDER_BELOW = 15  # with fewer steps, the last step is of first order
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
ALMOST_NO_SIGNAL = 2.0**-24  # at the last timestep of a zero-SNR schedule, as in diffusers: zero would divide by zero
PREDICTION_TYPES = ("v_prediction", "epsilon")

Latents = TypeVar("Latents")
"""A numpy array or a torch tensor, float32 (batch, channels, height, width): only operations that both support."""


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """How a model was trained and how its publisher samples it.

    `lambda_min_clipped`: no timestep with a lower log signal-to-noise ratio is used. `guidance_rescale`: the share in
    0..1 of the guided prediction that is rescaled to the deviation of the text's prediction (Lin et al., 2023, 3.4).
    `trained_betas`: one for each timestep, instead of a schedule. `zero_terminal_snr`: the betas are rescaled so that
    the last timestep is noise alone (the same paper, algorithm 1). `timestep_spacing`: as diffusers spaces timesteps;
    `steps_offset` is added to "leading" ones.
    """

    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "v_prediction"
    lambda_min_clipped: float = -7.5
    squeezed: bool = True
    guidance_rescale: float = 0.8
    trained_betas: tuple[float, ...] | None = None
    zero_terminal_snr: bool = False
    timestep_spacing: str = "linspace"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise SettingsError(
                f"The scheduler's beta_schedule is {self.beta_schedule!r}; it can be {', '.join(BETA_SCHEDULES)}."
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise SettingsError(
                f"The scheduler's prediction_type is {self.prediction_type!r}; it can be {', '.join(PREDICTION_TYPES)}."
            )
        if self.timestep_spacing not in scheduler_config.SPACINGS:
            raise SettingsError(
                f"The scheduler's timestep_spacing is {self.timestep_spacing!r}; it can be"
                f" {', '.join(scheduler_config.SPACINGS)}."
            )
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise SettingsError(
                f"The scheduler's betas run from {self.beta_start} to {self.beta_end}; they must rise between 0 and 1."
            )
        if self.timestep_spacing == "trailing" and self.lambda_min_clipped > -math.inf:
            raise SettingsError("The scheduler's timestep_spacing 'trailing' cannot go with lambda_min_clipped.")
        if not 0 <= self.steps_offset <= 1:
            raise SettingsError(f"The scheduler's steps_offset is {self.steps_offset}; it can be 0 or 1.")
        if self.zero_terminal_snr and self.prediction_type != "v_prediction":
            raise SettingsError(
                "The scheduler's rescale_betas_zero_snr needs v_prediction: no noise can be told from noise alone."
            )
        if not 0.0 <= self.guidance_rescale <= 1.0:
            raise SettingsError(f"The guidance rescale is {self.guidance_rescale}; it must be from 0 to 1.")

    @classmethod
    def read(cls, scheduler: Mapping[str, Any], *, flexible: bool, overrides: Mapping[str, Any]) -> "SamplerConfig":
        """From a checkpoint's scheduler_config.json, with `overrides` from its model_index.json.

        A `flexible` U-Net gets the constants of DeciDiffusion's published pipeline: it does not run the scheduler that
        its scheduler_config.json names (DDIM with zero terminal SNR).

        Raises SettingsError, in one sentence, for what cannot be followed.
        """
        scheduler_config.check(scheduler, flexible=flexible)
        followed: dict[str, Any] = {}
        if not flexible:
            followed = {
                "zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr")),
                "timestep_spacing": str(scheduler.get("timestep_spacing") or "linspace"),
                "steps_offset": int(scheduler_config.number(scheduler, "steps_offset", 0)),
            }
        clipped = -7.5 if flexible else scheduler_config.number(scheduler, "lambda_min_clipped", -math.inf)
        try:
            return cls(
                **followed,
                trained_betas=scheduler_config.trained_betas(scheduler),
                beta_schedule=str(scheduler.get("beta_schedule", "linear")),
                beta_start=scheduler_config.number(scheduler, "beta_start", 0.0001),
                beta_end=scheduler_config.number(scheduler, "beta_end", 0.02),
                prediction_type=str(scheduler.get("prediction_type", "epsilon")),
                lambda_min_clipped=float(overrides.get("lambda_min_clipped", clipped)),
                squeezed=bool(overrides.get("squeezed", flexible)),
                guidance_rescale=float(overrides.get("guidance_rescale", 0.8 if flexible else 0.0)),
            )
        except (TypeError, ValueError):
            raise SettingsError(
                "The model's scheduler_config.json has a field that must be a number and is not."
            ) from None


@dataclass(frozen=True, slots=True)
class Step:
    """One step's coefficients.

    x0 = x0_from_latents * latents + x0_from_noise_pred * noise_pred
    next latents = from_latents * latents + from_x0 * x0 + from_last_x0 * (x0 of the step before)
    """

    timestep: int
    x0_from_latents: float
    x0_from_noise_pred: float
    from_latents: float
    from_x0: float
    from_last_x0: float


def timesteps(sampler_config: SamplerConfig, steps: int) -> tuple[int, ...]:
    """`steps` timesteps, descending. They are evenly spaced, or squeezed for 10 and 11 steps if the config says so."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps is {steps}; it must be from 1 to {MAX_STEPS}")
    if not sampler_config.squeezed or steps not in SQUEEZED:
        return _evenly_spaced(sampler_config, steps)
    kept = _evenly_spaced(sampler_config, UNSQUEEZED_STEPS)[: SQUEEZED[steps]]
    left = steps - len(kept)
    stride = kept[-1] // (left + 1)
    return (*kept, *(stride * n for n in range(left, 0, -1)))


@lru_cache(maxsize=256)
def plan(sampler_config: SamplerConfig, steps: int) -> tuple[Step, ...]:
    """The coefficients of all steps, for initial latents that are standard normal."""
    chosen = timesteps(sampler_config, steps)
    alphas_cumprod = _alphas_cumprod(sampler_config)
    # Python floats, because numpy's float64 would turn float32 latents into float64.
    alphas, sigmas, lambdas = (levels.tolist() for levels in _noise_levels(alphas_cumprod[[*chosen, 0]]))
    found = []
    for n, timestep in enumerate(chosen):
        alpha, sigma = alphas[n], sigmas[n]
        h = lambdas[n + 1] - lambdas[n]
        rest = math.expm1(-h)
        from_latents, from_x0, from_last_x0 = sigmas[n + 1] / sigma, -alphas[n + 1] * rest, 0.0
        first_order = n == 0 or (n == steps - 1 and steps < LOWER_ORDER_BELOW)
        if not first_order:
            ratio = (lambdas[n] - lambdas[n - 1]) / h
            slope = alphas[n + 1] * (rest / h + 1.0) / ratio
            from_x0, from_last_x0 = from_x0 + slope, -slope
        if sampler_config.prediction_type == "v_prediction":
            x0_from_latents, x0_from_noise_pred = alpha, -sigma
        else:
            x0_from_latents, x0_from_noise_pred = 1.0 / alpha, -sigma / alpha
        found.append(Step(timestep, x0_from_latents, x0_from_noise_pred, from_latents, from_x0, from_last_x0))
    return tuple(found)


def advance(step: Step, latents: Any, noise_pred: Any, last_x0: Any | None) -> tuple[Any, Any]:
    """The next latents, and x0, this step's estimate of the clean latents. `last_x0` is that of the step before."""
    x0 = step.x0_from_latents * latents + step.x0_from_noise_pred * noise_pred
    latents = step.from_latents * latents + step.from_x0 * x0
    return (latents if last_x0 is None or not step.from_last_x0 else latents + step.from_last_x0 * last_x0), x0


def guide(noise_pred: Any, scales: Any, rescale: float) -> Any:
    """Classifier-free guidance: one prediction from the halves [uncond, text] of `noise_pred` (2 * batch, ...).

    `scales` (batch, 1, 1, 1) is each image's guidance scale (Ho and Salimans, 2022). `rescale` is
    SamplerConfig.guidance_rescale.
    """
    batch = noise_pred.shape[0] // 2
    uncond, text = noise_pred[:batch], noise_pred[batch:]
    guided = uncond + scales * (text - uncond)
    if rescale == 0.0:
        return guided
    rescaled = guided * (_std(text) / _std(guided))
    return rescale * rescaled + (1.0 - rescale) * guided


def _std(x: Any) -> Any:
    axes = (1, 2, 3)
    centred = x - x.mean(axis=axes, keepdims=True)
    return (centred * centred).mean(axis=axes, keepdims=True) ** 0.5


def _evenly_spaced(sampler_config: SamplerConfig, steps: int) -> tuple[int, ...]:
    """Evenly spaced among the timesteps that are not clipped, in one of diffusers' three ways."""
    *_, lambdas = _noise_levels(_alphas_cumprod(sampler_config))
    usable = NUM_TRAIN_TIMESTEPS - int(np.searchsorted(lambdas[::-1], sampler_config.lambda_min_clipped))
    spread: NDArray[Any]
    if sampler_config.timestep_spacing == "leading":
        spread = (np.arange(0, steps + 1) * (usable // (steps + 1)))[::-1][:-1] + sampler_config.steps_offset
    elif sampler_config.timestep_spacing == "trailing":
        spread = np.arange(usable, 0, -NUM_TRAIN_TIMESTEPS / steps).round()[:steps] - 1
    else:  # from the last one down to 0, which is left out
        spread = np.linspace(0, usable - 1, steps + 1).round()[::-1][:-1]
    return tuple(int(timestep) for timestep in spread)


@lru_cache(maxsize=32)
def _alphas_cumprod(sampler_config: SamplerConfig) -> NDArray[np.float64]:
    """(1000,): the signal's share of the variance at each timestep, rounded to float32 as in training."""
    alphas = (np.float32(1.0) - _betas(sampler_config)).astype(np.float64)
    found = np.cumprod(alphas)
    if sampler_config.zero_terminal_snr:
        roots = np.sqrt(found)
        found = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        found[-1] = ALMOST_NO_SIGNAL
    return found.astype(np.float32).astype(np.float64)


def _betas(sampler_config: SamplerConfig) -> NDArray[np.float32]:
    """(1000,): how much noise each timestep adds."""
    start, end = sampler_config.beta_start, sampler_config.beta_end
    if sampler_config.trained_betas is not None:
        return np.array(sampler_config.trained_betas, np.float32)
    if sampler_config.beta_schedule == "squaredcos_cap_v2":
        return np.array([min(1 - _cosine(t + 1) / _cosine(t), 0.999) for t in range(NUM_TRAIN_TIMESTEPS)], np.float32)
    if sampler_config.beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, NUM_TRAIN_TIMESTEPS, dtype=np.float32) ** 2
    return np.linspace(start, end, NUM_TRAIN_TIMESTEPS, dtype=np.float32)


def _cosine(timestep: int) -> float:
    return math.cos((timestep / NUM_TRAIN_TIMESTEPS + 0.008) / 1.008 * math.pi / 2) ** 2


def _noise_levels(
    alphas_cumprod: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """alpha, sigma (alpha^2 + sigma^2 = 1) and lambda = log(alpha / sigma) for each of `alphas_cumprod`."""
    ratio = ((1.0 - alphas_cumprod) / alphas_cumprod) ** 0.5
    alpha = 1.0 / (ratio**2 + 1.0) ** 0.5
    return alpha, ratio * alpha, -np.log(ratio)
