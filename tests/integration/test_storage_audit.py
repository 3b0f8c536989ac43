"""The storage auditor: what is planted is found, and nothing else; no orphan is deleted early or after a restore."""

import dataclasses
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from services.core.auditing import audits, mark, owners, records, task
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


def audit(
    database: Database, store: S3Store, share: float = 1.0, days: int = 7, stopping: threading.Event | None = None
) -> Audit:
    with database.begin_system() as connection:
        asked = audits.request(connection, share)
    lease = Lease(database, "audit-storage/test", "scheduler-1", stopping=stopping)
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
        assert mark.renew(database, own, accepts_restore=True) is None
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


def test_an_object_that_a_worker_may_adopt_yet_is_no_orphan(database, settings, own):
    job_id = factories.submit(database, settings, [{"prompt": "a mug"}])
    key = own.key(keys.image_name(TENANT, ids.public_job(job_id), 0, "f" * 64, "png"))
    put(own, key)
    assert audit(database, own).counts["orphans"] == 0
    assert factories.claim(database) is not None
    with database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET state = 'failed', finished_at = now()"))
    assert audit(database, own).counts["orphans"] == 1


def test_a_name_with_a_number_that_no_image_has_is_foreign(database, settings, own):
    job_id = factories.submit(database, settings, [{"prompt": "a mug"}])
    put(own, own.key(f"00/1/{ids.public_job(job_id)}/9999999999-{'f' * 16}.png"))
    found = audit(database, own)
    assert (found.counts["orphans"], found.counts["foreign_objects"]) == (0, 3)  # the marker and the mark


def test_a_prefix_that_is_anothers_by_now_is_left_alone(database, settings, own):
    given_up = f"given-up-{ids.new()}/"
    before = S3Store(dataclasses.replace(settings, prefix=given_up))
    installation.claim_prefix(database, before)
    installation.claim_prefix(database, own)  # the prefix is changed, and both are remembered
    stray = before.key(keys.image_name(TENANT, ids.public_job(ids.new()), 0, "f" * 64, "png"))
    put(before, stray)
    assert audit(database, own).counts["orphans"] == 1
    age(database)
    put(before, before.key(installation.MARKER), b'{"installation": "another"}')
    found = audit(database, own)
    assert (found.counts["orphans"], found.counts["deleted"], found.refusal) == (0, 0, None)
    assert stray in set(own.under(""))


def test_a_prefix_within_another_is_listed_once_and_after_any_key(database, settings, own):
    inner = S3Store(dataclasses.replace(settings, prefix=f"{own.prefix}inner/"))
    installation.claim_prefix(database, inner)
    installation.claim_prefix(database, own)
    written = sorted([inner.key("b"), own.key("z"), own.key("a")])
    for key in written:
        put(own, key)
    every = list(own.under(""))
    assert len(every) == len(set(every)) and every == sorted(every)
    assert [key for key in every if key in written] == written
    assert list(own.under("", written[0])) == every[every.index(written[0]) + 1 :]


def test_a_run_that_was_stopped_goes_on_where_it_was_and_counts_once(database, settings, own, monkeypatch):
    a_job(database, settings, own, 12)
    strays = orphans(own, 30)
    for key in strays:
        put(own, key)
    monkeypatch.setattr(task, "_AT_ONCE", 10)
    stopping = threading.Event()
    look, looks = owners.orphans, 0

    def stopped(*given):
        nonlocal looks
        looks += 1
        if looks == 2:
            stopping.set()
        return look(*given)

    monkeypatch.setattr(owners, "orphans", stopped)
    before = audit(database, own, stopping=stopping)
    assert (before.step, before.counts["objects"]) == ("listing", 20)
    found = audit(database, own)
    assert found.id == before.id
    assert found.counts["objects"] == len([key for key in own.under("") if not key.endswith(mark.NAME)])
    assert [found.counts[name] for name in ("orphans", "records")] == [30, 12]
    age(database)
    looks, stopping = -4, threading.Event()  # five thousands are listed, and of the orphans one is looked up
    half = audit(database, own, stopping=stopping)
    assert half.step == "orphans" and half.finished_at is None and half.counts["deleted"] == 10
    assert audit(database, own).counts["deleted"] == 30
    assert not strays & set(own.under(""))


