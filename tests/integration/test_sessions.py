"""Sessions with the database that have gone wrong, or that come with settings of others."""

import contextlib

import psycopg
import pytest
from sqlalchemy import make_url, text

from services.core.batches import batch_jobs, results
from services.core.db import database as databases
from services.core.db import tables
from services.core.exports import records
from services.core.files import files, uploads
from services.core.fleet import models
from services.core.jobs import queries, request_queries
from services.core.model.errors import DatabaseReadOnly, DatabaseUnavailable, NotFound
from tests import factories
from tests.pooler import needs_pgbouncer, pooler
from tests.proxy import Proxy
from tests.waiting import until

ONE = text("SELECT 1")


@pytest.fixture
def admin(stack, database_url):
    """A superuser in the test's database."""
    name = make_url(database_url).database
    with psycopg.connect(
        f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", ""), autocommit=True
    ) as connection:
        yield connection


def end_sessions(admin):
    """Returns when they have ended, so that a pooler knows it too."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE usename IN ('presswork_app', 'presswork_web', 'presswork_scheduler', 'presswork_worker')"
    )


def open_pool(database, connections=4):
    """As many idle sessions in the database's pool."""
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(database.begin_system())


@contextlib.contextmanager
def read_only(admin):
    name = admin.info.dbname
    admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        yield
    finally:
        admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


@pytest.mark.parametrize(
    "mode", ["direct", *(pytest.param(mode, marks=needs_pgbouncer) for mode in ("transaction", "session"))]
)
def test_work_goes_on_at_once_when_a_database_can_be_written_to_again(mode, database_url, admin, settings):
    with contextlib.ExitStack() as stack:
        url = database_url if mode == "direct" else stack.enter_context(pooler(database_url, mode, sessions=8))
        database = databases.Database(url, application="tests", pool_size=5)
        stack.callback(database.close)
        factories.register(database)
        open_pool(database)
        with read_only(admin):
            end_sessions(admin)
            for _ in range(3):
                with pytest.raises(DatabaseReadOnly):
                    factories.submit(database, settings, 1)
            with pytest.raises(DatabaseReadOnly):
                open_pool(database, 1)
        open_pool(database, 1)
        assert factories.submit(database, settings, 1)


def test_a_web_server_says_that_it_is_not_ready_and_accepts_jobs_again_by_itself(api, admin):
    job = {"images": [{"prompt": "a mug"}]}
    assert api.http.post("/v1/jobs", json=job).status_code == 202
    with read_only(admin):
        end_sessions(admin)
        assert api.http.post("/v1/jobs", json=job).status_code == 503
        until(lambda: api.http.get("/readyz").status_code == 503)
    assert api.http.post("/v1/jobs", json=job).status_code == 202
    until(lambda: api.http.get("/readyz").status_code == 200)


@needs_pgbouncer
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_that_met_a_read_only_database_first_is_written_through_later(mode, database_url, admin):
    with read_only(admin), contextlib.ExitStack() as stack:
        url = stack.enter_context(pooler(database_url, mode, sessions=8))
        database = databases.Database(url, application="tests")
        stack.callback(database.close)
        with pytest.raises(DatabaseReadOnly):
            open_pool(database, 1)
        admin.execute(f"ALTER DATABASE {admin.info.dbname} RESET default_transaction_read_only")
        open_pool(database, 1)


def test_many_sessions_that_became_read_only_are_discarded_in_one_request(database, admin):
    """All of the pool, not one a request."""
    with read_only(admin), contextlib.ExitStack() as stack:
        raw = [stack.enter_context(database._engine.connect()) for _ in range(8)]
        assert all(each.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on" for each in raw)
        for each in raw:
            each.info["used"] = True
    open_pool(database, 1)


def test_the_transaction_that_a_standby_refuses_is_an_outage_and_its_session_is_not_used_again(database):
    with pytest.raises(DatabaseUnavailable), database.begin_system() as connection:
        first = pid(connection)
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text("UPDATE models SET name = name"))
    with database.begin_system() as connection:
        assert pid(connection) != first


def test_a_first_statement_after_idle_sessions_were_cut_off_meets_a_new_one(database_url, settings):
    url = make_url(database_url)
    proxy = Proxy(url.host, url.port)
    database = databases.Database(url.set(port=proxy.port).render_as_string(hide_password=False), application="tests")
    try:
        factories.register(database)
        for _ in range(3):
            open_pool(database)
            proxy.cut()
            proxy.mend()
            assert factories.submit(database, settings, 1)
        proxy.cut()
        with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
            open_pool(database, 1)
    finally:
        database.close()
        proxy.close()


