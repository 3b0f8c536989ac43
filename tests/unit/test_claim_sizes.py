"""How many images a claim holds: half a second's worth in whole batches, one batch at least."""

import dataclasses
from concurrent.futures import Future

import pytest

from services.core.model.specs import Shape
from worker.claim_sizes import MOST_IMAGES, ClaimSizes, Following

SMALL = Shape("r", 64, 64, 10, True)


@pytest.mark.parametrize(
    ("seconds", "batch", "images"),
    [
        (1.0, 16, 16),  # a batch takes 16 s
        (0.5 / 16, 16, 16),
        (0.5 / 40, 16, 32),
        (0.5 / 40, 8, 40),
        (0.0001, 16, MOST_IMAGES),
        (0.0, 16, MOST_IMAGES),
        (0.0001, 256, 256),
        (0.0001, 48, 240),
        (0.0001, 1, MOST_IMAGES),
    ],
)
def test_a_claim_holds_half_a_second_in_whole_batches(seconds: float, batch: int, images: int):
    sizes = ClaimSizes()
    sizes.measured(SMALL, seconds)
    assert sizes.images(SMALL, batch) == images


def test_what_was_not_measured_is_claimed_by_the_batch():
    sizes = ClaimSizes()
    sizes.measured(SMALL, 0.0001)
    assert sizes.images(dataclasses.replace(SMALL, width=128), 16) == 16
    assert sizes.images(dataclasses.replace(SMALL, prompt_chunks=2), 16) == MOST_IMAGES


def test_the_pictures_of_a_claim_fit_in_memory():
    sizes, large = ClaimSizes(), dataclasses.replace(SMALL, width=1024, height=1024)
    sizes.measured(large, 0.0001)
    assert sizes.images(large, 16) == 16 and sizes.images(large, 4) == 20 and sizes.images(large, 64) == 64


def test_a_device_that_becomes_slow_claims_less_at_once_and_one_that_becomes_fast_step_by_step():
    sizes = ClaimSizes()
    sizes.measured(SMALL, 0.005)
    sizes.measured(SMALL, 0.02)
    assert sizes.images(SMALL, 1) == 25
    sizes.measured(SMALL, 0.005)
    assert sizes.images(SMALL, 1) == 40


def test_the_next_claim_is_taken_once_and_shortly_before_the_end():
    sizes = ClaimSizes()
    sizes.measured(SMALL, 0.01)
    taken: list[int] = []

    def claim() -> Future[None]:
        taken.append(1)
        return Future()

    following = Following(SMALL, sizes, claim)
    following.ahead(11)
    assert not taken
    following.ahead(10)
    following.ahead(0)
    assert following.claimed() is following.claimed() and len(taken) == 1


def test_the_next_claim_is_taken_also_if_no_batch_began():
    taken: list[int] = []
    Following(SMALL, ClaimSizes(), lambda: taken.append(1) or Future()).claimed()
    assert taken == [1]
