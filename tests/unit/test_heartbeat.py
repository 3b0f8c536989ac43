"""The watchdog: a device that hangs ends its process; one that was stopped, or is compiling, goes on. And the fence: a
worker that could not extend its lease stops by its own clock."""

import time

import pytest

import worker.heartbeat
from services.core.db.database import Database
from services.core.model.errors import DatabaseUnavailable
from services.core.model.specs import Claim, Image, Shape, Spec
from services.core.settings import Settings
from tests.clock import Clock
from worker.heartbeat import EXIT_HUNG, Heartbeat, HeldClaim, Interrupted

SETTINGS = Settings.read({"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x"})
WATCHES = round(SETTINGS.watchdog_seconds / SETTINGS.beat_seconds)
CLAIM = Claim(1, Shape("r", 64, 64, 10, True), (Image(1, 0, 1, Spec("r", "", "", 0, 64, 64, 10, 7.5), "png"),), 30.0)


@pytest.fixture
def exits() -> list[int]:
    return []


@pytest.fixture
def heartbeat(exits: list[int]) -> Heartbeat:
    return Heartbeat(Database(SETTINGS.database_url, application="nobody"), SETTINGS, exit_process=exits.append)


@pytest.fixture
def held(heartbeat: Heartbeat) -> HeldClaim:
    """A claim that is being rendered."""
    held = heartbeat.hold(CLAIM)
    heartbeat.rendering(held)
    heartbeat.watch()
    return held


def watch(heartbeat: Heartbeat, times: int) -> None:
    for _ in range(times):
        heartbeat.watch()


def test_a_device_without_a_step_for_the_watchdogs_time_ends_the_process(heartbeat, held, exits):
    watch(heartbeat, WATCHES - 1)
    assert exits == []
    watch(heartbeat, 2)
    assert exits == [EXIT_HUNG]


def test_a_step_begins_the_watchdogs_time_anew(heartbeat, held, exits):
    watch(heartbeat, WATCHES - 1)
    heartbeat.on_step(1)
    watch(heartbeat, WATCHES)
    assert exits == []


def test_nobody_dies_of_having_nothing_to_render(heartbeat, held, exits):
    heartbeat.rendering(None)
    watch(heartbeat, 10 * WATCHES)
    assert exits == []
    heartbeat.rendering(held)
    watch(heartbeat, WATCHES)
    assert exits == []


def test_a_process_that_was_stopped_for_an_hour_does_not_take_its_device_for_hung(heartbeat, held, exits, monkeypatch):
    Clock(monkeypatch, worker.heartbeat).now += 3600
    heartbeat.watch()
    assert exits == []


def test_compiling_has_a_patience_of_its_own_and_then_the_watchdog_is_as_strict_as_before(heartbeat, held, exits):
    with heartbeat.extended_timeout(4 * SETTINGS.watchdog_seconds):
        watch(heartbeat, 3 * WATCHES)
    watch(heartbeat, WATCHES)
    assert exits == []
    watch(heartbeat, 2)
    assert exits == [EXIT_HUNG]


def test_a_compilation_that_never_ends_is_ended_too(heartbeat, held, exits):
    with heartbeat.extended_timeout(4 * SETTINGS.watchdog_seconds):
        watch(heartbeat, 4 * WATCHES + 1)
    assert exits == [EXIT_HUNG]


def test_patience_is_never_less_than_the_watchdogs_time(heartbeat, held, exits):
    with heartbeat.extended_timeout(0.0):
        watch(heartbeat, WATCHES - 1)
    assert exits == []


def test_a_worker_that_could_not_extend_its_lease_stops_by_its_own_clock(heartbeat, held, monkeypatch):
    start = held.extended_at
    monkeypatch.setattr(time, "monotonic", lambda: start + SETTINGS.fence_seconds - 0.01)
    heartbeat.on_step(1)
    assert not held.fenced
    monkeypatch.setattr(time, "monotonic", lambda: start + SETTINGS.fence_seconds + 0.01)
    assert held.fenced
    assert not held.lost, "it may still settle, if nobody took the images"
    with pytest.raises(Interrupted):
        heartbeat.on_step(2)


def test_the_fence_is_counted_from_when_the_lease_was_asked_for(heartbeat, held, monkeypatch):
    start = held.extended_at
    held.update(frozenset(), start + 5.0)
    monkeypatch.setattr(time, "monotonic", lambda: start + SETTINGS.fence_seconds + 4.99)
    assert not held.fenced
    monkeypatch.setattr(time, "monotonic", lambda: start + SETTINGS.fence_seconds + 5.01)
    assert held.fenced


def test_a_worker_that_is_told_of_its_lost_lease_stops_at_the_next_step(heartbeat, held):
    held.update(None, time.monotonic())
    assert held.fenced
    assert held.lost
    with pytest.raises(Interrupted):
        heartbeat.on_step(1)


def test_a_claim_that_should_have_been_settled_long_ago_is_not_extended(heartbeat, held):
    """The database of these tests does not exist, so extending any claim is an error."""
    held.begin_storing(SETTINGS)
    with pytest.raises(DatabaseUnavailable):
        heartbeat.beat()
    held.hold_until = time.monotonic() - 1.0
    heartbeat.beat()
