"""The overview: whether all is well and why not, and figures whose cost does not grow with images or jobs."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, event, text

from services.core.db import leadership
from services.core.db.database import Connection, Database
from services.core.fleet import drains, throughput, workers
from services.core.jobs import failures, lifecycle, overview, queries
from services.core.jobs.overview import Overview
from services.core.model.specs import FailedImage, Shape
from services.core.queue import counters, job_states
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import factories
from tests.factories import TENANT, claim, stored, submit
from tests.waiting import until
from tests.web import Api, open_api

SHAPE = Shape(factories.REVISION, 512, 512, 10, True)


def worker(
    database: Database,
    name: str,
    state: str = "ready",
    *,
    device: str = "d",
    revision: str = factories.REVISION,
    silent: float = 0,
) -> None:
    with database.begin_system() as connection:
        workers.register(connection, name, host="h", pid=1, device=device, model="m", revision=revision, state=state)
        age = text("UPDATE workers SET seen_at = now() - make_interval(secs => :silent) WHERE id = :id")
        connection.execute(age, {"silent": silent, "id": name})


def lead(database: Database) -> None:
    """A scheduler leads, for as long as a lease may last."""
    with database.begin_system() as connection:
        leadership.lead(connection, "tests", 2 * leadership.SECONDS - 1)


def look(database: Database, tenant: int = TENANT) -> Overview:
    with database.begin(tenant) as connection:
        return overview.overview(connection, tenant)


def codes(found: Overview) -> list[tuple[str, str]]:
    return [(issue.code, issue.status) for issue in found.issues]


@pytest.fixture
def ready(database: Database) -> Database:
    factories.register(database)
    lead(database)
    return database


def test_an_installation_with_a_worker_and_a_scheduler_and_nothing_to_do_is_well(ready):
    worker(ready, "a")
    found = look(ready)
    assert codes(found) == []
    assert (found.waiting.jobs, found.waiting.queued, found.waiting.seconds, found.waiting.more) == (0, 0, 0.0, False)
    assert (found.jobs, found.failures, found.pictures) == ((), (), ())


def test_without_a_worker_what_waits_makes_it_an_error_and_one_that_starts_a_warning(ready, settings):
    assert codes(look(ready)) == [("no_workers", "degraded")]
    submit(ready, settings, 1)
    assert codes(look(ready)) == [("no_workers", "failing")]
    with ready.begin_system() as connection:
        workers.starts(connection, "a", host="h", pid=1, doing="exporting the model")
    assert codes(look(ready)) == [("no_workers", "degraded")]


def test_what_no_live_worker_serves_is_named_with_its_model_and_number(ready, settings):
    worker(ready, "a", revision="another")
    submit(ready, settings, 7)
    [issue] = look(ready).issues
    assert (issue.code, issue.status) == ("unserved", "degraded")
    assert "7 images wait for simulated" in issue.message
    worker(ready, "b")
    assert look(ready).issues == ()


def test_a_sick_device_and_a_worker_that_has_vanished_are_named_and_one_that_was_replaced_is_not(ready):
    worker(ready, "a")
    worker(ready, "b", "sick", device="gpu1")
    worker(ready, "c", "busy", device="gpu2", silent=60)
    worker(ready, "d", "busy", device="gpu3", silent=60)
    worker(ready, "e", "ready", device="gpu3")
    worker(ready, "f", "stopped", device="gpu4", silent=60)
    found = look(ready)
    issues = sorted((issue.code, issue.status, issue.message[:9]) for issue in found.issues)
    assert issues == [("device_sick", "degraded", "h gpu1 is"), ("worker_silent", "degraded", "The worke")]
    assert "gpu2" in "".join(issue.message for issue in found.issues)
    assert (found.accelerators.busy, found.accelerators.idle, found.accelerators.sick) == (0, 2, 1)


def test_a_drained_worker_is_neither_idle_nor_missed_until_it_is_the_last(ready, settings):
    worker(ready, "a")
    worker(ready, "b", device="gpu1")
    submit(ready, settings, 1)
    with ready.begin_system() as connection:
        drains.drain(connection, "a", TENANT)
    found = look(ready)
    assert (found.accelerators.idle, found.accelerators.drained, codes(found)) == (1, 1, [])
    with ready.begin_system() as connection:
        drains.drain(connection, "b", TENANT)
    found = look(ready)
    assert [issue.message for issue in found.issues] == ["Every worker is drained: resume one."]


def test_without_a_scheduler_it_says_that_jobs_do_not_finish(ready):
    worker(ready, "a")
    with ready.begin_system() as connection:
        connection.execute(text("UPDATE leases SET expires_at = now() - interval '1 minute'"))
    assert codes(look(ready)) == [("no_scheduler", "failing")]


def test_waiting_work_is_counted_in_images_and_in_seconds_without_what_is_paused(ready, settings):
    worker(ready, "a")
    worker(ready, "b", device="e")
    submit(ready, settings, 20)
    paused = submit(ready, settings, 50)
    with ready.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, True)
    claim(ready)
    unknown = look(ready).waiting
    assert (unknown.jobs, unknown.queued, unknown.rendering, unknown.seconds) == (1, 4, 16, None)
    assert unknown.paused == 50
    with ready.begin_system() as connection:
        throughput.record(connection, SHAPE, "h d", images=100, seconds_per_image=3.0)
    found = look(ready).waiting
    assert (found.device_seconds, found.seconds) == (pytest.approx(60.0), pytest.approx(30.0))


def test_jobs_in_progress_failures_and_newest_pictures_are_the_tenants_own(ready, settings):
    worker(ready, "a", "busy")
    with ready.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
    ours, theirs = submit(ready, settings, 20, custom_id=None), submit(ready, settings, 16, tenant=2)
    for _ in range(3):
        taken = claim(ready)
        with ready.begin_system() as connection:
            job_states.start(connection, taken.fresh_jobs)
        first = taken.images[0]
        failed = [FailedImage(first.job_id, first.index, "error", f"no {first.job_id}")]
        factories.settle(ready, taken, stored=stored(taken)[1:], failed=failed)
    with ready.begin_system() as connection:
        counters.fold(connection)
    found, other = look(ready), look(ready, 2)
    assert [view.id for view in found.jobs] == [ours]
    assert [view.id for view in other.jobs] == [theirs]
    assert {cause.job_id for cause in found.failures} == {ours}
    assert {cause.job_id for cause in other.failures} == {theirs}
    assert found.rates.hour > 0
    assert {picture.job_id for picture in found.pictures} == {ours}
    assert len(found.pictures) == overview.PICTURES_SHOWN
    moments = [picture.finished_at for picture in found.pictures]
    assert moments == sorted(moments, reverse=True)
    assert found.pictures[0].prompt.startswith("a mug, number")


def test_jobs_under_way_begin_with_those_in_progress_and_end_with_those_that_wait(ready, settings):
    running = submit(ready, settings, 1)
    with ready.begin_system() as connection:
        job_states.start(connection, claim(ready).fresh_jobs)
    waiting = [submit(ready, settings, 1) for _ in range(overview.JOBS_SHOWN)]
    assert [view.id for view in look(ready).jobs] == [running, *waiting[:0:-1]]


# --- what it costs

_READ = """
SELECT sum(coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0)) FROM pg_stat_xact_user_tables
"""
MOST_ROWS = 1_000


@contextmanager
def rows_read(connection: Connection | None = None) -> Iterator[dict[str, int]]:
    """How many rows each statement of the transaction reads meanwhile, by its name: or of all transactions. One that is
    sent again gets a number."""
    found: dict[str, int] = {}
    running: dict[Any, str] = {}
    only = None if connection is None else connection.connection.driver_connection

    def named(sql: str) -> str:
        return sql.partition("/* ")[2].partition(" */")[0]

    def read(session: Any) -> int:
        return int(session.execute(_READ).fetchone()[0])

    def before(_connection: object, cursor: Any, sql: str, *_: object) -> None:
        if only in (None, cursor.connection) and "sessions.open" not in sql:
            name = named(sql)
            while name in found:
                name += "+"
            running[cursor], found[name] = name, -read(cursor.connection)

    def after(_connection: object, cursor: Any, *_: object) -> None:
        if cursor in running:
            found[running.pop(cursor)] += read(cursor.connection)

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "after_cursor_execute", after)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", before)
        event.remove(Engine, "after_cursor_execute", after)


def fill(database: Database, settings: Settings, images: int, tenant: int = TENANT) -> int:
    """A job in progress, half of it done, and a quarter failed; its id."""
    each = min(1000, max(1, images // 200))  # of one request; of a few rows, the planner would read all
    job_id = submit(
        database, settings, [{"prompt": "a mug", "n": each}] * (images // each), size="64x64", tenant=tenant
    )
    half = {"id": job_id, "half": images // 2, "most": images * 3 // 4}
    with database.begin_system() as connection:
        job_states.start(connection, [job_id])
        connection.execute(
            text("UPDATE images SET state = CASE WHEN index < :half THEN 2 ELSE 3 END "
                 "WHERE job_id = :id AND index < :most"), half
        )  # fmt: skip
        connection.execute(
            text("""
            INSERT INTO results (job_id, index, object_key, sha256, bytes, device, reproducibility_class, truncated,
                                 unknown_words, render_seconds, claim_id)
            SELECT job_id, index, 'key', sha256('x'), 1, 'device', 'class', false, '[]', 1, 1
            FROM images WHERE job_id = :id AND state = 2"""),
            half,
        )
        connection.execute(
            text("""
            INSERT INTO failures (job_id, index, claim_id, code, message, device, batch_images)
            SELECT job_id, index, 1, CASE WHEN index % 100 = 7 THEN 'rare' ELSE 'error' END, 'It broke.', 'device', 16
            FROM images WHERE job_id = :id AND state = 3"""),
            half,
        )
        connection.execute(
            text("""
            INSERT INTO failure_deltas (job_id, code, images, index, message)
            SELECT job_id, code, count(*), max(index), 'It broke.' FROM failures WHERE job_id = :id GROUP BY 1, 2"""),
            half,
        )
        connection.execute(
            text("INSERT INTO counter_deltas (job_id, queued, done, failed) "
                 "VALUES (:id, -CAST(:most AS integer), :half, :most - CAST(:half AS integer))"), half
        )  # fmt: skip
        counters.fold(connection)
    return job_id


def test_the_overview_sends_eight_statements_and_nothing_that_is_shown_of_a_large_job_reads_many_rows(ready, settings):
    worker(ready, "a", "busy")
    job_id = fill(ready, settings, 20_000)
    for _ in range(overview.MOST_JOBS):
        submit(ready, settings, 1)
    with ready.begin(TENANT) as connection, rows_read(connection) as read:
        found = overview.overview(connection, TENANT)
        assert len(read) == 8, read
        causes = failures.of_job(connection, TENANT, job_id)
        page = queries.images_of_cause(connection, TENANT, job_id, "rare", after=-1, limit=20)
    assert found.waiting.more
    assert len(found.pictures) == overview.PICTURES_SHOWN
    assert [(cause.code, cause.images) for cause in causes] == [("error", 4_950), ("rare", 50)]
    assert [image.index for image in page or ()] == list(range(10_007, 12_000, 100))
    assert {name: rows for name, rows in read.items() if rows > MOST_ROWS} == {}


def shown(api: Api, status: str) -> dict[str, Any]:
    """The answer, once it has that status: a first look at the servers may take a moment."""
    found: dict[str, Any] = {}

    def has_it() -> bool:
        lead(api.database)
        found.update(api.http.get("/v1/overview").json())
        return bool(found["status"] == status)

    until(has_it)
    return found


def test_the_api_says_it_in_one_answer(api: Api, store: S3Store):
    lead(api.database)
    job = api.submit({"prompt": "a mug", "n": 16})
    factories.settle(api.database, claim(api.database))
    found = shown(api, "ok")
    assert found["issues"] == []
    assert {picture["job_id"] for picture in found["pictures"]} == {job["id"]}
    assert found["pictures"][0]["url"].startswith(f"{api.url}/v1/jobs/{job['id']}/images/")
    with api.database.begin_system() as connection:
        connection.execute(text("DELETE FROM workers"))
    api.submit()
    found = shown(api, "failing")
    assert [issue["code"] for issue in found["issues"]] == ["no_workers"]
    _, key = api.new_tenant("other")
    theirs = api.http.get("/v1/overview", headers={"Authorization": f"Bearer {key}"}).json()
    assert (theirs["status"], theirs["pictures"], theirs["waiting"]["jobs"]) == ("degraded", [], 0)


def test_a_schema_that_is_behind_and_a_store_that_refuses_are_named(stack, database_url, settings, store):
    with open_api(dataclasses.replace(settings, s3_secret_key="wrong" * 8)) as api:
        lead(api.database)
        name = database_url.rpartition("/")[2]
        url = f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", "")
        with psycopg.connect(url) as admin:
            admin.execute("UPDATE alembic_version SET version_num = '0014'")

        def named() -> dict[str, str]:
            return {issue["code"]: issue["message"] for issue in api.http.get("/v1/overview").json()["issues"]}

        until(lambda: "migrate" in named().get("database", ""))
        until(lambda: "store" in named())
        assert shown(api, "failing")["pictures"] == []
