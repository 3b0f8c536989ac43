"""A worker that can serve none of very many segments reads few of them at a look, and misses nothing behind them."""

import dataclasses

import pytest
from sqlalchemy import text

from services.core.db import columns
from services.core.db.database import Database
from services.core.fleet.abilities import Abilities
from services.core.queue import looks, walks
from services.core.queue.looks import Candidates
from services.core.queue.walks import Walk
from tests import factories
from tests.factories import submit
from tests.integration.test_overview import rows_read
from tests.render_loops import counts

ABLE = Abilities(max_steps=20)
MANY = 50_000
NORMAL = 1


@pytest.fixture
def ready(database: Database) -> Database:
    factories.register(database)
    return database


def fill(database: Database, settings: object, count: int = MANY) -> None:
    """So many segments that the worker cannot serve, in two jobs."""
    shape = ", ".join(columns.SHAPE)
    for _ in range(2):
        job_id = submit(database, settings, 1, size="64x64", num_inference_steps=40)
        change(
            database,
            f"INSERT INTO segments (job_id, id, tenant_id, {shape}, priority, open, low, high)"
            f" SELECT job_id, n, tenant_id, {shape}, priority, open, low, high FROM segments,"
            f" generate_series(1, {count // 2 - 1}) n WHERE job_id = {job_id} AND id = 0",
        )
    change(database, "ANALYZE segments")


def change(database: Database, sql: str) -> None:
    with database.begin_system() as connection:
        connection.execute(text(sql))


def look(database: Database, walk: Walk, now: float) -> tuple[Candidates, bool]:
    with database.begin_system() as connection:
        found = looks.candidates(connection, factories.REVISION, NORMAL, "worker-a", ABLE, after=walk.after)
        return found, walk.go_on(connection, factories.REVISION, ABLE, found.lanes, now)


def test_a_look_reads_a_bounded_number_of_rows_and_what_is_behind_is_found(ready, settings):
    fill(ready, settings)
    wanted = submit(ready, settings, 2, size="64x64", num_inference_steps=10)
    walk, steps, moved, most = Walk(), 0, True, 0
    while moved:
        with rows_read() as read:
            found, moved = look(ready, walk, now=float(steps))
        most, steps = max(most, *read.values()), steps + 1
    assert {row.job_id for row in found.rows} == {wanted}
    assert steps == MANY // walks.WINDOW + 1
    assert most <= 2 * walks.WINDOW + 2, read
    with rows_read() as read:
        again, _ = look(ready, walk, now=steps + 10.0)
    assert [row.job_id for row in again.rows] == [wanted], "the next look begins there"
    assert max(read.values()) < walks.WINDOW


def test_a_worker_that_can_serve_nothing_reads_a_window_a_look_at_most(ready, settings):
    fill(ready, settings, 4 * walks.WINDOW)
    walk, now = Walk(), 0.0
    for _ in range(12):
        with rows_read() as read:
            found, _ = look(ready, walk, now)
        assert not found.rows
        assert max(read.values()) <= 2 * walks.WINDOW + 2, read
        now += 2.0


def test_work_of_another_tenant_neither_stops_the_walk_nor_is_missed_by_it(ready, settings):
    fill(ready, settings, 3 * walks.WINDOW)
    behind = submit(ready, settings, 2, size="64x64", num_inference_steps=10)
    before = submit(ready, settings, 2, size="64x64", num_inference_steps=10, priority="high")
    walk, seen = Walk(), []
    for number in range(5):
        found, _ = look(ready, walk, now=number * walks.PAUSE_SECONDS)
        seen.append({row.job_id for row in found.rows})
    assert seen == [{before}] * 3 + [{before, behind}] * 2
    unhurried = Walk()
    for _ in range(5):
        look(ready, unhurried, now=0.0)
    assert set(unhurried.after.values()) == {next(iter(unhurried.after.values()))}, "one step within its pause"


def test_what_is_opened_at_the_front_is_seen_after_a_while(ready, settings):
    hidden = submit(ready, settings, 2, size="64x64", num_inference_steps=10)
    change(ready, f"UPDATE segments SET open = false WHERE job_id = {hidden}")
    fill(ready, settings, 3 * walks.WINDOW)
    walk = Walk()
    for number in range(6):
        look(ready, walk, now=2.0 * number)
    change(ready, f"UPDATE segments SET open = true WHERE job_id = {hidden}")
    assert not look(ready, walk, now=20.0)[0].rows
    look(ready, walk, now=20.0 + walks.FORGET_SECONDS)
    assert {row.job_id for row in look(ready, walk, now=22.0 + walks.FORGET_SECONDS)[0].rows} == {hidden}


def test_a_worker_renders_what_is_behind_very_many_that_it_cannot(make_render_loop, database, settings):
    loop = make_render_loop()
    fill(database, settings)
    wanted = submit(database, settings, 2, size="64x64", num_inference_steps=10)
    loop.pipeline.card = dataclasses.replace(loop.pipeline.card, max_steps=20)
    ticks = -(-MANY // walks.WINDOW // walks.STRIDE)
    for _ in range(ticks + 1):
        loop._walk._next = 0.0
        loop.run()
    assert counts(database, wanted) == {"done": 2}
