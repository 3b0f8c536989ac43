"""Deleting a tenant: everything of it goes, nothing of others, and what was under way is not left."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.deletion import tenant_task, tenants
from services.core.events import numbering
from services.core.fleet import models
from services.core.jobs import lifecycle, submissions
from services.core.model import requests
from services.core.model.errors import Conflict, InvalidKey, TenantSuspended
from services.core.model.tenant_requests import TenantChanges
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.queue import segments
from services.core.settings import Settings
from services.core.storage import keys
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from services.core.tenants import tenants as every_tenant
from tests import exporting, factories
from tests.factories import TENANT
from tests.integration.test_api import OTHER_ROWS
from tests.waiting import until
from tests.web import Api

OTHER = 2


@pytest.fixture
def runner(database: Database, settings: Settings, store: S3Store) -> BackgroundTaskRunner:
    factories.register(database)
    tasks = background_tasks(settings, store, Notifier(settings.redis_url))
    return BackgroundTaskRunner(database, tasks, "scheduler-1")


@pytest.fixture
def other(database: Database) -> int:
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'agency')"))
    return OTHER


def a_job(database: Database, settings: Settings, store: S3Store, tenant: int) -> int:
    job_id = factories.submit(database, settings, 3, tenant=tenant)
    while claim := factories.claim(database):
        stored = factories.stored(claim, exporting.picture(0))
        for image in stored:
            store.put(image.object_key, exporting.picture(0), "image/png", {}, claim_id=claim.id)
        factories.settle(database, claim, stored=stored)
    exporting.finish(database, job_id)
    return job_id


def fill(stack: Any, database: Database, job_id: int, tenant: int) -> None:
    """A row in each table that nothing else has written to."""
    with database.begin_system() as connection:
        for more in (f"retention_work (job_id, tenant_id, kind) VALUES ({job_id}, {tenant}, 'records')",
                     f"job_inputs VALUES ({job_id}, 'file', 1, {tenant})"):  # fmt: skip
            connection.execute(text(f"INSERT INTO {more}"))
        for statement in OTHER_ROWS:
            if any(name in statement for name in ("retention_work", "tenant_deletions", "storage_f", "job_inputs")):
                continue
            ours = statement.replace("%(job_id)s", str(job_id)).replace("%(sha256)s", "sha256('')")
            connection.execute(text(_of_tenant(ours, tenant).replace(":", "\\:")))


def _of_tenant(statement: str, tenant: int) -> str:
    """The statement, with the tenant's number where a column tenant_id says so."""
    head, _, tail = statement.partition(" VALUES (")
    names = head[head.index("(") + 1 : head.rindex(")")].split(", ") if "(" in head else []
    if "tenant_id" not in names:
        return statement
    values = tail[:-1].split(", ")
    values[names.index("tenant_id")] = str(tenant)
    return f"{head} VALUES ({', '.join(values)})"


def delete(database: Database, name: str = "agency") -> tenants.Deletion:
    with database.begin_system() as connection:
        return tenants.delete(connection, name, name)


def counted(database: Database, tenant: int) -> dict[str, int]:
    with database.begin_system() as connection:
        found = connection.execute(text("SELECT presswork_count_tenant_rows(:tenant)"), {"tenant": tenant})
        return dict(found.scalar_one())


def work(runner: BackgroundTaskRunner) -> None:
    with runner.database.begin_system() as connection:
        segments.sweep_cancelled(connection)
        lifecycle.finish(connection)
        numbering.number(connection)
    runner.run_once()


def finish(runner: BackgroundTaskRunner) -> tenants.Deletion:
    def finished() -> tenants.Deletion | None:
        work(runner)
        with runner.database.begin_system() as connection:
            found = tenants.show(connection, "agency")
        return found if found.finished_at else None

    return until(finished, 20, every=0.01)


