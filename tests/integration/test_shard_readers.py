"""Exports, datasets, deletion, retention and the storage auditor with images that lie in shards."""

import dataclasses
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.db.database import Database
from services.core.exports import shards as export_shards
from services.core.exports.formats import FORMATS
from services.core.model import ids
from services.core.notify import Notifier
from services.core.retention import due, rules
from services.core.settings import Settings
from services.core.storage import installation, members
from services.core.storage.s3 import S3Store
from tests import collecting, exporting
from tests.factories import TENANT, submit
from tests.integration.test_storage_audit import audit
from tests.render_loops import RenderLoopMaker, images, mugs
from tests.waiting import until
from tests.web import Api
from worker import claim_sizes

COUNT = 48  # in three claims of 16


@pytest.fixture(autouse=True)
def small_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one batch each, however fast they are rendered."""
    monkeypatch.setattr(claim_sizes, "CLAIM_SECONDS", 0.0)


@pytest.fixture
def job(make_render_loop: RenderLoopMaker, database: Database, fast: Settings) -> int:
    """Done and finished, in three shards."""
    render_loop = make_render_loop()
    kinds = ("png", "jpeg", "webp")
    rows = [{**row, "output_format": kinds[n % 3], "metadata": {"n": n}} for n, row in enumerate(mugs(COUNT))]
    job_id = submit(database, fast, rows, head={"store": "shards"})
    render_loop.run()
    exporting.finish(database, job_id)
    return job_id


def shards_of(database: Database, job_id: int) -> set[str]:
    """One for each claim, whose number depends on how fast images are drawn."""
    return {str(image.object_key).partition("#")[0] for image in images(database, job_id)}


@contextmanager
def reads(store: S3Store) -> Iterator[list[str]]:
    """The keys that are read."""
    read, found = store.read_small, []

    def noting(key: str) -> bytes:
        found.append(key)
        return read(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read_small", noting)
        yield found


def unpack(database: Database, store: S3Store, job_id: int) -> None:
    """Makes each image an object of its own."""
    for image in images(database, job_id):
        assert image.object_key is not None
        key = f"test/{job_id}/{image.index}.{image.payload.output_format.replace('jpeg', 'jpg')}"
        store.copy(image.object_key, key)
        with database.begin_system() as connection:
            connection.execute(
                text("UPDATE results SET object_key = :key WHERE job_id = :job_id AND index = :index"),
                {"key": key, "job_id": job_id, "index": image.index},
            )


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_reads_whole_shards_and_is_the_same_as_from_objects(
    form: str, job: int, database: Database, settings: Settings, store: S3Store
) -> None:
    wished: dict[str, Any] = {"split": {"train": 0.5, "val": 0.5}}
    with reads(store) as found:
        first = exporting.export(database, settings, store, job, form, **wished)
    assert first.state == "completed", first.error
    assert len(found) == 2 * len(shards_of(database, job))  # of each split one of each shard
    unpack(database, store, job)
    second = exporting.export(database, settings, store, job, form, **wished)
    assert exporting.sums(database, first.id) == exporting.sums(database, second.id)


def test_an_image_folder_holds_few_large_images_of_shards_at_once(
    job: int, database: Database, settings: Settings, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_shards, "_SHARED_BYTES", 1)  # all are large
    read, put, lock = store.read_small, store.put_file, threading.Lock()
    held = [0]

    def reading(key: str) -> bytes:
        data = read(key)
        with lock:
            held.append(held[-1] + len(data))
        return data

    def putting(key: str, file: Any, media_type: str) -> None:
        size = len(file.getvalue()) if media_type.startswith("image/") else 0
        put(key, file, media_type)
        with lock:
            held.append(held[-1] - size)

    monkeypatch.setattr(store, "read_small", reading)
    monkeypatch.setattr(store, "put_file", putting)
    found = exporting.export(database, settings, store, job, "imagefolder")
    assert found.state == "completed", found.error
    assert 0 < max(held) <= max(image.bytes or 0 for image in images(database, job)) and held[-1] == 0


def test_a_dataset_reads_whole_shards_and_is_the_same_as_from_objects(
    job: int, database: Database, settings: Settings, store: S3Store
) -> None:
    collecting.make(database, job)
    with reads(store) as found:
        collecting.export(database, settings, store)
    assert len(found) == 3
    unpack(database, store, job)
    collecting.make(database, job, name="hats")
    collecting.export(database, settings, store, name="hats")
    shards = {
        name: {path: sha for path, sha in collecting.sums(database, 1, name=name).items() if path.endswith(".tar")}
        for name in ("mugs", "hats")
    }
    assert shards["mugs"] == shards["hats"] and len(shards["mugs"]) == 1


def test_an_image_of_a_shard_that_is_missing_or_has_changed_fails_the_export_in_one_sentence(
    job: int, database: Database, settings: Settings, store: S3Store
) -> None:
    place = members.place(str(images(database, job)[20].object_key))
    assert place is not None
    whole = store.read(place.object_key)
    for damaged, sentence in (
        (whole[: place.begin], "Image 20 has changed in the store"),
        (None, "Image 16 is no longer in the store"),
    ):
        store.drop(place.object_key)
        if damaged is not None:
            store._client.put_object(Bucket=store.bucket, Key=place.object_key, Body=damaged)
        found = exporting.export(database, settings, store, job, "webdataset")
        assert found.state == "failed" and sentence in str(found.error)


def of_job(store: S3Store, job_id: int) -> list[str]:
    return [key for key in store.under("") if f"/{ids.public_job(job_id)}/" in key]


def test_a_deleted_job_takes_each_shard_with_it_once_and_is_not_readable_before(
    job: int, api: Api, database: Database, settings: Settings, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = shards_of(database, job)
    assert sorted(shards) == sorted(of_job(store, job)) and len(shards) > 1
    stray = store.key(f"{next(iter(shards)).rpartition('/')[0]}/00000000-99-{'f' * 16}.tar")
    store.put_file(stray, io.BytesIO(b"of a worker that lost its lease"), "application/x-tar")
    url = api.http.get(f"/v1/jobs/{ids.public_job(job)}/images").json()["data"][0]["url"]
    assert httpx.get(url).status_code == 200
    dropped: list[str] = []
    drop = store.drop

    def noting(key: str) -> None:
        dropped.append(key)
        drop(key)

    monkeypatch.setattr(store, "drop", noting)
    assert api.http.delete(f"/v1/jobs/{ids.public_job(job)}").status_code < 300
    assert httpx.get(url).status_code == 404
    runner = BackgroundTaskRunner(
        database, background_tasks(settings, store, Notifier(settings.redis_url)), "scheduler-1"
    )
    until(lambda: runner.run_once() or not of_job(store, job), 20, every=0.01)
    assert sorted(key for key in dropped if key.endswith(".tar")) == sorted([*shards, stray])


def test_retention_deletes_shards_and_keeps_the_records(
    job: int, database: Database, settings: Settings, store: S3Store
) -> None:
    with database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET finished_at = finished_at - interval '10 days'"))
    with database.begin(TENANT) as connection:
        rules.change(connection, TENANT, {"objects": 7})
    with database.begin_system() as connection:
        due.find(connection)
    exporting.run_once(database, settings, store)
    assert of_job(store, job) == []
    assert len([image for image in images(database, job) if image.sha256]) == COUNT


def test_the_auditor_knows_shards_their_missing_members_and_those_of_nobody(
    make_render_loop: RenderLoopMaker, database: Database, fast: Settings
) -> None:
    own = S3Store(dataclasses.replace(fast, prefix=f"audit-{ids.new()}/"))
    own.prepare()
    installation.claim_prefix(database, own)
    render_loop = make_render_loop(store=own)
    job_id = submit(database, fast, mugs(COUNT), head={"store": "shards"})
    render_loop.run()
    exporting.finish(database, job_id)
    shards = sorted({str(image.object_key).partition("#")[0] for image in images(database, job_id)})
    stray = f"{shards[0].rpartition('-')[0]}-{'f' * 16}.tar"
    own.put_file(stray, io.BytesIO(own.read(shards[0])), "application/x-tar")
    found = audit(database, own)
    names = ("missing", "damaged", "orphans", "foreign_objects", "records")
    assert [found.counts[name] for name in names] == [0, 0, 1, found.counts["foreign_objects"], COUNT]
    assert found.counts["foreign_objects"] <= 3  # the probes and the mark
    whole = own.read(shards[1])
    place = members.place(str(images(database, job_id)[int(shards[1].rpartition("/")[2][:8])].object_key))
    assert place is not None
    at = place.begin + place.size - 1
    own.put_file(shards[1], io.BytesIO(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]), "application/x-tar")
    own.drop(shards[2])
    found = audit(database, own)
    assert [found.counts[name] for name in names[:3]] == [16, 1, 1]
    with database.begin_system() as connection:
        connection.execute(text("UPDATE storage_orphans SET first_seen_at = first_seen_at - interval '8 days'"))
    audit(database, own)
    assert {key for key in own.under("") if key.endswith(".tar")} == set(shards[:2])
