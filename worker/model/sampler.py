"""The sampler: coefficients and guidance for n denoising steps, shared by all backends.

DPM-Solver++ 2M (Lu et al., 2022, heun variant) with DeciDiffusion 2.0's squeezed timesteps; DDIM (Song et al., 2021)
for DeciDiffusion 1.0; and the sampler of latent consistency models (Luo et al., 2023).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from services.core.model.errors import SettingsError
from worker.model import noise_schedule, scheduler_config
from worker.model.noise_schedule import MAX_STEPS, timesteps

__all__ = ["MAX_STEPS", "SamplerConfig", "Step", "advance", "guide", "noise_level", "plan", "timesteps"]
LOWER_ORDER_BELOW = 15  # with fewer steps, the last step is of first order
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("v_prediction", "epsilon")
SOLVERS = {"dpmsolver++": "DPM-Solver++ 2M", "ddim": "DDIM", "lcm": "LCM"}
OVERRIDES = ("solver", "squeezed", "lambda_min_clipped", "guidance_rescale")
SIGMA_DATA = 0.5  # of a latent consistency model's boundary condition

Latents = TypeVar("Latents")
"""A numpy array or a torch tensor, float32 (batch, channels, height, width): only operations that both support."""


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """How a model was trained and how its publisher samples it.

    `lambda_min_clipped`: no timestep with a lower log signal-to-noise ratio is used. `guidance_rescale`: the share in
    0..1 of the guided prediction that is rescaled to the deviation of the text's prediction (Lin et al., 2023, 3.4).
    `trained_betas`: one for each timestep, instead of a schedule. `zero_terminal_snr`: the betas are rescaled so that
    the last timestep is noise alone (the same paper, algorithm 1). `timestep_spacing`: as diffusers spaces timesteps;
    `steps_offset` is added to "leading" ones. `karras_sigmas`: noise levels are spread as Karras et al. (2022) do.
    `set_alpha_to_one`: DDIM's last step ends without noise, not at timestep 0. `timestep_scaling`: of LCM's boundary
    condition.
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
    solver: str = "dpmsolver++"
    karras_sigmas: bool = False
    set_alpha_to_one: bool = True
    timestep_scaling: float = 10.0

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
        if self.karras_sigmas and (self.solver != "dpmsolver++" or self.squeezed):
            raise SettingsError(
                "The scheduler's use_karras_sigmas cannot go with squeezed timesteps, DDIM or LCM; leave it out."
            )
        if self.karras_sigmas and (self.beta_schedule == "squaredcos_cap_v2" or self.zero_terminal_snr):
            raise SettingsError(
                "The scheduler's use_karras_sigmas cannot go with squaredcos_cap_v2 or rescale_betas_zero_snr, whose"
                " most noise several steps would share; leave it out."
            )
        if self.timestep_scaling <= 0.0:
            raise SettingsError(f"The scheduler's timestep_scaling is {self.timestep_scaling}; it must be above 0.")
        if not 0.0 <= self.guidance_rescale <= 1.0:
            raise SettingsError(f"The guidance rescale is {self.guidance_rescale}; it must be from 0 to 1.")

    @classmethod
    def read(
        cls, scheduler: Mapping[str, Any], *, flexible: bool, overrides: Mapping[str, Any], solver: str = "dpmsolver++"
    ) -> "SamplerConfig":
        """From a checkpoint's scheduler_config.json, with `overrides` from its model_index.json.

        A `flexible` U-Net with DPM-Solver++ gets the constants of DeciDiffusion 2.0's published pipeline: it does not
        run the scheduler that its scheduler_config.json names (DDIM with zero terminal SNR). `solver` is that of the
        model's publication.

        Raises SettingsError, in one sentence, for what cannot be followed.
        """
        if unknown := overrides.keys() - set(OVERRIDES):
            raise SettingsError(
                f"The model's model_index.json has the sampler field {min(unknown)!r}; it can have"
                f" {', '.join(OVERRIDES)}."
            )
        solver = str(overrides.get("solver", scheduler_config.solver(scheduler) or solver))
        if solver not in SOLVERS:
            raise SettingsError(f"The model's solver is {solver!r}; it can be {', '.join(SOLVERS)}.")
        squeezing = flexible and solver == "dpmsolver++"
        scheduler_config.check(scheduler, flexible=squeezing)
        usual = scheduler_config.DEFAULTS[scheduler_config.solver(scheduler) or solver]
        followed: dict[str, Any] = {}
        if not squeezing:
            followed = {
                "zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr")),
                "timestep_spacing": str(scheduler.get("timestep_spacing") or usual.timestep_spacing),
                "steps_offset": int(scheduler_config.number(scheduler, "steps_offset", 0)),
                "karras_sigmas": bool(scheduler.get("use_karras_sigmas")),
                "set_alpha_to_one": scheduler.get("set_alpha_to_one") is not False,
                "timestep_scaling": scheduler_config.number(scheduler, "timestep_scaling", 10.0),
            }
        clipped = -7.5 if squeezing else scheduler_config.number(scheduler, "lambda_min_clipped", -math.inf)
        rescale = {"dpmsolver++": 0.8, "ddim": 0.7}.get(solver, 0.0) if flexible else 0.0
        try:
            return cls(
                **followed,
                solver=solver,
                trained_betas=scheduler_config.trained_betas(scheduler),
                beta_schedule=str(scheduler.get("beta_schedule", usual.beta_schedule)),
                beta_start=scheduler_config.number(scheduler, "beta_start", usual.beta_start),
                beta_end=scheduler_config.number(scheduler, "beta_end", usual.beta_end),
                prediction_type=str(scheduler.get("prediction_type", "epsilon")),
                lambda_min_clipped=float(overrides.get("lambda_min_clipped", clipped)),
                squeezed=bool(overrides.get("squeezed", squeezing)),
                guidance_rescale=float(overrides.get("guidance_rescale", rescale)),
            )
        except (TypeError, ValueError):
            raise SettingsError(
                "The model's scheduler_config.json has a field that must be a number and is not."
            ) from None


