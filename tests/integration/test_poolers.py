"""Presswork through a connection pooler: in transaction mode every transaction may be on another session."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from services.core.db import database as databases
from services.core.jobs import lifecycle, queries
from services.core.model.errors import Conflict
from services.core.tenants import api_keys
from tests import factories
from tests.pooler import needs_pgbouncer, pooler

pytestmark = needs_pgbouncer
SECRET = "secret"


@pytest.fixture(params=["transaction", "session"])
def pooled(request, database_url):
    """One session more than threads in session mode; in transaction mode fewer, so that they change hands."""
    with pooler(database_url, request.param, sessions=2 if request.param == "transaction" else 12) as url:
        yield url


@pytest.fixture
def clients(pooled):
    """A web server, a worker and a scheduler."""
    names = {"presswork web": False, "presswork worker a": True, "presswork scheduler": False}
    made = [
        databases.Database(pooled, application=name, pool_size=2, nested_loops=nested) for name, nested in names.items()
    ]
    yield made
    for each in made:
        each.close()


def test_two_tenants_jobs_go_through_a_pooler_from_submission_to_the_last_read(clients, settings):
    web, worker, scheduler = clients
    assert databases.assert_suitable(web) == []
    factories.register(worker)
    with web.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
        keys = {tenant: api_keys.issue_key(connection, SECRET, tenant, "test") for tenant in (1, 2)}
    submitted = threading.Event()

    def ask(tenant):
        jobs = []
        for _ in range(12):
            with web.begin_system() as connection:
                assert api_keys.authenticate(connection, [SECRET], keys[tenant]).tenant_id == tenant
            jobs.append(factories.submit(web, settings, tenant, tenant=tenant))  # one image, or two
            with web.begin(tenant) as connection:
                page = queries.jobs(connection, tenant, before=2**63 - 1, limit=100)
                assert {view.id for view in page} == set(jobs)
                assert connection.execute(text("SELECT DISTINCT tenant_id FROM jobs")).all() == [(tenant,)]
                assert connection.execute(text("SELECT count(*) FROM images")).scalar_one() == len(jobs) * tenant
        return jobs

    def render():
        done, was_last = 0, False
        while not was_last:
            was_last = submitted.is_set()
            while claim := factories.claim(worker, 8):
                assert factories.settle(worker, claim).verdict == "ok"
                done += len(claim.images)
        return done

    with ThreadPoolExecutor(3) as pool:
        rendered = pool.submit(render)
        asked = {tenant: pool.submit(ask, tenant) for tenant in (1, 2)}
        try:
            jobs = {tenant: answer.result() for tenant, answer in asked.items()}
        finally:
            submitted.set()
        assert rendered.result() == 36
    with scheduler.begin_system() as connection:
        lifecycle.finish(connection)
    for tenant, ids in jobs.items():
        for job_id in ids:
            with web.begin(tenant) as connection:
                view = queries.job(connection, tenant, job_id)
                assert (view.state, view.counts["done"], view.total) == ("completed", tenant, tenant)
    with scheduler.begin_system() as connection:
        actors = connection.execute(text("SELECT kind, actor FROM events WHERE subject LIKE 'job/%'")).all()
    assert {("job.created", "web"), ("job.completed", "scheduler")} <= {tuple(row) for row in actors}


def test_nothing_stays_in_a_session_that_a_pooler_hands_on(clients, pooled, settings):
    web = clients[0]
    factories.register(web)
    for _ in range(10):  # more often than what makes the driver prepare a statement
        factories.submit(web, settings, 1)
    with web.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0
        connection.execute(text("ROLLBACK"))
        told = connection.execute(text("SELECT current_user, current_setting('app.tenant', true)")).one()
        assert tuple(told) in {("presswork_app", None), ("presswork_app", "")}


def test_a_direct_session_keeps_its_prepared_statements(database):
    for _ in range(10):
        with database.begin_system() as connection:
            connection.execute(text("SELECT 7 + :n"), {"n": 1})
            found = connection.execute(text("SELECT statement FROM pg_prepared_statements")).scalars().all()
    assert any("SELECT 7" in statement for statement in found)


def test_a_migration_through_a_pooler_in_transaction_mode_is_refused_and_one_in_session_mode_is_not(
    stack, fresh_database
):
    with fresh_database("template0") as url:
        migrator = f"{stack.migrator_url.rpartition('/')[0]}/{url.rpartition('/')[2]}"
        with pooler(migrator, "transaction", sessions=2) as address, pytest.raises(Conflict, match="transaction mode"):
            databases.migrate(address)
        with pooler(migrator, "session", sessions=2) as address:
            databases.migrate(address, "0001")
