"""How latents become an image in n steps: timesteps, coefficients, guidance. Plain numbers; every backend uses these.

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

TRAINED_STEPS = 1000
MAX_STEPS = 50
SQUEEZED = {10: 6, 11: 7}  # requested steps -> how many of the unsqueezed 16 timesteps are kept
UNSQUEEZED_STEPS = 16
LOWER_ORDER_BELOW = 15  # with fewer steps the last is of first order
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("v_prediction", "epsilon")

Latents = TypeVar("Latents")
"""A numpy array or a torch tensor, float32 (batch, channels, height, width): only what both can do is asked of it."""


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """What a model was trained for and how its publisher samples it.

    `clip`: log signal-to-noise below which no timestep is taken (lambda_min_clipped). `rescale`: the share in 0..1 of
    a guided prediction that is brought back to the deviation of the text's own (Lin et al., 2023, section 3.4).
    """

    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: str = "v_prediction"
    clip: float = -7.5
    squeezed: bool = True
    rescale: float = 0.8

    def __post_init__(self) -> None:
        if self.beta_schedule not in BETA_SCHEDULES:
            raise SettingsError(
                f"The scheduler's beta_schedule is {self.beta_schedule!r}; it can be {', '.join(BETA_SCHEDULES)}."
            )
        if self.prediction not in PREDICTIONS:
            raise SettingsError(
                f"The scheduler's prediction_type is {self.prediction!r}; it can be {', '.join(PREDICTIONS)}."
            )
        if not 0.0 <= self.rescale <= 1.0:
            raise SettingsError(f"The guidance rescale is {self.rescale}; it must be from 0 to 1.")

    @classmethod
    def read(cls, scheduler: Mapping[str, Any], *, flexible: bool, said: Mapping[str, Any]) -> "SamplerConfig":
        """From a checkpoint's scheduler_config.json. What DeciDiffusion publishes there (DDIM, zero terminal SNR) is
        not what its pipeline runs; for a `flexible` U-Net the pipeline's own constants stand. `said` overrides."""
        try:
            return cls(
                beta_schedule=str(scheduler.get("beta_schedule", "linear")),
                beta_start=float(scheduler.get("beta_start", 0.0001)),
                beta_end=float(scheduler.get("beta_end", 0.02)),
                prediction=str(scheduler.get("prediction_type", "epsilon")),
                clip=float(said.get("lambda_min_clipped", -7.5 if flexible else -math.inf)),
                squeezed=bool(said.get("squeezed", flexible)),
                rescale=float(said.get("guidance_rescale", 0.8 if flexible else 0.0)),
            )
        except (TypeError, ValueError):
            raise SettingsError("The model's scheduler_config.json holds a number that is none.") from None


@dataclass(frozen=True, slots=True)
class Step:
    """One step. The clean image is estimated as `of_latents * latents + of_prediction * prediction`, and the next
    latents are `keep * latents + now * estimate + before * last estimate`."""

    timestep: int
    of_latents: float
    of_prediction: float
    keep: float
    now: float
    before: float


def timesteps(sampler_config: SamplerConfig, steps: int) -> tuple[int, ...]:
    """Descending, `steps` of them: 10 and 11 are squeezed where the rules say so, anything else is spread evenly."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps is {steps}; it must be from 1 to {MAX_STEPS}")
    if not sampler_config.squeezed or steps not in SQUEEZED:
        return _even(sampler_config, steps)
    kept = _even(sampler_config, UNSQUEEZED_STEPS)[: SQUEEZED[steps]]
    left = steps - len(kept)
    stride = kept[-1] // (left + 1)
    return (*kept, *(stride * n for n in range(left, 0, -1)))


@lru_cache(maxsize=256)
def plan(sampler_config: SamplerConfig, steps: int) -> tuple[Step, ...]:
    """The steps' coefficients, for standard normal latents to begin with."""
    taken = timesteps(sampler_config, steps)
    kept_share = _alphas_cumprod(sampler_config)
    # As Python's floats: numpy's would make float64 of float32 latents.
    alphas, sigmas, lambdas = (levels.tolist() for levels in _noise_levels(kept_share[[*taken, 0]]))
    found = []
    for n, timestep in enumerate(taken):
        alpha, sigma = alphas[n], sigmas[n]
        h = lambdas[n + 1] - lambdas[n]
        rest = math.expm1(-h)
        keep, now, before = sigmas[n + 1] / sigma, -alphas[n + 1] * rest, 0.0
        first_order = n == 0 or (n == steps - 1 and steps < LOWER_ORDER_BELOW)
        if not first_order:
            ratio = (lambdas[n] - lambdas[n - 1]) / h
            slope = alphas[n + 1] * (rest / h + 1.0) / ratio
            now, before = now + slope, -slope
        if sampler_config.prediction == "v_prediction":
            of_latents, of_prediction = alpha, -sigma
        else:
            of_latents, of_prediction = 1.0 / alpha, -sigma / alpha
        found.append(Step(timestep, of_latents, of_prediction, keep, now, before))
    return tuple(found)


