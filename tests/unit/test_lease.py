"""The watchdog: who ends a device that hangs, and who has patience while it compiles."""

import dataclasses

import pytest

from services.core.settings import Settings
from services.core.specs import Claim, Shape
from worker.lease import EXIT_HUNG, Lease

SETTINGS = Settings.read({"DATABASE_URL": "unused", "REDIS_URL": "unused", "PRESSWORK_LEASE_SECONDS": "1"})


@pytest.fixture
def lease() -> Lease:
    deaths: list[int] = []
    lease = Lease(None, SETTINGS, die=deaths.append)  # type: ignore[arg-type]
    lease.deaths = deaths  # type: ignore[attr-defined]
    lease.rendering(lease.hold(Claim(1, Shape("r", 64, 64, 10, True), (), 1.0)))
    return lease


def silent_for(lease: Lease, seconds: float) -> list[int]:
    lease._progress_at -= seconds
    lease.watch()
    return lease.deaths  # type: ignore[attr-defined,no-any-return]


def test_a_device_that_makes_no_step_for_the_watchdog_s_time_is_ended(lease: Lease):
    assert silent_for(lease, SETTINGS.watchdog_seconds - 1) == []
    assert silent_for(lease, 2) == [EXIT_HUNG]


def test_compiling_has_a_patience_of_its_own_and_then_the_watchdog_is_as_strict_as_before(lease: Lease):
    with lease.patience(60):
        assert silent_for(lease, 50) == []
    assert silent_for(lease, SETTINGS.watchdog_seconds - 1) == []
    assert silent_for(lease, 2) == [EXIT_HUNG]


def test_a_compilation_that_never_ends_is_ended_too(lease: Lease):
    with lease.patience(60):
        assert silent_for(lease, 61) == [EXIT_HUNG]


def test_patience_is_never_less_than_the_watchdog_s_time():
    slow = dataclasses.replace(SETTINGS, lease_seconds=3600.0)
    lease = Lease(None, slow, die=lambda code: pytest.fail("too soon"))  # type: ignore[arg-type]
    lease.rendering(lease.hold(Claim(1, Shape("r", 64, 64, 10, True), (), 1.0)))
    with lease.patience(60):
        lease._progress_at -= 3600
        lease.watch()
