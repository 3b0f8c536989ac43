"""Every verb about a job: from which states it moves where, what it writes, and that it leaves other jobs alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from services.core.db import partitions
from services.core.db.database import Database
from services.core.events import queries
from services.core.fleet import models
from services.core.jobs import drafts, lifecycle
from services.core.jobs.submissions import Receipt, Submission
from services.core.model import requests, states
from services.core.model.errors import Conflict, IdempotencyConflict, InvalidSubmission, NotFound, Problem
from services.core.model.ids import new as new_id
from services.core.model.ids import parse_job, public_job
from services.core.model.specs import FailedImage
from services.core.model.states import JobState
from services.core.policy import policies
from services.core.queue import counters, job_states, quarantine, segments
from services.core.settings import Settings
from tests import factories
from tests.factories import TENANT, claim, places, settle, stored, submit
from tests.waiting import until

OTHER = 2  # a tenant
_TABLES = ("jobs", "segments", "counters", "counter_deltas", "job_chunks", "images")


@pytest.fixture(autouse=True)
def _registered(database: Database) -> None:
    factories.register(database)
    rows(database, "INSERT INTO tenants (id, name) VALUES (2, 'other') RETURNING 1")


def rows(database: Database, statement: str, **values: object) -> list[tuple[Any, ...]]:
    with database.begin_system() as connection:
        return [tuple(row) for row in connection.execute(text(statement), values)]


def one(database: Database, columns: str, job_id: int) -> tuple[Any, ...]:
    (found,) = rows(database, f"SELECT {columns} FROM jobs WHERE id = :id", id=job_id)
    return found


def others(database: Database, job_id: int = 0) -> dict[str, list[tuple[Any, ...]]]:
    """All that is known of the other jobs."""
    found = {}
    for table in _TABLES:
        column = "id" if table == "jobs" else "job_id"
        statement = f"SELECT to_jsonb(t)::text FROM {table} t WHERE {column} <> :id ORDER BY 1"
        found[table] = rows(database, statement, id=job_id)
    return found


def put_in(database: Database, job_id: int, state: str) -> None:
    """As if its life had led there."""
    rows(
        database,
        """UPDATE jobs SET state = :state, finished_at = CASE WHEN :final THEN now() END, finalizing_at = now(),
           cancel_requested_at = now(), opened_at = now() WHERE id = :id RETURNING 1""",
        state=state, final=JobState(state) in states.FINAL_JOB_STATES, id=job_id,
    )  # fmt: skip


def draft(database: Database, *, tenant: int = TENANT, days: int | None = None) -> int:
    job_id = new_id()
    with database.begin_system() as connection:
        drafts.open_draft(connection, tenant, job_id, requests.JobOptions())
        if days is not None:
            connection.execute(
                text("UPDATE jobs SET expires_at = now() + make_interval(days => :days) WHERE id = :id"),
                {"days": days, "id": job_id},
            )
    return job_id


def append(
    database: Database, settings: Settings, job_id: int, number: int, *bodies: dict[str, Any], tenant: int = TENANT
) -> tuple[drafts.Chunk, bool]:
    with database.begin_system() as connection:
        existing = drafts.existing(connection, tenant, job_id, number)
        registry = models.registry(connection)
    with Submission(settings, registry, policy=policies.NOTHING, existing=existing) as submission:
        for place, body in enumerate(bodies or ({"prompt": "a", "n": 2},)):
            submission.add(place, body)
        with database.begin_system() as connection:
            return drafts.append(connection, tenant, submission, number)


@pytest.fixture
def crowd(database: Database, settings: Settings) -> list[int]:
    """Jobs of all kinds, of two tenants, that nobody speaks of."""
    found = []
    for tenant in (TENANT, OTHER):
        for state in JobState:
            if state is JobState.DRAFT:
                job_id = draft(database, tenant=tenant)
                append(database, settings, job_id, 0, tenant=tenant)
            else:
                job_id = submit(database, settings, 2, tenant=tenant, priority="low", head={"labels": {"a": "b"}})
                put_in(database, job_id, state)
            found.append(job_id)
    rows(database, "UPDATE segments SET open = false WHERE id = 0 RETURNING 1")
    return found


def do(database: Database, verb: Any, *arguments: Any, tenant: int = TENANT, **options: Any) -> Any:
    with database.begin_system() as connection:
        return verb(connection, tenant, *arguments, **options)


def test_a_cancel_stops_that_job_and_no_other(database, settings, crowd):
    job_id = submit(database, settings, [{"prompt": "a"}, {"prompt": "b", "size": "64x64"}])
    before = others(database, job_id)
    do(database, lifecycle.cancel, job_id)
    assert one(database, "state, stop_reason, cancel_requested_at IS NULL, finished_at", job_id) == (
        "cancelling", "cancelled", False, None,
    )  # fmt: skip
    assert rows(database, "SELECT open FROM segments WHERE job_id = :id", id=job_id) == [(False,), (False,)]
    assert others(database, job_id) == before


def test_a_cancel_moves_a_job_that_has_not_ended_and_is_no_error_while_it_is_being_cancelled(database, settings):
    for state in JobState:
        job_id = submit(database, settings, 1)
        put_in(database, job_id, state)
        if state in states.FINAL_JOB_STATES - {JobState.CANCELLED} or state is JobState.FINALIZING:
            with pytest.raises(Conflict, match=f"is {state}"):
                do(database, lifecycle.cancel, job_id)
            assert one(database, "state, stop_reason", job_id) == (state, None)
        else:
            do(database, lifecycle.cancel, job_id)
            after = state if state in (JobState.CANCELLED, JobState.CANCELLING) else JobState.CANCELLING
            assert one(database, "state", job_id) == (after,)


def test_a_pause_closes_the_segments_of_that_job_and_a_resume_opens_them(database, settings, crowd):
    job_id = submit(database, settings, 2)
    before = others(database, job_id)
    for paused in (True, True, False, False):
        do(database, lifecycle.pause, job_id, paused)
        assert one(database, "paused", job_id) == (paused,)
        assert rows(database, "SELECT open FROM segments WHERE job_id = :id", id=job_id) == [(not paused,)]
    assert others(database, job_id) == before


def test_only_a_job_that_is_queued_or_in_progress_is_paused(database, settings):
    for state in JobState:
        job_id = submit(database, settings, 1)
        put_in(database, job_id, state)
        if state in (JobState.QUEUED, JobState.IN_PROGRESS):
            do(database, lifecycle.pause, job_id, True)
            assert one(database, "paused, state", job_id) == (True, state)
            continue
        with pytest.raises(Conflict, match=f"is {state}") as caught:
            do(database, lifecycle.pause, job_id, True)
        assert caught.value.code == ("job_finished" if state in states.FINAL_JOB_STATES else "job_not_queued")
        assert one(database, "paused", job_id) == (False,)
        assert rows(database, "SELECT open FROM segments WHERE job_id = :id", id=job_id) == [(True,)]


def test_a_change_is_of_that_job_alone(database, settings, crowd):
    job_id = submit(database, settings, [{"prompt": "a"}, {"prompt": "b", "size": "64x64"}])
    before = others(database, job_id)
    for _ in range(2):  # the second time it has that priority, which is no error
        do(database, lifecycle.change, job_id, priority=0)
    assert one(database, "priority, labels", job_id) == (0, {})
    assert rows(database, "SELECT priority FROM segments WHERE job_id = :id", id=job_id) == [(0,), (0,)]
    do(database, lifecycle.change, job_id, labels={"c": "d"})
    assert one(database, "priority, labels", job_id) == (0, {"c": "d"})
    do(database, lifecycle.change, job_id)
    do(database, lifecycle.change, job_id, labels={})
    assert one(database, "priority, labels", job_id) == (0, {})
    assert others(database, job_id) == before


def test_the_statements_keep_to_the_tenant_by_themselves(database, settings):
    job_id = submit(database, settings, 1)
    before = others(database)
    with database.begin_system() as connection:
        job_states.set_labels(connection, OTHER, job_id, {"x": "y"})
        assert not job_states.set_priority(connection, OTHER, job_id, 0)
        assert not job_states.pause(connection, OTHER, job_id, True)
        assert not job_states.cancel(connection, OTHER, job_id)
    assert others(database) == before


@pytest.mark.parametrize(
    "verb",
    [
        job_states.cancel,
        lambda connection, tenant, job_id: job_states.pause(connection, tenant, job_id, True),
        lambda connection, tenant, job_id: job_states.set_priority(connection, tenant, job_id, 0),
    ],
    ids=["cancel", "pause", "set_priority"],
)
def test_a_verb_locks_its_own_job_and_none_of_another_tenant(database, settings, verb):
    job_id, _ = submit(database, settings, 1), submit(database, settings, 1)
    locks = text("""SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
                    WHERE locktype = 'advisory' AND pid = pg_backend_pid()""")
    for tenant, locked in ((OTHER, []), (TENANT, [job_id])):
        with database.begin_system() as connection:
            assert verb(connection, tenant, job_id) is bool(locked)
            assert list(connection.execute(locks).scalars()) == locked


def test_a_job_is_deleted_once_and_by_its_own_tenant_and_no_other_job_is(database, settings, crowd):
    job_id = submit(database, settings, 3)
    before = others(database, job_id)
    assert do(database, job_states.mark_deleted, job_id, tenant=OTHER) is False
    assert one(database, "deleted_at", job_id) == (None,)
    assert do(database, job_states.mark_deleted, job_id) is True
    deleted_at = one(database, "deleted_at", job_id)
    assert deleted_at != (None,)
    assert do(database, job_states.mark_deleted, job_id) is False
    assert one(database, "deleted_at", job_id) == deleted_at
    assert rows(database, "SELECT data FROM events WHERE kind = 'job.deleted'") == [({"total": 3},)]
    assert others(database, job_id) == before


def test_the_same_priority_again_changes_nothing(database, settings):
    job_id = submit(database, settings, 1)
    rows(database, "UPDATE segments SET priority = 2 WHERE job_id = :id RETURNING 1", id=job_id)
    with database.begin_system() as connection:
        assert not job_states.set_priority(connection, TENANT, job_id, 1)
    assert rows(database, "SELECT priority FROM segments WHERE job_id = :id", id=job_id) == [(2,)]


@pytest.mark.parametrize("state", JobState)
def test_a_job_that_waits_for_its_file_is_accepted_or_refused_and_no_other_is(database, settings, crowd, state):
    accepted, refused = (submit(database, settings, 2) for _ in range(2))
    for job_id in (accepted, refused):
        put_in(database, job_id, state)
        rows(database, "UPDATE jobs SET opened_at = NULL, total = 1 WHERE id = :id RETURNING 1", id=job_id)
    bystanders = rows(database, "SELECT to_jsonb(j)::text FROM jobs j WHERE id = ANY(:ids) ORDER BY id", ids=crowd)
    untouched = [one(database, "to_jsonb(jobs)::text", job_id) for job_id in (accepted, refused)]
    problem = Problem("bad_json", "It is not JSON.", None, 7)
    with database.begin_system() as connection:
        job = job_states.accept(connection, accepted, images=5, requests=3, drawn_seeds=1)
        assert job_states.refuse(connection, refused, [problem, problem]) is (state is JobState.VALIDATING)
    if state is JobState.VALIDATING:
        assert (job.tenant_id, job.priority) == (TENANT, 1)
        assert one(database, "state, total, requests, drawn_seeds, opened_at IS NULL, finished_at", accepted) == (
            "queued", 5, 3, 1, False, None,
        )  # fmt: skip
        assert one(database, "state, total, opened_at, finished_at IS NULL, problems", refused) == (
            "failed", 1, None, False,
            [{"code": "bad_json", "message": "It is not JSON.", "param": None, "line": 7}] * 2,
        )  # fmt: skip
        assert rows(database, "SELECT queued FROM counters WHERE job_id = :id", id=accepted) == [(2 + 5,)]
    else:
        assert job is None
        assert [one(database, "to_jsonb(jobs)::text", job_id) for job_id in (accepted, refused)] == untouched
        assert rows(database, "SELECT queued FROM counters WHERE job_id = :id", id=accepted) == [(2,)]
    assert bystanders == rows(
        database, "SELECT to_jsonb(j)::text FROM jobs j WHERE id = ANY(:ids) ORDER BY id", ids=crowd
    )


def test_a_child_inherits_the_shapes_of_its_parent_and_spans_its_own_images(database, settings, crowd):
    small, wide = {"prompt": "a", "n": 2, "size": "64x64"}, {"prompt": "b", "n": 3, "num_inference_steps": 5}
    parent = submit(database, settings, [small, wide, {"prompt": "c", "size": "256x256"}], priority="high")
    child = submit(database, settings, [wide, small, wide])
    rows(database, "UPDATE segments SET id = id + 10 WHERE job_id = :id RETURNING 1", id=child)  # out of the way
    rows(database, "UPDATE payloads SET segment_id = 1 - segment_id WHERE job_id = :id RETURNING 1", id=child)
    before = others(database, child)
    with database.begin_system() as connection:
        segments.inherit(connection, parent_id=parent, child_id=child, priority=0)
    assert others(database, child) == before
    shape = "model_revision, width, height, steps"
    shapes = {
        number: tuple(rest)
        for number, *rest in rows(database, f"SELECT id, {shape} FROM segments WHERE job_id = :id", id=parent)
    }
    found = rows(
        database, f"SELECT id, tenant_id, priority, open, cap, low, high, {shape} FROM segments WHERE job_id = :id"
        " AND id < 10 ORDER BY id", id=child,
    )  # fmt: skip
    assert found == [
        (0, TENANT, 0, False, None, 3, 4, *shapes[0]),
        (1, TENANT, 0, False, None, 0, 7, *shapes[1]),
    ]


def test_a_finished_job_has_labels_and_no_priority(database, settings):
    job_id = submit(database, settings, 1)
    put_in(database, job_id, "completed")
    with pytest.raises(Conflict, match="is completed") as caught:
        do(database, lifecycle.change, job_id, priority=0)
    assert caught.value.code == "job_finished"
    do(database, lifecycle.change, job_id, labels={"a": "b"})
    assert one(database, "priority, labels", job_id) == (1, {"a": "b"})


@pytest.mark.parametrize(
    "verb",
    [
        lifecycle.cancel,
        lambda connection, tenant, job_id: lifecycle.pause(connection, tenant, job_id, True),
        lambda connection, tenant, job_id: lifecycle.change(connection, tenant, job_id, priority=0),
        lambda connection, tenant, job_id: lifecycle.change(connection, tenant, job_id, labels={"x": "y"}),
        lambda connection, tenant, job_id: drafts.existing(connection, tenant, job_id, 0),
        lambda connection, tenant, job_id: drafts.chunks(connection, tenant, job_id, after=-1, limit=9),
        lambda connection, tenant, job_id: drafts.inspect(
            connection, tenant, job_id, requests.FinalizeRequest(chunks=1)
        ),
        lambda connection, tenant, job_id: drafts.finalize(connection, tenant, job_id, 2),
    ],
)  # fmt: skip
def test_another_tenants_job_is_not_there(database, settings, crowd, verb):
    """Also in a system transaction, which sees all rows: the statements say whose job they mean."""
    before = others(database)
    for job_id in (*crowd[: len(JobState)], new_id()):
        with pytest.raises(NotFound):
            do(database, verb, job_id, tenant=OTHER)
    assert others(database) == before


def fold(database: Database) -> None:
    with database.begin_system() as connection:
        counters.fold(connection)


def finish(database: Database) -> list[int]:
    with database.begin_system() as connection:
        return lifecycle.finish(connection)


@pytest.mark.parametrize("folded", [False, True])
def test_a_job_ends_when_its_last_image_is_final_whether_counted_or_not(database, settings, crowd, folded):
    before = states_of(database, crowd)
    one_done, none_done = submit(database, settings, 2), submit(database, settings, 2, size="256x256")
    while (taken := claim(database)) is not None:
        failed = [place for place in places(taken) if place != (one_done, 0)]
        settle(
            database, taken, stored=[image for image in stored(taken) if (image.job_id, image.index) not in failed],
            failed=[FailedImage(*place, "render_error", "") for place in failed],
        )  # fmt: skip
        if folded:
            fold(database)
    assert sorted(finish(database)) == sorted([one_done, none_done])
    assert one(database, "state, finished_at IS NULL, finalizing_at IS NULL, started_at IS NULL", one_done) == (
        "completed", False, False, False,
    )  # fmt: skip
    assert one(database, "state", none_done) == ("failed",)
    assert states_of(database, crowd) == before


def states_of(database: Database, ids: list[int]) -> list[tuple[Any, ...]]:
    return rows(database, "SELECT to_jsonb(j)::text FROM jobs j WHERE id = ANY(:ids) ORDER BY id", ids=ids)


@pytest.mark.parametrize("folded", [False, True])
def test_a_job_does_not_end_while_an_image_waits_or_is_being_rendered(database, settings, folded):
    job_id = submit(database, settings, 2)
    held = claim(database, seats=1)
    for _ in range(2):
        if folded:
            fold(database)
        assert finish(database) == []
        assert one(database, "state", job_id) == ("queued",)
        if held is not None:
            settle(database, held)
            held = None
    held = claim(database)
    if folded:
        fold(database)  # what is being rendered is counted, and what comes of it is not yet
    assert finish(database) == []
    settle(database, held)
    assert finish(database) == [job_id]
    assert one(database, "state", job_id) == ("completed",)


def test_when_it_began_is_not_forgotten(database, settings):
    job_id = submit(database, settings, 1)
    rows(database, "UPDATE jobs SET state = 'in_progress', started_at = now() - interval '1 hour' RETURNING 1")
    settle(database, claim(database))
    finish(database)
    assert one(database, "finished_at - started_at > interval '59 minutes'", job_id) == (True,)


@pytest.mark.parametrize("reason", ["cancelled", "expired", None])
def test_a_job_that_was_stopped_ends_as_what_stopped_it(database, settings, reason):
    job_id = submit(database, settings, 2)
    settle(database, claim(database, seats=1))
    do(database, lifecycle.cancel, job_id)
    rows(database, "UPDATE jobs SET stop_reason = :reason RETURNING 1", reason=reason)
    assert finish(database) == []
    with database.begin_system() as connection:
        assert segments.sweep_cancelled(connection) == 1
    assert finish(database) == [job_id]
    assert one(database, "state", job_id) == (reason or "cancelled",)


def as_file(database: Database, job_id: int) -> int:
    rows(database, "UPDATE jobs SET input_file_id = 7 WHERE id = :id RETURNING 1", id=job_id)
    return job_id


def test_a_job_that_came_as_a_file_ends_with_its_files(database, settings):
    waiting, first, second, plain, stopped, no_file = (submit(database, settings, 1) for _ in range(6))
    for job_id in (waiting, first, second, stopped):
        as_file(database, job_id)
    do(database, lifecycle.pause, waiting, True)
    for job_id in (stopped, no_file):
        do(database, lifecycle.cancel, job_id)
    with database.begin_system() as connection:
        segments.sweep_cancelled(connection)
    settle(database, claim(database))

    def closable(*excluding: int) -> list[int]:
        with database.begin_system() as connection:
            return [item.id for item in job_states.finishable(connection, excluding)]

    def close(job_id: int, output: int | None, errors: int | None) -> bool:
        with database.begin_system() as connection:
            return job_states.finish(connection, job_id, job_states.Files(output, errors, 3, 4))

    assert closable() == [stopped], "the others are not yet finalizing"
    assert sorted(finish(database)) == sorted([plain, no_file])
    assert [one(database, "state", job_id) for job_id in (first, second)] == [("finalizing",)] * 2
    assert one(database, "requests_done, requests_failed", first) == (None, None)
    assert closable() == sorted([first, second, stopped])
    assert closable(first) == sorted([second, stopped])
    assert close(first, 11, 12) is True
    assert close(first, 13, 14) is False
    assert close(waiting, 1, 2) is False
    do(database, lifecycle.cancel, waiting)
    assert close(waiting, 1, 2) is False, "its image is not swept yet, though others are ready"
    files = "output_file_id, error_file_id, requests_done, requests_failed"
    assert one(database, f"state, {files}, finished_at IS NULL", first) == (
        "completed", 11, 12, 3, 4, False,
    )  # fmt: skip
    assert one(database, "state, output_file_id, error_file_id, finished_at", second) == (
        "finalizing",
        None,
        None,
        None,
    )
    assert one(database, "output_file_id, error_file_id", plain) == (None, None)
    assert close(stopped, None, 15) is True
    assert one(database, "state, output_file_id, error_file_id", stopped) == ("cancelled", None, 15)
    assert closable() == [second]


def expire(database: Database) -> int:
    with database.begin_system() as connection:
        return job_states.expire(connection)


def test_a_job_out_of_time_is_stopped_unless_it_has_ended_or_is_ending(database, settings):
    live = [state for state in JobState if JobState.CANCELLING in states.JOB_MOVES[state]]
    late, early, endless = {}, [], []
    for state in JobState:
        late[state], in_time, without = (submit(database, settings, 2) for _ in range(3))
        early.append(in_time)
        endless.append(without)
        for number in (late[state], in_time, without):
            put_in(database, number, state)
    rows(database, "UPDATE jobs SET cancel_requested_at = NULL RETURNING 1")
    move = "UPDATE jobs SET expires_at = now() + make_interval(secs => :seconds) WHERE id = ANY(:ids) RETURNING 1"
    rows(database, move, ids=list(late.values()), seconds=-1)
    rows(database, move, ids=early, seconds=3600)
    before = states_of(database, [*early, *endless])
    assert expire(database) == len(live)
    for state, job_id in late.items():
        assert one(database, "state, stop_reason, cancel_requested_at IS NULL", job_id) == (
            ("cancelling", "expired", False) if state in live else (state, None, True)
        )
        assert rows(database, "SELECT open FROM segments WHERE job_id = :id", id=job_id) == [(state not in live,)]
    assert rows(database, "SELECT DISTINCT open FROM segments WHERE job_id = ANY(:ids)", ids=early) == [(True,)]
    assert states_of(database, [*early, *endless]) == before
    assert expire(database) == 0


def test_a_new_job_is_recorded_as_it_was_asked_for(database, settings, crowd):
    head = {"labels": {"a": "b"}, "dedupe": True}
    job_id = submit(
        database, settings, [{"prompt": "a", "n": 3}, {"prompt": "b", "size": "64x64"}, {"prompt": "c"}], head=head,
        priority="high",
    )  # fmt: skip
    assert one(
        database, "state, priority, total, requests, labels, dedupe, embed_prompt, opened_at IS NULL, tenant_id", job_id
    ) == ("queued", 0, 5, 3, {"a": "b"}, True, False, False, TENANT)  # fmt: skip
    assert one(database, "drawn_seeds", job_id) == (3,)
    assert rows(database, "SELECT queued FROM counters WHERE job_id = :id", id=job_id) == [(5,)]
    assert rows(
        database,
        "SELECT id, tenant_id, width, height, steps, guided, priority, open, low, high FROM segments "
        "WHERE job_id = :id ORDER BY id", id=job_id,
    ) == [(0, TENANT, 512, 512, 10, True, 0, True, 0, 4), (1, TENANT, 64, 64, 10, True, 0, True, 3, 3)]  # fmt: skip
    assert parse_job(public_job(job_id)) == job_id


def test_a_draft_is_opened_empty_and_kept_for_a_week(database):
    label = requests.JobOptions(priority="high", labels={"a": "b"}, embed_prompt=True)
    ids = sorted(new_id() for _ in range(3))  # those of one millisecond have no order
    with database.begin_system() as connection:
        assert drafts.open_draft(connection, TENANT, ids[0], label, idempotency_key="k") is None
        assert drafts.open_draft(connection, TENANT, ids[1], label, idempotency_key="k") == ids[0]
        assert drafts.open_draft(connection, TENANT, ids[2], label) is None
    assert rows(database, "SELECT id FROM jobs ORDER BY id") == [(ids[0],), (ids[2],)]
    assert one(
        database,
        "state, priority, total, requests, labels, dedupe, embed_prompt, opened_at, parent_id, tenant_id, "
        "round(extract(epoch FROM expires_at - created_at) / 86400)", ids[0],
    ) == ("draft", 0, 0, 0, {"a": "b"}, False, True, None, None, TENANT, 7)  # fmt: skip
    assert rows(database, "SELECT queued FROM counters") == [(0,), (0,)]


SMALL, WIDE = {"prompt": "s", "size": "64x64", "n": 2}, {"prompt": "w", "size": "256x256"}


def test_a_chunk_grows_its_own_draft_and_its_segments(database, settings, crowd):
    job_id = draft(database)
    before = others(database, job_id)
    chunk, replayed = append(database, settings, job_id, 0, SMALL, WIDE)
    assert (chunk.number, chunk.requests, chunk.images, replayed) == (0, 2, 3, False)
    assert append(database, settings, job_id, 1, WIDE, {"prompt": "m"})[0].images == 2
    assert append(database, settings, job_id, 2, SMALL)[0].images == 2
    assert append(database, settings, job_id, 0, SMALL, WIDE) == (chunk, True)
    assert one(database, "state, total, requests, drawn_seeds", job_id) == ("draft", 7, 5, 5)
    assert rows(database, "SELECT queued FROM counters WHERE job_id = :id", id=job_id) == [(7,)]
    segments = "SELECT id, width, low, high, open FROM segments WHERE job_id = :id ORDER BY id"
    assert rows(database, segments, id=job_id) == [
        (0, 64, 0, 6, False), (1, 256, 2, 3, False), (2, 512, 4, 4, False),
    ]  # fmt: skip
    chunks = "SELECT number, tenant_id, first_index, requests, images FROM job_chunks WHERE job_id = :id ORDER BY 1"
    assert rows(database, chunks, id=job_id) == [(0, TENANT, 0, 2, 3), (1, TENANT, 3, 2, 2), (2, TENANT, 5, 1, 2)]
    assert others(database, job_id) == before


def test_a_chunk_sent_again_is_parsed_as_if_it_were_not_there_and_others_are(database, settings):
    job_id = draft(database)
    append(database, settings, job_id, 3, SMALL, WIDE)
    append(database, settings, job_id, 5, WIDE)
    with database.begin_system() as connection:
        grounds = [drafts.existing(connection, TENANT, job_id, number) for number in (3, 4, 5)]
    assert [existing.images for existing in grounds] == [1, 4, 3]
    assert {existing.job_id for existing in grounds} == {job_id}
    assert [(shape.width, shape.steps) for shape in grounds[0].shapes] == [(64, 10), (256, 10)]


def test_the_chunks_of_a_draft_are_listed_in_order_from_a_number_on(database, settings, crowd):
    job_id = draft(database)
    for number in (4, 0, 7, 2):
        append(database, settings, job_id, number)

    def listed(after: int, limit: int) -> list[int]:
        with database.begin_system() as connection:
            return [chunk.number for chunk in drafts.chunks(connection, TENANT, job_id, after=after, limit=limit)]

    assert (listed(-1, 9), listed(0, 2), listed(2, 9), listed(7, 9)) == ([0, 2, 4, 7], [2, 4], [4, 7], [])


def test_a_chunk_that_another_was_quicker_than_is_told_so(database, settings):
    job_id = draft(database)
    with database.begin_system() as connection:
        existing = drafts.existing(connection, TENANT, job_id, 0)
        registry = models.registry(connection)
    append(database, settings, job_id, 1)
    with Submission(settings, registry, policy=policies.NOTHING, existing=existing) as submission:
        submission.add(0, SMALL)
        with pytest.raises(Conflict) as caught:
            do(database, drafts.append, submission, 0)
    assert caught.value.code == "chunk_busy"
    assert rows(database, "SELECT number FROM job_chunks") == [(1,)]
    with pytest.raises(Conflict) as caught:
        append(database, settings, job_id, 1, WIDE)
    assert caught.value.code == "chunk_conflict"


def inspected(database: Database, job_id: int, chunks: int, images: int | None = None) -> int | None:
    return do(
        database,
        drafts.inspect,
        job_id,
        requests.FinalizeRequest(chunks=chunks, **({} if images is None else {"images": images})),
    )


def problems(database: Database, job_id: int, chunks: int, images: int | None = None) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSubmission) as caught:
        inspected(database, job_id, chunks, images)
    assert not caught.value.more
    return [(problem.code, problem.message) for problem in caught.value.problems]


def test_missing_chunks_are_named_up_to_ten_of_them(database, settings, crowd):
    job_id = draft(database)
    for number in (0, 1, 3):
        append(database, settings, job_id, number)
    assert problems(database, job_id, 5) == [("chunks_missing", "Of 5 chunks 2 are missing: 2, 4.")]
    ((_, message),) = problems(database, job_id, 14)
    assert message == "Of 14 chunks 11 are missing: 2, 4, 5, 6, 7, 8, 9, 10, 11, 12 and 1 more."
    ((_, message),) = problems(database, job_id, 13)
    assert message == "Of 13 chunks 10 are missing: 2, 4, 5, 6, 7, 8, 9, 10, 11, 12."
    append(database, settings, job_id, 2)
    assert problems(database, job_id, 3) == [
        ("chunks_mismatch", "There are 4 chunks and chunks says 3: 1 have numbers from 3 on.")
    ]
    assert problems(database, job_id, 4, 9) == [
        ("images_mismatch", "The chunks hold 8 images; images says 9.")
    ]  # fmt: skip
    assert inspected(database, job_id, 4, 8) == inspected(database, job_id, 4) == 8


def named(*names: str | None) -> list[dict[str, Any]]:
    requested = [{"prompt": "a", "n": number} for number in range(1, len(names) + 1)]
    return [body | ({"custom_id": name} if name else {}) for body, name in zip(requested, names, strict=True)]


def test_a_repeated_name_is_reported_with_the_first_two_places(database, settings):
    job_id, other = draft(database), draft(database)
    append(database, settings, other, 0, *named("x", "y", "z", "once"))
    append(database, settings, job_id, 2, *named("x", None, "y"))
    append(database, settings, job_id, 0, *named(None, "y", "z"))
    append(database, settings, job_id, 1, *named("z", "x", "y", None))
    assert [message.partition(", counted")[0] for _, message in problems(database, job_id, 3)] == [
        'custom_id is "y" in request 2 of chunk 2 and in request 1 of chunk 0',
        'custom_id is "z" in request 2 of chunk 0 and in request 0 of chunk 1',
        'custom_id is "x" in request 0 of chunk 2 and in request 1 of chunk 1',
    ]
    assert inspected(database, other, 1) == 10


def logged(database: Database, job_id: int) -> list[tuple[Any, ...]]:
    """Kind and data of the job's events, in the order in which they were written."""
    statement = "SELECT kind, data FROM events WHERE subject = :subject ORDER BY id"
    return rows(database, statement, subject=queries.job(job_id))