@dataclass(frozen=True, slots=True)
class Step:
    """One step's coefficients.

    x0 = x0_from_latents * latents + x0_from_noise_pred * noise_pred
    next latents = from_latents * latents + from_x0 * x0 + from_last_x0 * (x0 of the step before) + from_noise * noise,
    the noise new and standard normal; most samplers add none.
    """

    timestep: int
    x0_from_latents: float
    x0_from_noise_pred: float
    from_latents: float
    from_x0: float
    from_last_x0: float = 0.0
    from_noise: float = 0.0


@lru_cache(maxsize=256)
def plan(sampler_config: SamplerConfig, steps: int, first: int = 1) -> tuple[Step, ...]:
    """The coefficients of the steps from the `first` one on, counted from 1. Before step 1 the latents are standard
    normal, before a later one they are an input's, with noise as `noise_level` says."""
    chosen = timesteps(sampler_config, steps)
    solve = {"dpmsolver++": _multistep, "ddim": _ddim, "lcm": _consistency}[sampler_config.solver]
    begin, *rest = list(solve(sampler_config, chosen))[first - 1 :]
    # Nothing was estimated before it, so it is of first order.
    return replace(begin, from_x0=begin.from_x0 + begin.from_last_x0, from_last_x0=0.0), *rest


def noise_level(sampler_config: SamplerConfig, steps: int, first: int) -> tuple[float, float]:
    """How much of an input's latents, and how much noise, the latents are before the `first` step."""
    chosen = timesteps(sampler_config, steps)
    if sampler_config.solver != "dpmsolver++":
        return _levels(noise_schedule.alphas_cumprod(sampler_config).tolist()[chosen[first - 1]])
    alphas, sigmas, _ = _multistep_levels(sampler_config, chosen)
    return alphas[first - 1], sigmas[first - 1]


def advance(step: Step, latents: Any, noise_pred: Any, last_x0: Any | None, noise: Any = None) -> tuple[Any, Any]:
    """The next latents, and x0, this step's estimate of the clean latents. `last_x0` is that of the step before.
    `noise` is new, and needed if `step.from_noise` is not zero."""
    x0 = step.x0_from_latents * latents + step.x0_from_noise_pred * noise_pred
    latents = step.from_latents * latents + step.from_x0 * x0
    if last_x0 is not None and step.from_last_x0:
        latents = latents + step.from_last_x0 * last_x0
    return (latents + step.from_noise * noise if step.from_noise else latents), x0


