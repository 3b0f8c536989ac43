"""How much noise there is at each timestep that a model was trained for, and which timesteps are sampled."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from worker.model.sampler import SamplerConfig

NUM_TRAIN_TIMESTEPS = 1000
MAX_STEPS = 50
SQUEEZED = {10: 6, 11: 7}  # requested steps -> how many of the 16 unsqueezed timesteps are used
UNSQUEEZED_STEPS = 16
ALMOST_NO_SIGNAL = 2.0**-24  # at the last timestep of a zero-SNR schedule, as in diffusers: zero would divide by zero
KARRAS_RHO = 7.0


def timesteps(sampler_config: "SamplerConfig", steps: int) -> tuple[int, ...]:
    """`steps` timesteps, descending, as the config's solver spreads them."""
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps is {steps}; it must be from 1 to {MAX_STEPS}")
    if sampler_config.solver == "ddim":
        return _over_all(sampler_config, steps)
    if sampler_config.solver == "lcm":
        return _distilled(steps)
    if sampler_config.karras_sigmas:
        return _karras_timesteps(sampler_config, steps)
    if not sampler_config.squeezed or steps not in SQUEEZED:
        return _unclipped(sampler_config, steps)
    kept = _unclipped(sampler_config, UNSQUEEZED_STEPS)[: SQUEEZED[steps]]
    left = steps - len(kept)
    stride = kept[-1] // (left + 1)
    return (*kept, *(stride * n for n in range(left, 0, -1)))


def alphas_cumprod(sampler_config: "SamplerConfig") -> NDArray[np.float64]:
    """(1000,): the signal's share of the variance at each timestep, rounded to float32 as in training."""
    found = _cumprod(np.float32(1.0) - betas(sampler_config))
    if sampler_config.zero_terminal_snr:
        found = _cumprod(_rescaled(found))
        if sampler_config.solver == "dpmsolver++":  # the others can start from noise alone
            found[-1] = np.float32(ALMOST_NO_SIGNAL)
    return found.astype(np.float64)


def betas(sampler_config: "SamplerConfig") -> NDArray[np.float32]:
    """(1000,): how much noise each timestep adds, before any rescaling to zero terminal SNR."""
    start, end = sampler_config.beta_start, sampler_config.beta_end
    if sampler_config.trained_betas is not None:
        return np.array(sampler_config.trained_betas, np.float32)
    if sampler_config.beta_schedule == "squaredcos_cap_v2":
        return np.array([min(1 - _cosine(t + 1) / _cosine(t), 0.999) for t in range(NUM_TRAIN_TIMESTEPS)], np.float32)
    if sampler_config.beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, NUM_TRAIN_TIMESTEPS, dtype=np.float32) ** 2
    return np.linspace(start, end, NUM_TRAIN_TIMESTEPS, dtype=np.float32)


def _rescaled(alphas_cumprod: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1000,): alphas for which the last timestep has no signal and the first has as much as before (Lin et al., 2023,
    algorithm 1), in float32 as diffusers computes them."""
    roots = np.sqrt(alphas_cumprod)
    shares = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    rescaled_betas = np.float32(1.0) - np.append(shares[:1], shares[1:] / shares[:-1])
    found: NDArray[np.float32] = np.float32(1.0) - rescaled_betas
    return found


def _cumprod(alphas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Their cumulated products, accumulated in float64 as torch does."""
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def karras_sigmas(alphas_cumprod: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """(steps,): sigma / alpha from the most noise to the least, evenly spread in their seventh roots (Karras et al.,
    2022, equation 5)."""
    sigmas = _sigmas(alphas_cumprod)
    least, most = (float(sigma) ** (1 / KARRAS_RHO) for sigma in (sigmas[0], sigmas[-1]))
    return (most + np.linspace(0, 1, steps) * (least - most)) ** KARRAS_RHO


def noise_levels(
    alphas_cumprod: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """alpha, sigma (alpha^2 + sigma^2 = 1) and lambda = log(alpha / sigma) for each of `alphas_cumprod`."""
    return levels_of(_sigmas(alphas_cumprod))


def levels_of(ratio: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The same for each `ratio` of sigma to alpha; lambda is infinite where there is no noise."""
    alpha = 1.0 / (ratio**2 + 1.0) ** 0.5
    with np.errstate(divide="ignore"):
        return alpha, ratio * alpha, -np.log(ratio)


def _sigmas(alphas_cumprod: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((1.0 - alphas_cumprod) / alphas_cumprod) ** 0.5


def _unclipped(sampler_config: "SamplerConfig", steps: int) -> tuple[int, ...]:
    """Evenly spaced among the timesteps that are not clipped, in one of the ways of diffusers' DPM-Solver."""
    *_, lambdas = noise_levels(alphas_cumprod(sampler_config))
    usable = NUM_TRAIN_TIMESTEPS - int(np.searchsorted(lambdas[::-1], sampler_config.lambda_min_clipped))
    spread: NDArray[Any]
    if sampler_config.timestep_spacing == "leading":
        spread = (np.arange(0, steps + 1) * (usable // (steps + 1)))[::-1][:-1] + sampler_config.steps_offset
    elif sampler_config.timestep_spacing == "trailing":
        spread = np.arange(usable, 0, -NUM_TRAIN_TIMESTEPS / steps).round()[:steps] - 1
    else:  # from the last one down to 0, which is left out
        spread = np.linspace(0, usable - 1, steps + 1).round()[::-1][:-1]
    return tuple(int(timestep) for timestep in spread)


def _over_all(sampler_config: "SamplerConfig", steps: int) -> tuple[int, ...]:
    """Evenly spaced among all timesteps, in one of the ways of diffusers' DDIM."""
    spread: NDArray[Any]
    if sampler_config.timestep_spacing == "leading":
        spread = (np.arange(0, steps) * (NUM_TRAIN_TIMESTEPS // steps))[::-1] + sampler_config.steps_offset
    elif sampler_config.timestep_spacing == "trailing":
        spread = np.arange(NUM_TRAIN_TIMESTEPS, 0, -NUM_TRAIN_TIMESTEPS / steps).round()[:steps] - 1
    else:
        spread = np.linspace(0, NUM_TRAIN_TIMESTEPS - 1, steps).round()[::-1]
    return tuple(int(timestep) for timestep in spread)


def _distilled(steps: int) -> tuple[int, ...]:
    """Of the fifty timesteps that a latent consistency model is distilled at, `steps` that are evenly spread."""
    stride = NUM_TRAIN_TIMESTEPS // MAX_STEPS
    return tuple((MAX_STEPS - MAX_STEPS * n // steps) * stride - 1 for n in range(steps))


def _karras_timesteps(sampler_config: "SamplerConfig", steps: int) -> tuple[int, ...]:
    """The timestep nearest to each Karras sigma, by its logarithm."""
    trained = alphas_cumprod(sampler_config)
    found = np.interp(np.log(karras_sigmas(trained, steps)), np.log(_sigmas(trained)), np.arange(NUM_TRAIN_TIMESTEPS))
    return tuple(int(timestep) for timestep in found.round())


def _cosine(timestep: int) -> float:
    return math.cos((timestep / NUM_TRAIN_TIMESTEPS + 0.008) / 1.008 * math.pi / 2) ** 2
