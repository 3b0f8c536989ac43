"""Failures by cause: counted once, when they happen, and never by reading the images."""

import threading

import pytest
from sqlalchemy import create_engine, text

from services.core.db import database as databases
from services.core.db.database import Database
from services.core.jobs import failures, queries
from services.core.jobs.failures import Cause
from services.core.model.specs import FailedImage
from services.core.model.states import ImageState
from services.core.queue import counters, failure_counts, job_states, quarantine
from tests import factories, programs
from tests.factories import TENANT, claim, stored, submit
from tests.web import Api


@pytest.fixture
def ready(database: Database) -> Database:
    factories.register(database)
    return database


def fails(database: Database, codes: list[str], *, seats: int = 16) -> None:
    """A batch whose first images fail, each with a code and a reason of its own; the others are done."""
    taken = claim(database, seats)
    broken = [
        FailedImage(image.job_id, image.index, code, f"{code} of {image.index}")
        for image, code in zip(taken.images, codes, strict=False)
    ]
    factories.settle(database, taken, stored=stored(taken)[len(codes) :], failed=broken)


def fold(database: Database) -> None:
    with database.begin_system() as connection:
        counters.fold(connection)


def of_job(database: Database, job_id: int) -> list[Cause]:
    with database.begin(TENANT) as connection:
        return failures.of_job(connection, TENANT, job_id)


def of_day(database: Database) -> list[Cause]:
    with database.begin(TENANT) as connection:
        return failures.of_day(connection, TENANT)


def test_each_cause_has_its_count_newest_reason_and_an_image_before_and_after_folds(ready, settings):
    job_id = submit(ready, settings, 32)
    fails(ready, ["error", "error", "resource"])
    before = [(cause.code, cause.images, cause.message, cause.index) for cause in of_job(ready, job_id)]
    assert before == [("error", 2, "error of 1", 1), ("resource", 1, "resource of 2", 2)]
    assert of_day(ready) == []  # of the day only what is folded
    fold(ready)
    assert [(cause.code, cause.images, cause.message, cause.index) for cause in of_job(ready, job_id)] == before
    fails(ready, ["error"])
    for _ in range(2):
        assert [(cause.code, cause.images, cause.message) for cause in of_job(ready, job_id)] == [
            ("error", 3, "error of 16"),
            ("resource", 1, "resource of 2"),
        ]
        fold(ready)
    assert [(cause.code, cause.images, cause.message, cause.job_id) for cause in of_day(ready)] == [
        ("error", 3, "error of 16", job_id),
        ("resource", 1, "resource of 2", job_id),
    ]


def test_what_is_folded_late_counts_in_its_own_hour_and_an_older_reason_replaces_no_newer_one(ready, settings):
    job_id = submit(ready, settings, 32)
    fails(ready, ["error"], seats=1)
    fold(ready)
    with ready.begin_system() as connection:
        connection.execute(
            text(
                "INSERT INTO failure_deltas (job_id, code, images, index, message, at) "
                "SELECT :id, 'error', 4, 9, 'old', now() - make_interval(hours => age) FROM unnest(ARRAY[3, 30]) AS age"
            ),
            {"id": job_id},
        )
    fold(ready)
    assert [(cause.images, cause.message, cause.index) for cause in of_job(ready, job_id)] == [(9, "error of 0", 0)]
    assert [(cause.images, cause.message) for cause in of_day(ready)] == [(5, "error of 0")]
    with ready.begin_system() as connection:
        connection.execute(text("UPDATE failure_hours SET hour = hour - interval '8 days' WHERE message = 'old'"))
        assert failure_counts.forget(connection) == 2


