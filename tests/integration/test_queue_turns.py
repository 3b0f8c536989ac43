"""Which jobs the queue's periodic tasks choose: of every tenant in turn, the oldest first, so many at a time."""

from collections.abc import Iterable
from typing import Any

import pytest
from sqlalchemy import Connection, text

from services.core.db.database import Database
from services.core.jobs import lifecycle
from services.core.queue import job_states, segments


@pytest.fixture(autouse=True)
def _tenants(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) SELECT n, 'tenant ' || n FROM generate_series(2, 4) n"))


def add(connection: Connection, tenant: int, state: str, numbers: Iterable[int], **columns: str) -> None:
    """Jobs with these ids; `columns` are SQL that may speak of the id as `n`."""
    values = {"total": "1", "priority": "1"} | columns
    connection.execute(
        text(f"""INSERT INTO jobs (id, tenant_id, state, {", ".join(values)})
                 SELECT n, :tenant, :state, {", ".join(values.values())} FROM unnest(CAST(:ids AS bigint[])) AS n"""),
        {"tenant": tenant, "state": state, "ids": list(numbers)},
    )


def count(connection: Connection, **columns: str) -> None:
    """Gives every job that has none its counters: one image, done if nothing else is said."""
    values = {"queued": "0", "rendering": "0", "done": "1"} | columns
    connection.execute(
        text(f"""INSERT INTO counters (job_id, {", ".join(values)}) SELECT id, {", ".join(values.values())}
                 FROM jobs WHERE id NOT IN (SELECT job_id FROM counters)""")
    )


def ids_in(connection: Connection, state: str) -> list[Any]:
    return list(
        connection.execute(text("SELECT id FROM jobs WHERE state = :state ORDER BY id"), {"state": state}).scalars()
    )


def test_jobs_out_of_time_are_stopped_tenant_by_tenant(database):
    with database.begin_system() as connection:
        add(connection, 1, "queued", range(1, 201), expires_at="now() - make_interval(secs => 300 - n)")
        add(connection, 2, "queued", [300], expires_at="now() - interval '1 second'")  # the youngest of all
        add(connection, 2, "queued", range(301, 401), expires_at="now() + interval '1 hour'")
        add(connection, 3, "finalizing", range(401, 501), expires_at="now() - interval '1 hour'")
        assert job_states.expire(connection) == job_states.EXPIRED_AT_ONCE == 50
        assert ids_in(connection, "cancelling") == [*range(1, 50), 300]


def test_jobs_are_finished_tenant_by_tenant_so_many_at_a_time(database):
    with database.begin_system() as connection:
        add(connection, 1, "in_progress", range(1, 1201, 2))
        add(connection, 2, "in_progress", range(2, 1201, 2))
        add(connection, 3, "in_progress", [1201])
        add(connection, 4, "draft", range(2001, 2051))
        count(connection)
        assert sorted(lifecycle.finish(connection)) == [*range(1, 1000), 1201]
        assert len(lifecycle.finish(connection)) == 201
        assert len(ids_in(connection, "draft")) == 50


def test_the_first_jobs_of_each_tenant_whose_files_can_be_written_are_found(database):
    with database.begin_system() as connection:
        add(connection, 1, "finalizing", range(1, 24, 2), input_file_id="7")
        add(connection, 1, "cancelling", range(2, 25, 2), input_file_id="7")
        add(connection, 2, "finalizing", [100], input_file_id="7")
        add(connection, 2, "finalizing", [101])  # submitted without a file
        add(connection, 2, "in_progress", [102], input_file_id="7")
        count(connection)
        add(connection, 2, "cancelling", [103], input_file_id="7")
        count(connection, queued="1")
        add(connection, 2, "cancelling", [104], input_file_id="7")
        count(connection, rendering="1")
        found = job_states.finishable(connection)
    assert set(found[:2]) == {(1, 1), (100, 2)}
    assert found[2:] == [(number, 1) for number in range(2, 11)]


def test_the_first_jobs_of_each_tenant_that_have_something_to_sweep_are_found(database):
    with database.begin_system() as connection:
        add(connection, 1, "cancelling", range(1, 15))
        add(connection, 1, "queued", [90])
        add(connection, 2, "cancelling", [100])
        connection.execute(
            text("""INSERT INTO segments (job_id, id, tenant_id, model_revision, width, height, steps, guided, priority,
                                          open, low, high)
                    SELECT id, 0, tenant_id, 'm', 64, 64, 1, true, 1, false, CASE WHEN id = 3 THEN 1 ELSE 0 END, 0
                    FROM jobs""")
        )
        found = segments.sweepable(connection)
    assert set(found[:2]) == {(1, 1), (100, 2)}
    assert found[2:] == [(number, 1) for number in (2, *range(4, 12))], "all that the third had is swept"
