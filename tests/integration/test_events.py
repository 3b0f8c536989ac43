"""The log of events: written with what makes them true, numbered once they are committed, read by number."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from scheduler.periodic_tasks import timetable
from services.core.db.connectivity import Connectivity
from services.core.events import log, numbering, queries, retention
from services.core.files import files
from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.model.errors import DatabaseUnavailable, Problem
from services.core.model.states import JobState
from services.core.notify import Notifier
from services.core.queue import job_states, quarantine, segments
from services.core.tenants import api_keys
from tests import factories
from tests.factories import TENANT, submit

MORE_THAN_ANY_TEST_LOGS = 10_000


def number(database, most=MORE_THAN_ANY_TEST_LOGS):
    with database.begin_system() as connection:
        return numbering.number(connection, most)


def all_events(database):
    with database.begin_system() as connection:
        return queries.after(connection, 0, limit=MORE_THAN_ANY_TEST_LOGS)


def kinds(database, job_id):
    number(database)
    with database.begin(TENANT) as connection:
        return [event.kind for event in queries.of_subject(connection, TENANT, queries.job(job_id))]


def append(connection, subject):
    log.append(connection, "job.started", subject, tenant_id=TENANT)


def test_what_is_committed_late_is_numbered_after_and_neither_missed_nor_waited_for(database):
    late = database.begin_system()
    connection = late.__enter__()
    append(connection, "test/late")  # the lower identity
    with database.begin_system() as other:
        other.execute(text("SET LOCAL lock_timeout = '1s'"))
        append(other, "test/early")
    assert number(database) == 1
    read = all_events(database)
    assert [event.subject for event in read] == ["test/early"]
    late.__exit__(None, None, None)
    assert number(database) == 1
    with database.begin_system() as other:
        rest = queries.after(other, read[-1].seq)
    assert [event.subject for event in rest] == ["test/late"]
    assert rest[0].seq == read[0].seq + 1


def test_what_is_rolled_back_never_happened_and_leaves_no_gap(database):
    with pytest.raises(ZeroDivisionError), database.begin_system() as connection:
        append(connection, "test/undone")
        raise ZeroDivisionError
    for place in range(3):
        with database.begin_system() as connection:
            append(connection, f"test/{place}")
        number(database)
    assert [(event.seq, event.subject) for event in all_events(database)] == [
        (1, "test/0"), (2, "test/1"), (3, "test/2")
    ]  # fmt: skip


def test_two_that_number_at_once_do_it_once_and_neither_waits(database):
    with database.begin_system() as connection:
        for place in range(10):
            append(connection, f"test/{place}")
    with database.begin_system() as first:
        assert numbering.number(first, 4) == 4
        assert number(database) == 0  # the other is at it
        assert all_events(database) == []  # and nothing of it is seen before it commits
    with ThreadPoolExecutor(6) as pool:
        together = sum(pool.map(lambda _: number(database, 1), range(60)))
    while found := number(database, 1):  # those that came while another was at it gave up at once
        together += found
    assert together == 6
    assert [event.seq for event in all_events(database)] == list(range(1, 11))


def test_a_numbering_that_is_killed_leaves_no_trace(database, settings):
    with database.begin_system() as connection:
        append(connection, "test/1")
    with pytest.raises(DatabaseUnavailable), database.begin_system() as doomed:
        assert numbering.number(doomed) == 1
        victim = doomed.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with database.begin_system() as killer:
            killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": victim})
        doomed.execute(text("SELECT 1"))
    assert all_events(database) == []
    assert number(database) == 1
    assert [event.seq for event in all_events(database)] == [1]


def test_the_application_can_neither_change_an_event_nor_give_it_a_number(database):
    with database.begin_system() as connection:
        append(connection, "test/1")
    for statement in (
        "UPDATE events SET seq = 7",
        "UPDATE events SET kind = 'forged'",
        "DELETE FROM events",
        "INSERT INTO events (seq, actor, kind, subject) VALUES (7, 'a', 'k', 's')",
    ):
        with pytest.raises(ProgrammingError, match="permission denied"), database.begin_system() as connection:
            connection.execute(text(statement))


def forget(database, most=MORE_THAN_ANY_TEST_LOGS, days=90):
    with database.begin_system() as connection:
        return retention.forget(connection, days, most)


@pytest.fixture
def age(stack, database_url):
    """Makes events older by some days; the application has no right to."""
    admin = create_engine(stack.superuser_url.rpartition("/")[0] + "/" + database_url.rpartition("/")[2])

    def older(days, *subjects):
        with admin.begin() as connection:
            aged = text("UPDATE events SET at = at - make_interval(days => :days) WHERE subject = ANY(:subjects)")
            connection.execute(aged, {"days": days, "subjects": list(subjects)})

    yield older
    admin.dispose()


def test_old_events_are_deleted_and_numbers_go_on_after_the_newest_which_is_kept(database, age):
    for place in range(1, 5):
        with database.begin_system() as connection:
            append(connection, f"test/{place}")
        number(database)
    with database.begin_system() as connection:
        append(connection, "test/unnumbered")
    age(89, "test/3")
    age(91, "test/1", "test/2", "test/4", "test/unnumbered")
    assert [forget(database, 1), forget(database, 1)] == [1, 1]  # the oldest first, as many as asked
    assert forget(database) == 0
    assert [(event.seq, event.subject) for event in all_events(database)] == [(3, "test/3"), (4, "test/4")]
    age(2, "test/3")
    assert forget(database) == 1
    assert number(database) == 1
    assert [(event.seq, event.subject) for event in all_events(database)] == [(4, "test/4"), (5, "test/unnumbered")]


def test_no_event_of_the_last_week_is_deleted_whatever_is_asked(database, age):
    for subject in ("test/1", "test/2"):
        with database.begin_system() as connection:
            append(connection, subject)
    number(database)
    with pytest.raises(DBAPIError, match="at least 7 days"):
        forget(database, days=6)
    age(6, "test/1")
    assert forget(database, days=7) == 0


def test_the_scheduler_deletes_old_events(database, settings, age):
    for subject in ("test/1", "test/2"):
        with database.begin_system() as connection:
            append(connection, subject)
    number(database)
    age(31, "test/1", "test/2")
    kept = dataclasses.replace(settings, event_days=30)
    [task] = [
        task for task in timetable(kept, Notifier(kept.redis_url), Connectivity()) if task.name == "forget-events"
    ]
    with database.begin_system() as connection:
        task.run(connection)
    assert [event.subject for event in all_events(database)] == ["test/2"]


def test_the_index_of_events_that_wait_for_a_number_is_vacuumed_before_it_grows(database):
    """Each numbering reads past its dead entries, of which every event leaves one."""
    with database.begin_system() as connection:
        options = connection.execute(text("SELECT reloptions FROM pg_class WHERE relname = 'events'")).scalar_one()
    assert "autovacuum_vacuum_scale_factor=0.01" in options


def test_a_tenant_sees_and_numbers_no_other_ones_events(database):
    with database.begin_system() as connection:
        append(connection, "test/1")
        log.append(connection, "device.sick", "device/here", tenant_id=None)
    with pytest.raises(ProgrammingError, match="permission denied"), database.begin(TENANT + 1) as connection:
        numbering.number(connection)
    assert number(database) == 2
    for tenant, seen in ((TENANT, ["test/1"]), (TENANT + 1, [])):
        with database.begin(tenant) as connection:
            assert [event.subject for event in queries.after(connection, 0)] == seen
            assert [event.seq for event in queries.of_subject(connection, tenant, "test/1")] == [1] * len(seen)


def test_a_job_tells_its_life_and_its_counts_only_at_the_end(database, settings):
    factories.register(database)
    job_id = submit(database, settings, 2)
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, job_id, True)
        lifecycle.pause(connection, TENANT, job_id, True)  # again is no event
        lifecycle.pause(connection, TENANT, job_id, False)
        lifecycle.change(connection, TENANT, job_id, priority=0)
    claim = factories.claim(database)
    with database.begin_system() as connection:
        job_states.start(connection, claim.fresh_jobs)
        job_states.start(connection, claim.fresh_jobs)
    factories.settle(database, claim)
    with database.begin_system() as connection:
        lifecycle.finish(connection)
        lifecycle.finish(connection)
    assert kinds(database, job_id) == [
        "job.created", "job.queued", "job.paused", "job.resumed", "job.priority_changed", "job.started",
        "job.finalizing", "job.completed",
    ]  # fmt: skip
    events = all_events(database)
    assert events[-1].data == {"done": 2, "failed": 0, "cancelled": 0, "reused": 0, "total": 2}
    assert all("done" not in event.data for event in events[:-1])
    assert {event.tenant_id for event in events} == {TENANT}


def test_a_stopped_job_says_why_and_ends_as_what_it_was_stopped_for(database, settings):
    factories.register(database)
    cancelled, expired = submit(database, settings, 1), submit(database, settings, 1)
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, cancelled)
        lifecycle.cancel(connection, TENANT, cancelled)
    with database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET expires_at = now() - interval '1 s' WHERE id = :id"), {"id": expired})
        assert job_states.expire(connection) == 1
    with database.begin_system() as connection:
        assert segments.sweep_cancelled(connection) == 2
        lifecycle.finish(connection)
    for job_id, end in ((cancelled, "job.cancelled"), (expired, "job.expired")):
        assert kinds(database, job_id) == ["job.created", "job.queued", "job.cancel_requested", end]


def test_a_poison_image_is_an_event_of_its_tenant_and_a_sick_device_one_of_the_system(database, settings):
    factories.register(database)
    job_id = submit(database, settings, 1)
    for number_of_times in range(3):
        claim = factories.claim(database, worker=f"worker-{number_of_times}")
        with database.begin_system() as connection:
            quarantine.child_died(
                connection, f"worker-{number_of_times}", rendering={claim.id: factories.places(claim)}, device="here"
            )
    with database.begin_system() as connection:
        quarantine.device_sick(connection, "there")
    number(database)
    poison, sick = (
        [event for event in all_events(database) if event.kind == kind] for kind in ("image.poison", "device.sick")
    )
    assert [(event.tenant_id, event.subject, event.data) for event in poison] == [
        (TENANT, f"job/{job_id}", {"index": 0, "device": "here"})
    ]
    assert [(event.tenant_id, event.subject) for event in sick] == [(None, "device/there")]


def test_files_and_keys_tell_when_they_come_and_go(database, settings):
    kept, dropped, expired = ids.new(), ids.new(), ids.new()
    with database.begin(TENANT) as connection:
        for file_id in (kept, dropped, expired):
            files.record(
                connection, file_id, tenant_id=TENANT, purpose="batch", filename="f", size=1, sha256=bytes(32),
                key=f"test/{file_id}", expires_seconds=0 if file_id == expired else None,
            )  # fmt: skip
        files.delete(connection, TENANT, dropped)
    with database.begin_system() as connection:  # a tenant's role issues no keys
        key = api_keys.issue_key(connection, "secret", TENANT, "shop")
        key_id = key.split("_")[1]
        assert api_keys.revoke_key(connection, key_id)
        assert not api_keys.revoke_key(connection, key_id)
    for file_id in (dropped, expired):
        with database.begin_system() as connection:
            connection.execute(files._FORGET, {"id": file_id})
    number(database)
    told = {}
    for event in all_events(database):
        told.setdefault(event.subject, []).append(event.kind)
    assert told == {
        f"file/{kept}": ["file.created"],
        f"file/{dropped}": ["file.created", "file.deleted"],
        f"file/{expired}": ["file.created", "file.expired"],
        f"key/{key_id}": ["key.issued", "key.revoked"],
    }


def test_an_event_is_as_true_as_the_transaction_that_wrote_it(database, settings):
    factories.register(database)
    job_id = submit(database, settings, 1)
    with pytest.raises(ZeroDivisionError), database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
        raise ZeroDivisionError
    assert kinds(database, job_id) == ["job.created", "job.queued"]


def test_events_are_listed_over_http_from_any_number_on(api):
    job = api.submit()["id"]
    number(api.database)
    page = api.http.get(f"/v1/jobs/{job}/events", params={"limit": 1}).json()
    assert ([event["kind"] for event in page["data"]], page["has_more"]) == (["job.created"], True)
    rest = api.http.get(f"/v1/jobs/{job}/events", params={"after": page["data"][0]["seq"]}).json()
    assert ([event["kind"] for event in rest["data"]], rest["has_more"]) == (["job.queued"], False)
    assert api.http.get(f"/v1/jobs/{job}/events", params={"after": rest["data"][0]["seq"]}).json()["data"] == []
    assert api.http.get(f"/v1/jobs/{ids.public_job(ids.new())}/events").status_code == 404


def test_a_refusal_is_logged_before_the_failure_that_it_leads_to(database):
    job_id = ids.new()
    with database.begin_system() as connection:
        new = job_states.NewJob(
            id=job_id,
            tenant_id=TENANT,
            state=JobState.VALIDATING,
            priority=1,
            labels={},
            dedupe=False,
            embed_prompt=False,
        )
        job_states.create(connection, new)
        assert job_states.refuse(connection, job_id, [Problem("invalid_json", "It is no JSON.", None, 1)])
    assert kinds(database, job_id)[-2:] == ["job.refused", "job.failed"]
