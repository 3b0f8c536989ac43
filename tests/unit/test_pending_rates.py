"""What a worker has measured is recorded once a second and shape, and none of it is lost."""

import dataclasses

import pytest

from services.core.fleet import throughput
from services.core.fleet.throughput import Measured, Pending
from services.core.model.specs import Shape
from services.core.queue.tail import Pace
from tests.clock import Clock

SHAPE = Shape("r", 64, 64, 10, True)


def test_the_first_measurement_is_recorded_at_once_and_the_next_ones_together(monkeypatch: pytest.MonkeyPatch):
    clock, pending = Clock(monkeypatch, throughput), Pending()
    assert pending.add(SHAPE, 16, 1.0) == Measured(16, 1.0)
    assert pending.add(SHAPE, 16, 2.0) is None
    assert pending.add(dataclasses.replace(SHAPE, width=128), 4, 9.0) == Measured(4, 9.0), "another shape"
    clock.now += throughput.RECORD_SECONDS
    assert pending.add(SHAPE, 48, 6.0) == Measured(64, 5.0)
    clock.now += throughput.RECORD_SECONDS
    assert pending.add(SHAPE, 16, 3.0) == Measured(16, 3.0), "what was recorded is not recorded again"


def test_a_claim_of_several_batches_takes_as_long_as_all_of_them():
    pace = Pace(free=1.0, seconds=2.0, batch=16)
    assert [pace.rendering(images) for images in (1, 16, 17, 64)] == [2.0, 2.0, 4.0, 8.0]