def advance(step: Step, latents: Any, prediction: Any, last: Any | None) -> tuple[Any, Any]:
    """The next latents and this step's estimate of the clean image. `last` is the estimate of the step before."""
    x0 = step.of_latents * latents + step.of_prediction * prediction
    latents = step.keep * latents + step.now * x0
    return (latents if last is None or not step.before else latents + step.before * last), x0


def guide(prediction: Any, scales: Any, rescale: float) -> Any:
    """The guided prediction from the two halves [without prompt, with prompt] of `prediction` (2 * batch, ...).

    `scales` (batch, 1, 1, 1) is each image's guidance scale (Ho and Salimans, 2022); `rescale` as in `Rules`.
    """
    batch = prediction.shape[0] // 2
    uncond, text = prediction[:batch], prediction[batch:]
    guided = uncond + scales * (text - uncond)
    if rescale == 0.0:
        return guided
    brought_back = guided * (_deviation(text) / _deviation(guided))
    return rescale * brought_back + (1.0 - rescale) * guided


def _deviation(x: Any) -> Any:
    axes = (1, 2, 3)
    centred = x - x.mean(axis=axes, keepdims=True)
    return (centred * centred).mean(axis=axes, keepdims=True) ** 0.5


def _even(sampler_config: SamplerConfig, steps: int) -> tuple[int, ...]:
    """Evenly from the last timestep that is not clipped down to 0, which itself is not taken."""
    *_, lambdas = _noise_levels(_alphas_cumprod(sampler_config))
    last = TRAINED_STEPS - int(np.searchsorted(lambdas[::-1], sampler_config.clip)) - 1
    spread = np.linspace(0, last, steps + 1).round()[::-1][:-1]
    return tuple(int(timestep) for timestep in spread)


@lru_cache(maxsize=32)
def _alphas_cumprod(sampler_config: SamplerConfig) -> NDArray[np.float64]:
    """(1000,): the signal's share of the variance at each timestep (alphas_cumprod), rounded as it was in training."""
    if sampler_config.beta_schedule == "squaredcos_cap_v2":
        betas = np.array([min(1 - _cosine(t + 1) / _cosine(t), 0.999) for t in range(TRAINED_STEPS)], np.float32)
    elif sampler_config.beta_schedule == "scaled_linear":
        betas = (
            np.linspace(sampler_config.beta_start**0.5, sampler_config.beta_end**0.5, TRAINED_STEPS, dtype=np.float32)
            ** 2
        )
    else:
        betas = np.linspace(sampler_config.beta_start, sampler_config.beta_end, TRAINED_STEPS, dtype=np.float32)
    alphas = (np.float32(1.0) - betas).astype(np.float64)
    return np.cumprod(alphas).astype(np.float32).astype(np.float64)


def _cosine(timestep: int) -> float:
    return math.cos((timestep / TRAINED_STEPS + 0.008) / 1.008 * math.pi / 2) ** 2


def _noise_levels(
    kept_share: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """alpha, sigma (alpha^2 + sigma^2 = 1) and lambda = log(alpha / sigma) for shares of the signal."""
    ratio = ((1.0 - kept_share) / kept_share) ** 0.5
    alpha = 1.0 / (ratio**2 + 1.0) ** 0.5
    return alpha, ratio * alpha, -np.log(ratio)
