"""A claim reads its own images, whatever the planner knows of the others.

Statistics come with autovacuum: plans that were right for an unknown table must stay right for one that is known.
"""

from collections.abc import Callable, Iterator

import psycopg
import pytest
from sqlalchemy import text

from services.core.db.database import Connection, Database
from tests.factories import claim, claim_in, register, settle, submit


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


@pytest.mark.parametrize("of_each", [1, 10])
def test_a_claim_reads_its_own_images_when_the_planner_knows_the_tables(queue, settings, stack, of_each):
    register(queue)
    submit(queue, settings, [{"prompt": "a", "n": of_each}] * (6_000 // of_each))
    owner = f"{stack.superuser_url.rpartition('/')[0]}/{settings.database_url.rpartition('/')[2]}"
    with psycopg.connect(owner.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("VACUUM ANALYZE")
    for _ in range(3):  # then the session has prepared its statements and read the catalogue
        settle(queue, claim(queue))
    taken = []
    read = min(pages(queue, lambda connection: taken.append(claim_in(connection))) for _ in range(3))
    assert [len(found.images) for found in taken] == [16] * 3
    assert read < 1_000, read  # a walk over all images reads 12,000 and more
