"""The promises of every Pipeline, tested on each that can run here, and the additional ones of the torch pipeline."""

import dataclasses
import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.core.model.errors import SettingsError
from services.core.model.specs import SEED_LIMIT, Spec
from services.core.settings import Settings
from worker.pipeline import Batch, InvalidOutput, OutOfMemory, Picture, Pipeline, canary, reproducibility_class
from worker.pipelines.registry import open_pipeline

SERVERS = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"}
ROOT = Path(__file__).parents[2]
AI100_PLACEMENTS = {
    "resident": {"PRESSWORK_AI100_PLACEMENT": "text_encoder=1,unet=11,vae_decoder=2"},
    "on two devices": {"PRESSWORK_DEVICE": "qaic:0,1"},
    "on three devices": {
        "PRESSWORK_DEVICE": "qaic:0,1,2", "PRESSWORK_AI100_PLACEMENT": "text_encoder=1,vae_decoder=13;unet=14"
    },
}  # fmt: skip
SLOW_TO_START = ("torch bf16", "torch tiny-sd", "onnx bf16", *(f"ai100 {name}" for name in AI100_PLACEMENTS))
ANOTHER = """
import hashlib, pickle, sys
from worker.pipeline import Batch, reproducibility_class
from worker.pipelines.registry import open_pipeline

settings, specs = pickle.load(sys.stdin.buffer)
pipeline = open_pipeline(settings)
pictures = pipeline.render(Batch(specs[0].shape, tuple(specs), len(specs)), lambda step: None)
digests = [hashlib.sha256(picture.pixels.tobytes()).hexdigest() for picture in pictures]
sys.stdout.buffer.write(pickle.dumps((pipeline.card, reproducibility_class(pipeline, len(specs)), digests)))
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in both layouts: `tiny` is DeciDiffusion's, `tiny-sd` Stable Diffusion's."""
    pytest.importorskip("diffusers")
    from worker.model.make import make

    folder = tmp_path_factory.mktemp("models")
    for preset in ("tiny", "tiny-sd"):
        make(folder / preset, preset)
    return folder


@pytest.fixture(scope="session")
def settings_for(models: Path) -> Callable[..., Settings]:
    def read(pipeline: str, model: str = "tiny", **more: str) -> Settings:
        named = {"PRESSWORK_PIPELINE": pipeline, "PRESSWORK_MODEL_DIR": str(models / model)}
        return Settings.read(SERVERS | named | {"PRESSWORK_ARTEFACTS": str(models / "artefacts")} | more)

    return read


@pytest.fixture(scope="session")
def tiny_model(models: Path) -> Path:
    return models / "tiny"


@pytest.fixture(scope="session")
def torch_settings(settings_for: Callable[..., Settings]) -> Settings:
    return settings_for("torch")


@pytest.fixture(scope="session")
def three_devices() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AI100_STAND_IN_DEVICES", "3")
        yield


@pytest.fixture(
    scope="session",
    params=[
        "simulated", "torch", "torch bf16", "torch tiny-sd", "torch cuda", "onnx", "onnx bf16", "onnx provider",
        "ai100", *(pytest.param(f"ai100 {name}", marks=pytest.mark.chaos) for name in AI100_PLACEMENTS),
    ],
)  # fmt: skip
def settings(request: pytest.FixtureRequest) -> Settings:
    name, _, variant = request.param.partition(" ")
    if name == "simulated":
        return Settings.read(SERVERS)
    settings_for = request.getfixturevalue("settings_for")
    if variant == "tiny-sd":
        return settings_for(name, variant)
    if variant == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
        return settings_for(name, PRESSWORK_DEVICE="cuda", PRESSWORK_BATCH_SIZES="8,4,1")
    if name == "ai100":
        if variant:
            request.getfixturevalue("three_devices")
        return settings_for(
            name, PRESSWORK_BATCH_SIZES="4,1", PRESSWORK_SIZES="64x64", **request.getfixturevalue("on_stand_in"),
            **AI100_PLACEMENTS.get(variant, {}),
        )  # fmt: skip
    if variant == "provider":
        runtime, device = (os.environ.get(f"PRESSWORK_{word}", "") for word in ("RUNTIME", "DEVICE"))
        if ":" not in runtime:
            pytest.skip("PRESSWORK_RUNTIME names no provider")
        given = {"PRESSWORK_RUNTIME": runtime, "PRESSWORK_DEVICE": device or "cpu"}
        return settings_for(name, PRESSWORK_BATCH_SIZES="4,1", **given)
    if name == "onnx":  # each size, and each size of a batch, is exported and compiled; test_sizes has others
        return settings_for(name, PRESSWORK_PRECISION=variant, PRESSWORK_BATCH_SIZES="4,1", PRESSWORK_SIZES="64x64")
    return settings_for(name, PRESSWORK_PRECISION=variant, PRESSWORK_BATCH_SIZES="16,8,4,1")


