"""The Cloud AI 100 pipeline on the stand-in's clock: the published time and the bound hold."""

from itertools import pairwise

import pytest

from tests.ai100 import RECIPE, Open, drawn, milliseconds, specs, sustained
from worker.pipeline import Batch, Picture
from worker.pipelines.ai100 import cards, placement
from worker.pipelines.ai100.cards import CARDS, PUBLISHED
from worker.pipelines.ai100_stand_in import machine


def test_a_batch_is_silent_no_longer_than_one_image(opened: Open) -> None:
    """The watchdog allows for the silence of the canary, one image a device."""
    pipeline, heard = opened(), [0.0]
    wanted = specs(4)
    drawn(pipeline, wanted)
    pipeline.render(Batch(wanted[0].shape, wanted, 4), lambda step: heard.append(machine.CLOCK.host))
    assert max(later - sooner for sooner, later in pairwise(heard[1:])) <= PUBLISHED.run("unet", 14) * 1.01


@pytest.mark.parametrize(("steps", "published"), [(10, 971), (16, 1335)])
def test_the_published_placement_takes_the_published_time_on_the_stand_in(
    opened: Open, steps: int, published: int
) -> None:
    pipeline = opened({"PRESSWORK_AI100_PLACEMENT": RECIPE})
    assert milliseconds(pipeline, 1, steps) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize("card", ["standard", pytest.param("pro", marks=pytest.mark.chaos)])
def test_ours_sustains_93_percent_of_the_bound_on_the_stand_in(opened: Open, card: str) -> None:
    pipeline = opened(card=card)
    bound = placement.bound(CARDS[card], PUBLISHED, 10)
    assert 0.93 <= bound / milliseconds(pipeline, 16, 10) <= 1.0


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.chaos)])
def test_several_devices_switch_at_once_and_sustain_it_too(opened: Open, devices: int) -> None:
    """One step that takes as long as ten: to the clock it is the same, and less is computed."""
    times = cards.read_times("unet=607x12")
    chosen = {
        "PRESSWORK_DEVICE": "qaic:" + ",".join(map(str, range(devices))),
        "PRESSWORK_BATCH_SIZES": f"{16 * devices},1",
        "PRESSWORK_AI100_PLACEMENT": "text_encoder+unet+vae_decoder=14",
    }
    pipeline = opened(chosen, devices=str(devices), times="unet=607x12")
    drawn(pipeline, specs(devices, steps=1))
    before = machine.CLOCK.host
    drawn(pipeline, specs(16 * devices, steps=1, negative_prompt=""))
    bound = placement.bound(CARDS["standard"], times, 1) / devices
    assert 0.93 <= bound / ((machine.CLOCK.host - before) / 16 / devices) <= 1.0


RESIDENT = {"PRESSWORK_AI100_PLACEMENT": "text_encoder=1,unet=11,vae_decoder=2"}


@pytest.mark.parametrize("images", [1, 4])
def test_resident_programs_decode_while_the_next_image_is_denoised_of_the_next_batch_too(
    opened: Open, images: int
) -> None:
    pipeline, (chosen,) = opened(RESIDENT), placement.read_plan(*RESIDENT.values(), 1).placements
    found = sustained(pipeline, images, 10)
    assert found == pytest.approx(placement.batch_ms(chosen, PUBLISHED, 10, images) / images, rel=0.01)
    assert 0.93 <= placement.busiest_ms(chosen, PUBLISHED, 10) / found <= 1.0
    alone = milliseconds(pipeline, 1, 10)
    assert alone - found >= 0.9 * PUBLISHED.run("vae_decoder", 2), "what a batch of one waits for by itself"


@pytest.mark.parametrize(
    "text",
    [
        "text_encoder+unet+vae_decoder=14",
        "text_encoder+vae_decoder=2,unet=12",
        "text_encoder+unet=12,vae_decoder=2",
        RECIPE,
    ],
)
@pytest.mark.parametrize("images", [1, 3])
def test_batch_after_batch_takes_as_long_as_the_planner_reckons(opened: Open, text: str, images: int) -> None:
    (chosen,) = placement.read_plan(text, 1).placements
    found = sustained(opened({"PRESSWORK_AI100_PLACEMENT": text}), images, 4)
    assert found == pytest.approx(placement.batch_ms(chosen, PUBLISHED, 4, images) / images, rel=0.01)


