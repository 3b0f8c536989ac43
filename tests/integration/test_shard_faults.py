"""Shards when things go wrong: a worker is killed between the store and the database, or loses its lease there. What is
recorded can be read, nothing is doubled, and what a loser has stored is an orphan."""

import dataclasses
import hashlib
import io
import multiprocessing
import tarfile
import threading
from typing import Any

import pytest
from sqlalchemy import text

from services.core.auditing import owners
from services.core.db.database import Database
from services.core.model import ids
from services.core.model.errors import StoreUnavailable
from services.core.queue import expiry
from services.core.settings import Settings
from services.core.storage import members
from services.core.storage.s3 import S3Store
from tests import loop_process, programs
from tests.factories import submit
from tests.render_loops import RenderLoopMaker, counts, images, mugs
from tests.waiting import until

SHARDS = {"store": "shards"}


def tars(store: S3Store, job_id: int) -> list[str]:
    return [key for key in store.under("") if f"/{ids.public_job(job_id)}/" in key and key.endswith(".tar")]


def expire(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("UPDATE claims SET expires_at = now() - interval '1 hour' WHERE state = 'open'"))
    with database.begin_system() as connection:
        assert expiry.expire(connection, 0.0) == 16


def assert_whole(database: Database, store: S3Store, job_id: int, orphans: int) -> None:
    """Each image is done once and read back; so many shards belong to nobody."""
    found = images(database, job_id)
    assert counts(database, job_id) == {"done": 16} and len(found) == 16
    for image in found:
        assert hashlib.sha256(store.read(str(image.object_key))).hexdigest() == image.sha256
    used = {members.object_of(str(image.object_key)) for image in found}
    there = tars(store, job_id)
    with database.begin_system() as connection:
        rows = connection.execute(text("SELECT count(*) FROM results")).scalar_one()
        lost = owners.orphans(connection, there, {store.key("")})
    assert (rows, len(used), lost.foreign) == (16, 1, 0)
    assert sorted([*used, *lost.orphans]) == sorted(there) and len(lost.orphans) == orphans


def test_a_worker_that_is_killed_between_the_store_and_the_database_leaves_an_orphan_and_no_image_twice(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, store: S3Store
) -> None:
    later = make_render_loop(worker="later")
    job_id = submit(database, fast, mugs(16), head=SHARDS)
    slow = dataclasses.replace(programs.settings("worker", fast), simulated_batch_ms=500.0, lease_seconds=30.0)
    process = multiprocessing.get_context("spawn").Process(target=loop_process.run, args=(slow, "first"), daemon=True)
    process.start()
    try:
        until(lambda: counts(database, job_id) == {"rendering": 16}, 30, every=0.01)
        with database.begin_system() as connection:
            connection.execute(text("SELECT FROM claims FOR UPDATE"))  # nobody settles
            until(lambda: tars(store, job_id), 30)
            process.kill()
            process.join(10)
    finally:
        process.kill()
    expire(database)
    later.run()
    assert_whole(database, store, job_id, orphans=1)


@pytest.mark.parametrize("is_paused", ["before it stores", "before it settles"])
def test_a_worker_that_loses_its_lease_settles_nothing_and_the_winner_s_shard_stays(
    is_paused: str, make_render_loop: RenderLoopMaker, database: Database, fast: Settings, store: S3Store
) -> None:
    own, reached, go_on = S3Store(fast), threading.Event(), threading.Event()
    put = own.put

    def pausing(key: str, *how: Any, **more: Any) -> Any:
        found = None if is_paused == "before it stores" else put(key, *how, **more)
        reached.set()
        assert go_on.wait(30)
        return found or put(key, *how, **more)

    own.put = pausing  # type: ignore[method-assign]
    loser = make_render_loop(worker="loser", store=own)
    winner = make_render_loop(worker="winner")
    job_id = submit(database, fast, mugs(16), head=SHARDS)
    worker = threading.Thread(target=loser.run)
    worker.start()
    assert reached.wait(30)
    if stored := tars(store, job_id):  # its claim may record it yet
        with database.begin_system() as connection:
            assert owners.orphans(connection, stored, {store.key("")}).orphans == []
    assert bool(stored) is (is_paused == "before it settles")
    expire(database)
    winner.run()
    assert counts(database, job_id) == {"done": 16}
    before = [(image.object_key, image.sha256) for image in images(database, job_id)]
    go_on.set()
    worker.join(30)
    assert [(image.object_key, image.sha256) for image in images(database, job_id)] == before
    assert_whole(database, store, job_id, orphans=1)


def test_a_store_that_refuses_for_a_while_uses_no_attempt_and_gets_each_shard_once(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings, store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    render_loop = make_render_loop()
    put, refused = store.put, []

    def refusing(key: str, *how: Any, **more: Any) -> Any:
        if len(refused) < 3:
            refused.append(key)
            raise StoreUnavailable("It is away.")
        return put(key, *how, **more)

    monkeypatch.setattr(store, "put", refusing)
    job_id = submit(database, fast, mugs(16), head=SHARDS)
    render_loop.run()
    assert_whole(database, store, job_id, orphans=0)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT max(attempt) FROM images")).scalar_one() == 0


def test_where_a_store_knows_no_conditions_each_claim_still_has_a_shard_of_its_own(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings
) -> None:
    own = S3Store(fast)
    own._conditional = False
    render_loop = make_render_loop(store=own)
    job_id = submit(database, fast, mugs(16), head=SHARDS)
    render_loop.run()
    assert_whole(database, own, job_id, orphans=0)
    with tarfile.open(fileobj=io.BytesIO(own.read(tars(own, job_id)[0]))) as tar:
        assert len(tar.getnames()) == 32