def test_the_log_says_what_a_job_begins_as_and_which_priority_it_was_given(database, settings):
    drafted, queued = draft(database), submit(database, settings, 1)
    do(database, lifecycle.change, queued, priority=0)
    assert logged(database, drafted) == [("job.created", {"state": "draft"})]
    assert sorted(logged(database, queued)[:2]) == [
        ("job.created", {"state": "queued"}),
        ("job.queued", {"state": "queued"}),
    ]
    assert logged(database, queued)[2:] == [("job.priority_changed", {"priority": "high"})]


def test_who_opens_a_draft_is_told_whether_it_was_one(database, settings):
    job_id = draft(database)
    append(database, settings, job_id, 0)
    with database.begin_system() as connection:
        assert job_states.open_draft(connection, job_id) is True
        assert job_states.open_draft(connection, job_id) is False


def test_of_very_many_repeated_names_the_first_hundred_are_reported(database, settings):
    job_id = draft(database)
    names = named(*(f"name{number}" for number in range(103)))
    for number in range(2):
        append(database, settings, job_id, number, *({**body, "n": 1} for body in names))
    with pytest.raises(InvalidSubmission) as caught:
        inspected(database, job_id, 2)
    assert [problem.message.partition('"')[2].partition('"')[0] for problem in caught.value.problems] == [
        f"name{number}" for number in range(100)
    ]
    assert caught.value.more


