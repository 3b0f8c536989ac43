"""Retention: what goes when, what holds it, and that all of it goes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.db import partitions
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.deletion import jobs as deletion
from services.core.exports import exports, options
from services.core.fleet import throughput
from services.core.jobs import retry
from services.core.model import ids, requests
from services.core.model.errors import Conflict, PressworkError
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.queue import counters
from services.core.retention import due, pruning, rules, task
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.factories import TENANT
from tests.waiting import until

_PROMPTS = text("SELECT prompt FROM payloads WHERE job_id = :id ORDER BY index")


@pytest.fixture
def runner(database: Database, settings: Settings, store: S3Store) -> BackgroundTaskRunner:
    factories.register(database)
    tasks = background_tasks(settings, store, Notifier(settings.redis_url))
    return BackgroundTaskRunner(database, tasks, "scheduler-1")


def aged(database: Database, settings: Settings, store: S3Store, days: int = 10, **head: Any) -> int:
    """A job that ended so many days ago."""
    asked = [{"prompt": "a mug", "n": 2, "metadata": {"sku": "7"}}, {"prompt": "a cup", "negative_prompt": "blur"}]
    job_id = factories.submit(database, settings, asked, head=head)
    while claim := factories.claim(database):
        stored = factories.stored(claim, exporting.picture(0))
        for image in stored:
            store.put(image.object_key, exporting.picture(0), "image/png", {}, claim_id=claim.id)
        factories.settle(database, claim, stored=stored)
    exporting.finish(database, job_id)
    with database.begin_system() as connection:
        connection.execute(
            text("UPDATE jobs SET finished_at = now() - make_interval(days => :days) WHERE id = :id"),
            {"id": job_id, "days": days},
        )
    return job_id


def set_rule(database: Database, **days: int | None) -> None:
    with database.begin(TENANT) as connection:
        rules.change(connection, TENANT, days)


def work(runner: BackgroundTaskRunner, rounds: int = 3) -> None:
    with runner.database.begin_system() as connection:
        due.find(connection)
    for _ in range(rounds):
        runner.run_once()


def prompts(database: Database, job_id: int) -> list[str]:
    with database.begin_system() as connection:
        return list(connection.execute(_PROMPTS, {"id": job_id}).scalars())


def objects(database: Database, store: S3Store, job_id: int) -> int:
    with database.begin_system() as connection:
        keys = connection.execute(text("SELECT object_key FROM results WHERE job_id = :id"), {"id": job_id}).scalars()
        there = set(store.under(""))
        return sum(key in there for key in keys)


def jobs(database: Database) -> set[int]:
    with database.begin_system() as connection:
        return set(connection.execute(text("SELECT id FROM jobs")).scalars())


def reasons(database: Database) -> list[str | None]:
    with database.begin_system() as connection:
        return list(connection.execute(text("SELECT reason FROM retention_work")).scalars())


def release(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("UPDATE retention_work SET look_again_at = now()"))


def test_without_a_rule_everything_is_kept(runner, database, settings, store):
    job_id = aged(database, settings, store, days=4_000)
    work(runner)
    assert (prompts(database, job_id), objects(database, store, job_id)) == (["a mug", "a cup"], 3)


def test_each_kind_goes_when_its_days_are_over_and_not_before(runner, database, settings, store):
    old, young = (aged(database, settings, store, days=days) for days in (10, 5))
    set_rule(database, payloads=7)
    work(runner)
    assert prompts(database, old) == ["", ""] and prompts(database, young) == ["a mug", "a cup"]
    assert objects(database, store, old) == objects(database, store, young) == 3
    set_rule(database, objects=7)
    work(runner)
    assert (objects(database, store, old), objects(database, store, young)) == (0, 3)
    assert {old, young} <= jobs(database)
    set_rule(database, records=7)
    work(runner)
    assert jobs(database) == {young}
    assert reasons(database) == []


def test_words_of_prompts_that_stand_beside_images_go_with_the_prompts(runner, database, settings, store):
    job_id = aged(database, settings, store)
    with database.begin_system() as connection:
        connection.execute(text("UPDATE results SET unknown_words = '[\"Zanzibar\"]'"))
    set_rule(database, payloads=7)
    work(runner)
    with database.begin_system() as connection:
        found = connection.execute(text("SELECT unknown_words FROM results WHERE job_id = :id"), {"id": job_id})
        assert list(found.scalars()) == [[]] * 3


def test_two_who_change_different_kinds_at_once_both_have_their_way(database):
    for first, second in (({"payloads": 1}, {"objects": 2}), ({"records": 3}, {"payloads": None})):
        with ThreadPoolExecutor(1) as pool:
            with database.begin(TENANT) as connection:
                rules.change(connection, TENANT, first)
                waiting = pool.submit(set_rule, database, **second)
                until(lambda: is_waiting(database))
            waiting.result()
    with database.begin(TENANT) as connection:
        found = rules.read(connection, TENANT)
    assert (found.payloads, found.objects, found.records) == (None, 2, 3)


def is_waiting(database: Database) -> bool:
    with database.begin_system() as connection:
        query = (
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%rules.set%')"
        )
        return bool(connection.execute(text(query)).scalar_one())


def test_a_jobs_own_days_come_before_the_tenants(runner, database, settings, store):
    set_rule(database, records=7)
    kept = aged(database, settings, store, retention={"records": None})
    longer = aged(database, settings, store, retention={"records": 30})
    gone = aged(database, settings, store)
    work(runner)
    assert jobs(database) == {kept, longer}
    set_rule(database, records=None)
    shorter = aged(database, settings, store, retention={"objects": 1})
    work(runner)
    assert objects(database, store, shorter) == 0 and objects(database, store, kept) == 3
    assert gone not in jobs(database)


def test_a_dry_run_says_what_would_go_and_changes_nothing(database, settings, store, runner):
    job_id = aged(database, settings, store)
    set_rule(database, payloads=7, objects=20)
    with database.begin(TENANT) as connection:
        now = due.shown(connection, TENANT)
        later = due.shown(connection, TENANT, ahead_days=15)
    assert [(one.job_id, one.kind, one.images, one.stored_images) for one in now] == [(job_id, "payloads", 3, 3)]
    assert [one.kind for one in later] == ["payloads", "objects"]
    assert prompts(database, job_id) == ["a mug", "a cup"] and reasons(database) == []


def test_what_an_unfinished_export_needs_stays_until_it_has_ended(runner, database, settings, store):
    job_id = aged(database, settings, store)
    with database.begin(TENANT) as connection:
        asked = options.ExportRequest.model_validate({"format": "zip"})
        export, _ = exports.create(connection, TENANT, job_id, asked, base_url="http://a")
    set_rule(database, payloads=1, objects=1, records=1)
    with database.begin_system() as connection:
        due.find(connection)
    task.run(store, job_id, taken(database))
    assert [reason for reason in reasons(database) if reason and "still being written" in reason]
    assert len(reasons(database)) == 3
    assert prompts(database, job_id) == ["a mug", "a cup"] and objects(database, store, job_id) == 3
    with database.begin_system() as connection:
        assert due.pending(connection) == []  # it is not looked at again at once
        exports.cancel(connection, TENANT, export)
    release(database)
    work(runner)
    assert job_id not in jobs(database)


def test_what_a_catalogues_run_and_a_dataset_take_stays_until_they_have_it(runner, database, settings, store):
    of_run, of_dataset = aged(database, settings, store), aged(database, settings, store)
    with database.begin_system() as connection:
        connection.execute(
            text("INSERT INTO catalogues (id, tenant_id, name, public_id, definition) VALUES (1, 1, 'c', 'p', '{}')")
        )
        connection.execute(
            text("""INSERT INTO catalogue_runs (id, tenant_id, catalogue_id, state, plan_only, accept_removed,
                                                definition, job_id)
                    VALUES (1, 1, 1, 'rendering', false, false, '{}', :id)"""),
            {"id": of_run},
        )
        connection.execute(
            text("INSERT INTO datasets (id, tenant_id, name, format, definition) VALUES (1, 1, 'd', 'parquet', '{}')")
        )
        connection.execute(
            text("INSERT INTO dataset_versions (dataset_id, number, tenant_id, definition) VALUES (1, 1, 1, '{}')")
        )
        connection.execute(
            text("""INSERT INTO dataset_jobs (dataset_id, number, job_id, tenant_id, root_id, is_final, marks)
                    VALUES (1, 1, :id, 1, :id, true, '')"""),
            {"id": of_dataset},
        )
    set_rule(database, objects=1)
    with database.begin_system() as connection:
        due.find(connection)
    for job_id in (of_run, of_dataset):
        task.run(store, job_id, taken(database))
        assert objects(database, store, job_id) == 3
    assert sorted(str(reason)[:12] for reason in reasons(database)) == ["A run of the", "A version of"]


def test_what_is_gone_is_refused_in_a_sentence(runner, database, settings, store):
    job_id = aged(database, settings, store)
    set_rule(database, payloads=1, objects=1)
    work(runner)
    with database.begin(TENANT) as connection, pytest.raises(Conflict, match="prompts were erased"):
        retry.retry(connection, TENANT, job_id, requests.RetryOptions(), policy=policies.NOTHING)
    with database.begin(TENANT) as connection, pytest.raises(Conflict, match="images were deleted"):
        asked = options.ExportRequest.model_validate({"format": "zip"})
        exports.create(connection, TENANT, job_id, asked, base_url="http://a")


def test_a_task_that_died_half_way_is_continued(runner, database, settings, store, monkeypatch):
    job_id = aged(database, settings, store)
    set_rule(database, payloads=1, objects=1)
    with database.begin_system() as connection:
        due.find(connection)

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(task, "_page", dies)
        with pytest.raises(RuntimeError):
            task.run(store, job_id, taken(database))
    assert prompts(database, job_id) == ["", ""] and objects(database, store, job_id) == 3
    with database.begin_system() as connection:  # what counts as gone is not found again; its work is still there
        assert due.find(connection) == 0
    work(runner)
    assert objects(database, store, job_id) == 0 and reasons(database) == []


def test_a_days_number_that_cannot_be_is_refused(database):
    with database.begin(TENANT) as connection, pytest.raises(PressworkError, match="from 0 to 36500"):
        rules.change(connection, TENANT, {"objects": -1})


def test_a_whole_week_is_dropped_when_all_of_its_jobs_are_deleted(stack, runner, database, settings, store):
    monday = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(weeks=6)
    monday -= timedelta(days=monday.weekday())
    first, second = (ids.floor(monday + timedelta(days=days)) + 1 for days in (1, 3))
    with database.begin_system() as connection:
        connection.execute(text("SELECT presswork_make_partitions(:day, 1)"), {"day": monday.date()})
        for job_id in (first, second):
            a_job_of_long_ago(connection, job_id)
        # Nothing of it may go while a job is there.
        assert partitions.drop_partitions(connection) == 0
        deletion.delete(connection, TENANT, first)
    runner.run_once()
    assert first not in jobs(database)  # row by row: the other one is not deleted
    with database.begin_system() as connection:
        a_job_of_long_ago(connection, first)
        for job_id in (first, second):
            store.put(f"w{job_id}", b"a", "image/png", {}, claim_id=1)
            deletion.delete(connection, TENANT, job_id)
    for _ in range(2):
        runner.run_once()
    assert not {f"w{first}", f"w{second}"} & set(store.under(""))
    name = partitions.partition_name("images", first)
    with database.begin_system() as connection:
        left = "SELECT count(*) FROM images WHERE job_id = ANY(:ids)"
        assert connection.execute(text(left), {"ids": [first, second]}).scalar_one() == 4  # left for the drop
        assert partitions.drop_partitions(connection) == 3
        assert connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar_one() is None
    runner.run_once()
    assert jobs(database) == set()


def test_a_week_that_somebody_reads_is_dropped_later(stack, database):
    monday = datetime.now(UTC).date() - timedelta(weeks=6)
    with database.begin_system() as connection:
        connection.execute(text("SELECT presswork_make_partitions(:day, 1)"), {"day": monday})
    with database.begin_system() as reading:
        reading.execute(text("SELECT count(*) FROM images"))
        with database.begin_system() as connection:
            assert partitions.drop_partitions(connection) == 0
    with database.begin_system() as connection:
        assert partitions.drop_partitions(connection) == 3


def test_rows_of_no_job_keep_no_week_and_a_job_that_stays_keeps_only_its_own(runner, database, store):
    monday = datetime.now(UTC) - timedelta(weeks=6)
    gone, kept = ids.floor(monday), ids.floor(monday + timedelta(hours=1))
    with database.begin_system() as connection:
        connection.execute(text("SELECT presswork_make_partitions(:day, 1)"), {"day": monday.date()})
        a_job_of_long_ago(connection, gone)
        deletion.delete(connection, TENANT, gone)
    runner.run_once()
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT drops_with_week FROM jobs")).scalar_one()
        a_job_of_long_ago(connection, kept)  # by a program whose clock was wrong
        assert partitions.drop_partitions(connection) == 0
    for _ in range(2):
        runner.run_once()
    assert jobs(database) == {kept}  # the other's rows went one by one
    with database.begin_system() as connection:
        deletion.delete(connection, TENANT, kept)
        connection.execute(
            text("INSERT INTO images (job_id, index, segment_id, state) VALUES (:id, 0, 0, 2)"), {"id": kept + 1}
        )
    for _ in range(2):
        runner.run_once()
    with database.begin_system() as connection:
        assert partitions.drop_partitions(connection) == 3


def test_a_job_whose_records_go_is_not_emptied_first(runner, database, settings, store):
    job_id = aged(database, settings, store)
    set_rule(database, payloads=1, objects=1, records=1)
    with database.begin_system() as connection:
        assert due.find(connection) == 3
    task.run(store, job_id, taken(database))
    assert reasons(database) == [] and prompts(database, job_id) == ["a mug", "a cup"]
    with database.begin_system() as connection:
        kinds = connection.execute(
            text("SELECT kind FROM events WHERE subject = :job"), {"job": f"job/{job_id}"}
        ).scalars()
        assert {"job.deleted"} == {kind for kind in kinds if kind.startswith(("job.deleted", "job.pay", "job.obj"))}


def test_a_task_whose_process_stops_leaves_the_rest_for_another(runner, database, settings, store):
    job_id = aged(database, settings, store)
    set_rule(database, objects=1)
    with database.begin_system() as connection:
        due.find(connection)
    lease = taken(database)
    lease.stopping.set()
    task.run(store, job_id, lease)
    assert reasons(database) == [None]
    lease.stopping.clear()
    task.run(store, job_id, lease)
    assert reasons(database) == [] and objects(database, store, job_id) == 0


def test_objects_that_are_gone_count_no_more_in_the_tenants_bytes(runner, database, settings, store):
    aged(database, settings, store)
    stored = counted_again(database)
    assert stored > 0
    set_rule(database, objects=1)
    work(runner)
    assert counted_again(database) == 0


def counted_again(database: Database) -> int:
    with database.begin_system() as connection:
        counters.fold(connection)
        connection.execute(text("UPDATE tenant_usage SET counted_at = '-infinity'"))
        counters.recount_usage(connection)
        return int(connection.execute(text("SELECT bytes_stored FROM tenant_usage")).scalar_one())


def test_the_look_for_what_is_due_reads_only_that(database, settings):
    """Three thousand jobs ended lately, three thousand have nothing left to go, and ten are due."""
    with database.begin_system() as connection:
        connection.execute(
            text("""INSERT INTO jobs (id, tenant_id, state, priority, total, opened_at, finished_at, payloads_erased_at)
                    SELECT n, 1, 'completed', 1, 1, now(),
                           now() - make_interval(days => CASE WHEN n <= 3000 THEN 1 ELSE 30 END),
                           CASE WHEN n BETWEEN 3001 AND 6000 THEN now() END
                    FROM generate_series(1, 6010) n""")
        )
    set_rule(database, payloads=7)
    scheduler = Database(settings.database_url, application="presswork scheduler", nested_loops=True)
    with scheduler.begin_system() as connection:
        values = {"most": 1_000, "ahead": 0}
        explained = text("EXPLAIN (ANALYZE, FORMAT JSON) " + due._FIND.text)
        [plan] = connection.execute(explained, values).scalar_one()
        assert read_rows(plan["Plan"]) < 500
        assert connection.execute(text("SELECT count(*) FROM retention_work")).scalar_one() == 10
    scheduler.close()


def read_rows(plan: dict[str, Any]) -> float:
    """How many rows of the table of jobs the plan read, those that it passed over included."""
    below = sum(read_rows(part) for part in plan.get("Plans", ()))
    if plan.get("Relation Name") != "jobs":
        return below
    return below + plan["Actual Loops"] * (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0))


def a_job_of_long_ago(connection: Any, job_id: int) -> None:
    connection.execute(
        text("""INSERT INTO jobs (id, tenant_id, state, priority, total, opened_at, finished_at)
                VALUES (:id, 1, 'completed', 1, 2, now(), now())"""),
        {"id": job_id},
    )
    connection.execute(text("INSERT INTO counters (job_id, queued, done) VALUES (:id, 0, 2)"), {"id": job_id})
    for index in range(2):
        values = {"id": job_id, "index": index, "key": f"w{job_id}"}
        connection.execute(
            text("INSERT INTO images (job_id, index, segment_id, state) VALUES (:id, :index, 0, 2)"), values
        )
        connection.execute(
            text("""INSERT INTO results (job_id, index, bytes, claim_id, render_seconds, truncated, sha256, object_key,
                                         device, reproducibility_class)
                    VALUES (:id, :index, 1, 1, 1, false, sha256(''), :key, 'd', 'c')"""),
            values,
        )


def taken(database: Database) -> Lease:
    lease = Lease(database, "retention/test", "scheduler-9")
    assert lease.take()
    return lease


def test_attempts_that_failed_long_ago_go_and_rates_that_nobody_measures(database, settings):
    insert = """INSERT INTO failures (job_id, index, claim_id, code, message, device, batch_images, failed_at)
                VALUES (1, 0, 1, 'error', '', 'd', 1, now() - make_interval(days => :days))"""
    rate = """INSERT INTO render_rates (model_revision, width, height, steps, guided, device, images,
                                        seconds_per_image, deviation, measured_at)
              VALUES ('r', :days, 1, 1, true, 'd', 1, 1, 0, now() - make_interval(days => :days))"""
    with database.begin_system() as connection:
        for days in (1, 200):
            connection.execute(text(insert), {"days": days})
            connection.execute(text(rate), {"days": days})
        assert pruning.forget_failures(connection, 90) == 1
        assert throughput.forget(connection) == 1
        assert connection.execute(text("SELECT width FROM render_rates")).scalar_one() == 1
        assert connection.execute(text("SELECT failed_at > now() - interval '2 days' FROM failures")).scalar_one()
