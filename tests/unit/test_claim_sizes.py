"""How many images a claim holds: half a second's worth in whole batches, one batch at least."""

import dataclasses
from concurrent.futures import Future

import pytest

from services.core.model.specs import Shape
from worker.claim_sizes import MOST_IMAGES, ClaimSizes, Following

SMALL = Shape("r", 64, 64, 10, True)


def measured(shape: Shape, seconds: float, *, spool: int = 4) -> ClaimSizes:
    """Of a device with a store that takes no time."""
    sizes = ClaimSizes(300.0, spool)
    sizes.measured(shape, seconds)
    sizes.stored(shape, 1, 0.0)
    return sizes


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
    sizes = measured(SMALL, seconds)
    assert sizes.images(SMALL, batch) == images


def test_what_was_not_measured_is_claimed_by_the_batch():
    sizes = measured(SMALL, 0.0001)
    assert sizes.images(dataclasses.replace(SMALL, width=128), 16) == 16
    assert sizes.images(dataclasses.replace(SMALL, prompt_chunks=2), 16) == MOST_IMAGES


def test_the_pictures_of_a_claim_fit_in_memory():
    large = dataclasses.replace(SMALL, width=1024, height=1024)
    sizes = measured(large, 0.0001)
    assert sizes.images(large, 16) == 16 and sizes.images(large, 4) == 20 and sizes.images(large, 64) == 64
    medium = dataclasses.replace(SMALL, width=512, height=342)
    assert measured(medium, 0.0001).images(medium, 1) == 127, "64 MiB"


def test_so_do_the_pictures_of_all_claims_of_a_large_spool():
    large = dataclasses.replace(SMALL, width=1024, height=1024)
    assert [measured(large, 0.0001, spool=spool).images(large, 1) for spool in (1, 4, 8, 1024)] == [21, 21, 10, 1]


def test_a_device_that_becomes_slow_claims_less_at_once_and_one_that_becomes_fast_step_by_step():
    sizes = measured(SMALL, 0.005)
    sizes.measured(SMALL, 0.02)
    assert sizes.images(SMALL, 1) == 25
    sizes.measured(SMALL, 0.005)
    assert sizes.images(SMALL, 1) == 40


def test_the_next_claim_is_taken_once_and_shortly_before_the_end():
    sizes = measured(SMALL, 0.01)
    taken: list[Future[None]] = []

    def claim() -> Future[None]:
        taken.append(Future())
        return taken[-1]

    following = Following(SMALL, sizes, claim)
    following.ahead(11)
    assert not taken
    following.ahead(10)
    assert len(taken) == 1
    following.ahead(0)
    assert following.claimed() is following.claimed() is taken[0] and len(taken) == 1


def test_the_next_claim_is_taken_also_if_no_batch_began():
    taken: Future[None] = Future()
    assert Following(SMALL, ClaimSizes(300.0, 4), lambda: taken).claimed() is taken


def test_what_was_not_stored_yet_is_claimed_by_the_batch():
    sizes = ClaimSizes(300.0, 4)
    sizes.measured(SMALL, 0.0001)
    assert sizes.images(SMALL, 16) == 16
    sizes.stored(SMALL, 16, 0.2)
    assert sizes.images(SMALL, 16) == MOST_IMAGES


def test_a_claim_holds_no_more_than_is_stored_in_a_tenth_of_the_time_that_storing_may_take():
    """Else what waits in the spool of a fast device is given up, and rendered again."""
    sizes = measured(SMALL, 0.0001)
    sizes.stored(SMALL, 256, 256.0)
    assert sizes.images(SMALL, 16) == 16 and sizes.images(SMALL, 4) == 28
    sizes.stored(SMALL, 16, 160.0)
    assert sizes.images(SMALL, 16) == 16, "one batch at least"
    for _ in range(20):
        sizes.stored(SMALL, 16, 0.1)
    assert sizes.images(SMALL, 16) == MOST_IMAGES, "the store is fast again"


def test_what_must_be_fetched_first_is_claimed_sooner():
    """So that the device does not wait for input pictures."""
    sizes = measured(SMALL, 0.01)
    assert not sizes.is_near_the_end(SMALL, 30)
    sizes.fetched(0.3)
    assert sizes.is_near_the_end(SMALL, 30) and not sizes.is_near_the_end(SMALL, 50)
    sizes.fetched(0.2)
    assert sizes.is_near_the_end(SMALL, 34) and not sizes.is_near_the_end(SMALL, 36), (
        "what becomes faster counts by half"
    )
    for _ in range(10):
        sizes.fetched(0.0)
    assert not sizes.is_near_the_end(SMALL, 30)
    assert measured(SMALL, 0.1).is_near_the_end(SMALL, 1)