def test_of_two_that_fold_at_once_one_counts(ready, settings):
    job_id = submit(ready, settings, 64)
    for _ in range(4):
        fails(ready, ["error"] * 16)
    others = [Database(programs.address(name, settings.database_url), application="tests")
              for name in ("scheduler", "worker")]  # fmt: skip
    threads = [threading.Thread(target=fold, args=(one,)) for one in others * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        other.close()
    assert [cause.images for cause in of_job(ready, job_id)] == [64]
    fold(ready)
    assert [cause.images for cause in of_day(ready)] == [64]


def test_an_image_of_a_cancelled_job_is_no_failure(ready, settings):
    job_id = submit(ready, settings, 2)
    taken = claim(ready)
    with ready.begin(TENANT) as connection:
        job_states.cancel(connection, TENANT, job_id)
    broken = [FailedImage(image.job_id, image.index, "error", "It broke.") for image in taken.images]
    factories.settle(ready, taken, failed=broken)
    assert of_job(ready, job_id) == []


def test_a_crash_is_a_cause_once_it_has_made_an_image_fail(ready, settings):
    job_id = submit(ready, settings, 1)
    for times in range(quarantine.POISON_TIMES):
        assert of_job(ready, job_id) == [], times
        taken = claim(ready, worker=f"worker-{times}")
        with ready.begin_system() as connection:
            quarantine.child_died(
                connection, f"worker-{times}", rendering={taken.id: factories.places(taken)}, device="host device"
            )
    assert [(cause.code, cause.images) for cause in of_job(ready, job_id)] == [("poison", 1)]
    with ready.begin(TENANT) as connection:
        for cause, found in (("poison", [0]), ("crash", [])):
            page = queries.images_of_cause(connection, TENANT, job_id, cause, after=-1, limit=10)
            assert [image.index for image in page] == found


def test_a_page_of_one_cause_reads_that_page(ready, settings):
    job_id = submit(ready, settings, 96)
    for _ in range(6):
        fails(ready, ["error", "rare"] + ["error"] * 13)
    with ready.begin(TENANT) as connection:
        first = queries.images_of_cause(connection, TENANT, job_id, "rare", after=-1, limit=4)
        assert [(image.index, image.error_code, image.state) for image in first] == [
            (index, "rare", ImageState.FAILED) for index in (1, 17, 33, 49)
        ]
        rest = queries.images_of_cause(connection, TENANT, job_id, "rare", after=49, limit=4)
        assert [image.index for image in rest] == [65, 81]
        assert queries.images_of_cause(connection, TENANT + 1, job_id, "rare", after=-1, limit=4) is None


def test_the_api_shows_causes_and_lists_the_images_of_one(api: Api):
    job = api.submit({"prompt": "a mug", "n": 16})
    fails(api.database, ["error"] * 5 + ["resource"])
    found = api.http.get(f"/v1/jobs/{job['id']}/failures").json()["data"]
    assert [(cause["code"], cause["count"], cause["message"], cause["index"]) for cause in found] == [
        ("error", 5, "error of 4", 4),
        ("resource", 1, "resource of 5", 5),
    ]
    seen, cursor = [], ""
    while cursor is not None:
        page = api.http.get(f"/v1/jobs/{job['id']}/images?cause=error&limit=2{cursor and f'&cursor={cursor}'}").json()
        seen += [image["index"] for image in page["data"]]
        cursor = page["next_cursor"]
    assert seen == [0, 1, 2, 3, 4]
    assert api.http.get(f"/v1/jobs/{job['id']}/images?cause=other&status=failed").json()["data"] == []
    refused = api.http.get(f"/v1/jobs/{job['id']}/images?cause=error&status=done")
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "cause")
    _, key = api.new_tenant("other")
    hidden = api.http.get(f"/v1/jobs/{job['id']}/failures", headers={"Authorization": f"Bearer {key}"})
    assert hidden.status_code == 404


def test_what_had_failed_before_is_counted_by_the_migration(stack, fresh_database):
    with fresh_database("template0") as url:
        migrator_url = f"{stack.migrator_url.rpartition('/')[0]}/{url.rpartition('/')[2]}"
        databases.migrate(migrator_url, "0014")
        engine = create_engine(databases.driver_url(migrator_url))
        with engine.begin() as connection:
            connection.execute(text("SELECT set_config('app.tenant', '*', true)"))
            for statement in _FAILED_BEFORE:
                connection.execute(text(statement))
        databases.migrate(migrator_url)
        with engine.begin() as connection:
            connection.execute(text("SELECT set_config('app.tenant', '*', true)"))
            found = connection.execute(
                text("SELECT job_id, code, images, index, message FROM failure_counts ORDER BY 2")
            )
            assert [tuple(row) for row in found] == [(1, "error", 2, 1, "newest"), (1, "poison", 1, 2, "m")]
        engine.dispose()


_FAILED_BEFORE = (
    """
    INSERT INTO jobs (id, tenant_id, state, priority, total, requests, started_at)
    VALUES (1, 1, 'in_progress', 1, 4, 1, now())""",
    """
    INSERT INTO images (job_id, index, segment_id, state)
    SELECT 1, nth, 0, CASE WHEN nth < 3 THEN 3 ELSE 0 END FROM generate_series(0, 3) AS nth""",
    """
    INSERT INTO failures (job_id, index, claim_id, code, message, device, batch_images, failed_at)
    SELECT 1, index, 1, code, message, 'd', 1, now() - make_interval(mins => age) FROM (VALUES
      (0, 'error', 'm', 5), (2, 'crash', 'm', 4), (2, 'poison', 'm', 3), (3, 'crash', 'm', 2), (1, 'error', 'newest', 1)
    ) AS failed (index, code, message, age)""",
)