def test_a_draft_is_queued_whole_and_alone(database, settings, crowd):
    job_id = draft(database)
    append(database, settings, job_id, 0, SMALL, WIDE)
    before = others(database, job_id)
    with pytest.raises(Conflict) as caught:
        do(database, drafts.finalize, job_id, 4)
    assert caught.value.code == "chunk_busy"
    assert do(database, drafts.finalize, job_id, 3) == ["simulated"]
    assert one(database, "state, opened_at IS NULL, expires_at", job_id) == ("queued", False, None)
    assert rows(database, "SELECT open FROM segments WHERE job_id = :id", id=job_id) == [(True,), (True,)]
    assert others(database, job_id) == before
    assert inspected(database, job_id, 1) is None
    with pytest.raises(Conflict) as caught:
        inspected(database, job_id, 2)
    assert caught.value.code == "not_a_draft"


def test_what_is_no_draft_takes_no_chunk_and_is_not_finalized(database, settings):
    for state in JobState:
        if state is JobState.DRAFT:
            continue
        job_id = draft(database)
        append(database, settings, job_id, 0)
        with database.begin_system() as connection:
            existing, registry = drafts.existing(connection, TENANT, job_id, 1), models.registry(connection)
        put_in(database, job_id, state)
        rows(database, "UPDATE jobs SET opened_at = NULL RETURNING 1")
        before = others(database)["jobs"]
        with Submission(settings, registry, policy=policies.NOTHING, existing=existing) as submission:
            submission.add(0, SMALL)
            for verb, arguments in (
                (drafts.existing, (job_id, 1)),
                (drafts.append, (submission, 1)),
                (drafts.finalize, (job_id, 2)),
                (drafts.inspect, (job_id, requests.FinalizeRequest(chunks=1))),
            ):
                with pytest.raises(Conflict, match=f"is {state}") as caught:
                    do(database, verb, *arguments)
                assert caught.value.code == "not_a_draft"
        with database.begin_system() as connection:
            drafts.open_all(connection, job_id)
        assert others(database)["jobs"] == before


