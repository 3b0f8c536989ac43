"""Datasets: versions that grow out of jobs, with a real database and store, read back as their users read them."""

import errno
import json
import tarfile
import zlib
from array import array
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.core.datasets import card, dataset_records, datasets, planning
from services.core.datasets.definition import DatasetChanges
from services.core.deletion import jobs as deletion
from services.core.exports import members
from services.core.model import ids, metadata_types
from services.core.model.errors import Conflict, NotFound, StoreRefused
from services.core.storage.s3 import S3Store
from tests import collecting, exporting, factories
from tests.collecting import TENANT

SPLIT = {"train": 0.5, "val": 0.5}


def captions(count: int, *, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"mug {first + n}", "size": "64x64", "seed": first + n, **more} for n in range(count)]


def samples(folder: Path) -> dict[str, dict[str, Any]]:
    """Every record of a WebDataset by its key, each key once."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "data").glob("*.tar")):
        with tarfile.open(path) as tar:
            for entry in tar:
                key, _, kind = entry.name.partition(".")
                if kind == "json":
                    assert key not in found
                    found[key] = {"shard": path.name} | json.load(tar.extractfile(entry))  # type: ignore[arg-type]
    return found


def prompts(folder: Path) -> list[str]:
    return sorted(record["prompt"] for record in samples(folder).values())


def test_a_version_keeps_its_shards_and_writes_new_images_to_new_ones(database, settings, store, tmp_path):
    first = collecting.rendered(database, settings, store, captions(12), failed=frozenset({3, 4}))
    collecting.make(database, first, split=SPLIT, images_per_shard=3)
    one = collecting.export(database, settings, store)
    assert (one.state, one.number, one.images, one.images_written) == ("completed", 1, 10, 10), one.error
    second = collecting.rendered(database, settings, store, captions(5, first=100))
    retry = collecting.retried(database, settings, store, first)
    collecting.add(database, second)
    two = collecting.export(database, settings, store)
    assert (two.state, two.images, two.images_written) == ("completed", 17, 7), two.error
    before, after = collecting.sums(database, 1), collecting.sums(database, 2)
    assert {path: after[path] for path in before if path.startswith("data/")}.items() <= after.items()
    tree = collecting.download(database, store, 2, tmp_path)
    found = samples(tree)
    assert prompts(tree) == sorted([f"mug {n}" for n in range(12)] + [f"mug {100 + n}" for n in range(5)])
    assert {key for key in found if key.startswith(ids.public_job(retry))} == {
        f"{ids.public_job(retry)}-{n:09d}" for n in range(2)
    }
    told = collecting.manifest(tree)
    assert {entry["job"]: (entry["retry_of"], entry["images"]) for entry in told["jobs"]} == {
        ids.public_job(first): (None, 10),
        ids.public_job(retry): (ids.public_job(first), 2),
        ids.public_job(second): (None, 5),
    }
    assert (told["dataset"], told["number"], told["base"], told["removed"]) == ("mugs", 2, 1, [])
    assert sum(split["images"] for split in told["splits"].values()) == told["images"] == 17
    listed = {entry["path"]: entry["sha256"] for entry in told["files"]}
    assert listed == {path: digest for path, digest in after.items() if path not in ("manifest.json", "SHA256SUMS")}


def test_what_was_rejected_or_deleted_since_is_listed_and_its_shards_alone_are_written_again(
    database, settings, store, tmp_path
):
    first = collecting.rendered(database, settings, store, captions(9))
    second = collecting.rendered(database, settings, store, captions(3, first=50))
    collecting.make(database, first, second, images_per_shard=3)
    collecting.export(database, settings, store)
    collecting.mark(database, first, [4], "rejected")
    collecting.mark(database, first, [0], "starred")
    with database.begin_system() as connection:
        deletion.delete(connection, TENANT, second)
    two = collecting.export(database, settings, store)
    assert (two.state, two.images, two.images_written) == ("completed", 8, 2), two.error
    before, after = collecting.sums(database, 1), collecting.sums(database, 2)
    changed = {"data/train-00001.tar", "data/train-00003.tar"}
    assert {path for path in before if path.endswith(".tar")} - set(after) == changed
    assert {path for path in after if path.endswith(".tar")} - set(before) == {"data/train-00001-v2.tar"}
    tree = collecting.download(database, store, 2, tmp_path)
    told = collecting.manifest(tree)
    public = [ids.public_job(job) for job in (first, second)]
    assert sorted((one["job"], one["index"], one["why"]) for one in told["removed"]) == sorted(
        [(public[0], 4, "rejected"), *((public[1], n, "deleted") for n in range(3))]
    )
    assert told["jobs_gone"] == [public[1]]
    assert prompts(tree) == sorted(f"mug {n}" for n in range(9) if n != 4)
    collecting.mark(database, first, [4], None)
    three = collecting.export(database, settings, store)
    assert (three.images, three.images_written) == (9, 1)
    assert "data/train-00004.tar" in collecting.sums(database, 3)
    assert prompts(collecting.download(database, store, 1, tmp_path / "old"))  # the first version stays readable


@pytest.mark.parametrize("form", ["webdataset", "parquet", "imagefolder", "zip"])
def test_datasets_reads_every_format_of_a_version_that_has_grown_and_shrunk(
    database, settings, store, tmp_path, monkeypatch, form
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    wanted = captions(12, metadata={"lang": "en", "weight": 1})
    first = collecting.rendered(database, settings, store, wanted)
    collecting.make(database, first, split=SPLIT, images_per_shard=3, format=form)
    collecting.export(database, settings, store)
    more = captions(6, first=40, metadata={"lang": "de", "weight": 0.5, "new": True})
    collecting.add(database, collecting.rendered(database, settings, store, more))
    collecting.mark(database, first, [2], "rejected")
    two = collecting.export(database, settings, store)
    assert (two.state, two.images) == ("completed", 17), two.error
    tree = collecting.download(database, store, 2, tmp_path / "tree")
    (tree / "data").mkdir(exist_ok=True)
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(str(tree), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in loaded.values() for row in split]
    if form == "webdataset":
        assert all(row["png"].size == (16, 16) for row in rows)
        rows = [row["json"] for row in rows]
    else:
        if form != "zip":
            assert all(row["image"].size == (16, 16) for row in rows)
        assert {(row["metadata.lang"], row["metadata.weight"]) for row in rows} == {("en", 1.0), ("de", 0.5)}
        assert {row["metadata.new"] for row in rows} == {None, True}
    assert sorted(row["prompt"] for row in rows) == sorted(
        one["prompt"] for one in [*wanted, *more] if one["seed"] != 2
    )
    told = collecting.manifest(tree)["splits"]
    assert {name: len(split) for name, split in loaded.items()} == {
        name: split["images"] for name, split in told.items() if split["images"]
    }


class Killed(BaseException):
    pass


class DyingStore(S3Store):
    puts_left = 0

    def put_file(self, key: str, file: Any, media_type: str) -> None:
        if self.puts_left == 0:
            raise Killed
        super().put_file(key, file, media_type)
        self.puts_left -= 1
        if self.puts_left == 0:
            raise Killed


def test_the_same_inputs_give_the_same_bytes_however_often_the_writer_was_killed(database, settings, store):
    first = collecting.rendered(database, settings, store, captions(9), failed=frozenset({1}))
    retry = collecting.retried(database, settings, store, first)
    smooth: dict[int, dict[str, str]] = {}
    for name in ("mugs", "again"):
        collecting.make(database, first, name=name, images_per_shard=3, split=SPLIT)
    collecting.export(database, settings, store, name="mugs")
    dying = DyingStore(settings)
    deaths = 0

    def write_dying() -> None:
        nonlocal deaths
        for holder in (f"scheduler-{n}" for n in range(100)):
            dying.puts_left = deaths % 8
            try:
                collecting.run(database, settings, dying, holder)
                return
            except Killed:
                deaths += 1
                collecting.age_leases(database)
                with database.begin(TENANT) as connection:  # nothing half-visible
                    found = dataset_records.find(connection, TENANT, "again")
                    assert found.version == done

    done = 0
    collecting.order(database, name="again")
    write_dying()
    collecting.mark(database, retry, [0], "rejected")
    collecting.mark(database, first, [5], "rejected")
    collecting.export(database, settings, store, name="mugs")
    done = 1
    collecting.order(database, name="again")
    write_dying()
    assert deaths >= 6
    for number in (1, 2):
        smooth[number] = collecting.sums(database, number, "mugs")
        broken = collecting.sums(database, number, "again")
        shards = {path for path in smooth[number] if path.startswith("data/")}
        assert shards and {path: broken[path] for path in shards} == {path: smooth[number][path] for path in shards}
        assert set(broken) == set(smooth[number])


def test_a_writer_that_goes_on_describes_jobs_as_its_predecessor_found_them(database, settings, store):
    job = collecting.rendered(database, settings, store, captions(4), finish=False, head={"labels": {"run": "monday"}})
    collecting.make(database, job, images_per_shard=3)
    collecting.order(database, while_running=True)
    dying = DyingStore(settings)
    dying.puts_left = 1
    with pytest.raises(Killed):
        collecting.run(database, settings, dying)
    collecting.age_leases(database)
    before = collecting.version(database, 1)
    exporting.finish(database, job)
    with database.begin_system() as connection:
        connection.execute(text('UPDATE jobs SET labels = \'{"run": "tuesday"}\''))
    collecting.run(database, settings, store)
    files, after = collecting.files(database, 1), collecting.version(database, 1)
    described, told = (store.read(files[path].object_key).decode() for path in ("README.md", "manifest.json"))
    assert "run: monday" in described and "tuesday" not in described
    [status] = [one["status"] for one in json.loads(told)["jobs"]]
    assert status in described and status != "completed"
    assert (before.state, after.state, before.plan) == ("running", "completed", after.plan)


def test_a_version_that_the_release_before_has_planned_is_written_and_compared(database, settings, store, tmp_path):
    first = collecting.rendered(database, settings, store, captions(4), head={"labels": {"run": "monday"}})
    collecting.make(database, first, images_per_shard=2)
    collecting.export(database, settings, store)
    collecting.mark(database, first, [1], "rejected")
    dying = DyingStore(settings)
    collecting.order(database)
    with pytest.raises(Killed):
        collecting.run(database, settings, dying)
    collecting.age_leases(database)
    told = zlib.compress(json.dumps([[ids.public_job(first), 1, "rejected"]]).encode())
    with database.begin_system() as connection:
        connection.execute(text("UPDATE dataset_jobs SET state = NULL, labels = NULL"))
        connection.execute(text("UPDATE dataset_versions SET removed = :told WHERE number = 2"), {"told": told})
    collecting.run(database, settings, store)
    tree = collecting.download(database, store, 2, tmp_path)
    assert collecting.manifest(tree)["removed"] == [{"job": ids.public_job(first), "index": 1, "why": "rejected"}]
    assert collecting.manifest(tree)["jobs"][0]["status"] == "completed"
    assert "run: monday" in (tree / "README.md").read_text()


def test_a_picture_that_two_retries_have_rendered_counts_once(database, settings, store, tmp_path):
    first = collecting.rendered(database, settings, store, captions(6), failed=frozenset({1, 2}))
    collecting.make(database, first)
    one = collecting.retried(database, settings, store, first)
    assert collecting.export(database, settings, store).images == 6
    collecting.retried(database, settings, store, first)
    again = collecting.export(database, settings, store)
    assert (again.images, again.images_written) == (6, 0)
    with database.begin_system() as connection:
        deletion.delete(connection, TENANT, one)
    third = collecting.export(database, settings, store)
    assert (third.images, third.images_written) == (6, 6)  # the shard is written again without them, and they anew
    assert prompts(collecting.download(database, store, 3, tmp_path)) == [f"mug {n}" for n in range(6)]


def test_no_picture_is_lost_when_two_retries_have_rendered_different_ones_of_the_same_words(
    database, settings, store, tmp_path
):
    """Two that differ in guidance alone, and two that are the same in all."""
    same = {"prompt": "a mug", "size": "64x64", "seed": 42}
    wanted = [{**same, "guidance_scale": 5.0}, {**same, "guidance_scale": 7.0}, same, same]
    first = collecting.rendered(database, settings, store, wanted, failed=frozenset(range(4)))
    collecting.make(database, first)
    for indexes in ([0, 2], [1, 3], [0, 1, 2, 3]):
        collecting.retried(database, settings, store, first, indexes=indexes)
    one = collecting.export(database, settings, store)
    assert (one.state, one.images) == ("completed", 4), one.error
    records = samples(collecting.download(database, store, 1, tmp_path)).values()
    assert sorted(record["guidance_scale"] for record in records)[::3] == [5.0, 7.5]


def test_what_is_kept_for_a_job_is_made_once_however_many_images_it_has(database, settings, store, monkeypatch):
    made: list[int] = []
    monkeypatch.setattr(planning, "bytearray", lambda size: made.append(size) or bytearray(size), raising=False)
    collecting.make(database, collecting.rendered(database, settings, store, captions(9)))
    collecting.export(database, settings, store)
    assert made == [9, 9]  # what the base holds of it, and what is taken


@pytest.mark.parametrize("source", ["id", "label"])
def test_retries_stay_once_when_their_first_job_or_one_between_is_deleted(database, settings, store, source):
    wanted = captions(4)
    first = collecting.rendered(
        database, settings, store, wanted, failed=frozenset({1, 2, 3}), head={"labels": {"run": "a"}}
    )
    collecting.make(database, *([first] if source == "id" else []), labels=[] if source == "id" else ["run:a"])
    between = collecting.retried(database, settings, store, first, failed=frozenset({2}))
    collecting.retried(database, settings, store, between)
    collecting.retried(database, settings, store, first, indexes=[1])
    assert collecting.export(database, settings, store).images == 4
    for job, images in ((between, 3), (first, 2)):
        with database.begin_system() as connection:
            deletion.delete(connection, TENANT, job)
            connection.execute(text("SELECT presswork_delete_images(:id, 0, 9)"), {"id": job})
            while connection.execute(text("SELECT presswork_delete_job(:id, 100)"), {"id": job}).scalar_one():
                pass
            assert not connection.execute(text("SELECT count(*) FROM jobs WHERE id = :id"), {"id": job}).scalar_one()
        found = collecting.export(database, settings, store)
        assert (found.state, found.images) == ("completed", images), found.error


def test_filters_take_what_they_say(database, settings, store, tmp_path):
    wanted = [*captions(4, metadata={"lang": "en"}), *captions(4, first=10, metadata={"lang": "de"})]
    job = collecting.rendered(database, settings, store, wanted, head={"labels": {"run": "a"}})
    collecting.mark(database, job, [1, 5], "accepted")
    collecting.mark(database, job, [0], "rejected")
    for name, filters, images in (
        ("all", {}, 7),
        ("marked", {"marks": ["accepted"]}, 2),
        ("with", {"marks": ["accepted", "rejected", "none"]}, 8),
        ("english", {"metadata": ["lang=en"]}, 3),
        ("both", {"metadata": ["metadata.lang!=en"], "marks": ["accepted"]}, 1),
        ("unflagged", {"flagged": False}, 7),
        ("known", {"unknown_words": False}, 7),
        ("later", {"after": "2100-01-01T00:00:00Z"}, 0),
        ("before", {"before": "2100-01-01T00:00:00+02:00"}, 7),
        ("cancelled", {"statuses": ["cancelled"]}, 0),
    ):
        collecting.make(database, name=name, labels=["run:a"], filters=filters)
        try:
            found = collecting.export(database, settings, store, name=name)
            assert (found.state, found.images) == ("completed" if images else "failed", images), (name, found.error)
            assert images or found.error == "No image of the dataset's jobs is done and fits its filters."
        except Conflict:
            assert name == "cancelled"


def test_a_version_of_running_jobs_has_what_is_done_and_the_next_one_the_rest(database, settings, store, tmp_path):
    factories.register(database)
    job = factories.submit(database, settings, captions(40))
    claim = factories.claim(database)
    assert claim is not None
    collecting.make(database, job)
    with pytest.raises(Conflict, match="; wait for it, or ask for a version while it is running"):
        collecting.order(database)
    stored = []
    for image, result in zip(claim.images, factories.stored(claim), strict=True):
        data = exporting.picture(image.index)
        store.put(f"test/{job}/{image.index}", data, "image/png", {}, claim_id=claim.id)
        stored.append(
            collecting.replace(
                result, object_key=f"test/{job}/{image.index}", sha256=collecting.hashlib.sha256(data).digest(),
                bytes=len(data),
            )
        )  # fmt: skip
    factories.settle(database, claim, stored=stored)
    one = collecting.export(database, settings, store, while_running=True)
    assert (one.state, one.images) == ("completed", len(stored)), one.error
    collecting.rendered(database, settings, store, job)
    two = collecting.export(database, settings, store)
    assert (two.images, two.images_written) == (40, 40 - len(stored))
    three = collecting.export(database, settings, store, while_running=True)  # it may, and no job is
    cards = [store.read(collecting.files(database, n)["README.md"].object_key).decode() for n in (1, 2, three.number)]
    assert ["still being rendered" in card for card in cards] == [True, False, False]
    assert len(samples(collecting.download(database, store, 2, tmp_path))) == 40


def test_what_cannot_be_a_version_is_said_in_one_sentence(database, settings, store):
    collecting.make(database)
    with pytest.raises(Conflict, match="The dataset has no source: add jobs or labels"):
        collecting.order(database)
    with pytest.raises(Conflict, match="There is a dataset mugs already"):
        collecting.make(database)
    with pytest.raises(NotFound, match="There is no job job_0000000000000"):
        collecting.make(database, 0, name="none")
    collecting.add(database, labels=["run:nightly"])
    with pytest.raises(Conflict, match="No job has the label run:nightly"):
        collecting.order(database)
    job = collecting.rendered(database, settings, store, captions(3), head={"labels": {"run": "nightly"}})
    assert collecting.order(database) == 1
    with pytest.raises(Conflict, match="Version 1 of mugs is being written; wait for it, or cancel it"):
        collecting.order(database)
    collecting.run(database, settings, store)
    with database.begin_system() as connection:
        deletion.delete(connection, TENANT, job)
    collecting.make(database, name="other", labels=["run:nightly"])
    with pytest.raises(Conflict, match="No job has the label run:nightly"):
        collecting.order(database, name="other")


def test_a_job_is_not_deleted_while_a_version_is_written_from_it(database, settings, store, monkeypatch):
    from services.core.datasets import dataset_task

    job = collecting.rendered(database, settings, store, captions(3))
    collecting.make(database, job)
    number = collecting.order(database)

    def refused(*_: Any) -> bool:
        with database.begin_system() as connection, pytest.raises(Conflict, match="A version of the dataset mugs"):
            deletion.delete(connection, TENANT, job)
        return whole(*_)

    whole = dataset_task._write_shard
    monkeypatch.setattr(dataset_task, "_write_shard", refused)
    collecting.run(database, settings, store)
    assert collecting.version(database, number).state == "completed"


def test_metadata_of_mixed_types_names_both_places_or_becomes_text(database, settings, store):
    first = collecting.rendered(database, settings, store, captions(2, metadata={"size": 3}))
    second = collecting.rendered(database, settings, store, captions(2, first=9, metadata={"size": "large"}))
    collecting.make(database, first, second, format="parquet")
    failed = collecting.export(database, settings, store)
    assert failed.state == "failed"
    assert failed.error == (
        f"metadata.size is a whole number in {ids.public_job(first)}/0 and text in {ids.public_job(second)}/0; a "
        "column has one type: leave one of the jobs out, or make it text with --text size."
    )
    collecting.make(database, first, second, name="text", format="parquet", types={"size": "text"})
    assert collecting.export(database, settings, store, name="text").columns == {"size": "text"}
    collecting.make(database, first, second, name="tars")
    assert collecting.export(database, settings, store, name="tars").state == "completed"


def test_metadata_of_too_many_names_are_no_columns_from_then_on_in_any_shard(database, settings, store, monkeypatch):
    monkeypatch.setattr(metadata_types, "MOST", 2)
    columns, written = [], []
    collecting.make(database, format="parquet")
    for seed, name in enumerate("abca"):
        more = captions(1, first=seed, metadata={name: 1})
        collecting.add(database, collecting.rendered(database, settings, store, more))
        found = collecting.export(database, settings, store)
        columns.append(len(found.columns))
        written.append(found.images_written)
    assert (columns, written) == ([1, 2, 0, 0], [1, 1, 3, 1])  # the third writes the shards with columns again


def test_what_is_cancelled_failed_or_deleted_leaves_nothing_behind(database, settings, store):
    job = collecting.rendered(database, settings, store, captions(5))
    collecting.make(database, job, images_per_shard=2)
    collecting.export(database, settings, store)
    store.drop(f"test/{job}/3.png")
    collecting.mark(database, job, [2], "rejected")
    failed = collecting.export(database, settings, store)
    assert failed.state == "failed" and "Image 3 is no longer in the store" in str(failed.error)
    with database.begin(TENANT) as connection:
        dataset = dataset_records.find(connection, TENANT, "mugs")
    assert dataset.version == 1 and not list(store.under(dataset.folder(2)))
    assert len(list(store.under(dataset.folder(1)))) == len(collecting.sums(database, 1)) == 3 * 2 + 6
    collecting.mark(database, job, [2], None)
    number = collecting.order(database)
    with database.begin(TENANT) as connection:
        collecting.datasets.cancel(connection, TENANT, "mugs", number)
        collecting.datasets.cancel(connection, TENANT, "mugs", number)
        with pytest.raises(Conflict, match="only one at work can be cancelled"):
            collecting.datasets.cancel(connection, TENANT, "mugs", 1)
    collecting.run(database, settings, store)
    with database.begin(TENANT) as connection:
        collecting.datasets.remove(connection, TENANT, "mugs")
    collecting.run(database, settings, store)
    assert not list(store.under(dataset.folder()))
    with database.begin_system() as connection:
        assert dataset_records.read(connection, dataset.id) is None


def test_one_version_is_written_at_a_time_whatever_of_an_older_one_is_still_stored(database, settings, store):
    collecting.make(database, collecting.rendered(database, settings, store, captions(1)))
    number = collecting.order(database)
    with database.begin(TENANT) as connection:
        collecting.datasets.cancel(connection, TENANT, "mugs", number)
    collecting.order(database)
    with pytest.raises(Conflict, match="Version 2 of mugs is being written"):
        collecting.order(database)


class FullStore(S3Store):
    """A bucket that is full after a while."""

    room = 3
    refusal: Exception = StoreRefused("The object store refuses with QuotaExceeded: the bucket is full.")

    def put_file(self, key: str, file: Any, media_type: str) -> None:
        if self.room == 0:
            raise self.refusal
        self.room -= 1
        super().put_file(key, file, media_type)


def test_a_bucket_that_is_full_in_mid_shard_shows_nothing_and_the_version_ends_once_there_is_room(
    database, settings, store, monkeypatch
):
    job = collecting.rendered(database, settings, store, captions(6))
    collecting.make(database, job, images_per_shard=2)
    number = collecting.order(database)
    full = FullStore(settings)
    collecting.run_once(database, settings, full)
    stuck = collecting.version(database, number)
    assert (stuck.state, stuck.error) == ("running", "The object store refuses with QuotaExceeded: the bucket is full.")
    collecting.age_leases(database)
    full.refusal = OSError(errno.ENOSPC, "No space left on device")
    collecting.run_once(database, settings, full)
    stuck = collecting.version(database, number)
    assert stuck.error == "The scheduler's disk for temporary files is full; the version goes on once there is room."
    with database.begin(TENANT) as connection, pytest.raises(NotFound, match="has no version yet"):
        dataset_records.completed(connection, dataset_records.find(connection, TENANT, "mugs"), None)
    with (
        database.begin(TENANT) as connection,
        pytest.raises(NotFound, match="Version 1 of the dataset mugs is running"),
    ):
        dataset_records.completed(connection, dataset_records.find(connection, TENANT, "mugs"), 1)
    collecting.age_leases(database)
    collecting.run(database, settings, store)
    ended = collecting.version(database, number)
    assert (ended.state, ended.error, ended.images) == ("completed", None, 6)


def test_energon_finds_the_shards_and_where_each_sample_begins(database, settings, store, tmp_path):
    job = collecting.rendered(database, settings, store, captions(7))
    collecting.make(database, job, images_per_shard=3, split=SPLIT)
    collecting.export(database, settings, store)
    tree = collecting.download(database, store, 1, tmp_path)
    counts = json.loads((tree / ".nv-meta/.info.json").read_text())["shard_counts"]
    parts = json.loads((tree / ".nv-meta/split.yaml").read_text())["split_parts"]
    assert sum(counts.values()) == 7
    assert sorted(path for paths in parts.values() for path in paths) == sorted(counts)
    for path, images in counts.items():
        index = array("Q", (tree / f"{path}.idx").read_bytes())
        with tarfile.open(tree / path) as tar:
            begins = [entry.offset for entry in tar][::3]
            assert (len(begins), list(index)) == (images, [*begins, tar.offset])


def test_a_label_in_the_card_is_words_and_no_markup():
    assert card._plain("a|b \n<img src=x>") == "a&#124;b &#60;img src=x&#62;"


def test_a_shard_is_full_at_its_size(database, settings, store, monkeypatch):
    monkeypatch.setattr(members, "SHARD_BYTES", 3 * len(exporting.picture(1)))
    job = collecting.rendered(database, settings, store, captions(7))
    collecting.make(database, job)
    collecting.export(database, settings, store)
    assert len([path for path in collecting.sums(database, 1) if path.endswith(".tar")]) >= 2


def test_the_image_folder_is_read_by_the_builder_of_that_name_too(database, settings, store, tmp_path, monkeypatch):
    """It does not read README.md, so it finds the splits by the folders' names; it takes the types of our table."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    wanted = captions(9, metadata={"lang": "en", "weight": 1, "day": "2024-01-01"})
    first = collecting.rendered(database, settings, store, wanted)
    collecting.make(database, first, split=SPLIT, images_per_shard=2, format="imagefolder")
    collecting.export(database, settings, store)
    collecting.mark(database, first, [2], "rejected")
    collecting.add(database, collecting.rendered(database, settings, store, captions(3, first=40)))
    two = collecting.export(database, settings, store)
    tree = collecting.download(database, store, 2, tmp_path / "tree")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tree), cache_dir=str(tmp_path / "cache"))
    assert two.plan is not None
    counts = {name: images for name, (_, images) in two.plan.counted.splits.items()}
    assert {name.replace("validation", "val"): len(split) for name, split in loaded.items()} == counts
    rows = [row for split in loaded.values() for row in split]
    assert {row["image"].size for row in rows} == {(16, 16)}
    assert sorted(row["prompt"] for row in rows) == sorted(
        [f"mug {n}" for n in range(9) if n != 2] + [f"mug {40 + n}" for n in range(3)]
    )
    assert {(row["metadata.lang"], row["metadata.weight"], row["metadata.day"]) for row in rows} == {
        ("en", 1, "2024-01-01"), (None, None, None),
    }  # fmt: skip


def test_what_is_missing_is_listed_by_its_cause(database, settings, store, tmp_path):
    first, second, third = (
        collecting.rendered(database, settings, store, captions(3, first=10 * n, metadata={"n": n})) for n in range(3)
    )
    collecting.make(database, first, second, third, images_per_shard=2)
    collecting.export(database, settings, store)
    collecting.mark(database, first, [2, 0], "rejected")
    collecting.add(database, second, remove=True)
    changed = DatasetChanges.model_validate({"filters": {"metadata": ["n!=2"]}})
    with database.begin(TENANT) as connection:
        datasets.change(connection, TENANT, "mugs", changed)
    collecting.export(database, settings, store)
    told = collecting.manifest(collecting.download(database, store, 2, tmp_path))
    public = [ids.public_job(job) for job in (first, second, third)]
    assert [(one["job"], one["index"], one["why"]) for one in told["removed"]] == [
        (public[0], 0, "rejected"), (public[0], 2, "rejected"),
        *((public[1], n, "no source") for n in range(3)), *((public[2], n, "filtered") for n in range(3)),
    ]  # fmt: skip
