"""What the worker decides without rendering: declared sizes, halving, stepping down, whose turn it is."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.model.specs import Image, Shape, Spec
from worker import batching
from worker.retries import Plan

SIZES = (16, 8, 4, 1)
SHAPE = Shape("r", 64, 64, 10, True)


def images(count: int) -> list[Image]:
    return [Image(1, index, 1, Spec("r", f"{index}", "", index, 64, 64, 10, 7.5), "png") for index in range(count)]


@pytest.mark.parametrize(("count", "most", "parts"), [(1, 16, 1), (16, 16, 1), (3, 8, 1), (16, 8, 2), (9, 4, 3)])
def test_the_largest_size_that_there_is_room_for_serves_however_few_the_images_are(count, most, parts):
    plan = Plan(SIZES, most)
    plan.add(images(count))
    taken = list(iter(plan.next, None))
    assert [part.size for part in taken] == [most] * parts
    assert sum(len(part.images) for part in taken) == count


def test_a_batch_is_padded_to_its_size_and_knows_what_is_wanted():
    batch = batching.form(images(3), SHAPE, 4)
    assert (batch.size, batch.wanted) == (4, 3)
    assert batch.specs[3] == batch.specs[2]


def test_of_thirteen_turns_eight_are_high_four_normal_and_one_low():
    order = list(islice(batching.turns(), 26))
    assert Counter(order[:13]) == {0: 8, 1: 4, 2: 1}
    assert order[:13] == order[13:]
    assert order[:3] != [0, 0, 0]  # spread, not in a row


def test_memory_that_does_not_do_steps_down_for_all_that_is_left():
    plan = Plan(SIZES, 16)
    plan.add(images(16))
    assert plan.step_down(plan.next())
    parts = [plan.next(), plan.next()]
    assert [(len(part.images), part.size) for part in parts] == [(8, 8), (8, 8)]
    assert plan.most == 8


def test_memory_that_does_not_do_for_one_fails_it():
    plan = Plan(SIZES, 1)
    plan.add(images(2))
    part = plan.next()
    assert not plan.step_down(part)
    plan.too_large(part)
    assert [(image.index, image.code) for image in plan.failed] == [(0, "resource")]
    assert len(plan.next().images) == 1


@given(st.integers(1, 16), st.sets(st.integers(0, 15)))
def test_halving_finds_every_culprit_and_spares_the_innocent_at_an_unchanged_size(count, culprits):
    plan = Plan(SIZES, 16)
    plan.add(images(count))
    done: set[int] = set()
    sizes: set[int] = set()
    passes = 0
    while part := plan.next():
        passes += 1
        sizes.add(part.size)
        indexes = {image.index for image in part.images}
        if not indexes & culprits:
            done |= indexes
        elif plan.stands_alone(part):
            plan.give_up(part, ValueError("no"))
        else:
            plan.halve(part)
    guilty = {index for index in culprits if index < count}
    assert done == set(range(count)) - guilty
    assert {image.index for image in plan.failed} == guilty
    assert len(sizes) == 1
    assert passes <= 1 + 2 * 4 * max(len(guilty), 1)