def test_a_chunk_that_crosses_another_waits_for_it(database, settings):
    """Both were parsed from the same state of the draft; the first to write locks the draft's row."""
    job_id = draft(database)
    with database.begin_system() as connection:
        existing, registry = drafts.existing(connection, TENANT, job_id, 0), models.registry(connection)
    with (
        Submission(settings, registry, policy=policies.NOTHING, existing=existing) as one_chunk,
        Submission(settings, registry, policy=policies.NOTHING, existing=existing) as another,
    ):
        one_chunk.add(0, SMALL)
        another.add(0, WIDE)
        with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
            drafts.append(connection, TENANT, one_chunk, 0)
            crossing = pool.submit(do, database, drafts.append, another, 1)
            until(lambda: rows(database, "SELECT FROM pg_locks WHERE NOT granted"))
            connection.commit()
            with pytest.raises(Conflict) as caught:
                crossing.result()
    assert caught.value.code == "chunk_busy"
    assert one(database, "total", job_id) == (2,)


def recorded(
    database: Database, settings: Settings, *bodies: dict[str, Any], key: str | None = None, **label: Any
) -> Receipt:
    with database.begin_system() as connection:
        registry = models.registry(connection)
    with Submission(settings, registry, policy=policies.NOTHING) as submission:
        for place, body in enumerate(bodies or ({"prompt": "a"},)):
            submission.add(place, body)
        return submission.record(
            database, TENANT, label=requests.JobOptions.model_validate(label), idempotency_key=key
        )  # fmt: skip