def test_a_first_statement_after_the_server_ended_all_sessions_meets_a_new_one(database, admin, settings):
    factories.register(database)
    for _ in range(3):
        open_pool(database)
        end_sessions(admin)
        assert factories.submit(database, settings, 1)


def test_a_transaction_that_was_cut_off_is_not_repeated(database, admin, settings):
    with pytest.raises(DatabaseUnavailable), database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (name) VALUES ('once')"))
        end_sessions(admin)
        connection.execute(ONE)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM tenants WHERE name = 'once'")).scalar_one() == 0


def test_a_column_that_a_migration_adds_makes_no_plan_of_ours_stale(database_url, admin, settings):
    """No statement of ours selects all columns of a table, so no new column changes a result."""
    database = databases.Database(database_url, application="tests", pool_size=1)
    factories.register(database)
    job_id = factories.submit(database, settings, 2)

    def read():
        with database.begin(1) as connection:
            for _ in range(7):  # from the sixth time on it is prepared
                queries.job(connection, 1, job_id)
                queries.jobs(connection, 1, before=job_id + 1, limit=10)
                queries.images(connection, 1, job_id, state=None, after=-1, limit=10)
                request_queries.page(connection, 1, job_id, only=None, place=None, limit=10)
                batch_jobs.find(connection, 1, job_id)
                results.page(connection, job_id, limit=10)
                records.of_job(connection, 1, job_id, before=2**63 - 1, limit=10)
                files.page(connection, 1, after=None, limit=10, purpose=None, newest_first=True)
                models.registry(connection)
                for missing in (uploads.find, files.find, records.find):
                    with contextlib.suppress(NotFound):
                        missing(connection, 1, 7)

    try:
        read()
        for name in tables.metadata.tables:
            admin.execute(f"ALTER TABLE {name} ADD COLUMN later text")
        read()
    finally:
        database.close()


def test_a_statement_whose_plan_is_stale_all_the_same_is_an_outage_once(database_url, admin):
    admin.execute("CREATE TABLE moved (a int); GRANT SELECT ON moved TO presswork_app")
    database = databases.Database(database_url, application="tests", pool_size=1)
    read = text("SELECT a FROM moved")
    for _ in range(7):
        with database.begin_system() as connection:
            connection.execute(read)
    admin.execute("ALTER TABLE moved ALTER a TYPE text")
    with pytest.raises(DatabaseUnavailable), database.begin_system() as connection:
        connection.execute(read)
    for _ in range(7):
        with database.begin_system() as connection:
            connection.execute(read)
    database.close()


_FOREIGN = {
    "DateStyle": "SQL, DMY", "TimeZone": "Pacific/Chatham", "IntervalStyle": "iso_8601", "extra_float_digits": "-3",
    "bytea_output": "escape", "search_path": "nowhere", "standard_conforming_strings": "off",
    "client_encoding": "LATIN1", "statement_timeout": "200", "lock_timeout": "1", "transaction_timeout": "250",
    "idle_session_timeout": "300",
    "idle_in_transaction_session_timeout": "200", "row_security": "off", "transform_null_equals": "on",
    "default_transaction_isolation": "serializable", "default_transaction_deferrable": "on", "application_name": "psql",
    "lc_messages": "C", "lc_numeric": "C", "lc_time": "C", "plan_cache_mode": "force_generic_plan",
}  # fmt: skip


def test_a_job_is_read_the_same_whatever_settings_the_role_comes_with(database, database_url, admin, settings):
    factories.register(database)
    job_id = factories.submit(database, settings, 2, prompt="a m\u00fcg \\ 'x'")
    assert factories.settle(database, factories.claim(database)).verdict == "ok"
    with database.begin(1) as connection:
        expected = _seen(connection, job_id)
    for name, value in _FOREIGN.items():
        admin.execute(
            f"ALTER ROLE presswork_app IN DATABASE {admin.info.dbname} SET {name} = '{value}'".replace(
                "'SQL, DMY'", "SQL, DMY"
            )
        )
    foreign = databases.Database(database_url, application="tests")
    try:
        with foreign.begin(1) as connection:
            assert connection.execute(text("SHOW DateStyle")).scalar_one() == "ISO, MDY"
            assert _seen(connection, job_id) == expected
            connection.execute(text("SELECT pg_sleep(0.3)"))
        other = factories.submit(foreign, settings, 2)
        claim = factories.claim(foreign)
        assert {image.job_id for image in claim.images} == {other}
        assert factories.settle(foreign, claim).verdict == "ok"
    finally:
        foreign.close()


def _seen(connection, job_id):
    view = queries.job(connection, 1, job_id)
    images = queries.images(connection, 1, job_id, state=None, after=-1, limit=100)
    return repr((view.created_at, view.started_at, view.counts, images))


def pid(connection):
    return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