def test_everything_of_a_tenant_goes_and_nothing_of_another(stack, runner, other, database, settings, store):
    mine, theirs = a_job(database, settings, store, TENANT), a_job(database, settings, store, other)
    waiting = factories.submit(database, settings, 2, tenant=other)
    before = counted(database, TENANT)
    fill(stack, database, theirs, other)
    with database.begin_system() as connection:
        key = api_keys.issue_key(connection, settings.secret, other, "theirs")
    for name in keys.tenant_folders(other):
        store.put(f"{name}a", b"a", "text/plain", {}, claim_id=1)
    kept = [f"{name}a" for name in keys.tenant_folders(TENANT)]
    for name in kept:
        store.put(name, b"a", "text/plain", {}, claim_id=1)
    assert len(counted(database, other)) >= 20, counted(database, other)
    asked = delete(database)
    assert asked.jobs_left == 2 and asked.finished_at is None
    with database.begin_system() as connection, pytest.raises(InvalidKey, match="revoked"):
        api_keys.authenticate(connection, [settings.secret], key)
    done = finish(runner)
    assert done.remains == {} and counted(database, other) == {}
    assert (done.images, done.jobs_left) == (5, 0) and done.rows > 20 and done.objects >= 262
    with database.begin_system() as connection:
        left = "SELECT count(*) FROM images WHERE job_id = ANY(:ids)"
        assert connection.execute(text(left), {"ids": [theirs, waiting]}).scalar_one() == 0
        assert connection.execute(text("SELECT array_agg(id) FROM tenants")).scalar_one() == [TENANT]
        kinds = connection.execute(text("SELECT kind FROM events WHERE subject = 'tenant/2' ORDER BY id")).scalars()
        assert list(kinds) == ["tenant.delete_requested", "tenant.emptied", "tenant.deleted"]
    after = counted(database, TENANT)
    assert {name: after.get(name) for name in before if name != "events"} == {
        name: number for name, number in before.items() if name != "events"
    }
    there = set(store.under(""))
    assert set(kept) <= there and not [key for key in there if f"/{other}/" in key]
    assert mine in jobs(database)


def jobs(database: Database) -> set[int]:
    with database.begin_system() as connection:
        return set(connection.execute(text("SELECT id FROM jobs")).scalars())


def test_every_table_with_rows_of_a_tenant_is_emptied(database):
    """The list is the catalogue's own: a table with a column tenant_id, and those that refer to one."""
    with database.begin_system() as connection:
        covered = set(connection.execute(text("SELECT name FROM presswork_tenant_tables()")).scalars())
        own = set(
            connection.execute(
                text("""SELECT table_name FROM information_schema.columns JOIN pg_class ON relname = table_name
                        WHERE column_name = 'tenant_id' AND NOT relispartition AND relkind IN ('r', 'p')
                          AND table_schema = 'public'""")
            ).scalars()
        )
    assert own - covered == {"tenant_deletions"}
    assert {"catalogue_entries", "catalogue_changes", "sessions", "counters"} <= covered


def test_a_job_that_is_being_submitted_meanwhile_is_refused_and_nothing_of_it_is_left(
    runner, other, database, settings, store
):
    with database.begin_system() as connection:
        registry = models.registry(connection)
    with (
        pytest.raises(TenantSuspended),
        submissions.Submission(settings, registry, policy=policies.NOTHING) as submission,
        database.begin(other) as submitting,
    ):
        submission.add(0, {"prompt": "a mug", "n": 2})
        submission.close()
        job_id = submission.create(submitting, other, requests.JobOptions()).job_id
        delete(database)
        for _ in range(3):
            work(runner)  # it cannot finish: the database waits for whoever refers to the tenant
        with database.begin_system() as connection:
            assert tenants.show(connection, "agency").finished_at is None
    assert finish(runner).remains == {}
    assert job_id not in jobs(database)
    with database.begin_system() as connection, pytest.raises(IntegrityError):
        connection.execute(
            text("INSERT INTO jobs (id, tenant_id, state, priority, total) VALUES (1, 2, 'draft', 1, 0)")
        )