def test_a_key_stands_for_one_submission_of_that_content_and_head(database, settings):
    asked = {"prompt": "a", "n": 3}
    first = recorded(database, settings, asked, key="k")
    assert (first.replayed, first.models) == (False, {"simulated"})
    assert recorded(database, settings, asked, key="k") == Receipt(first.job_id, frozenset({"simulated"}), True)
    assert rows(database, "SELECT count(*) FROM jobs") == rows(database, "SELECT 1")
    for label in ({"priority": "low"}, {"labels": {"a": "b"}}, {"dedupe": True}, {"embed_prompt": True}):
        with pytest.raises(IdempotencyConflict):
            recorded(database, settings, asked, key="k", **label)
    with pytest.raises(IdempotencyConflict):
        recorded(database, settings, asked, asked, key="k")
    again = recorded(database, settings, asked)
    assert again.job_id != first.job_id and not again.replayed
    with pytest.raises(InvalidSubmission):
        recorded(database, settings, {"prompt": 1}, key="other")
    assert rows(database, "SELECT count(*) FROM jobs") == rows(database, "SELECT 2")


def test_every_image_of_a_request_is_a_row_in_its_own_place(database, settings):
    submit(database, settings, [{"prompt": "other", "n": 7}])
    job_id = recorded(
        database, settings, {"prompt": "a", "n": 3}, {"prompt": "b", "size": "64x64"}, {"prompt": "c"}
    ).job_id
    statement = "SELECT index, segment_id, state FROM images WHERE job_id = :id ORDER BY index"
    assert rows(database, statement, id=job_id) == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 1, 0), (4, 0, 0)]
    assert rows(database, "SELECT index, n, prompt FROM payloads WHERE job_id = :id ORDER BY index", id=job_id) == [
        (0, 3, "a"), (3, 1, "b"), (4, 1, "c"),
    ]  # fmt: skip
    drafted = draft(database)
    for number in range(3):
        append(database, settings, drafted, number, {"prompt": "a", "n": 2})
    assert rows(database, statement, id=drafted) == [(index, 0, 0) for index in range(6)]


