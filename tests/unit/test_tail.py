"""The tail of the work: what a worker leaves to others, and how a mixed fleet ends a job in virtual time."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.queue import peers, tail
from services.core.queue.tail import Pace
from tests.benchmarks.mixed import CARD, CPU, GPU, MIXES
from tests.virtual_fleet import Worker, ideal, render
from worker import child

SECONDS = st.floats(0.001, 1_000)
PACES = st.builds(Pace, free=st.floats(0, 1_000), seconds=SECONDS, batch=st.integers(1, 64))
WORKERS = st.lists(
    st.builds(Worker, seconds=st.floats(0.005, 5), batch=st.sampled_from((1, 1, 4, 8, 16))), min_size=1, max_size=5
)


def test_a_slow_worker_leaves_what_a_fast_one_ends_before_it():
    slow, fast = Pace(0, 40, 1), Pace(0, 4, 16)
    assert tail.left(slow, [fast]) == 9 * 16  # the tenth batch would end when the slow image does
    assert tail.left(slow, [replace(fast, free=30)]) == 2 * 16
    assert tail.left(slow, [replace(fast, free=36)]) == 0
    assert tail.left(replace(slow, free=4), [fast]) == 10 * 16
    assert tail.left(slow, [fast, Pace(0, 10, 1)]) == 9 * 16 + 3
    assert tail.left(fast, [slow]) == 0


@given(PACES)
def test_a_worker_without_others_leaves_nothing(own):
    assert tail.left(own, []) == 0


@given(st.lists(PACES, min_size=1, max_size=8))
def test_somebody_takes_what_waits(fleet):
    left = [tail.left(own, fleet[:nth] + fleet[nth + 1 :]) for nth, own in enumerate(fleet)]
    assert left[min(range(len(fleet)), key=lambda nth: fleet[nth].end)] == 0


@given(PACES, st.lists(PACES, max_size=6))
def test_the_others_end_what_is_left_to_them_before_its_own_batch_would_end(own, others):
    left = tail.left(own, others)
    assert (left > 0) == any(other.end < own.end for other in others)
    batches = [max(0, int((own.end - other.free) / other.seconds + 1e-9)) for other in others]
    assert left <= sum(number * other.batch for number, other in zip(batches, others, strict=True))


@given(PACES, st.lists(PACES, max_size=5), PACES, st.floats(0, 100))
def test_one_more_worker_or_a_later_end_never_leaves_less(own, others, more, later):
    left = tail.left(own, others)
    assert tail.left(own, [*others, more]) >= left
    assert tail.left(replace(own, free=own.free + later), others) >= left


@pytest.mark.parametrize("mix", [name for name in MIXES if name != "a GPU whose batch takes a third of the job"])
def test_a_mixed_fleet_ends_a_job_within_five_percent_of_the_ideal_time(mix):
    assert render(MIXES[mix], 2_000).seconds <= 1.05 * ideal(MIXES[mix], 2_000)


def test_without_the_rule_a_slow_worker_keeps_the_job_waiting():
    mix = MIXES["1:8:40, batches of 16 each"]
    assert render(mix, 2_000, by_rule=False).seconds > 1.3 * render(mix, 2_000).seconds


def test_each_worker_renders_in_proportion_to_its_speed():
    images = render((CPU, CARD, GPU), 2_000).images
    assert [round(49 * count / 2_000) for count in images] == [1, 8, 40]


def test_what_the_dead_fast_worker_was_left_is_taken_by_the_slow_ones():
    """At the tail, where they leave all of it."""
    dying = replace(GPU, dies=40.0)
    assert render((CPU, CARD, GPU), 2_000).seconds > 40.0
    run = render((CPU, CARD, dying), 2_000)
    assert sum(run.images) == 2_000 and run.seconds > 75.0


def test_images_do_not_wait_for_a_fast_worker_that_is_busy_with_what_nobody_else_can_render():
    """It is on time, always free within moments, and takes its older work."""
    elsewhere = replace(GPU, elsewhere=10_000.0)
    run = render((CPU, elsewhere), 10)
    assert run.images == (10, 0) and run.seconds < 30.0
    assert render((CPU, CARD, elsewhere), 100).seconds < 60.0


def test_what_is_left_is_left_once_and_for_a_bounded_time():
    one, other = (1, 0), (2, 0)
    leaving = tail.Leaving()
    leaving.note([one], [one, other], now=0.0, until=10.0)
    leaving.note([one], [one], now=5.0, until=15.0)
    assert leaving.overdue(9.0) == set() and leaving.overdue(10.0) == {one}
    leaving.note([], [one], now=11.0, until=21.0)  # it takes some of them: the others are not left again
    leaving.note([one], [one], now=12.0, until=22.0)
    assert leaving.overdue(12.0) == {one}
    leaving.keep({other})
    assert leaving.overdue(100.0) == set()


def test_what_is_claimed_in_time_was_not_left():
    leaving = tail.Leaving()
    leaving.note([(1, 0)], [(1, 0)], now=0.0, until=10.0)
    leaving.note([], [(1, 0)], now=5.0, until=15.0)
    leaving.note([(1, 0)], [(1, 0)], now=8.0, until=18.0)
    assert leaving.overdue(11.0) == set()


@settings(max_examples=60, deadline=None)
@given(WORKERS, st.integers(1, 300))
def test_every_fleet_ends_every_job_and_hardly_later_than_without_the_rule(fleet, images):
    """What is won at the end of a job may cost a look: an idle worker takes what was left to it when it looks again."""
    most = render(fleet, images, by_rule=False).seconds
    quickest = min(worker.batch_seconds for worker in fleet)
    assert render(fleet, images).seconds <= most + quickest + peers.LOOK_SECONDS


def test_an_idle_worker_looks_for_work_as_often_as_others_think():
    assert child.TICK_SECONDS == peers.LOOK_SECONDS