def test_a_run_that_was_stopped_within_a_job_goes_on_there(database, settings, own, monkeypatch):
    lost = a_job(database, settings, own, 10)
    a_job(database, settings, own, 3)
    own.drop(lost[1])
    own.drop(lost[8])
    monkeypatch.setattr(records, "_AT_ONCE", 4)
    read, reads, stopping = own.read_small, [], threading.Event()

    def read_small(key: str) -> bytes:
        reads.append(key)
        if len(reads) == 6:
            stopping.set()
        return read(key)

    monkeypatch.setattr(own, "read_small", read_small)
    half = audit(database, own, stopping=stopping)
    assert (half.step, half.counts["records"], half.counts["missing"]) == ("records", 4, 1)
    reads.clear()
    found = audit(database, own)
    assert found.id == half.id and not set(lost[:4]) & set(reads), "what was looked at is not read again"
    assert [found.counts[name] for name in ("records", "sampled", "missing", "damaged")] == [13, 13, 2, 0]


def test_a_job_that_is_deleted_while_a_run_is_within_it_shifts_nothing(database, settings, own, monkeypatch):
    gone = a_job(database, settings, own, 6)
    a_job(database, settings, own, 6)
    monkeypatch.setattr(records, "_AT_ONCE", 4)
    stopping = threading.Event()
    advance = audits.advance

    def stops(*given, **values):
        advance(*given, **values)
        stopping.set()

    with monkeypatch.context() as stopped:
        stopped.setattr(audits, "advance", stops)
        assert audit(database, own, stopping=stopping).at_index == 3
    with database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET deleted_at = now() WHERE id = (SELECT min(id) FROM jobs)"))
    for key in gone:
        own.drop(key)
    found = audit(database, own)
    assert [found.counts[name] for name in ("records", "missing")] == [4 + 6, 0]


def test_the_members_of_a_shard_are_read_at_once(database, settings, own, monkeypatch):
    job_id = factories.submit(database, settings, [{"prompt": "a mug", "n": 6}])
    claim = factories.claim(database)
    shard = own.key(keys.shard_name(TENANT, ids.public_job(job_id), 0, claim.id, "f" * 64))
    step = len(PICTURE)
    put(own, shard, PICTURE * 3 + b"a pictura" + PICTURE[:4])  # the fourth is another, the fifth is cut, the sixth gone
    stored = [
        dataclasses.replace(result, object_key=f"{shard}#{step * nth}+{step}")
        for nth, result in enumerate(factories.stored(claim, PICTURE))
    ]
    factories.settle(database, claim, stored=stored)
    exporting.finish(database, job_id)
    read, reads = own.read_small, []

    def read_small(key: str) -> bytes:
        reads.append(key)
        return read(key)

    monkeypatch.setattr(own, "read_small", read_small)
    found = audit(database, own)
    assert reads == [f"{shard}#0+{step * 6}"]
    assert [found.counts[name] for name in ("records", "sampled", "missing", "damaged")] == [6, 6, 1, 2]


def test_a_listing_knows_what_is_there(own):
    folder = keys.image_folders(TENANT, "job_x", 1)[0]
    names = [f"{folder}{number:08d}-{number}.png" for number in range(40)]
    for name in names:
        put(own, own.key(name))
    there = records.Listing(own, [folder], lambda: None)
    assert all(own.key(name) in there for name in names)
    absent = [own.key(f"{folder}99999999-{number}.png") for number in range(1_000)]
    assert not any(key in there for key in (*absent, own.key("00/1/job_y/00000000-0.png"), "short"))


def test_what_was_found_of_a_job_goes_when_the_job_is_gone(database, own):
    with database.begin_system() as connection:
        connection.execute(
            text("INSERT INTO storage_findings (job_id, index, kind, audit_id) VALUES (7, 0, 'missing', 1)")
        )
    audit(database, own)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM storage_findings")).scalar_one() == 0