def test_an_old_jobs_rows_lie_in_the_partition_for_what_has_none(database, settings):
    with database.begin_system() as connection:
        assert partitions.leaf(connection, "images", new_id()).startswith("images_")
        assert partitions.leaf(connection, "images", new_id()) != "images_default"
        assert partitions.leaf(connection, "images", 1) == "images_default"


def test_what_takes_long_for_a_large_job_is_not_cut_short(database, settings):
    """Copying millions of rows and looking for their duplicates take longer than any other statement may."""
    job_id = draft(database)
    append(database, settings, job_id, 0)
    timeout = text("SHOW statement_timeout")
    with database.begin_system() as connection:
        assert connection.execute(timeout).scalar_one() == "30s"
        drafts.inspect(connection, TENANT, job_id, requests.FinalizeRequest(chunks=1))
        assert connection.execute(timeout).scalar_one() == "0"
    with database.begin_system() as connection:
        registry = models.registry(connection)
    with Submission(settings, registry, policy=policies.NOTHING) as submission:
        submission.add(0, SMALL)
        submission.close()
        with database.begin_system() as connection:
            submission.copy(connection)
            assert connection.execute(timeout).scalar_one() == "0"


def test_stopping_a_job_waits_for_transactions_that_move_its_images(database, settings):
    """Claims and settles share the job's lock; a cancel and an expiry have it alone, and then see what became of it."""
    cancelled, expired = submit(database, settings, 1), submit(database, settings, 1)
    rows(database, "UPDATE jobs SET expires_at = now() - interval '1 s' WHERE id = :id RETURNING 1", id=expired)
    for job_id, verb in (
        (cancelled, lambda: do(database, lifecycle.cancel, cancelled)),
        (expired, lambda: expire(database)),
    ):
        with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock_shared(:id)"), {"id": job_id})
            stopping = pool.submit(verb)
            until(lambda: rows(database, "SELECT FROM pg_locks WHERE NOT granted"))
            assert one(database, "state", job_id) == ("queued",)
            connection.commit()
            stopping.result()
        assert one(database, "state", job_id) == ("cancelling",)