@pytest.fixture(scope="session")
def pipeline(settings: Settings) -> Iterator[Pipeline]:
    opened = open_pipeline(settings)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def torch_pipeline(torch_settings: Settings) -> Pipeline:
    return open_pipeline(torch_settings)


def spec_for(pipeline: Pipeline, **changes: Any) -> Spec:
    spec = Spec(pipeline.card.revision, "a red mug on a wooden table", "blurred", 7, 64, 64, 3, 7.5)
    return dataclasses.replace(spec, **changes)


def other_specs(pipeline: Pipeline, count: int) -> list[Spec]:
    return [spec_for(pipeline, prompt=f"stranger {n}", seed=100 + n, guidance_scale=2.0 + n) for n in range(count)]


def render(
    pipeline: Pipeline,
    specs: Sequence[Spec],
    wanted: int | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> list[np.ndarray]:
    """Renders in a batch of the smallest declared size that holds the specs, padded as a worker pads it."""
    size = min(declared for declared in pipeline.card.batch_sizes if declared >= len(specs))
    padded = (*specs, *specs[-1:] * (size - len(specs)))
    batch = Batch(specs[0].shape, tuple(padded), len(specs) if wanted is None else wanted)
    pictures = pipeline.render(batch, on_step)
    assert len(pictures) == size
    assert all(isinstance(picture, Picture) for picture in pictures)
    return [picture.pixels for picture in pictures[: len(specs)]]


def test_the_card_serves_its_own_defaults(pipeline: Pipeline, settings: Settings) -> None:
    card = pipeline.card
    assert card.name and card.revision
    assert card.default_size in card.sizes
    assert all(side % 8 == 0 for size in card.sizes for side in size)
    assert 1 <= card.default_steps <= card.max_steps
    assert 0 <= card.default_guidance_scale <= 50
    assert card.batch_sizes == settings.batch_sizes
    assert all((pipeline.backend, pipeline.precision, pipeline.device, pipeline.device_kind))
    assert reproducibility_class(pipeline, 4).count("/") == 4


def test_the_versions_that_draw_are_named_in_a_short_line(pipeline: Pipeline) -> None:
    assert re.fullmatch(r"presswork \S+(, \S+ \S+)*", pipeline.versions)
    assert len(pipeline.versions) <= 160
    assert pipeline.versions.isascii()  # it travels in a header beside the stored object


def test_the_canary_can_be_rendered(pipeline: Pipeline) -> None:
    batch = canary(pipeline.card, min(pipeline.card.batch_sizes))
    pictures = pipeline.render(batch, lambda step: None)
    width, height = pipeline.card.default_size
    assert [picture.pixels.shape for picture in pictures] == [(height, width, 3)] * batch.size
    # Without a safety checker a picture is not flagged, and stays what it is.
    assert all(pipeline.review(picture) is picture and picture.flagged is None for picture in pictures)


def test_every_declared_size_gives_pixels_of_that_size(pipeline: Pipeline) -> None:
    for width, height in pipeline.card.sizes:
        (pixels,) = render(pipeline, [spec_for(pipeline, width=width, height=height)])
        assert pixels.shape == (height, width, 3)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 0


def test_every_declared_batch_size_gives_that_many_pictures(pipeline: Pipeline) -> None:
    for size in pipeline.card.batch_sizes:
        pictures = render(pipeline, other_specs(pipeline, size))
        assert len({pixels.tobytes() for pixels in pictures}) == size


def test_an_image_depends_neither_on_its_slot_nor_on_its_neighbours(pipeline: Pipeline) -> None:
    ours, others = spec_for(pipeline), other_specs(pipeline, 6)
    first = render(pipeline, [ours, *others[:3]])
    last = render(pipeline, [*others[3:], ours])
    padded = render(pipeline, [ours, others[0], others[0], others[0]], wanted=1)
    alone = render(pipeline, [ours] * 4, wanted=1)
    assert first[0].tobytes() == last[3].tobytes() == padded[0].tobytes() == alone[0].tobytes()
    again = render(pipeline, [others[2], others[1], others[0], ours])
    assert [pixels.tobytes() for pixels in again[:3]] == [first[3 - n].tobytes() for n in range(3)]


@pytest.mark.parametrize(
    "settings",
    [
        "simulated", "torch", "torch cuda", "onnx", "onnx provider", "ai100",
        *(pytest.param(name, marks=pytest.mark.chaos) for name in SLOW_TO_START),
    ],
    indirect=True,
)  # fmt: skip
def test_another_process_draws_the_same_files(pipeline: Pipeline, settings: Settings) -> None:
    specs = [spec_for(pipeline), *other_specs(pipeline, 3)]
    folders = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, "-c", ANOTHER], input=pickle.dumps((settings, specs)),
        env=os.environ | {"PYTHONPATH": folders}, cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr.decode()
    card, reproducible, digests = pickle.loads(ran.stdout)
    assert card == pipeline.card
    assert reproducible == reproducibility_class(pipeline, 4)
    assert digests == [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in render(pipeline, specs)]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"seed": 7 + 2**32},
        {"seed": 7 + 2**62},
        {"prompt": "a blue mug on a wooden table"},
        {"negative_prompt": ""},
        {"guidance_scale": 3.0},
    ],
    ids=str,
)
def test_everything_in_the_spec_shows_in_the_pixels(pipeline: Pipeline, changes: dict[str, Any]) -> None:
    ours, theirs = render(pipeline, [spec_for(pipeline), spec_for(pipeline, **changes)])
    assert (ours != theirs).any()


