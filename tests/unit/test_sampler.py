"""The sampler is the published one: timesteps to the number, latents as diffusers computes them."""

import dataclasses
import inspect
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from services.core.model.errors import SettingsError
from worker.bench import stock
from worker.model import sampler
from worker.model.sampler import MAX_STEPS, SamplerConfig

PUBLISHED_16 = (998, 936, 873, 811, 748, 686, 624, 561, 499, 437, 374, 312, 250, 187, 125, 62)
PUBLISHED_10 = (998, 936, 873, 811, 748, 686, 548, 411, 274, 137)
STABLE = SamplerConfig("scaled_linear", 0.00085, 0.012, "epsilon", -math.inf, squeezed=False, guidance_rescale=0.0)


def test_ten_steps_are_the_published_squeezed_ones_and_sixteen_the_plain_ones():
    assert sampler.timesteps(SamplerConfig(), 10) == PUBLISHED_10
    assert sampler.timesteps(SamplerConfig(), 16) == PUBLISHED_16
    assert sampler.timesteps(SamplerConfig(), 11) == (*PUBLISHED_16[:7], 496, 372, 248, 124)
    assert sampler.timesteps(dataclasses.replace(SamplerConfig(), squeezed=False), 10)[:3] == (998, 898, 798)


@pytest.mark.parametrize("sampler_config", [SamplerConfig(), STABLE], ids=["deci", "stable"])
def test_any_number_of_steps_goes_strictly_down_and_never_to_zero(sampler_config: SamplerConfig):
    for steps in range(1, MAX_STEPS + 1):
        taken = sampler.timesteps(sampler_config, steps)
        assert len(taken) == steps
        assert all(high > low for high, low in itertools.pairwise((*taken, 0)))
    for steps in (0, MAX_STEPS + 1):
        with pytest.raises(ValueError, match="from 1 to 50"):
            sampler.timesteps(sampler_config, steps)


ZERO_SNR = SamplerConfig(
    "scaled_linear", 0.00085, 0.012, "v_prediction", -math.inf, squeezed=False, guidance_rescale=0.7,
    zero_terminal_snr=True, timestep_spacing="trailing",
)  # fmt: skip
LISTED = dataclasses.replace(STABLE, trained_betas=tuple(np.linspace(0.001, 0.02, 1000).tolist()))
LEADING = dataclasses.replace(STABLE, timestep_spacing="leading", steps_offset=1)
DDIM = SamplerConfig(
    "squaredcos_cap_v2", 0.0001, 0.02, "v_prediction", -math.inf, squeezed=False, guidance_rescale=0.7,
    zero_terminal_snr=True, timestep_spacing="trailing", steps_offset=1, solver="ddim", set_alpha_to_one=False,
)  # fmt: skip
DDIM_LEADING = dataclasses.replace(STABLE, solver="ddim", timestep_spacing="leading", steps_offset=1)
DDIM_EVEN = dataclasses.replace(DDIM_LEADING, timestep_spacing="linspace", steps_offset=0)
LCM = dataclasses.replace(STABLE, solver="lcm", timestep_spacing="leading")
LCM_V = dataclasses.replace(ZERO_SNR, solver="lcm", timestep_scaling=3.0)
KARRAS = dataclasses.replace(STABLE, karras_sigmas=True)
KARRAS_V = dataclasses.replace(KARRAS, beta_schedule="linear", prediction_type="v_prediction")
CONFIGS = {
    "deci": SamplerConfig(), "stable": STABLE, "zero-snr": ZERO_SNR, "listed": LISTED, "leading": LEADING,
    "ddim": DDIM, "ddim-leading": DDIM_LEADING, "ddim-even": DDIM_EVEN, "lcm": LCM, "lcm-v": LCM_V, "karras": KARRAS,
    "karras-v": KARRAS_V,
}  # fmt: skip
STEPS = {"deci": (1, 2, 3, 10, 11, 14, 15, 16, 30, 50)}