def _multistep_levels(sampler_config: SamplerConfig, chosen: tuple[int, ...]) -> tuple[list[float], ...]:
    """alpha, sigma and lambda before each step and after the last one."""
    trained = noise_schedule.alphas_cumprod(sampler_config)
    if sampler_config.karras_sigmas:
        ratios = np.append(noise_schedule.karras_sigmas(trained, len(chosen)), 0.0)
        found = noise_schedule.levels_of(ratios)
    else:
        found = noise_schedule.noise_levels(trained[[*chosen, 0]])
    # Python floats, because numpy's float64 would turn float32 latents into float64.
    return tuple(levels.tolist() for levels in found)


def _multistep(sampler_config: SamplerConfig, chosen: tuple[int, ...]) -> Iterator[Step]:
    """DPM-Solver++ 2M. It ends at timestep 0; with Karras sigmas, whose last is that of timestep 0, without noise."""
    alphas, sigmas, lambdas = _multistep_levels(sampler_config, chosen)
    for n, timestep in enumerate(chosen):
        h = lambdas[n + 1] - lambdas[n]
        rest = math.expm1(-h)
        from_latents, from_x0, from_last_x0 = sigmas[n + 1] / sigmas[n], -alphas[n + 1] * rest, 0.0
        last = n == len(chosen) - 1 and (len(chosen) < LOWER_ORDER_BELOW or sampler_config.karras_sigmas)
        if n > 0 and not last:
            ratio = (lambdas[n] - lambdas[n - 1]) / h
            slope = alphas[n + 1] * (rest / h + 1.0) / ratio
            from_x0, from_last_x0 = from_x0 + slope, -slope
        yield Step(timestep, *_x0(sampler_config, alphas[n], sigmas[n]), from_latents, from_x0, from_last_x0)


def _ddim(sampler_config: SamplerConfig, chosen: tuple[int, ...]) -> Iterator[Step]:
    """DDIM without noise. Each step ends a fixed number of timesteps further down, as diffusers has it, which is not
    always exactly where the next one begins."""
    trained = noise_schedule.alphas_cumprod(sampler_config).tolist()
    stride = noise_schedule.NUM_TRAIN_TIMESTEPS // len(chosen)
    for timestep in chosen:
        alpha, sigma = _levels(trained[timestep])
        end = timestep - stride
        to_alpha, to_sigma = _levels(
            trained[end] if end >= 0 else 1.0 if sampler_config.set_alpha_to_one else trained[0]
        )
        # The noise in the latents is (latents - alpha * x0) / sigma.
        x0 = _x0(sampler_config, alpha, sigma)
        yield Step(timestep, *x0, to_sigma / sigma, to_alpha - to_sigma * alpha / sigma)


def _consistency(sampler_config: SamplerConfig, chosen: tuple[int, ...]) -> Iterator[Step]:
    """Latent consistency: each step estimates the clean latents, and all but the last add new noise to them."""
    trained = noise_schedule.alphas_cumprod(sampler_config).tolist()
    for timestep, end in zip(chosen, (*chosen[1:], None), strict=True):
        alpha, sigma = _levels(trained[timestep])
        scaled = timestep * sampler_config.timestep_scaling
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5
        to_alpha, to_sigma = (1.0, 0.0) if end is None else _levels(trained[end])
        x0 = _x0(sampler_config, alpha, sigma)
        yield Step(timestep, *x0, to_alpha * skip, to_alpha * out, from_noise=to_sigma)


def _levels(alpha_cumprod: float) -> tuple[float, float]:
    return alpha_cumprod**0.5, (1.0 - alpha_cumprod) ** 0.5


def _x0(sampler_config: SamplerConfig, alpha: float, sigma: float) -> tuple[float, float]:
    """What latents and prediction are multiplied by to estimate the clean latents."""
    return (alpha, -sigma) if sampler_config.prediction_type == "v_prediction" else (1.0 / alpha, -sigma / alpha)


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
