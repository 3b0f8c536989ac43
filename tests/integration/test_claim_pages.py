"""What moves images reads those alone, whatever the planner knows of the others.

Statistics come with autovacuum: plans that were right for an unknown table must stay right for one that is known.
"""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import text

from services.core.db.database import Connection, Database
from services.core.jobs import lifecycle
from services.core.queue import expiry, quarantine, segments, settlement
from tests.factories import TENANT, claim, claim_in, places, register, settle, stored, submit


@pytest.fixture
def queue(database_url: str) -> Iterator[Database]:
    """As workers open it."""
    opened = Database(database_url, application="tests", pool_size=1, nested_loops=True)
    yield opened
    opened.close()


def pages(database: Database, act: Callable[[Connection], object]) -> int:
    """Pages of all tables and indexes that one transaction reads, from memory or disk."""
    with database.begin_system() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    query = text("SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database()")
    with database.begin_system() as connection:
        connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        before = connection.execute(query).scalar_one()
    with database.begin_system() as connection:
        act(connection)
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
    with database.begin_system() as connection:
        connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        return int(connection.execute(query).scalar_one() - before)


IMAGES = 6_000
A_FEW = 2_000  # pages; a walk over all images reads 12,000 and more, a death some hundreds


def prepare(queue: Database, settings, stack, of_each: int) -> int:
    """A job of queued images, `of_each` to a request, beside one that is half done; the planner has statistics."""
    register(queue)
    submit(queue, settings, IMAGES)
    for _ in range(3):
        settle(queue, claim(queue, IMAGES // 6))
    asked = [{"prompt": "a", "n": of_each}] * (IMAGES // of_each)
    job_id = submit(queue, settings, asked, priority="high")
    for _ in range(2):  # then the session has prepared its statements and read the catalogue
        settle(queue, claim(queue, turn=0))
    owner = f"{stack.superuser_url.rpartition('/')[0]}/{settings.database_url.rpartition('/')[2]}"
    with psycopg.connect(owner.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("VACUUM ANALYZE")
    return job_id


@pytest.mark.parametrize("of_each", [1, 10])
def test_a_claim_reads_its_own_images(queue, settings, stack, of_each):
    prepare(queue, settings, stack, of_each)
    taken = []
    read = min(pages(queue, lambda connection: taken.append(claim_in(connection, turn=0))) for _ in range(3))
    assert [len(found.images) for found in taken] == [16] * 3
    assert read < A_FEW


def test_so_do_a_settle_an_expiry_a_death_and_a_sweep(queue, settings, stack):
    job_id = prepare(queue, settings, stack, 1)

    def settled(connection: Connection) -> None:
        found = settlement.settle(connection, one.id, device="d", stored=stored(one)[1:], released=places(one)[:1])
        assert found.verdict is settlement.Verdict.OK

    def expired(connection: Connection) -> None:
        connection.execute(text("UPDATE claims SET expires_at = now() - interval '1 minute' WHERE state = 'open'"))
        assert expiry.expire(connection, 0.0) == 16

    def died(connection: Connection) -> None:
        quarantine.child_died(connection, "worker-a", rendering={one.id: places(one)}, device="d")

    def swept(connection: Connection) -> None:
        assert segments.sweep(connection, job_id, 16) == 16

    read = {}
    for act in (settled, expired, died):
        counts = []
        for _ in range(3):
            one = claim(queue, turn=0)
            counts.append(pages(queue, act))
        read[act.__name__] = min(counts)
    with queue.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    read["swept"] = min(pages(queue, swept) for _ in range(3))
    assert max(read.values()) < A_FEW, read