def test_several_devices_take_as_long_as_the_planner_reckons(opened: Open) -> None:
    """One encodes and decodes for the others."""
    text = "text_encoder=1,vae_decoder=13;unet=14"
    master, *_ = placement.read_plan(text, 3).placements
    pipeline = opened({"PRESSWORK_AI100_PLACEMENT": text, "PRESSWORK_DEVICE": "qaic:0,1,2"}, devices="3")
    needed = placement._shared_ms(CARDS["standard"], master, PUBLISHED, 4, 6, 2)
    assert sustained(pipeline, 6, 4) == pytest.approx(needed / 6, rel=0.01)


def test_one_image_a_batch_is_planned_for_as_it_comes_batch_after_batch(opened: Open) -> None:
    pipeline = opened({"PRESSWORK_BATCH_SIZES": "1"})
    (station,) = pipeline.ai100.stations
    assert len(station.placement.slots) == 3
    assert sustained(pipeline, 1, 10) < milliseconds(pipeline, 1, 10) - 300


def test_texts_are_encoded_while_the_batch_before_is_decoded_on_other_cores(opened: Open) -> None:
    pipeline = opened({"PRESSWORK_AI100_PLACEMENT": RECIPE})
    saved = milliseconds(pipeline, 4, 2) - sustained(pipeline, 4, 2)
    assert saved == pytest.approx(PUBLISHED.run("text_encoder", 1), rel=0.01)


def test_pictures_are_ready_once_the_decoder_has_been_asked_for_more(opened: Open) -> None:
    pipeline = opened(RESIDENT)
    wanted = specs(2)
    batch = Batch(wanted[0].shape, wanted, 2)
    first = pipeline.begin(batch, lambda step: None)
    assert not first.ready
    heard: list[bool] = []
    second = pipeline.begin(batch, lambda step: heard.append(first.ready))
    assert heard == [False, False, True, True, True, True], "the first part's decoding is asked for in the third step"
    assert [len(one.pictures()) for one in (first, second)] == [2, 2]


def test_a_batch_that_fails_leaves_what_is_decoded_beside_it(opened: Open) -> None:
    pipeline = opened(RESIDENT)
    wanted = specs(2)
    batch = Batch(wanted[0].shape, wanted, 2)
    usual = drawn(pipeline, wanted)
    first = pipeline.begin(batch, lambda step: None)

    def cancelled(step: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.begin(batch, cancelled)
    assert [one.pixels.tobytes() for one in first.pictures() if isinstance(one, Picture)] == usual


def test_the_device_switches_by_itself_where_that_is_allowed_and_faster_by_the_table(opened: Open) -> None:
    """Both times of a switch are columns of the table."""
    usual = opened({"PRESSWORK_AI100_PLACEMENT": RECIPE})
    took = milliseconds(usual, 1, 10)
    usual.close()
    chosen = {"PRESSWORK_AI100_PLACEMENT": RECIPE, "PRESSWORK_AI100_DATA_PATH": "1"}
    allowed = opened(chosen)
    assert took - milliseconds(allowed, 1, 10) == pytest.approx(2 * (PUBLISHED.switch - PUBLISHED.switch_dps))
    allowed.close()
    slower = opened(chosen | {"PRESSWORK_AI100_TIMES": "switch_dps=151"})
    assert milliseconds(slower, 1, 10) == pytest.approx(took)


def test_the_plan_is_made_for_the_switches_that_there_will_be(opened: Open) -> None:
    times = {"PRESSWORK_BATCH_SIZES": "4,1", "PRESSWORK_AI100_TIMES": "switch=150,switch_dps=20"}
    for allowed, slots in (("0", 3), ("1", 1)):
        pipeline = opened(times | {"PRESSWORK_AI100_DATA_PATH": allowed}, times="switch=150,switch_dps=20")
        (station,) = pipeline.ai100.stations
        assert len(station.placement.slots) == slots
        found = sustained(pipeline, 4, 10)
        pipeline.close()
    assert 0.93 <= placement.bound(CARDS["standard"], PUBLISHED, 10) / found <= 1.0