@pytest.mark.parametrize("name", CONFIGS)
def test_latents_are_what_diffusers_computes_for_any_model(name: str):
    sampler_config = CONFIGS[name]
    for steps in STEPS.get(name, (1, 2, 10, 15, 30)):
        # diffusers' DDIM rescales its betas in float32 with torch's square roots; few steps end on what that rounds.
        bound = 1e-4 if sampler_config is DDIM and steps < 10 else 1e-5
        assert distance(sampler_config, stock.scheduler(sampler_config), steps) < bound, steps


@pytest.mark.parametrize("name", CONFIGS)
def test_latents_from_an_input_are_what_diffusers_computes(name: str):
    sampler_config = CONFIGS[name]
    for steps, first in ((10, 8), (10, 2), (10, 1), (10, 10), (20, 5), (15, 14)):
        bound = 1e-4 if sampler_config is DDIM else 1e-5
        assert distance(sampler_config, stock.scheduler(sampler_config), steps, first) < bound, (steps, first)


def distance(sampler_config: SamplerConfig, scheduler: Any, steps: int, first: int = 0) -> float:
    """How far our latents are from the scheduler's, in their standard deviations. The model is a random smooth
    function of latents and time, the same for both."""
    chance = torch.Generator().manual_seed(steps)
    mix, bias = torch.randn(4, 4, generator=chance) / 2, torch.randn(4, 8, 8, generator=chance)

    def model(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.tanh(torch.einsum("ij,bjhw->bihw", mix, latents) + bias * math.cos(timestep / 300))

    start = torch.randn(3, 4, 8, 8, generator=chance)
    stock.set_timesteps(scheduler, sampler_config, steps, None)
    if sampler_config.solver != "dpmsolver++":  # so that its float32 square roots are not what is compared
        start, mix, bias = start.double(), mix.double(), bias.double()
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    theirs, new = start * scheduler.init_noise_sigma, torch.Generator().manual_seed(steps)
    more = {"generator": new} if sampler_config.solver == "lcm" else {}
    chosen, ours = scheduler.timesteps, start
    if first:  # an input, with noise
        chosen, clean = chosen[first - 1 :], torch.randn(3, 4, 8, 8, generator=chance).to(start.dtype)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first - 1)
        theirs = scheduler.add_noise(clean, start, chosen[:1])
        alpha, sigma = sampler.noise_level(sampler_config, steps, first)
        ours = alpha * clean + sigma * start
    for timestep in chosen:
        theirs = scheduler.step(model(theirs, int(timestep)), timestep, theirs, **more).prev_sample
    last, new = None, torch.Generator().manual_seed(steps)
    for step in sampler.plan(sampler_config, steps, max(first, 1)):
        noise = torch.randn(start.shape, generator=new, dtype=start.dtype) if step.from_noise else None
        ours, last = sampler.advance(step, ours, model(ours, step.timestep), last, noise)
    return float((ours - theirs).abs().max()) / float(theirs.std())


def test_unsqueezed_timesteps_are_those_that_diffusers_spreads():
    for found, steps in itertools.product(CONFIGS.values(), (1, 8, 16, 25, 30, 50)):
        sampler_config = dataclasses.replace(found, squeezed=False)
        scheduler = stock.scheduler(sampler_config)
        scheduler.set_timesteps(steps)
        assert tuple(scheduler.timesteps.tolist()) == sampler.timesteps(sampler_config, steps)


def test_arrays_and_tensors_go_the_same_way():
    chance = np.random.default_rng(1)
    latents, prediction = (chance.standard_normal((2, 4, 8, 8), np.float32) for _ in range(2))
    halves, scales = chance.standard_normal((4, 4, 8, 8), np.float32), np.float32([[[[2.0]]], [[[7.5]]]])
    step = sampler.plan(SamplerConfig(), 10)[4]
    arrays = sampler.advance(step, latents, sampler.guide(halves, scales, 0.8), prediction)
    tensors = sampler.advance(
        step,
        torch.from_numpy(latents),
        sampler.guide(torch.from_numpy(halves), torch.from_numpy(scales), 0.8),
        torch.from_numpy(prediction),
    )
    for array, tensor in zip(arrays, tensors, strict=True):
        assert array.dtype == np.float32 and tensor.dtype == torch.float32
        np.testing.assert_allclose(array, tensor.numpy(), atol=1e-4)


