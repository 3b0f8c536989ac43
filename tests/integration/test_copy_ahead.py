"""A large submission is copied while its later requests are being checked: what is recorded, and what is taken back."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from services.core.db import copying
from services.core.fleet import models
from services.core.jobs import ahead
from services.core.jobs.submissions import Receipt, Submission
from services.core.model import requests
from services.core.model.errors import DatabaseUnavailable, InvalidSubmission, QuotaExceeded
from services.core.policy import policies
from services.core.policy.policies import Policy
from tests.factories import TENANT, register

REQUESTS = 5_500  # five times as many as are spooled at once, and some
OPTIONS = requests.JobOptions()


@pytest.fixture(autouse=True)
def ground(database, monkeypatch):
    register(database)
    monkeypatch.setattr(ahead, "PART_BYTES", 1)  # each piece of the spool is a part


@contextmanager
def submission(database, settings, *, key=None, policy=policies.NOTHING, is_ahead=True) -> Iterator[Submission]:
    with database.begin_system() as connection:
        registry = models.registry(connection)
    with Submission(settings, registry, policy=policy) as made:
        if is_ahead:
            made.copy_ahead(database, TENANT, idempotency_key=key)
        yield made


def add(made: Submission, first: int = 0, end: int = REQUESTS) -> None:
    for place in range(first, end):
        fields = {"prompt": f"a \\ mug {place}", "seed": place, "n": 1 + place % 3}
        if place % 7 == 0:
            fields["size"] = "64x64"
        made.add(place, fields)


def rows(database, sql: str, **values):
    with database.begin_system() as connection:
        return [tuple(row) for row in connection.execute(text(sql), values)]


def left(database, made: Submission) -> tuple[int, int, int]:
    """How many rows there are of the job: itself, its payloads and its images."""
    ((found),) = rows(
        database,
        "SELECT (SELECT count(*) FROM jobs WHERE id = :id), (SELECT count(*) FROM payloads WHERE job_id = :id), "
        "(SELECT count(*) FROM images WHERE job_id = :id)",
        id=made.job_id,
    )
    return found


def content(database, job_id: int) -> list[list[tuple]]:
    return [
        rows(database, f"SELECT {columns} FROM {table} WHERE job_id = :id ORDER BY index", id=job_id)
        for table, columns in (
            ("payloads", "index, n, segment_id, seed, guidance_scale, output_format, custom_id, prompt, metadata"),
            ("images", "index, segment_id, state, attempt, claim_id"),
        )
    ]


def test_the_rows_are_those_of_a_submission_that_is_copied_at_its_end(database, settings):
    with submission(database, settings) as made:
        add(made)
        assert made._ahead.bytes > 0 and 0 < made._ahead.end < made.total
        quick = made.record(database, TENANT, label=OPTIONS).job_id
    with submission(database, settings, is_ahead=False) as made:
        add(made)
        plain = made.record(database, TENANT, label=OPTIONS).job_id
    assert content(database, quick) == content(database, plain)
    assert left(database, made) == (1, REQUESTS, made.total)


def test_nobody_sees_a_row_before_the_commit_and_a_problem_in_the_last_request_leaves_none(database, settings):
    with submission(database, settings) as made:
        add(made)
        made._ahead._part.result()
        assert left(database, made) == (0, 0, 0)
        made.add(REQUESTS, {"prompt": ""})
        with pytest.raises(InvalidSubmission, match="prompt"):
            made.record(database, TENANT, label=OPTIONS)
    assert left(database, made) == (0, 0, 0)
    assert rows(database, "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'") == [(0,)]


def test_a_submission_that_is_left_records_nothing(database, settings):
    with pytest.raises(KeyboardInterrupt), submission(database, settings) as made:
        add(made)
        raise KeyboardInterrupt
    assert left(database, made) == (0, 0, 0)


def test_a_key_that_is_known_copies_nothing_and_one_that_becomes_known_takes_all_back(database, settings):
    def sent(made: Submission) -> Receipt:
        return made.record(database, TENANT, label=OPTIONS, idempotency_key="k")

    with submission(database, settings, key="k") as slower, submission(database, settings, key="k") as faster:
        add(slower)
        add(faster)
        assert slower._ahead.bytes and faster._ahead.bytes
        first, second = sent(faster), sent(slower)
    assert (first.replayed, second) == (False, Receipt(first.job_id, frozenset({"simulated"}), True))
    assert left(database, slower) == (0, 0, 0)
    with submission(database, settings, key="k") as again:
        add(again)
        assert again._ahead.bytes == 0
        assert sent(again) == second
    assert rows(database, "SELECT count(*) FROM jobs") == [(1,)]


def test_if_its_session_is_cut_off_it_is_recorded_from_the_spool(database, settings):
    with submission(database, settings) as made:
        add(made)
        made._ahead._part.result()
        pid = made._ahead._connection.connection.driver_connection.info.backend_pid
        assert rows(database, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid) == [(True,)]
        add(made, REQUESTS, REQUESTS + 3_000)  # of which the first part meets a session that is gone
        assert made._ahead.bytes == 0
        made.record(database, TENANT, label=OPTIONS)
    assert left(database, made) == (1, REQUESTS + 3_000, made.total)


def test_over_a_quota_is_refused_and_little_more_than_the_quota_was_copied(database, settings):
    with database.begin_system() as connection:
        connection.execute(text("UPDATE tenants SET max_images_queued = 3000 WHERE id = :id"), {"id": TENANT})
    with submission(database, settings) as made:
        add(made, 0, 1_200)
        assert made._ahead.bytes > 0
        add(made, 1_200)
        assert made._ahead.bytes == 0 and made._ahead._connection is None
        with pytest.raises(QuotaExceeded):
            made.record(database, TENANT, label=OPTIONS)
    assert left(database, made) == (0, 0, 0)


def test_what_a_policy_must_see_is_copied_at_the_end(database, settings):
    with submission(database, settings, policy=Policy(own=["hat"])) as made:
        add(made)
        assert made._ahead is None
        made.record(database, TENANT, label=OPTIONS)
    assert left(database, made) == (1, REQUESTS, made.total)


def test_a_copy_that_is_cut_off_is_an_outage(database):
    def pieces(pid: int) -> Iterator[bytes]:
        yield b"1\t0\t0\n"
        assert rows(database, "SELECT pg_terminate_backend(:pid, 5000)", pid=pid) == [(True,)]
        yield from [b"1\t1\t0\n" * 10_000] * 100

    with pytest.raises(DatabaseUnavailable), database.begin(TENANT) as connection:
        pid = connection.connection.driver_connection.info.backend_pid
        copying.rows(connection, "COPY images_default (job_id, index, segment_id) FROM STDIN", pieces(pid))
    assert rows(database, "SELECT 1") == [(1,)]
