"""What the worker decides without rendering: declared sizes, halving, stepping down, whose turn it is."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.model.specs import FailedImage, Image, Shape, Spec
from worker import batching, retries
from worker.pipeline import Batch
from worker.retries import Part, RetryPlan

SIZES = (16, 8, 4, 1)
SHAPE = Shape("r", 64, 64, 10, True)


def images(count: int) -> list[Image]:
    return [Image(1, index, 1, Spec("r", f"{index}", "", index, 64, 64, 10, 7.5), "png") for index in range(count)]


@pytest.mark.parametrize(("count", "most", "parts"), [(1, 16, 1), (16, 16, 1), (3, 8, 1), (16, 8, 2), (9, 4, 3)])
def test_the_largest_size_that_there_is_room_for_serves_however_few_the_images_are(count, most, parts):
    plan = RetryPlan(SIZES, most)
    plan.add(images(count))
    taken = list(iter(plan.next, None))
    assert [part.size for part in taken] == [most] * parts
    assert sum(len(part.images) for part in taken) == count


def test_a_batch_is_padded_to_its_size_and_knows_what_is_wanted():
    batch = batching.form(images(3), SHAPE, 4)
    assert (batch.size, batch.wanted) == (4, 3)
    assert batch.specs[3] == batch.specs[2]


def test_of_thirteen_turns_eight_are_high_four_normal_and_one_low():
    turns = batching.Turns()
    order = [turns.choose(dict.fromkeys((0, 1, 2), 0.0)) for _ in range(26)]
    assert Counter(order[:13]) == {0: 8, 1: 4, 2: 1}
    assert order[:13] == order[13:]
    assert order[:3] != [0, 0, 0]  # spread, not in a row


def test_memory_that_does_not_do_steps_down_for_all_that_is_left():
    plan = RetryPlan(SIZES, 16)
    plan.add(images(16))
    assert plan.step_down(plan.next())
    parts = [plan.next(), plan.next()]
    assert [(len(part.images), part.size) for part in parts] == [(8, 8), (8, 8)]
    assert plan.max_size == 8


def test_memory_that_does_not_do_for_one_fails_it():
    plan = RetryPlan(SIZES, 1)
    plan.add(images(2))
    part = plan.next()
    assert not plan.step_down(part)
    plan.too_large(part)
    assert [(image.index, image.code) for image in plan.failed] == [(0, "resource")]
    assert len(plan.next().images) == 1


@given(st.integers(1, 16), st.sets(st.integers(0, 15)))
def test_halving_finds_every_failing_image_and_keeps_the_others_at_an_unchanged_size(count, culprits):
    plan = RetryPlan(SIZES, 16)
    plan.add(images(count))
    done: set[int] = set()
    sizes: set[int] = set()
    passes = 0
    guilty = {index for index in culprits if index < count}
    while part := plan.next():
        passes += 1
        assert passes <= 1 + 2 * 4 * max(len(guilty), 1)
        sizes.add(part.size)
        indexes = {image.index for image in part.images}
        if not indexes & culprits:
            done |= indexes
        elif plan.is_single(part):
            plan.give_up(part, ValueError("no"))
        else:
            plan.halve(part)
    assert done == set(range(count)) - guilty
    assert {image.index for image in plan.failed} == guilty
    assert len(sizes) == 1


def test_parts_come_in_order_and_each_image_in_one_of_them():
    plan = RetryPlan(SIZES, 4)
    given = images(9)
    plan.add(given)
    assert list(iter(plan.next, None)) == [Part(tuple(given[:4]), 4), Part(tuple(given[4:8]), 4), Part((given[8],), 4)]


def test_stepping_down_takes_the_next_size_for_what_did_not_fit_and_for_all_that_waits_in_order():
    plan = RetryPlan(SIZES, 8)
    given = images(10)
    plan.add(given)
    assert plan.step_down(plan.next())
    assert plan.max_size == 4
    assert [part.images for part in iter(plan.next, None)] == [tuple(given[:4]), tuple(given[4:8]), tuple(given[8:])]


@pytest.mark.parametrize(("size", "smaller"), [(17, 16), (16, 8), (8, 4), (4, 1), (2, 1), (1, None)])
def test_the_next_smaller_size_is_the_largest_declared_below(size, smaller):
    assert batching.next_smaller((4, 16, 1, 8), size) == smaller


def test_halves_come_before_what_waits_and_hold_the_images_between_them():
    plan = RetryPlan(SIZES, 4)
    given = images(5)
    plan.add(given)
    plan.halve(Part(tuple(given[:3]), 8))
    assert [(part.images, part.size) for part in iter(plan.next, None)] == [
        (tuple(given[:1]), 8), (tuple(given[1:3]), 8), (tuple(given[:4]), 4), (tuple(given[4:]), 4),
    ]  # fmt: skip


def test_one_image_stands_alone_and_two_do_not():
    plan = RetryPlan(SIZES, 4)
    assert plan.is_single(Part(tuple(images(1)), 16))
    assert not plan.is_single(Part(tuple(images(2)), 1))


def test_what_failed_says_why_in_a_short_line_without_the_exceptions_text():
    plan = RetryPlan(SIZES, 4)
    one, two = images(2)
    plan.invalid_output(one, "not\x00finite")
    plan.give_up(Part((two,), 4), ValueError("no" * 300))
    plan.too_large(Part((one, two), 4))
    assert plan.failed == [
        FailedImage(1, 0, "invalid_output", "notfinite"),
        FailedImage(
            1, 1, "render_error", "This image alone cannot be rendered: ValueError. The worker's log says more."
        ),
        FailedImage(1, 0, "resource", retries.OUT_OF_MEMORY),
        FailedImage(1, 1, "resource", retries.OUT_OF_MEMORY),
    ]
    leaky = FileNotFoundError(2, "No such file", "/srv/models/secret/unet.safetensors")
    assert "/srv" not in retries.failure(one, leaky).message
    odd = type("E" * 100, (Exception,), {})()
    assert f": {'E' * 80}. The" in retries.failure(one, odd).message


def test_a_batch_holds_its_images_in_order_and_repeats_the_last():
    given = images(2)
    assert batching.form(given, SHAPE, 4) == Batch(SHAPE, (given[0].spec, *[given[1].spec] * 3), 2)
    assert batching.form(given, SHAPE, 2) == Batch(SHAPE, (given[0].spec, given[1].spec), 2)


def test_the_turns_are_those_of_smooth_weighted_round_robin():
    turns = batching.Turns()
    order = [turns.choose(dict.fromkeys((0, 1, 2), 0.0)) for _ in range(14)]
    assert order == [0, 1, 0, 0, 1, 0, 2, 0, 1, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(("age", "claims"), [(0, 13), (599, 13), (600, 7), (3599, 7), (3600, 4), (1e6, 4)])
def test_low_ages_and_never_gets_more_than_normal(age, claims):
    turns, waiting = batching.Turns(), {0: 1e6, 1: 1e6, 2: float(age)}
    order = Counter(turns.choose(waiting) for _ in range(claims * 100))
    assert order[2] == 100 and order[1] >= order[2] and order[0] == 2 * order[1]


@pytest.mark.parametrize(
    "before", [{2: 0.0}, {2: 1e6}, {1: 0.0}, {1: 0.0, 2: 0.0}, {1: 0.0, 2: 1e6}, {1: 9.0, 2: 700.0}]
)
def test_high_that_arrives_comes_first_at_the_next_claim_however_long_others_were_served(before):
    for length in range(60):
        turns = batching.Turns()
        for _ in range(length):
            turns.choose(before)
        assert turns.choose(before | {0: 0.0}) == 0


def test_what_waits_alone_saves_nothing_up_and_owes_nothing():
    turns = batching.Turns()
    for _ in range(100):
        assert turns.choose({0: 0.0}) == 0
    assert Counter(turns.choose({0: 0.0, 2: 0.0}) for _ in range(9)) == {0: 8, 2: 1}


def test_an_image_of_512_by_512_at_ten_guided_steps_costs_one():
    assert batching.cost(Shape("r", 512, 512, 10, True), 1) == 1.0
    assert batching.cost(Shape("r", 512, 256, 20, False), 6) == 3.0
    assert batching.cost(Shape("r", 256, 512, 30, True), 2) == 3.0
