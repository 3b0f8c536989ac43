"""Reads a checkpoint's scheduler_config.json by an allow-list: what the sampler cannot follow is refused.

The sampler is DPM-Solver++ 2M for every model that any solver can sample. A scheduler's class and the options of its
solver are therefore not followed; what the model was trained for (its betas and prediction) and the choice of timesteps
are. A model whose scheduler is LCM's, and DeciDiffusion 1.0, which its publication samples by DDIM, get their own.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from services.core.model.errors import SettingsError

FILE = "The model's scheduler/scheduler_config.json"
LCM = "LCMScheduler"
# The solvers of diffusers for models that any solver can sample. Distilled and flow models need their own.
CLASSES = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDIM", "DDPM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete",
        "UniPCMultistep", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "KDPM2Discrete",
        "KDPM2AncestralDiscrete", "SASolver",
    )
)  # fmt: skip
SPACINGS = ("linspace", "leading", "trailing")
# Followed: see SamplerConfig.
FOLLOWED = frozenset(
    ("beta_start", "beta_end", "beta_schedule", "prediction_type", "trained_betas", "rescale_betas_zero_snr",
     "timestep_spacing", "steps_offset", "lambda_min_clipped", "use_karras_sigmas", "set_alpha_to_one",
     "timestep_scaling")
)  # fmt: skip
# Options of other solvers, which this one does not have, or of pictures without latents.
OF_OTHER_SOLVERS = frozenset(
    ("skip_prk_steps", "clip_sample", "clip_sample_range", "sample_max_value", "variance_type",
     "dynamic_thresholding_ratio", "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type",
     "predict_x0", "solver_p", "disable_corrector", "interpolation_type", "timestep_type", "eta", "noise_sampler_seed",
     "predictor_order", "corrector_order", "tau_func", "s_churn", "s_tmin", "s_tmax", "s_noise")
)  # fmt: skip
# Must have this value, or be absent, null or false.
ONLY: dict[str, tuple[Any, str]] = {
    "num_train_timesteps": (1000, "models are sampled at 1000 timesteps"),
    "original_inference_steps": (50, "latent consistency models are distilled at 50 timesteps"),
    "solver_order": (2, "the sampler is of second order"),
    "algorithm_type": ("dpmsolver++", "the sampler is DPM-Solver++ without noise"),
}
BETAS = 1000


class Defaults(NamedTuple):
    """What diffusers' scheduler takes for fields that a file leaves out."""

    beta_schedule: str
    beta_start: float
    beta_end: float
    timestep_spacing: str


DEFAULTS = {
    "dpmsolver++": Defaults("linear", 0.0001, 0.02, "linspace"),
    "ddim": Defaults("linear", 0.0001, 0.02, "leading"),
    "lcm": Defaults("scaled_linear", 0.00085, 0.012, "leading"),
}


def solver(config: Mapping[str, Any]) -> str | None:
    """The solver that the file's class alone has; None if others will do."""
    return "lcm" if config.get("_class_name") == LCM else None


def check(config: Mapping[str, Any], *, flexible: bool) -> None:
    """Raises SettingsError, in one sentence, for anything that would be drawn otherwise than `config` says.

    A `flexible` U-Net is sampled as DeciDiffusion's pipeline does it, whatever scheduler the file names.
    """
    name = str(config.get("_class_name") or "DDIMScheduler")
    if name != LCM and name not in CLASSES:
        raise SettingsError(
            f"{FILE} names {name}, whose models need its own sampler; models for DDIM, PNDM, Euler, DPM-Solver or"
            " LCM can be used."
        )
    for field, value in config.items():
        if field.startswith("_") or field in FOLLOWED or field in OF_OTHER_SOLVERS or value is None or value is False:
            continue
        if field not in ONLY:
            if _is_neutral(field, value):
                continue
            raise SettingsError(f"{FILE} has {field} {_short(value)}, which is not supported; leave it out.")
        right, because = ONLY[field]
        if value != right and not (flexible and field != "num_train_timesteps"):
            raise SettingsError(f"{FILE} has {field} {_short(value)}; only {right!r} is supported: {because}.")
    if str(config.get("variance_type") or "").startswith("learned"):
        raise SettingsError(
            f"{FILE} has variance_type {config['variance_type']!r}: such a U-Net predicts more than noise."
        )


def trained_betas(config: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The betas that the file lists, one for each timestep; None if it lists none."""
    listed = config.get("trained_betas")
    if listed is None:
        return None
    if not isinstance(listed, list) or len(listed) != BETAS:
        raise SettingsError(f"{FILE} has trained_betas that are not a list of {BETAS} numbers.")
    found = tuple(map(float, listed))
    if not all(0.0 < beta < 1.0 for beta in found):
        raise SettingsError(f"{FILE} has trained_betas that are not all between 0 and 1.")
    return found


def number(config: Mapping[str, Any], field: str, default: float) -> float:
    """A field that must be a number, and finite unless its default is not."""
    value = config.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise SettingsError(f"{FILE} has {field} {_short(value)}; it must be a number.")
    if math.isinf(value) and value != default:
        raise SettingsError(f"{FILE} has {field} {_short(value)}; it must be finite.")
    return float(value)


def _is_neutral(field: str, value: Any) -> bool:
    """Whether an option that some schedulers have is set to what changes nothing."""
    return value in {"flow_shift": (1, 1.0), "time_shift_type": ("exponential",), "rho": (7, 7.0)}.get(field, ())


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
