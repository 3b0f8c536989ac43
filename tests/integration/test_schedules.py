"""Schedules: what fires, once, whoever looks and whoever is killed; and what the policies do."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.jobs import lifecycle
from services.core.model.errors import Conflict, InvalidSubmission, NotFound
from services.core.notify import Notifier
from services.core.schedules import deadlines, firing, runs, schedules, submitting
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import factories
from tests.factories import TENANT
from tests.scheduling import (
    DAY,
    MINUTE,
    MUG,
    NIGHT,
    end_jobs,
    events,
    fire,
    first_at,
    found,
    jobs,
    put,
    settle,
    states,
    submitter,
)


@pytest.fixture(autouse=True)
def _model(database: Database) -> None:
    factories.register(database)


@pytest.fixture
def submit_all(database: Database, settings: Settings) -> Callable[[], bool]:
    return submitter(database, settings)


def test_a_schedule_fires_at_its_time_and_submits_its_job_with_its_name(database, settings, submit_all):
    made = put(database, settings)
    first_at(database, NIGHT)
    assert fire(database, NIGHT - MINUTE) == 0
    assert fire(database, NIGHT) == 1
    assert fire(database, NIGHT) == 0
    assert states(database) == ["submitting"]
    assert submit_all()
    [job] = jobs(database)
    assert (job.total, job.priority) == (1, 2)
    assert job.labels == {"for": "shop", "schedule": "nightly", "scheduled_for": "2027-01-05T01:00:00Z"}
    [run] = found(database)
    assert (run.state, run.job_id, run.instant) == ("running", job.id, NIGHT)
    end_jobs(database)
    assert states(database) == ["completed"]
    with database.begin(TENANT) as connection:
        after = schedules.find(connection, TENANT, "nightly")
    assert (after.next_at, after.created_at) == (NIGHT + DAY, made.created_at)
    assert events(database, "schedule.fired") == [
        {"actor": "tests", "subject": "schedule/nightly", "data": {"instant": "2027-01-05T01:00:00Z"}}
    ]
    assert [event["actor"] for event in events(database, "job.created")] == ["schedule/nightly"]


def test_however_many_look_at_once_an_instant_has_one_run(database, settings):
    for number in range(20):
        put(database, settings, f"s{number}")
        first_at(database, NIGHT, f"s{number}")
    begin = threading.Barrier(4)

    def look() -> None:
        begin.wait()
        for hour in range(3):
            fire(database, NIGHT + hour * DAY)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while fire(database, NIGHT + 2 * DAY):
        pass
    for number in range(20):
        instants = [run.instant for run in found(database, f"s{number}")]
        assert len(instants) == len(set(instants))
        assert NIGHT + 2 * DAY in instants


def test_a_run_row_of_the_instant_is_enough_to_keep_another_from_being_made(database, settings, submit_all):
    put(database, settings)
    first_at(database, NIGHT)
    fire(database, NIGHT)
    first_at(database, NIGHT)  # as one sees it that looked before the other's commit
    fire(database, NIGHT)
    submit_all()
    assert len(found(database)) == len(jobs(database)) == 1


def test_a_holder_whose_lease_was_lost_submits_nothing_and_the_next_one_submits_once(database, settings, submit_all):
    put(database, settings)
    first_at(database, NIGHT)
    fire(database, NIGHT)
    [run] = found(database)
    paused = Lease(database, f"schedule/{run.id}", "scheduler-2")
    assert paused.take()
    with database.begin_system() as connection:
        connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 minute'"))
    assert submit_all()
    with pytest.raises(Exception, match="Another process holds this lease"):
        submitting.run(settings, S3Store(settings), Notifier(settings.redis_url), run.id, paused)
    late = Lease(database, f"schedule/{run.id}", "scheduler-3")
    assert late.take()
    submitting.run(
        settings, S3Store(settings), Notifier(settings.redis_url), run.id, late
    )  # it had seen it among what waits
    assert len(jobs(database)) == 1
    assert states(database) == ["running"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"misfire": "latest"}, [(5, "submitting")]),
        ({"misfire": "all", "misfire_limit": 3}, [(3, "submitting"), (4, "waiting"), (5, "waiting")]),
        ({"misfire": "none"}, [(5, "skipped")]),
    ],
)
def test_runs_that_were_missed_are_made_up_for_as_the_policy_says(database, settings, policy, expected):
    put(database, settings, **policy)
    first_at(database, NIGHT)
    fire(database, NIGHT + 5 * DAY + 6 * 60 * MINUTE)
    assert [(run.instant, run.state) for run in found(database)] == [
        (NIGHT + day * DAY, state) for day, state in expected
    ]
    with database.begin(TENANT) as connection:
        assert schedules.find(connection, TENANT, "nightly").next_at == NIGHT + 6 * DAY


def test_what_is_made_up_for_goes_one_by_one(database, settings, submit_all):
    put(database, settings, misfire="all")
    first_at(database, NIGHT)
    fire(database, NIGHT + 2 * DAY + 60 * MINUTE)
    for done in range(3):
        submit_all()
        assert states(database) == ["completed"] * done + ["running"] + ["waiting"] * (2 - done)
        end_jobs(database)
    assert states(database) == ["completed"] * 3


def test_a_run_that_is_due_while_the_one_before_goes_on_is_skipped_queued_or_cancels_it(database, settings, submit_all):
    for name in ("skip", "queue", "cancel"):
        put(database, settings, name, overlap=name)
        first_at(database, NIGHT, name)
    fire(database, NIGHT)
    submit_all()
    fire(database, NIGHT + DAY)
    submit_all()
    settle(database)
    assert states(database, "skip") == ["running", "skipped"]
    assert found(database, "skip")[1].reason == "The run of 2027-01-05 01:00 UTC has not ended."
    assert states(database, "queue") == ["running", "waiting"]
    assert states(database, "cancel") == ["running", "running"]
    assert sorted(job.state for job in jobs(database) if job.labels["schedule"] == "cancel") == ["cancelling", "queued"]
    end_jobs(database)
    submit_all()
    assert states(database, "queue") == ["completed", "running"]
    fire(database, NIGHT + 2 * DAY)
    fire(database, NIGHT + 3 * DAY)  # before the one before has been submitted
    assert states(database, "cancel")[2:] == ["skipped", "submitting"]
    skipped = sorted(event["data"]["instant"][:10] for event in events(database, "schedule.run_skipped"))
    assert skipped == ["2027-01-06", "2027-01-07", "2027-01-08"]


def test_a_schedule_for_one_time_fires_once(database, settings, submit_all):
    at = datetime.now(UTC).replace(microsecond=0) + DAY
    made = put(database, settings, at=at.isoformat())
    assert made.next_at == at
    fire(database, at)
    submit_all()
    fire(database, at + DAY)
    assert len(jobs(database)) == 1
    with database.begin_system() as connection:
        connection.execute(text("UPDATE schedules SET at = at - interval '2 days'"))
    again = put(database, settings, at=(at - 2 * DAY).isoformat())  # applied again after its time: not an error
    assert again.next_at is None
    with pytest.raises(InvalidSubmission, match="which is past"):
        put(database, settings, at=(at - 3 * DAY).isoformat())


def test_a_paused_schedule_does_not_fire_and_goes_on_with_its_next_time(database, settings):
    put(database, settings)
    first_at(database, NIGHT)
    with database.begin(TENANT) as connection:
        assert schedules.pause(connection, TENANT, "nightly", True).next_at is None
        schedules.pause(connection, TENANT, "nightly", True)
    assert fire(database, NIGHT + DAY) == 0
    with database.begin(TENANT) as connection:
        resumed = schedules.pause(connection, TENANT, "nightly", False)
    assert resumed.next_at is not None and resumed.next_at.hour == 1 and resumed.next_at > datetime.now(UTC)
    assert len(events(database, "schedule.paused")) == len(events(database, "schedule.resumed")) == 1


def test_a_run_now_goes_beside_the_times_and_knows_who_asked(database, settings, submit_all):
    made = put(database, settings, deadline="06:00")
    with database.begin(TENANT) as connection:
        firing.run_now(connection, schedules.lock(connection, TENANT, "nightly"))
    with pytest.raises(Conflict, match="has no two runs at a time"), database.begin(TENANT) as connection:
        firing.run_now(connection, schedules.lock(connection, TENANT, "nightly"))
    submit_all()
    [run] = found(database)
    assert (run.state, run.asked_by) == ("running", "tests")
    assert run.deadline_at is not None and (run.deadline_at.hour, run.deadline_at.minute) == (6, 0)
    with database.begin(TENANT) as connection:
        assert schedules.find(connection, TENANT, "nightly").next_at == made.next_at
    assert len(events(database, "schedule.run_requested")) == 1


def test_a_target_that_has_become_wrong_refuses_the_run_with_the_reason(database, settings, submit_all):
    put(database, settings)
    first_at(database, NIGHT)
    with database.begin_system() as connection:
        body = '{"images": [{"prompt": "a mug", "size": "13x13"}]}'
        connection.execute(text("UPDATE schedules SET target = :body"), {"body": body})
    fire(database, NIGHT)
    submit_all()
    [run] = found(database)
    assert run.state == "refused"
    assert run.reason.startswith('images[0].size is "13x13"; it must be one of')
    assert [event["actor"] for event in events(database, "schedule.run_refused")] == ["schedule/nightly"]
    fire(database, NIGHT + DAY)  # the next night is tried
    assert states(database) == ["refused", "submitting"]


def test_a_run_ends_when_its_job_is_deleted(database, settings, submit_all):
    put(database, settings)
    first_at(database, NIGHT)
    fire(database, NIGHT)
    submit_all()
    with database.begin_system() as connection:
        connection.execute(text("UPDATE schedule_runs SET job_id = job_id - 1"))
    settle(database)
    [run] = found(database)
    assert (run.state, run.reason) == ("cancelled", "Its job was deleted.")


def test_deleting_a_schedule_leaves_its_jobs_and_takes_what_was_not_submitted(database, settings, submit_all):
    put(database, settings, overlap="queue")
    first_at(database, NIGHT)
    fire(database, NIGHT)
    submit_all()
    fire(database, NIGHT + DAY)
    with database.begin(TENANT) as connection:
        schedules.delete(connection, TENANT, "nightly")
    with pytest.raises(NotFound), database.begin(TENANT) as connection:
        schedules.delete(connection, TENANT, "nightly")
    end_jobs(database)
    submit_all()
    assert len(jobs(database)) == 1


def test_as_the_deadline_nears_the_priority_rises_once_a_step_and_people_are_told(database, settings, submit_all):
    put(database, settings, deadline="4h")
    first_at(database, NIGHT)
    fire(database, NIGHT)
    submit_all()
    [job] = jobs(database)

    def look(hours: float) -> int:
        with database.begin_system() as connection:
            deadlines.watch(connection, NIGHT + timedelta(hours=hours))
        return int(jobs(database)[0].priority)

    assert look(1) == 2
    assert look(2) == 1
    with database.begin_system() as connection:
        lifecycle.change(connection, TENANT, job.id, priority=2)
    assert look(2.5) == 2  # a person has the last word
    assert events(database, "schedule.deadline_at_risk") == []
    assert look(3) == 0
    assert look(3.5) == 0
    [risk] = events(database, "schedule.deadline_at_risk")  # no worker is live: nothing says that it will be met
    assert risk["data"] == {"instant": "2027-01-05T01:00:00Z", "deadline": "2027-01-05T05:00:00Z", "job": job.id}
    look(4)
    look(5)
    assert len(events(database, "schedule.deadline_missed")) == 1
    assert found(database)[0].missed_at == NIGHT + timedelta(hours=4)


def test_the_measured_rate_tells_early_that_a_deadline_will_be_missed(database, settings, submit_all):
    put(database, settings, "small", deadline="4h")
    put(
        database,
        settings,
        "large",
        deadline="4h",
        target={"job": {**MUG["job"], "images": [{"prompt": "a mug", "n": 1000}]}},
    )
    with database.begin_system() as connection:
        for statement in (
            """INSERT INTO workers (id, host, pid, device, model, model_revision, state)
               VALUES ('w', 'h', 1, 'cpu', 'simulated', :revision, 'ready')""",
            """INSERT INTO render_rates (model_revision, width, height, steps, guided, device, images,
                 seconds_per_image, deviation) VALUES (:revision, 512, 512, 10, true, 'cpu', 100, 30, 1)""",
        ):
            connection.execute(text(statement), {"revision": factories.REVISION})
    for name in ("small", "large"):
        first_at(database, NIGHT, name)
        fire(database, NIGHT)
        submit_all()
    with database.begin_system() as connection:
        deadlines.watch(connection, NIGHT + MINUTE)
    [risk] = events(database, "schedule.deadline_at_risk")
    assert risk["subject"] == "schedule/large"
    assert risk["data"]["seconds_left"] >= 30_000  # 1,000 images of 30 s by one worker
    by_name = {job.labels["schedule"]: job.priority for job in jobs(database)}
    assert by_name == {"small": 2, "large": 0}
    with database.begin_system() as connection:
        deadlines.watch(connection, NIGHT + 2 * MINUTE)
    told = [event["subject"] for event in events(database, "schedule.deadline_at_risk")]
    assert told == ["schedule/large", "schedule/small"]  # which comes after the other now


def test_next_times_follow_the_rules_of_zones_that_a_new_program_brings(database, settings):
    made = put(database, settings, timezone="Europe/Berlin")
    put(database, settings, "paused", paused=True)
    first_at(database, made.next_at + timedelta(hours=1))  # by the rules before
    with database.begin_system() as connection:
        assert firing.renew(connection) == 1
        assert firing.renew(connection) == 0
    with database.begin(TENANT) as connection:
        assert schedules.find(connection, TENANT, "nightly").next_at == made.next_at


def test_old_runs_are_forgotten_and_those_that_have_not_ended_are_not(database, settings, submit_all):
    put(database, settings, overlap="queue")
    first_at(database, NIGHT)
    fire(database, NIGHT)
    fire(database, NIGHT + DAY)
    with database.begin_system() as connection:
        connection.execute(text("UPDATE schedule_runs SET state = 'skipped', finished_at = now() - interval '91 days' "
                                "WHERE state = 'submitting'"))  # fmt: skip
        assert runs.forget(connection, 90) == 1
        assert runs.forget(connection, 90) == 0
    assert states(database) == ["waiting"]


def test_another_tenants_schedules_are_neither_seen_nor_touched(database, settings, api):
    put(database, settings)
    other, _ = api.new_tenant("other")
    with database.begin(other) as connection:
        assert schedules.page(connection, other, limit=10) == []
        assert connection.execute(text("SELECT count(*) FROM schedules")).scalar_one() == 0
        with pytest.raises(NotFound):
            schedules.pause(connection, other, "nightly", True)