def test_steps_and_guidance_decide_pixels_too(pipeline: Pipeline) -> None:
    changed = ({}, {"steps": 5}, {"guidance_scale": 1.0})
    assert len({render(pipeline, [spec_for(pipeline, **changes)])[0].tobytes() for changes in changed}) == 3


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_each_step_is_reported_in_order(pipeline: Pipeline, steps: int) -> None:
    """Once, or once for each of the batch's passes."""
    reported: list[int] = []
    render(pipeline, [spec_for(pipeline, steps=steps)] * 2, on_step=reported.append)
    assert reported == sorted(reported)
    assert [step for step in dict.fromkeys(reported) if step] == list(range(1, steps + 1))
    assert len(reported) in (steps, 2 * steps)


def redrawn(pipeline: Pipeline, *slots: tuple[Spec, np.ndarray], reported: list[int] | None = None) -> list[np.ndarray]:
    """Renders each spec from its input."""
    specs, inputs = zip(*slots, strict=True)
    steps: list[int] = [] if reported is None else reported
    found = pipeline.render(Batch(specs[0].shape, specs, len(specs), inputs), steps.append)
    return [picture.pixels for picture in found if isinstance(picture, Picture)]


def test_a_redrawn_image_depends_on_its_own_input_and_on_no_slot_or_neighbour(pipeline: Pipeline) -> None:
    assert pipeline.card.redraws
    chance = np.random.default_rng(1)
    mine, other = (chance.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2))
    spec = spec_for(pipeline, steps=4, input_sha256="mine", first_step=3)
    stranger = spec_for(pipeline, steps=4, seed=9, prompt="a stranger", input_sha256="other", first_step=3)
    reported: list[int] = []
    first = redrawn(pipeline, (spec, mine), (stranger, other), (stranger, mine), (spec, other), reported=reported)
    last = redrawn(pipeline, (stranger, mine), (stranger, mine), (stranger, other), (spec, mine.copy()))
    assert [step for step in dict.fromkeys(reported) if step] == [1, 2]
    assert first[0].tobytes() == last[3].tobytes()
    assert first[1].tobytes() == last[2].tobytes()
    assert first[2].tobytes() == last[0].tobytes() == last[1].tobytes()
    assert len({pixels.tobytes() for pixels in (*first, render(pipeline, [spec_for(pipeline, steps=4)])[0])}) == 5
    whole = dataclasses.replace(spec, first_step=1)
    assert redrawn(pipeline, *[(whole, mine)] * 4)[0].tobytes() != first[0].tobytes()


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [Stop, RuntimeError, MemoryError])
def test_what_on_step_raises_passes_through_at_once_and_harms_nothing(
    pipeline: Pipeline, error: type[BaseException]
) -> None:
    before = render(pipeline, [spec_for(pipeline)])[0]
    reported: list[int] = []

    def stop(step: int) -> None:
        reported.append(step)
        if step == 2:
            raise error("no more")

    with pytest.raises(error, match="no more"):
        render(pipeline, [spec_for(pipeline, seed=99)], on_step=stop)
    assert [step for step in dict.fromkeys(reported) if step] == [1, 2]
    assert reported[-2] < 2, "it stops at once"
    assert render(pipeline, [spec_for(pipeline)])[0].tobytes() == before.tobytes()


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " ",
        "x",
        "日本の赤い茶碗",
        "🫖☕ émaillé\u0301",
        "\x00\x1b[31m\u202e",
        "\ud800 alone",
        "<|endoftext|> a",
        "%s {} \\",
    ],
    ids=ascii,
)
def test_any_prompt_can_be_rendered(pipeline: Pipeline, prompt: str) -> None:
    as_prompt, as_negative = spec_for(pipeline, prompt=prompt), spec_for(pipeline, negative_prompt=prompt)
    assert len(render(pipeline, [as_prompt, as_negative])) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 0},
        {"seed": SEED_LIMIT - 1},
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0},
        {"guidance_scale": 50.0},
        {"negative_prompt": ""},
        {"steps": 1},
    ],
    ids=str,
)
def test_the_ends_of_every_range_can_be_rendered(pipeline: Pipeline, changes: dict[str, Any]) -> None:
    render(pipeline, [spec_for(pipeline, **changes)])


