"""The storage auditor: what is planted is found, and nothing else; no orphan is deleted early or after a restore."""

import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from services.core.auditing import audits, mark, task
from services.core.auditing.audits import Audit
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.model import ids
from services.core.settings import Settings
from services.core.storage import installation, keys
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.factories import TENANT

PICTURE = b"a picture"


@pytest.fixture
def own(settings: Settings, database: Database) -> S3Store:
    """A store with a prefix of its own, claimed."""
    store = S3Store(dataclasses.replace(settings, prefix=f"audit-{ids.new()}/"))
    store.prepare()
    installation.claim_prefix(database, store)
    factories.register(database)
    return store


def a_job(database: Database, settings: Settings, store: S3Store, images: int) -> list[str]:
    """A finished job; the keys of its images in order."""
    job_id = factories.submit(database, settings, [{"prompt": "a mug", "n": images}])
    found: dict[int, str] = {}
    while claim := factories.claim(database):
        stored = []
        for image, result in zip(claim.images, factories.stored(claim, PICTURE), strict=True):
            name = keys.image_name(TENANT, ids.public_job(job_id), image.index, image.render_key, "png")
            found[image.index] = store.key(name)
            stored.append(dataclasses.replace(result, object_key=store.key(name)))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: put(store, one.object_key), stored))
        factories.settle(database, claim, stored=stored)
    exporting.finish(database, job_id)
    return [found[index] for index in sorted(found)]


def put(store: S3Store, key: str, data: bytes = PICTURE) -> None:
    store.put_file(key, io.BytesIO(data), "image/png")


# What a redraw asks the content policy by: none.
SETTINGS = Settings.read({"DATABASE_URL": "postgresql://unused", "REDIS_URL": "redis://unused"})


def audit(database: Database, store: S3Store, share: float = 1.0, days: int = 7) -> Audit:
    with database.begin_system() as connection:
        asked = audits.request(connection, share)
    lease = Lease(database, "audit-storage/test", "scheduler-1")
    assert lease.take()
    task.run(SETTINGS, store, asked.id, lease, orphan_days=days)
    with database.begin_system() as connection:
        return audits.show(connection, asked.id)


def age(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("UPDATE storage_orphans SET first_seen_at = first_seen_at - interval '8 days'"))


def orphans(store: S3Store, count: int) -> set[str]:
    """Of jobs that are not there."""
    found = set()
    for index in range(count):
        found.add(store.key(keys.image_name(TENANT, ids.public_job(ids.new()), index, "f" * 64, "png")))
    return found


def test_all_that_is_planted_is_found_and_nothing_else(database, settings, own):
    objects = a_job(database, settings, own, 300)
    strays = orphans(own, 900)
    job = objects[0].split("/")[-2]
    strays |= {own.key(keys.image_name(TENANT, job, index, "e" * 64, "png")) for index in range(50)}
    strays |= {own.key(f"thumbnails/{TENANT}/{ids.public_job(ids.new())}/{index}.webp") for index in range(50)}
    missing, damaged = set(objects[:100]), set(objects[100:110])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: put(own, key), strays))
        list(pool.map(own.drop, missing))
        list(pool.map(lambda key: put(own, key, b"b picture"), damaged))
    put(own, own.key("notes/of/somebody.txt"))
    put(own, f"other-{ids.new()}/ab/1/{job}/00000000-{'f' * 16}.png")  # another installation's
    found = audit(database, own)
    counts = {name: found.counts[name] for name in ("missing", "damaged", "orphans", "deleted", "requeued", "records")}
    assert counts == {
        "missing": 100, "damaged": 10, "orphans": 1000, "deleted": 0, "requeued": 110, "records": 300,
    }  # fmt: skip
    assert found.refusal is None and found.finished_at is not None
    with database.begin_system() as connection:
        seen = set(connection.execute(text("SELECT object_key FROM storage_orphans")).scalars())
        rows = connection.execute(text("SELECT index AS place, kind FROM storage_findings ORDER BY 1")).all()
        child = connection.execute(text("SELECT id, total, parent_id FROM jobs ORDER BY id DESC LIMIT 1")).one()
        seeds = connection.execute(
            text("""SELECT array_agg(seed ORDER BY index) FROM payloads WHERE job_id = :id"""), {"id": child.id}
        ).scalar_one()
        first = connection.execute(
            text("SELECT seed FROM payloads WHERE job_id = :id"), {"id": child.parent_id}
        ).scalar_one()
    assert seen == strays
    assert [tuple(row) for row in rows] == [(n, "missing" if n < 100 else "damaged") for n in range(110)]
    assert child.total == 110 and seeds == [first + index for index in range(110)]
    again = audit(database, own)  # what was found is not found again, and orphans are not old enough
    assert (again.counts["missing"], again.counts["damaged"], again.counts["requeued"]) == (0, 0, 0)
    assert (again.counts["orphans"], again.counts["deleted"]) == (1000, 0)
    age(database)
    assert audit(database, own).counts["deleted"] == 1000
    there = set(own.under(""))
    assert not strays & there and set(objects[100:]) <= there
    assert own.key("notes/of/somebody.txt") in there and own.key(installation.MARKER) in there


def test_an_orphan_that_a_record_names_by_now_is_kept(database, settings, own):
    objects = a_job(database, settings, own, 2)
    with database.begin_system() as connection:
        connection.execute(
            text("INSERT INTO storage_orphans (object_key, audit_id) SELECT unnest(CAST(:keys AS text[])), 99"),
            {"keys": objects},
        )
    age(database)
    assert audit(database, own).counts["deleted"] == 0
    assert set(objects) <= set(own.under(""))


@pytest.mark.parametrize("restored", ["database", "store", "recovered", "marker"])
def test_after_a_restore_no_orphan_is_deleted_until_it_was_accepted(database, own, restored):
    strays = orphans(own, 3)
    for key in strays:
        put(own, key)
    assert audit(database, own).refusal is None
    age(database)
    if restored == "database":
        with database.begin_system() as connection:
            connection.execute(text("UPDATE storage_mark SET epoch = epoch - 1"))
    elif restored == "store":
        own.drop(own.key(mark.NAME))
    elif restored == "recovered":
        put(own, own.key(mark.NAME), b'{"epoch": 1, "server": "1/2/3"}')
    else:
        own.drop(own.key(installation.MARKER))
    refused = audit(database, own)
    assert refused.refusal is not None and refused.counts["deleted"] == 0 and strays <= set(own.under(""))
    if restored == "marker":
        installation.claim_prefix(database, own)
    else:
        mark.renew(database, own)
    assert audit(database, own).counts["deleted"] == 3


def test_a_run_that_died_is_continued_and_there_is_one_at_a_time(database, settings, own, monkeypatch):
    a_job(database, settings, own, 4)

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(task, "_list_bucket", dies)
        with pytest.raises(RuntimeError):
            audit(database, own)
    with database.begin_system() as connection:
        [first] = audits.pending(connection)
        assert audits.request(connection, 0.5).id == first.id
        audits.request_due(connection, 7)
    done = audit(database, own)
    assert done.id == first.id and done.counts["records"] == 4