def test_a_task_that_died_is_continued(runner, other, database, settings, store, monkeypatch):
    a_job(database, settings, store, other)
    delete(database)

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    for place in ("_delete_jobs", "_drop_objects", "_delete_rows"):
        with monkeypatch.context() as broken:
            broken.setattr(tenant_task, place, dies)
            lease = Lease(database, "delete-tenant/test", place)
            assert lease.take()
            with pytest.raises(RuntimeError):
                for _ in range(20):
                    tenant_task.run(store, other, lease)
                    work(runner)
            lease.release()
    assert finish(runner).remains == {}


def test_the_first_tenant_stays_and_a_name_is_asked_for_again(other, database):
    with database.begin_system() as connection:
        with pytest.raises(Conflict, match="administers the others"):
            tenants.delete(connection, "default", "default")
        with pytest.raises(Conflict, match="the tenant's name, agency"):
            tenants.delete(connection, "agency", "default")


def test_only_an_administrator_of_the_first_tenant_deletes_one(api: Api, database):
    with api.database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'agency')"))
        theirs = api_keys.issue_key(connection, api.settings.secret, 2, "theirs")
    headers = {"Authorization": f"Bearer {theirs}"}
    place = "/v1/tenants/agency"
    assert api.http.delete(place, params={"confirm": "agency"}, headers=headers).status_code == 404
    assert api.http.delete(place, params={"confirm": "other"}).json()["error"]["code"] == "not_confirmed"
    asked = api.http.delete(place, params={"confirm": "agency"})
    assert (asked.status_code, asked.json()["tenant"]) == (202, "agency")
    assert asked.json()["requested_by"].startswith("key/")
    assert api.http.get("/v1/jobs", headers=headers).status_code == 401
    assert api.http.get(f"{place}/deletion").json()["finished_at"] is None


def test_a_tenant_that_is_being_deleted_gets_no_keys_and_is_not_made_active_again(other, database, settings):
    delete(database)
    with database.begin_system() as connection:
        with pytest.raises(Conflict, match="nothing of it can be changed"):
            every_tenant.change(connection, other, TenantChanges(state="active"))
        with pytest.raises(Conflict, match="no keys"):
            api_keys.issue_key(connection, settings.secret, other, "late")


def test_what_was_stored_after_the_end_goes_an_hour_later(runner, other, database, store):
    delete(database)
    assert finish(runner).remains == {}
    late = f"exports/{other}/export_0000000000001/part.zip"
    store.put(late, b"a", "application/zip", {}, claim_id=1)
    work(runner)
    assert late in set(store.under(""))
    with database.begin_system() as connection:
        connection.execute(text("UPDATE tenant_deletions SET finished_at = now() - interval '61 minutes'"))
    work(runner)
    assert late not in set(store.under(""))
    with database.begin_system() as connection:
        assert tenants.pending(connection) == []


def test_an_object_that_was_stored_while_the_rows_went_goes_before_the_end(runner, other, database, store, monkeypatch):
    delete(database)
    emptied = tenants.emptied
    late = f"exports/{other}/export_0000000000001/part.zip"

    def stores(*given):
        store.put(late, b"a", "application/zip", {}, claim_id=1)
        return emptied(*given)

    monkeypatch.setattr(tenants, "emptied", stores)
    assert finish(runner).remains == {}
    assert late not in set(store.under(""))


def test_one_call_deletes_no_more_rows_than_it_is_told(other, database):
    delete(database)
    with database.begin_system() as connection:
        connection.execute(
            text("""INSERT INTO views (id, tenant_id, page, name, query, created_by)
                    SELECT n, 2, 'jobs', n, '', 'x' FROM generate_series(1, 9) n""")
        )
        connection.execute(
            text("INSERT INTO tenant_usage_deltas (tenant_id, images_queued) SELECT 2, n FROM generate_series(1, 9) n")
        )
        call = text("SELECT presswork_delete_tenant_rows(2, ARRAY['views', 'tenant_usage_deltas'], 5)")
        assert [connection.execute(call).scalar_one() for _ in range(5)] == [5, 5, 5, 3, 0]