def test_a_prompt_far_too_long_is_rendered_all_the_same(pipeline: Pipeline) -> None:
    render(pipeline, [spec_for(pipeline, prompt="a red mug " * 2000)])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_torch_keeps_slots_equal_with_any_number_of_threads(torch_settings: Settings, threads: int) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pipeline = open_pipeline(torch_settings)
        big = {"width": 128, "height": 128, "steps": 1}
        ours, others = spec_for(pipeline, **big), [spec_for(pipeline, seed=n, **big) for n in range(4)]
        alike = [render(pipeline, [*others[:slot], ours, *others[slot:]])[slot].tobytes() for slot in range(5)]
    finally:
        torch.set_num_threads(before)
    assert len(set(alike)) == 1


def test_torch_says_when_a_prompt_was_cut_short(torch_pipeline: Pipeline) -> None:
    # 75 tokens fit between start and end; "mug" is one token of the tiny model's.
    specs = [spec_for(torch_pipeline, prompt="mug " * count) for count in (75, 76, 300)]
    fits, cut, cut_too = torch_pipeline.render(Batch(specs[0].shape, tuple(specs), 3), lambda step: None)
    assert isinstance(fits, Picture) and isinstance(cut, Picture) and isinstance(cut_too, Picture)
    assert [fits.truncated, cut.truncated, cut_too.truncated] == [False, True, True]
    assert cut.pixels.tobytes() == fits.pixels.tobytes()


def test_torch_reports_nan_as_invalid_output_of_that_image_alone(
    tiny_model: Path, torch_settings: Settings, torch_pipeline: Pipeline, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    from worker.model import vocabulary

    sick = tmp_path / "sick"
    shutil.copytree(tiny_model, sick)
    file = sick / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    (embedding,) = (tensor for name, tensor in tensors.items() if "token_embedding" in name)
    embedding[vocabulary.build()[0]["fox</w>"]] = np.nan
    save_file(tensors, file, metadata={"format": "pt"})
    pipeline = open_pipeline(dataclasses.replace(torch_settings, model_dir=str(sick)))
    assert pipeline.card.revision != torch_pipeline.card.revision

    specs = [spec_for(pipeline), spec_for(pipeline, prompt="a red fox"), spec_for(pipeline, seed=8)]
    first, invalid_output, last = pipeline.render(Batch(specs[0].shape, tuple(specs), 3), lambda step: None)
    well = render(torch_pipeline, [specs[0], specs[2], specs[2]])
    assert invalid_output == InvalidOutput()
    assert isinstance(first, Picture) and first.pixels.tobytes() == well[0].tobytes()
    assert isinstance(last, Picture) and last.pixels.tobytes() == well[2].tobytes()


def test_noise_is_that_of_the_image_s_own_seed_and_what_diffusers_would_draw() -> None:
    import torch

    from worker.model import noise

    plain = noise.draw(12, (4, 8, 8))
    assert (plain == torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(12)).numpy()).all()
    wide = noise.draw(12 + 12 * 2**32, (4, 64, 64))
    assert abs(float(wide.std()) - 1) < 0.02


def test_torch_running_out_of_memory_is_told_from_other_errors() -> None:
    import torch

    from worker.pipelines.out_of_memory import out_of_memory_for

    with pytest.raises(OutOfMemory, match="a batch of 4"), out_of_memory_for(4):
        torch.empty(2**50)
    with pytest.raises(RuntimeError, match="shape"), out_of_memory_for(4):
        torch.empty(2) + torch.empty(3).reshape(7)


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta", "cpu:x"])
def test_torch_refuses_a_device_that_is_not_there(torch_settings: Settings, device: str) -> None:
    with pytest.raises(SettingsError, match="PRESSWORK_DEVICE"):
        open_pipeline(dataclasses.replace(torch_settings, device=device))


def test_torch_refuses_weights_that_are_not_whole(tiny_model: Path, torch_settings: Settings, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    for number, (component, damage) in enumerate(
        (
            ("flexible_unet", lambda tensors: tensors.pop("conv_in.bias")),
            ("text_encoder", lambda tensors: tensors.pop(min(tensors))),
            ("vae", lambda tensors: tensors.update({"decoder.conv_in.bias": np.zeros(3, np.float32)})),
        )
    ):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_model, folder)
        (file,) = (folder / component).glob("*.safetensors")
        tensors = load_file(file)
        damage(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(SettingsError, match=component):
            open_pipeline(dataclasses.replace(torch_settings, model_dir=str(folder)))
