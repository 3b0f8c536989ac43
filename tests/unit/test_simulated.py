"""The simulated pipeline: its timing law, its faults, and that its pictures follow their prompts."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from services.core.model.specs import Spec
from services.core.settings import Settings
from worker.pipeline import Batch, InvalidOutput, OutOfMemory, Picture
from worker.pipelines.simulated import REVISION, SimulatedFault, SimulatedPipeline
from worker.pipelines.still_life import scene

SERVERS = {"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"}
# sha256 of the pictures of `test_the_drawing_does_not_change_without_a_new_revision`.
DRAWN = {"simulated-1": "295bb94186a40f8f29abec627f64376e0b1dc4a205cdf5b84c34e2ac9d9a2c25"}


def pipeline(**variables: object) -> SimulatedPipeline:
    named = {f"PRESSWORK_{name.upper()}": str(value) for name, value in variables.items()}
    return SimulatedPipeline(Settings.read(SERVERS | named))


def batch(*prompts: str, wanted: int | None = None, steps: int = 4, side: int = 64) -> Batch:
    specs = tuple(Spec(REVISION, prompt, "", 7, side, side, steps, 7.5) for prompt in prompts)
    return Batch(specs[0].shape, specs, len(specs) if wanted is None else wanted)


def nothing(step: int) -> None:
    pass


def test_a_batch_takes_the_time_of_the_law_and_each_step_its_share() -> None:
    heard: list[float] = []
    began = time.monotonic()
    pipeline(simulated_batch_ms=40, simulated_step_ms=20, simulated_image_ms=10).render(
        batch("a", "b", "c", "d"), lambda step: heard.append(time.monotonic() - began)
    )
    total = 0.040 + 4 * 0.020 + 4 * 0.010
    assert all(at >= total * step / 4 for step, at in enumerate(heard, start=1))


@pytest.mark.parametrize("setting", ["simulated_batch_ms", "simulated_step_ms", "simulated_image_ms"])
def test_every_part_of_the_law_costs_time(setting: str) -> None:
    def seconds(drawer: SimulatedPipeline) -> float:
        began = time.monotonic()
        drawer.render(batch("a", "b"), nothing)
        return time.monotonic() - began

    pipeline().render(batch("a", "b"), nothing)  # what is drawn once and kept
    assert seconds(pipeline(**{setting: 150})) > seconds(pipeline())


def test_time_lost_in_a_step_is_made_good_in_the_next() -> None:
    heard: list[float] = []

    def dawdle(step: int) -> None:
        heard.append(time.monotonic())
        if step == 1:
            time.sleep(0.3)

    pipeline(simulated_step_ms=100).render(batch("a"), dawdle)
    assert heard[2] - heard[1] < heard[1] - heard[0]


def test_noise_changes_no_value_by_more_than_one_and_no_two_renderings_agree() -> None:
    (plain,) = pipeline().render(batch("a"), nothing)
    one, other = (pipeline(simulated_noise=1).render(batch("a"), nothing)[0] for _ in range(2))
    assert isinstance(plain, Picture) and isinstance(one, Picture) and isinstance(other, Picture)
    assert np.abs(one.pixels.astype(int) - plain.pixels).max() == 1
    assert (one.pixels != other.pixels).any()


def test_fault_words_mean_nothing_unless_they_are_allowed() -> None:
    words = "fault:raise fault:oom fault:oom>1 fault:nan fault:kill fault:hang fault:slow fault:flag"
    pictures = pipeline().render(batch(words, words), nothing)
    assert all(isinstance(picture, Picture) and picture.flagged is None for picture in pictures)


def test_fault_raise_fails_the_whole_batch_and_names_nobody() -> None:
    with pytest.raises(SimulatedFault) as caught:
        pipeline(simulated_faults=1).render(batch("fine", "fault:raise please"), nothing)
    assert "please" not in str(caught.value)


def test_fault_nan_makes_one_image_alone_invalid() -> None:
    first, invalid_output, last = pipeline(simulated_faults=1).render(batch("fine", "a fault:nan", "well"), nothing)
    assert isinstance(first, Picture) and isinstance(last, Picture)
    assert invalid_output == InvalidOutput()


def test_fault_flag_flags_one_picture_and_changes_no_pixel_of_it() -> None:
    fine, flagged = pipeline(simulated_faults=1).render(batch("fine", "a fault:flag"), nothing)
    assert isinstance(fine, Picture) and isinstance(flagged, Picture)
    assert (fine.flagged, flagged.flagged) == (None, True)
    assert flagged.pixels.tobytes() == scene.draw(batch("a fault:flag").specs[0]).tobytes()


def test_fault_oom_depends_on_the_batch_s_size() -> None:
    drawer = pipeline(simulated_faults=1)
    for prompts in (["fault:oom"], ["fault:oom", "a"], ["fault:oom>2", "a", "b"], ["a", "fault:oom>0"]):
        with pytest.raises(OutOfMemory):
            drawer.render(batch(*prompts), nothing)
    assert len(drawer.render(batch("fault:oom>2", "a"), nothing)) == 2


def test_fault_slow_makes_steps_slower() -> None:
    class Enough(Exception):
        pass

    def stop(step: int) -> None:
        raise Enough

    began = time.monotonic()
    with pytest.raises(Enough):
        pipeline(simulated_faults=1).render(batch("fault:slow"), stop)
    assert time.monotonic() - began >= 1


def test_faults_in_the_padding_do_nothing() -> None:
    everything = "fault:raise fault:oom fault:nan fault:kill fault:hang fault:slow"
    pictures = pipeline(simulated_faults=1).render(batch("fine", everything, wanted=1), nothing)
    assert all(isinstance(picture, Picture) for picture in pictures)


STEPS_ALOUD = """
import sys
from services.core.settings import Settings
from services.core.model.specs import Spec
from worker.pipeline import Batch
from worker.pipelines.registry import open_pipeline
drawer = open_pipeline(Settings.read(dict(variable.split("=") for variable in sys.argv[2:])))
spec = Spec("r", sys.argv[1], "", 7, 64, 64, 6, 7.5)
drawer.render(Batch(spec.shape, (spec,), 1), lambda step: print(step, flush=True))
"""


def aloud(prompt: str, *variables: str) -> "subprocess.Popen[str]":
    here = Path(__file__).parents[2]
    servers = [f"{name}={address}" for name, address in SERVERS.items()]
    command = [sys.executable, "-c", STEPS_ALOUD, prompt, *servers, *variables]
    return subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True)


def test_fault_kill_kills_the_process_half_way() -> None:
    with aloud("fault:kill", "PRESSWORK_SIMULATED_FAULTS=1") as child:
        steps, _ = child.communicate()
    assert steps.split() == ["1", "2", "3"]
    assert child.returncode == -9


def test_fault_hang_stops_half_way_and_lives() -> None:
    with aloud("fault:hang", "PRESSWORK_SIMULATED_FAULTS=1") as child:
        assert child.stdout is not None
        assert [child.stdout.readline().strip() for _ in range(3)] == ["1", "2", "3"]
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.3)
        child.kill()
        assert child.stdout.read() == ""


def test_a_sick_device_fails_every_render_until_it_is_well(tmp_path: Path) -> None:
    drawer = pipeline(model_dir=tmp_path)
    drawer.render(batch("a"), nothing)
    (tmp_path / "sick").touch()
    with pytest.raises(RuntimeError, match="simulated device failure"):
        drawer.render(batch("a"), nothing)
    (tmp_path / "sick").unlink()
    drawer.render(batch("a"), nothing)


def test_a_device_can_be_sick_enough_to_kill_the_process(tmp_path: Path) -> None:
    (tmp_path / "sick-kill").touch()
    with aloud("a mug", f"PRESSWORK_MODEL_DIR={tmp_path}") as child:
        steps, _ = child.communicate()
    assert (steps, child.returncode) == ("", -9)


def test_colour_words_lead_the_palette() -> None:
    def mean(colour: str) -> np.ndarray:
        specs = [Spec(REVISION, f"a {colour} mug", "", seed, 64, 64, 4, 7.5) for seed in range(12)]
        return np.mean([scene.draw(spec).mean(axis=(0, 1)) for spec in specs], axis=0)

    red, blue, black, white = mean("red"), mean("blue"), mean("black"), mean("white")
    assert red[0] - red[2] > blue[0] - blue[2]
    assert white.sum() > black.sum()


def test_nouns_decide_what_stands_in_front() -> None:
    specs = [Spec(REVISION, f"a red {noun}", "", 7, 128, 128, 4, 7.5) for noun in ("mug", "vase", "books", "lamp")]
    assert len({scene.draw(spec).tobytes() for spec in specs}) == 4


def test_the_drawing_does_not_change_without_a_new_revision() -> None:
    digest = hashlib.sha256()
    for seed in range(60):
        prompt = f"{('red', 'blue', 'a')[seed % 3]} {('mug', 'books and a jar', 'thing', 'flowers')[seed % 4]}"
        width, height = ((64, 64), (256, 256), (192, 128))[seed % 3]
        digest.update(scene.draw(Spec("r", prompt, "", seed, width, height, 10, 7.5)).tobytes())
    found = {REVISION: digest.hexdigest()}
    assert found == DRAWN, "raise REVISION in simulated.py, and record the new digest here"


def test_neither_the_simulated_pipeline_nor_the_directory_check_needs_torch() -> None:
    code = """
import sys
import worker.model.directory, worker.pipeline, worker.pipelines.simulated
sys.exit(any(name in sys.modules for name in ("torch", "diffusers", "transformers")))
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
