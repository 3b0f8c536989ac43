"""Every change of the clocks of twelve zones in twelve years, and schedulers killed at each step of a run."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from tests import collecting, factories
from tests.cron_by_minutes import ZONES, changes
from tests.processes import Process
from tests.scheduling import cross, end_jobs, fire, first_at, found, jobs, put, states, waits_for
from tests.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

# What another transaction holds while the scheduler is killed: so it is killed there.
STEPS = {
    "before the run is recorded": "INSERT INTO schedule_runs (id, schedule_id, tenant_id, instant, state) "
    "SELECT 1, id, 1, :instant, 'submitting' FROM schedules WHERE name = :name",
    "before the job is recorded": "SELECT id, CAST(:instant AS timestamptz), CAST(:name AS text) FROM schedule_runs "
    "WHERE state = 'submitting' FOR UPDATE",
    "while the job is recorded": "LOCK TABLE payloads IN SHARE MODE",
    "after the job is recorded": "",
}


@pytest.fixture(autouse=True)
def _model(database: Database) -> None:
    factories.register(database)


@pytest.fixture
def scheduler(
    environ: dict[str, str], database: Database, store: object, tmp_path: Path
) -> Iterator[Callable[[], Process]]:
    collecting.age_leases(database)  # of a test before, whose scheduler was killed
    running: list[Process] = []

    def start() -> Process:
        running.append(Process("scheduler.app", environ, tmp_path / f"scheduler-{len(running)}.log"))
        return running[-1]

    yield start
    for process in running:
        process.kill()


def test_a_thousand_runs_across_all_changes_of_clocks_are_neither_missed_nor_fired_twice(database, settings):
    crossings = sorted(((zone, change) for zone in ZONES for change, _ in changes(zone)), key=lambda one: one[1])
    assert cross(database, settings, crossings) >= 1_000


@pytest.mark.parametrize("step", STEPS)
def test_a_scheduler_that_is_killed_at_each_step_is_followed_by_one_that_ends_the_run_once(
    database, settings, scheduler, step
):
    instant = (datetime.now(UTC) - timedelta(hours=1)).replace(hour=1, minute=0, second=0, microsecond=0)
    put(database, settings, misfire="latest")
    first_at(database, instant)
    if step.startswith("before the job"):
        fire(database, instant)
    if not STEPS[step]:
        first = scheduler()
        until(lambda: states(database) == ["running"])
        first.kill()
    else:
        kill_at(database, STEPS[step], {"instant": instant, "name": "nightly"}, scheduler)
        assert jobs(database) == []
    with database.begin_system() as connection:  # half a minute later
        connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 second'"))
    scheduler()
    until(lambda: states(database) == ["running"])
    assert len(jobs(database)) == 1
    end_jobs(database)
    until(lambda: states(database) == ["completed"])
    assert (len(jobs(database)), len(found(database))) == (1, 1)


def kill_at(database: Database, block: str, values: dict[str, Any], scheduler: Callable[[], Process]) -> None:
    with database.begin_system() as blocking:
        blocking.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        mine = blocking.execute(text("SELECT pg_backend_pid()")).scalar_one()
        held = text(block)
        blocking.execute(held, {name: values[name] for name in held.compile().params})
        victim = scheduler()
        until(lambda: waits_for(database, mine), seconds=60)
        victim.kill()
        blocking.rollback()
