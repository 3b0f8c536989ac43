"""The Cloud AI 100 pipeline on the stand-in: overlap changes no byte, and it draws what torch draws."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.core.model.specs import Spec
from services.core.settings import Settings
from tests.ai100 import Open, consecutive, drawn, specs
from worker.model import make
from worker.pipeline import Batch
from worker.pipelines.ai100_stand_in import machine
from worker.pipelines.cloud_ai100 import Ai100Pipeline
from worker.pipelines.registry import open_pipeline

PLACEMENTS = {
    "one after the other": ({}, {}),
    "all resident": ({"PRESSWORK_AI100_PLACEMENT": "text_encoder=1,unet=11,vae_decoder=2"}, {}),
    "text and decoder in turns": ({"PRESSWORK_AI100_PLACEMENT": "text_encoder+vae_decoder=2,unet=12"}, {}),
    "U-Net on two of three devices": (
        {"PRESSWORK_AI100_PLACEMENT": "text_encoder=1,vae_decoder=13;unet=14", "PRESSWORK_DEVICE": "qaic:0,1,2"},
        {"devices": "3"},
    ),
    "the device switches": ({"PRESSWORK_AI100_DATA_PATH": "1"}, {}),
    "the device switches between text and decoder": (
        {"PRESSWORK_AI100_DATA_PATH": "1", "PRESSWORK_AI100_PLACEMENT": "text_encoder+vae_decoder=2,unet=12"},
        {},
    ),
    "two devices alike": ({"PRESSWORK_DEVICE": "qaic:1,0"}, {"devices": "2"}),
}
OFTEN = ("one after the other", "all resident", "U-Net on two of three devices", "the device switches")


@pytest.mark.parametrize(
    ("settings", "stand_in"),
    [
        pytest.param(*given, id=name, marks=() if name in OFTEN else pytest.mark.chaos)
        for name, given in PLACEMENTS.items()
    ],
)
def test_overlap_changes_no_byte(opened: Open, settings: dict[str, str], stand_in: dict[str, str]) -> None:
    pipeline = opened(settings, **stand_in)
    wanted = tuple(
        dataclasses.replace(spec, prompt=f"{n} red mugs", negative_prompt="blurred" if n % 2 else f"mug {n}")
        for n, spec in enumerate(specs(4))
    )
    overlapped = drawn(pipeline, wanted)
    assert len(set(overlapped)) == 4
    assert overlapped == [one for spec in wanted for one in drawn(pipeline, (spec,), serial=True)]
    batches = [wanted[:1], wanted[1:3], wanted[3:], wanted]
    assert consecutive(pipeline, batches) == [overlapped[:1], overlapped[1:3], overlapped[3:], overlapped]


def levels_apart(pipeline: Ai100Pipeline, settings: Settings, wanted: tuple[Spec, ...]) -> int:
    """How far the pictures are from those of the pipeline torch, at most."""
    torch = open_pipeline(dataclasses.replace(settings, pipeline="torch", device="cpu"))
    ours, theirs = (
        np.frombuffer(b"".join(drawn(one, (spec,))), np.uint8).astype(int)
        for spec in wanted
        for one in (pipeline, torch)
    )
    return int(np.abs(ours - theirs).max())


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_it_draws_what_torch_draws(opened: Open, settings_for: Callable[..., Settings], guidance: float) -> None:
    assert levels_apart(opened(), settings_for(), specs(1, guidance=guidance, steps=10)) <= 1


@pytest.mark.chaos  # an export of its own
def test_prompts_in_chunks_are_drawn_as_torch_draws_them(
    opened: Open, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    make.make(tmp_path / "long", "tiny-sd")
    file = tmp_path / "long" / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps(index | {"presswork": index["presswork"] | {"long_prompts": True}}))
    chosen = {"PRESSWORK_MODEL_DIR": str(tmp_path / "long"), "PRESSWORK_SIZES": "64x64"}
    wanted = specs(1, guidance=5.0, prompt="a red mug on a wooden table " * 15, prompt_chunks=2)
    assert levels_apart(opened(chosen), settings_for(**chosen), wanted) <= 1


def test_without_guidance_the_other_half_draws_images_too(opened: Open) -> None:
    pipeline = opened()
    wanted = specs(3, guidance=1.0)
    before = dict(machine.CLOCK.runs)
    found = drawn(pipeline, wanted)
    assert machine.CLOCK.runs["unet"] - before.get("unet", 0) == 2 * 3  # two passes of three steps
    assert found == [one for spec in wanted for one in drawn(pipeline, (spec,))]


def test_the_padding_of_a_batch_is_not_rendered(opened: Open) -> None:
    pipeline = opened()
    assert len(pipeline.render(Batch(specs(1)[0].shape, specs(1) * 16, 2), lambda step: None)) == 16
    assert machine.CLOCK.runs["unet"] == 2 * 3


@pytest.mark.chaos  # an export of its own
def test_a_program_may_render_several_images_at_once(opened: Open) -> None:
    pipeline = opened({"PRESSWORK_AI100_PROGRAM_BATCH": "2"})
    wanted = specs(3)
    first, second, third = drawn(pipeline, wanted, size=4)
    assert drawn(pipeline, (wanted[2], wanted[0])) == [third, first]
    assert drawn(pipeline, (wanted[1],)) == [second]
    assert machine.CLOCK.runs["unet"] == 3 * (2 + 1 + 1)


def test_the_pictures_of_a_batch_are_encoded_at_once(opened: Open) -> None:
    pipeline, pictures = opened(), [np.full((64, 64, 3), shade, np.uint8) for shade in (40, 200)]
    wanted = specs(3, input_sha256="picture", first_step=2)
    batch = Batch(wanted[0].shape, wanted, 3, (pictures[0], pictures[1], pictures[0]))
    pipeline.render(batch, lambda step: None)
    before = machine.CLOCK.switches
    pipeline.render(batch, lambda step: None)
    assert machine.CLOCK.runs["vae_encoder"] == 1 + 2 * 2  # one when it was prepared
    assert machine.CLOCK.switches - before == 4, "text encoder, encoder, U-Net, decoder"


def test_the_compilers_flags_are_part_of_the_class(opened: Open) -> None:
    usual, other = (opened({"PRESSWORK_AI100_FLAGS": flags}).device_kind for flags in ("", "unet: -mos=1"))
    usual, compiler = usual.split(", compiler ")
    assert other.startswith(f"{usual}, ai100 flags ")
    assert compiler == "1.21.2.stand-in"