def test_guidance_has_a_scale_per_image_and_keeps_the_text_s_deviation():
    without, text = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    scales = torch.tensor([1.0, 7.5, 50.0]).reshape(3, 1, 1, 1)
    plain = sampler.guide(torch.cat([without, text]), scales, 0.0)
    torch.testing.assert_close(plain[0], text[0])
    torch.testing.assert_close(plain[2], without[2] + 50 * (text[2] - without[2]))
    whole = sampler.guide(torch.cat([without, text]), scales, 1.0)
    torch.testing.assert_close(whole.std(dim=(1, 2, 3)), text.std(dim=(1, 2, 3)))
    most = sampler.guide(torch.cat([without, text]), scales, 0.8)
    torch.testing.assert_close(most, 0.8 * whole + 0.2 * plain)


def test_the_published_scheduler_config_is_read_and_the_pipeline_s_own_constants_stand():
    on_disk = {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    assert SamplerConfig.read(on_disk, flexible=True, overrides={}) == SamplerConfig()
    assert SamplerConfig.read(on_disk, flexible=True, overrides={"guidance_rescale": 0.0}).guidance_rescale == 0.0
    stable = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    assert SamplerConfig.read(stable, flexible=False, overrides={}) == STABLE


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule is 'sigmoid'; it can be linear"),
        ({"prediction_type": "sample"}, "prediction_type is 'sample'; it can be v_prediction"),
        ({"beta_start": "low"}, "must be a number"),
    ],
)
def test_a_scheduler_that_is_not_known_is_refused_in_a_sentence(config: dict[str, str], sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        SamplerConfig.read(config, flexible=True, overrides={})


BASE = {
    "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1", "num_train_timesteps": 1000,
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
}  # fmt: skip
# By class: what a model's publication samples it by, and what we take instead of the options of a solver.
FIXED: dict[str, tuple[str, dict[str, Any]]] = {
    "DPMSolverMultistepScheduler": ("dpmsolver++", {"solver_type": "heun", "final_sigmas_type": "sigma_min"}),
    "DDIMScheduler": ("ddim", {"clip_sample": False}),
    "LCMScheduler": ("lcm", {"clip_sample": False}),  # as diffusers' own pipelines set it
}
OTHER_VALUES: dict[str, list[Any]] = {
    "num_train_timesteps": [500, 4000], "beta_start": [0.001], "beta_end": [0.02],
    "beta_schedule": ["linear", "squaredcos_cap_v2"], "prediction_type": ["v_prediction", "sample", "flow_prediction"],
    "trained_betas": [np.linspace(0.001, 0.02, 1000).tolist()], "solver_order": [1, 3],
    "algorithm_type": ["dpmsolver", "sde-dpmsolver++"], "variance_type": ["learned", "learned_range"],
    "timestep_spacing": ["leading", "trailing", "linspace"], "steps_offset": [1], "lambda_min_clipped": [-3.0],
    "flow_shift": [3.0], "time_shift_type": ["linear"], "dynamic_thresholding_ratio": [0.5], "sample_max_value": [2.0],
    "clip_sample_range": [0.5], "original_inference_steps": [25, 100], "timestep_scaling": [3.0],
    "solver_type": [], "lower_order_final": [], "euler_at_final": [], "final_sigmas_type": [],  # the solver's own
    "clip_sample": [],
}  # fmt: skip
MUST_BE_REFUSED = {
    "DPMSolverMultistepScheduler": {"thresholding", "rescale_betas_zero_snr", "num_train_timesteps", "use_lu_lambdas"},
    "DDIMScheduler": {"thresholding", "rescale_betas_zero_snr", "num_train_timesteps"},
    "LCMScheduler": {"thresholding", "original_inference_steps", "num_train_timesteps", "rescale_betas_zero_snr"},
}
MUST_BE_FOLLOWED = {
    "DPMSolverMultistepScheduler": {"trained_betas", "timestep_spacing", "use_karras_sigmas", "lambda_min_clipped"},
    "DDIMScheduler": {"trained_betas", "timestep_spacing", "steps_offset", "set_alpha_to_one"},
    "LCMScheduler": {"trained_betas", "timestep_scaling", "beta_start"},
}


@pytest.mark.parametrize("name", FIXED)
def test_a_field_of_a_scheduler_is_followed_or_refused_or_changes_nothing(name: str):
    """For every field that diffusers' scheduler has: its result with the field is ours, or we do not load it."""
    import diffusers

    kind = getattr(diffusers, name)
    solver, fixed = FIXED[name]
    refused = set()
    for field, parameter in inspect.signature(kind.__init__).parameters.items():
        if field == "self":
            continue
        for value in OTHER_VALUES.get(field, [not parameter.default]):
            config = BASE | {"_class_name": name, field: value}
            try:
                read = SamplerConfig.read(config, flexible=False, overrides={}, solver=solver)
            except SettingsError:
                refused.add(field)
                continue
            named = {one: found for one, found in config.items() if not one.startswith("_")}
            last = {"final_sigmas_type": "zero"} if field == "use_karras_sigmas" else {}
            assert distance(read, kind(**named | fixed | last), 12) < 1e-5, (field, value)
    assert MUST_BE_REFUSED[name] <= refused
    assert not refused & MUST_BE_FOLLOWED[name]


@pytest.mark.parametrize("name", FIXED)
def test_what_a_scheduler_s_file_leaves_out_has_that_scheduler_s_defaults(name: str):
    import diffusers

    solver, fixed = FIXED[name]
    read = SamplerConfig.read({"_class_name": name}, flexible=False, overrides={}, solver=solver)
    assert distance(read, getattr(diffusers, name)(**fixed), 9) < 1e-5


def test_decidiffusion_1_is_sampled_as_its_publication_does():
    on_disk = {
        "_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
        "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False,
    }  # fmt: skip
    assert SamplerConfig.read(on_disk, flexible=True, overrides={}, solver="ddim") == DDIM
    as_2 = SamplerConfig.read(on_disk, flexible=True, overrides={"solver": "dpmsolver++"}, solver="ddim")
    assert as_2.squeezed and not as_2.zero_terminal_snr


@pytest.mark.parametrize(
    ("overrides", "words"),
    [({"solver": "euler"}, "solver is 'euler'; it can be dpmsolver"), ({"sqeezed": True}, "sampler field 'sqeezed'")],
)
def test_a_sampler_field_of_the_index_that_is_not_known_is_refused(overrides: dict[str, Any], words: str):
    with pytest.raises(SettingsError, match=words):
        SamplerConfig.read(BASE, flexible=False, overrides=overrides)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "TCDScheduler"}, "TCDScheduler, whose models need its own sampler"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 100}, "original_inference_steps 100; only 50"),
        ({"_class_name": "LCMScheduler", "timestep_scaling": 0}, "timestep_scaling is 0.0; it must be above 0"),
        ({"_class_name": "LCMScheduler", "use_karras_sigmas": True}, "cannot go with squeezed timesteps, DDIM or LCM"),
        ({"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}, "cannot go with squaredcos_cap_v2"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "needs? its own sampler"),
        ({"num_train_timesteps": 500}, "num_train_timesteps 500; only 1000"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas True, which is not supported"),
        ({"beta_start": math.nan}, "beta_start nan; it must be a number"),
        ({"beta_end": math.inf}, "beta_end inf; it must be finite"),
        ({"beta_start": 0.02, "beta_end": 0.01}, "must rise between 0 and 1"),
        ({"trained_betas": [0.1] * 999}, "not a list of 1000 numbers"),
        ({"trained_betas": [0.1] * 999 + [math.nan]}, "not all between 0 and 1"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr needs v_prediction"),
        ({"timestep_spacing": "odd"}, "it can be linspace, leading, trailing"),
        ({"timestep_spacing": "trailing", "lambda_min_clipped": -5.0}, "cannot go with lambda_min_clipped"),
    ],
    ids=str,
)
def test_what_a_scheduler_asks_for_and_cannot_get_is_one_sentence(change: dict[str, Any], words: str):
    with pytest.raises(SettingsError, match=words):
        SamplerConfig.read(BASE | change, flexible=False, overrides={})
