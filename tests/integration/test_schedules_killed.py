"""Whoever fires and submits may be cut off at each step: an instant has one run, and the run has one job.

tests/chaos/test_schedules.py kills real processes, and crosses every change of the clocks of twelve zones."""

import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import product

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.model.errors import PressworkError
from services.core.notify import Notifier
from services.core.schedules import submitting
from services.core.storage.s3 import S3Store
from tests import factories
from tests.cron_by_minutes import changes
from tests.scheduling import DAY, NIGHT, cross, end_jobs, fire, first_at, found, jobs, put, states, submitter, waits_for
from tests.waiting import until

# What another transaction holds while ours is cut off: so it is cut off there.
FIRING = [
    f"""INSERT INTO schedule_runs (id, schedule_id, tenant_id, instant, state)
        SELECT 1, id, 1, '{instant}', 'submitting' FROM schedules"""
    for instant in (NIGHT, NIGHT + DAY)  # before the first of two runs is recorded, and after it
]
SUBMITTING = (
    "SELECT id FROM schedule_runs FOR UPDATE",
    *(f"LOCK TABLE {table} IN SHARE MODE" for table in ("jobs", "counters", "segments", "images")),
)


@pytest.fixture(autouse=True)
def _model(database: Database) -> None:
    factories.register(database)


def cut_off(database: Database, block: str, work: Callable[[], object]) -> None:
    """Does the work until it waits for what `block` holds, and cuts its connection off there, as a kill -9 does."""

    def quietly() -> None:
        with suppress(PressworkError):
            work()

    with suppress(InterruptedError), database.begin_system() as blocking:
        mine = blocking.execute(text("SELECT pg_backend_pid()")).scalar_one()
        blocking.execute(text(block))
        thread = threading.Thread(target=quietly)
        thread.start()
        victim = until(lambda: waits_for(database, mine), every=0.01)
        with database.begin_system() as killer:
            killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": victim})
        thread.join()
        raise InterruptedError  # what it holds is undone


def test_cut_off_at_each_step_of_firing_and_submitting_a_run_ends_once(database, settings):
    put(database, settings, misfire="all")
    first_at(database, NIGHT)
    for block in FIRING:
        cut_off(database, block, lambda: fire(database, NIGHT + DAY))
        assert found(database) == []
    fire(database, NIGHT + DAY)
    assert states(database) == ["submitting", "waiting"]
    run = found(database)[0]
    for number, block in enumerate(SUBMITTING):
        lease = Lease(database, f"schedule/{run.id}", f"scheduler-{number}")
        assert lease.take()
        cut_off(
            database,
            block,
            lambda: submitting.run(settings, S3Store(settings), Notifier(settings.redis_url), run.id, lease),  # noqa: B023
        )
        assert (states(database), jobs(database)) == (["submitting", "waiting"], [])
        with database.begin_system() as connection:  # half a minute later
            connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 second'"))
    for done in range(2):
        assert submitter(database, settings)()
        assert not submitter(database, settings, "scheduler-9")()
        assert (states(database)[done], len(jobs(database))) == ("running", done + 1)
        end_jobs(database)
    assert (states(database), len(jobs(database))) == (["completed", "completed"], 2)


def test_the_job_and_the_mark_of_its_run_are_one_transaction(database, settings):
    put(database, settings)
    first_at(database, NIGHT)
    fire(database, NIGHT)
    submitter(database, settings)()
    with database.begin_system() as connection:
        same = "SELECT r.xmin::text = j.xmin::text FROM schedule_runs r JOIN jobs j ON j.id = r.job_id"
        assert connection.execute(text(same)).scalar_one() is True


def test_a_run_that_is_skipped_while_it_is_about_to_be_submitted_gets_no_job(database, settings):
    put(database, settings)
    first_at(database, NIGHT)
    fire(database, NIGHT)
    with database.begin_system() as skipping:
        mine = skipping.execute(text("SELECT pg_backend_pid()")).scalar_one()
        skipping.execute(text("UPDATE schedule_runs SET state = 'skipped', finished_at = now()"))
        thread = threading.Thread(target=submitter(database, settings))
        thread.start()
        until(lambda: waits_for(database, mine), every=0.01)
    thread.join()
    assert (states(database), jobs(database)) == (["skipped"], [])


def test_across_the_changes_of_clocks_three_schedulers_miss_nothing_and_fire_nothing_twice(database, settings):
    zones = ("Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu")
    crossings = [
        (zone, change) for zone, number in product(zones, range(2)) for change, _ in changes(zone)[number:][:1]
    ]
    assert cross(database, settings, crossings) >= 30