def test_of_two_that_close_a_job_at_once_one_gives_it_its_files(database, settings):
    job_id = as_file(database, submit(database, settings, 1))
    settle(database, claim(database))
    finish(database)

    def close(output: int) -> bool:
        with database.begin_system() as connection:
            return job_states.finish(connection, job_id, job_states.Files(output))

    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        assert job_states.finish(connection, job_id, job_states.Files(1))
        crossing = pool.submit(close, 2)
        until(lambda: rows(database, "SELECT FROM pg_locks WHERE NOT granted"))
        connection.commit()
        assert crossing.result() is False
    assert one(database, "state, output_file_id", job_id) == ("completed", 1)


def test_of_two_that_end_a_stopped_job_at_once_one_does(database, settings):
    job_id = submit(database, settings, 1)
    do(database, lifecycle.cancel, job_id)
    with database.begin_system() as connection:
        segments.sweep_cancelled(connection)
    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        assert lifecycle.finish(connection) == [job_id]
        crossing = pool.submit(finish, database)
        until(lambda: rows(database, "SELECT FROM pg_locks WHERE NOT granted"))
        connection.commit()
        assert crossing.result() == []


@pytest.mark.parametrize("verb", ["pause", "change"])
def test_a_pause_or_another_priority_waits_for_a_crash_that_copies_segments(database, settings, verb):
    """The copy would otherwise keep what the original no longer is."""
    job_id = submit(database, settings, 4)
    taken = claim(database)
    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        quarantine.child_died(connection, "worker-a", rendering={taken.id: factories.places(taken)}, device="h d")
        options = {"priority": 0} if verb == "change" else {"paused": True}
        crossing = pool.submit(do, database, getattr(lifecycle, verb), job_id, **options)
        until(lambda: rows(database, "SELECT FROM pg_locks WHERE NOT granted"))
        connection.commit()
        crossing.result()
    found = rows(database, "SELECT open, priority FROM segments WHERE job_id = :id", id=job_id)
    assert len(found) == 2
    assert set(found) == {(True, 0) if verb == "change" else (False, 1)}
