"""The tables of the Cloud AI 100 give the published figures, and the planner comes close to the bound they allow."""

import pytest

from services.core.model.errors import SettingsError
from worker.pipelines.ai100 import cards, placement
from worker.pipelines.ai100.cards import CARDS, PUBLISHED, UNET

STANDARD, PRO, ULTRA = CARDS.values()
PUBLISHED_SECONDS = {10: 0.971, 16: 1.335}


@pytest.mark.parametrize("steps", PUBLISHED_SECONDS)
def test_the_published_placement_takes_the_published_time(steps):
    assert placement.RECIPE.cores <= STANDARD.cores
    milliseconds = placement.batch_ms(placement.RECIPE, PUBLISHED, steps, 1)
    assert milliseconds == pytest.approx(PUBLISHED_SECONDS[steps] * 1000, rel=0.03)


def test_the_bound_is_all_work_on_all_cores():
    assert placement.bound(STANDARD, PUBLISHED, 10) == pytest.approx((8 + 10 * 60.7 * 12 + 56 * 12) / 14)
    work = cards.read_times("text_encoder=10x1,unet=10x1,vae_decoder=10x1,switch=0")
    assert placement.bound(STANDARD, work, 5) == pytest.approx(70 / 14)


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.key)
@pytest.mark.parametrize("steps", [10, 16, 30])
@pytest.mark.parametrize("dps", [False, True])
def test_a_batch_of_sixteen_reaches_93_percent_of_the_bound(card, steps, dps):
    chosen = placement.best(card, PUBLISHED, steps, 16, dps=dps)
    assert chosen.cores <= card.cores
    image = placement.batch_ms(chosen, PUBLISHED, steps, 16, dps=dps) / 16
    assert 0.93 <= placement.bound(card, PUBLISHED, steps) / image <= 1.0


def test_no_placement_beats_the_bound_and_the_best_one_is_as_fast_as_any():
    found = {one: placement.batch_ms(one, PUBLISHED, 10, 8) / 8 for one in placement.candidates(PRO)}
    assert min(found.values()) >= placement.bound(PRO, PUBLISHED, 10)
    assert min(found.values()) == found[placement.best(PRO, PUBLISHED, 10, 8)]
    assert {len(one.slots) for one in found} == {1, 2, 3}
    assert all(one.cores == PRO.cores for one in found)


def test_the_table_decides_whether_programs_switch_or_stay_resident():
    dear, cheap = cards.read_times("switch=3000"), cards.read_times("switch=20")
    assert len(placement.best(STANDARD, dear, 10, 16).slots) == 3
    assert len(placement.best(STANDARD, cheap, 10, 16).slots) == 1


def test_switches_are_shared_by_the_images_of_a_batch():
    alone, sixteen = (placement.batch_ms(placement.RECIPE, PUBLISHED, 10, images) for images in (1, 16))
    assert alone - sixteen / 16 == pytest.approx(300 * 15 / 16)


def test_of_many_devices_some_hold_the_unet_alone_if_that_is_faster():
    alike = placement.plan(ULTRA, PUBLISHED, 10, 64, 4)
    assert len(set(alike.placements)) == 1
    for card, times, devices in (
        (STANDARD, cards.read_times("switch=3000"), 8),
        (PRO, cards.read_times("switch=3000"), 8),
    ):
        split = placement.plan(card, times, 10, 16 * devices, devices)
        master, *workers = split.placements
        assert UNET not in master.networks
        assert {worker.networks for worker in workers} == {(UNET,)}
        assert len({worker.cores for worker in workers}) == 1, "an image's bytes depend on the U-Net's cores"
        assert all(one.cores <= card.cores for one in split.placements)


def test_a_plan_is_written_and_read():
    for found in (
        placement.plan(STANDARD, PUBLISHED, 10, 16, 2),
        placement.plan(STANDARD, cards.read_times("switch=3000"), 10, 128, 8),
        placement.Plan((placement.RECIPE,)),
    ):
        assert placement.read_plan(str(found), len(found.placements)) == found


@pytest.mark.parametrize(
    "text",
    ["", "unet", "unet=14", "unet=x,text_encoder+vae_decoder=2", "unet=12,text_encoder=1,vae_decoder=0",
     "text_encoder=1,vae_decoder=13;unet=13,vae_decoder=1", "text_encoder+unet+vae_decoder=14;unet=14", "a;b;c"],
)  # fmt: skip
def test_a_plan_that_is_not_understood_is_refused_in_a_sentence(text):
    with pytest.raises(SettingsError, match="PRESSWORK_AI100_PLACEMENT"):
        placement.read_plan(text, 2)


def test_measured_times_replace_the_table_s():
    found = cards.read_times("unet=48.5x14, switch=120")
    assert (found.unet, found.switch, found.vae_decoder) == ((48.5, 14), 120.0, PUBLISHED.vae_decoder)
    assert found.run(UNET, 7) == pytest.approx(97)
    for wrong in ("unet=48.5", "switch=3x2", "speed=1", "unet=0x3", "unet"):
        with pytest.raises(SettingsError, match="PRESSWORK_AI100_TIMES"):
            cards.read_times(wrong)


def test_a_device_s_type_tells_the_card_and_an_unknown_one_its_cores():
    assert cards.card_of("PCIe", 14) is STANDARD
    assert cards.card_of("PCIe Ultra", 16) is ULTRA
    assert cards.card_of("M.2", 16) is PRO
    assert cards.card_of("M.2", 8).cores == 8
