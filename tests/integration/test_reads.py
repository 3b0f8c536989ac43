"""Transactions that only read: they prune partitions, cannot write, and are like all others in everything else."""

import contextlib
import re

import psycopg
import pytest
from sqlalchemy import event, exc, make_url, text

from services.core.batches import results
from services.core.db import database as databases
from services.core.db.partitions import partition_name
from services.core.jobs import image_pages, near_duplicates, queries, request_queries, resubmission, search
from services.core.jobs.image_pages import UNMARKED, Filter
from services.core.marks import marks
from services.core.model.errors import DatabaseReadOnly, DatabaseUnavailable
from services.core.model.specs import FailedImage
from services.core.model.states import ImageState
from tests import factories
from tests.pooler import needs_pgbouncer, pooler

_PLANNED = re.compile(r" on (?:images|payloads|results)_(\d{8}|default)\b")
_EXECUTED = re.compile(_PLANNED.pattern + "(?!.*never executed)")
_FILTERS = {
    "all": Filter(),
    "unmarked": Filter(mark=UNMARKED),
    "marked": Filter(mark="accepted"),
    "of_a_cause": Filter(cause="out_of_memory"),
} | {state.word: Filter(state=state) for state in ImageState}
_READS = {
    f"page_{name}": lambda c, job_id, of=of: image_pages.page(c, 1, job_id, of, place=None, limit=10)
    for name, of in _FILTERS.items()
} | {
    "image": lambda c, job_id: queries.image(c, 1, job_id, 1),
    "images_anywhere": lambda c, job_id: queries.images_anywhere(c, [(job_id, 1), (job_id, 2)]),
    "requests": lambda c, job_id: request_queries.page(c, 1, job_id, only=None, place=None, limit=10),
    "rendered": lambda c, job_id: resubmission.page(c, job_id, after=-1, limit=10),
    "one_rendered": lambda c, job_id: resubmission.of_image(c, job_id, 1),
    "search": lambda c, job_id: search.search(c, 1, job_id, "mug", start=0, limit=10),
    "near_duplicates": lambda c, job_id: near_duplicates.of_job(c, 1, job_id, 4, after=-1),
    "batch_results": lambda c, job_id: results.page(c, job_id, limit=10),
}
_OF_ANY_JOBS = ("images_anywhere", "near_duplicates")  # partitions are pruned when the jobs are known: at run time


@pytest.fixture
def one(database_url):
    """A pool of one session."""
    database = databases.Database(database_url, application="tests", pool_size=1)
    yield database
    database.close()


def asked(database, begin, read, named):
    """The partitions in the plan of each statement of a read. Each is run again, so it must only read."""
    executed = []

    def listen(_connection, _cursor, statement, parameters, *_):
        executed.append((statement, parameters))

    with begin() as connection:
        event.listen(database._engine, "before_cursor_execute", listen)
        read(connection)
        event.remove(database._engine, "before_cursor_execute", listen)
        plans = [
            connection.exec_driver_sql(f"EXPLAIN (ANALYZE, COSTS OFF) {statement}", parameters).scalars().all()
            for statement, parameters in executed
        ]
    return [{found[1] for line in plan if (found := named.search(line))} for plan in plans]


@pytest.fixture
def job(database, settings):
    """A job with images in every state but cancelled, one of them marked."""
    factories.register(database)
    job_id = factories.submit(database, settings, 6)
    claim = factories.claim(database, 4)
    stored, (failed, released) = factories.stored(claim)[:2], factories.places(claim)[2:]
    failure = FailedImage(*failed, "out_of_memory", "It did not fit.")
    factories.settle(database, claim, stored=stored, failed=[failure], released=[released])
    assert factories.claim(database, 1)
    with database.begin(1) as connection:
        marks.put(connection, 1, job_id, [0], "accepted")
    return job_id


@pytest.mark.parametrize("name", _READS)
def test_a_read_of_one_job_asks_one_week_where_others_ask_every_week(name, one, job):
    named = _EXECUTED if name in _OF_ANY_JOBS else _PLANNED

    def read(connection):
        return _READS[name](connection, job)

    for partitions in asked(one, lambda: one.read(1), read, named):
        assert partitions <= {partition_name("", job).lstrip("_")}, partitions
    assert max(map(len, asked(one, lambda: one.begin(1), read, named))) > 1


@pytest.mark.parametrize(
    "write",
    [
        "UPDATE models SET name = name",
        "SELECT id FROM tenants FOR UPDATE",
        "SELECT presswork_make_partitions(current_date, 60)",
    ],
)
def test_a_write_in_a_read_is_a_mistake_and_its_session_is_used_again(write, one):
    with one.begin_system() as connection:
        session = pid(connection)
    with pytest.raises(exc.InternalError, match="read-only transaction"), one.read_system() as connection:
        connection.execute(text(write))
    with one.begin_system() as connection:
        assert pid(connection) == session
        connection.execute(text("UPDATE models SET name = name"))
    with pytest.raises(DatabaseUnavailable), one.begin_system() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text("UPDATE models SET name = name"))
    with one.begin_system() as connection:
        assert pid(connection) != session


@pytest.mark.parametrize(
    "mode", ["direct", *(pytest.param(mode, marks=needs_pgbouncer) for mode in ("transaction", "session"))]
)
def test_reads_and_writes_change_hands_and_each_tenant_reads_its_own(mode, database_url, settings, stack):
    with contextlib.ExitStack() as opened:
        url = database_url if mode == "direct" else opened.enter_context(pooler(database_url, mode, sessions=2))
        database = databases.Database(url, application="tests", pool_size=2)
        opened.callback(database.close)
        factories.register(database)
        with database.begin_system() as connection:
            connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
        jobs = {tenant: [] for tenant in (1, 2)}
        for _ in range(7):  # from the sixth time on a statement is prepared
            for tenant, own in jobs.items():
                own.append(factories.submit(database, settings, 1, tenant=tenant))
                with database.read(tenant) as connection:
                    assert (shows(connection, "transaction_read_only"), pruning(connection)) == ("on", "on")
                    assert {view.id for view in queries.jobs(connection, tenant, before=2**63 - 1, limit=100)} == {*own}
                    assert connection.execute(text("SELECT count(*) FROM images")).scalar_one() == len(own)
                with database.begin(tenant) as connection:
                    assert (shows(connection, "transaction_read_only"), pruning(connection)) == ("off", "off")
            with database.read_system() as connection:
                assert connection.execute(text("SELECT count(*) FROM images")).scalar_one() == sum(
                    map(len, jobs.values())
                )


def test_no_read_is_answered_by_a_server_that_takes_no_writes(database, stack, database_url):
    name = make_url(database_url).database
    admin = f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(DatabaseReadOnly), database.read_system():
        pass


def shows(connection, name):
    return connection.execute(text(f"SHOW {name}")).scalar_one()


def pruning(connection):
    return shows(connection, "enable_partition_pruning")


def pid(connection):
    return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
