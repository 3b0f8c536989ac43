"""Exports: written with a real database and store, and read back with the programs that they are for."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import text

from services.core.exports import exports, members, records, shards
from services.core.exports.formats import FORMATS
from services.core.model import ids, licenses
from services.core.model.errors import StoreUnavailable
from services.core.storage import signed_urls
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.exporting import picture
from tests.waiting import until

EVERY_FORMAT = tuple(FORMATS)
IMAGES = 19  # of the odd requests
NAMES = [  # index, custom_id, of the first ones
    (0, None),
    (1, "SKU.1"),
    (2, "SKU.1"),
    (3, None),
]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def job_id(database, settings, store) -> int:
    return exporting.finished_job(database, settings, store, flagged=frozenset({18}))


def load(path: Path, tmp_path: Path, kind: str | None = None, **more: Any) -> Any:
    """With `datasets`, as its users do."""
    import datasets

    datasets.disable_progress_bars()
    given = {"data_dir": str(path)} if kind else {}
    return datasets.load_dataset(kind or str(path), cache_dir=str(tmp_path / "cache"), **given, **more)


def test_a_webdataset_is_read_by_webdataset(database, settings, store, job_id, tmp_path):
    import webdataset

    made = exporting.export(database, settings, store, job_id, "webdataset", images_per_shard=7)
    tree = exporting.download(database, store, made.id, tmp_path / "tree")
    shards = sorted(map(str, (tree / "data").iterdir()))
    assert [Path(shard).name for shard in shards] == [f"train-0000{n}-of-00003.tar" for n in range(3)]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{index:09d}" for index in range(IMAGES)]
    for index, sample in enumerate(samples):
        record = json.loads(sample["json"])
        assert record["index"] == index
        assert sample["txt"].decode() == record["prompt"]
        assert sample[{"png": "png", "jpeg": "jpg", "webp": "webp"}[record["output_format"]]] == picture(
            index, record["output_format"]
        )
    last = json.loads(samples[18]["json"])
    assert (last["safety_checked"], last["flagged"], last["unknown_words"]) == (True, True, "zyx wvu")
    first = json.loads(samples[0]["json"])
    assert first == {
        "job_id": ids.public_job(job_id),
        "index": 0,
        "custom_id": "",
        "prompt": "a mug",
        "negative_prompt": "",
        "seed": 2**63 - 1,
        "seed_string": "9223372036854775807",
        "width": 64,
        "height": 64,
        "num_inference_steps": 10,
        "guidance_scale": 7.5,
        "model": "simulated",
        "model_revision": factories.REVISION,
        "output_format": "png",
        "metadata": "{}",
        "sha256": first["sha256"],
        "bytes": len(picture(0)),
        "truncated": False,
        "safety_checked": False,
        "flagged": False,
        "unknown_words": "",
        "reproducibility_class": "test/16",
        "mark": "",
        "scores": "{}",
        "phash": "",
        "input_sha256": "",
        "strength": 0.0,
    }


def test_a_webdataset_of_one_format_is_read_by_datasets_too(database, settings, store, tmp_path):
    requests = [{"prompt": f"mug {n}", "size": "64x64", "n": 3} for n in range(4)]
    job_id = exporting.finished_job(database, settings, store, requests, flagged=frozenset({11}))
    made = exporting.export(database, settings, store, job_id, "webdataset", images_per_shard=5)
    loaded = load(exporting.download(database, store, made.id, tmp_path / "tree"), tmp_path)["train"]
    assert [row["json"]["index"] for row in loaded] == list(range(12))
    assert loaded[11]["png"].size == (16, 16)
    assert loaded[11]["json"]["unknown_words"] == "zyx wvu"


def test_a_zip_holds_pictures_and_a_table_that_no_spreadsheet_runs(database, settings, store, job_id, tmp_path):
    made = exporting.export(database, settings, store, job_id, "zip")
    tree = exporting.download(database, store, made.id, tmp_path)
    with zipfile.ZipFile(tree / "data/train-00000-of-00001.zip") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        lines = [json.loads(line) for line in archive.read("records.jsonl").decode().splitlines()]
        sheet = archive.read("spreadsheet.csv")
        assert sheet.startswith(b"\xef\xbb\xbf")  # so that spreadsheets read UTF-8
        table = list(csv.DictReader(io.StringIO(sheet.decode("utf-8-sig"), newline="")))
        names = set(archive.namelist())
        for line in lines:
            with Image.open(io.BytesIO(archive.read(line["file_name"]))) as drawn:
                assert drawn.format == line["output_format"].upper()
    assert len(lines) == len(table) == IMAGES
    assert names == {line["file_name"] for line in lines} | {"metadata.parquet", "records.jsonl", "spreadsheet.csv"}
    assert [line["file_name"] for line in lines[:3]] == [
        "images/00000000.png",
        "images/SKU~1-00000001.jpg",
        "images/SKU~1-00000002.jpg",
    ]
    for line, row in zip(lines, table, strict=True):
        for cell in row.values():
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
        assert row["prompt"].removeprefix("'") == line["prompt"]
    assert {row["prompt"] for row in table} >= {"'=1+1", "'@sum", "'-3"}


def test_an_image_folder_is_read_by_datasets(database, settings, store, tmp_path):
    job_id = exporting.finished_job(database, settings, store, exporting.odd_requests(30), flagged=frozenset({40, 41}))
    made = exporting.export(
        database, settings, store, job_id, "imagefolder", images_per_shard=10, split={"train": 0.7, "val": 0.3}
    )
    assert made.state == "completed" and made.images_done == made.images_total == 60
    tree = exporting.download(database, store, made.id, tmp_path / "tree")
    assert all(len(list(folder.iterdir())) <= 11 for folder in (tree / "train").iterdir())
    loaded = load(tree, tmp_path)
    assert set(loaded) == {"train", "val"}
    found = {row["index"]: row for split in loaded.values() for row in split}
    assert sorted(found) == list(range(60))
    for index, row in found.items():
        assert row["image"].size == (16, 16)
        assert row["flagged"] == (index in (40, 41))
    assert found[0]["image"].getpixel((0, 0)) == (0, 0, 90)
    splits = {row["custom_id"]: name for name, split in loaded.items() for row in split if row["custom_id"]}
    assert {row["custom_id"]: name for name in loaded for row in loaded[name] if row["custom_id"]} == splits


def test_parquet_is_read_by_datasets_as_images(database, settings, store, job_id, tmp_path):
    import pyarrow.parquet

    made = exporting.export(database, settings, store, job_id, "parquet", images_per_shard=10)
    tree = exporting.download(database, store, made.id, tmp_path / "tree")
    table = pyarrow.parquet.read_table(sorted((tree / "data").iterdir()))
    assert table.column("index").to_pylist() == list(range(IMAGES))
    assert table.column("custom_id").to_pylist()[:4] == [name for _, name in NAMES]
    assert table.column("flagged").to_pylist()[17:] == [None, True]
    assert table.column("unknown_words").to_pylist()[17:] == [[], ["zyx", "wvu"]]
    loaded = load(tree, tmp_path)["train"]
    assert len(loaded) == IMAGES
    assert [row["image"].format for row in loaded][:4] == ["PNG", "JPEG", "JPEG", "WEBP"]
    assert loaded[0]["seed"] == 2**63 - 1


def test_parquet_by_reference_holds_links_that_are_signed(database, settings, store, job_id, tmp_path):
    import pyarrow.parquet

    made = exporting.export(database, settings, store, job_id, "parquet", images="reference")
    tree = exporting.download(database, store, made.id, tmp_path)
    rows_ = pyarrow.parquet.read_table(tree / "data/train-00000-of-00001.parquet").to_pylist()
    assert [row["url"] for row in rows_] == [
        signed_urls.image_url("http://presswork.test", settings.secret, job_id, index) for index in range(IMAGES)
    ]
    assert rows_[0]["url"].startswith(
        f"http://presswork.test/v1/jobs/{ids.public_job(job_id)}/images/0/content?signature="
    )
    assert "image" not in rows_[0]


@pytest.mark.parametrize("form", EVERY_FORMAT)
def test_two_exports_of_a_job_are_the_same_to_the_byte_even_when_one_was_killed_again_and_again(
    database, settings, store, job_id, tmp_path, form
):
    """The store ends its process, so to speak, at every write in turn: before it and after it."""
    wished = {"images_per_shard": 7, "split": {"train": 0.6, "val": 0.4}}
    smooth = exporting.export(database, settings, store, job_id, form, **wished)
    assert smooth.state == "completed" and smooth.images_done == smooth.images_total == IMAGES
    broken = exporting.order(database, job_id, form, **wished)
    deaths = 0
    dying = DyingStore(settings)
    for holder in (f"scheduler-{number}" for number in range(200)):
        dying.puts_left = deaths % 4
        try:
            exporting.run(database, settings, dying, holder)
            break
        except Killed:
            deaths += 1
            exporting.age_leases(database)
    assert deaths >= 4
    found = exporting.read(database, broken)
    assert found is not None and found.state == "completed"
    assert exporting.sums(database, broken) == exporting.sums(database, smooth.id)
    assert (found.bytes, found.images_done) == (smooth.bytes, smooth.images_done)
    exporting.download(database, store, broken, tmp_path)


class Killed(BaseException):
    """No handler of Presswork's catches it, as none catches a kill -9."""


class DyingStore(S3Store):
    """Takes some files, and ends its user when one more has been taken, or just before."""

    puts_left = 1
    before = False

    def put_file(self, key: str, file: Any, media_type: str) -> None:
        if self.puts_left == 0 and self.before:
            self.before = False
            raise Killed
        super().put_file(key, file, media_type)
        if self.puts_left == 0:
            self.before = True
            raise Killed
        self.puts_left -= 1


def test_the_manifest_and_the_sums_tell_of_every_file(database, settings, store, job_id, tmp_path):
    wished = {"images_per_shard": 7, "split": {"val": 0.4, "train": 0.6}}
    made = exporting.export(database, settings, store, job_id, "webdataset", **wished)
    tree = exporting.download(database, store, made.id, tmp_path)
    checked = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=tree, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert checked.stdout.decode().count(": OK\n") == len(files) - 1
    manifest = json.loads((tree / "manifest.json").read_text())
    assert (manifest["version"], manifest["format"], manifest["images"]) == (1, "webdataset", IMAGES)
    assert manifest["job"] == ids.public_job(job_id)
    assert {file["path"] for file in manifest["files"]} == files - {"manifest.json", "SHA256SUMS"}
    assert sum(file["images"] for file in manifest["files"]) == IMAGES
    assert sum(split["images"] for split in manifest["splits"].values()) == IMAGES
    assert sum(split["shards"] for split in manifest["splits"].values()) == len(manifest["files"]) - 1  # README.md
    assert made.bytes == sum((tree / file).stat().st_size for file in files)
    assert ids.public_job(made.id)[4:] not in (tree / "manifest.json").read_text()


def test_what_the_model_s_licence_forbids_goes_with_the_pictures(database, settings, store, job_id, tmp_path):
    plain = exporting.export(database, settings, store, job_id, "zip")
    assert (
        "licence" not in (exporting.download(database, store, plain.id, tmp_path / "plain") / "README.md").read_text()
    )
    rail = licenses.named("openrail++")
    factories.register(database, replace(factories.CARD, license=rail))
    made = exporting.export(database, settings, store, job_id, "zip")
    tree = exporting.download(database, store, made.id, tmp_path / "tree")
    assert json.loads((tree / "manifest.json").read_text())["licenses"] == {"simulated": rail.as_json()}
    text = (tree / "README.md").read_text()
    assert f"## Drawn by simulated\n\nThe model's licence is [CreativeML Open RAIL++-M]({rail.link})." in text
    assert all(f"- {rule}\n" in text for rule in rail.restrictions)


def test_a_shard_ends_where_it_would_grow_too_large(database, settings, store, job_id, monkeypatch):
    monkeypatch.setattr(members, "SHARD_BYTES", 3 * len(picture(0)))
    made = exporting.export(database, settings, store, job_id, "zip")
    assert made.state == "completed" and made.images_done == IMAGES
    assert made.plan is not None and made.plan.splits["train"][0] == made.next_shard - 1 > 4


def test_flagged_images_stay_out_where_that_is_asked_for(database, settings, store, job_id):
    made = exporting.export(database, settings, store, job_id, "zip", include_flagged=False)
    assert (made.state, made.images_total, made.images_done) == ("completed", IMAGES - 1, IMAGES - 1)


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_an_image_that_is_not_what_was_recorded_fails_the_export_by_name(database, settings, store, job_id, harm):
    store.drop(f"test/{job_id}/0.png")
    if harm == "changed":
        store.put(f"test/{job_id}/0.png", b"another picture", "image/png", {}, claim_id=99)
    for form in EVERY_FORMAT:
        made = exporting.export(database, settings, store, job_id, form)
        assert made.state == "failed" and made.finished_at is not None
        assert made.error is not None and made.error.startswith("Image 0 ")
        assert not list(store.under(made.folder))


def test_an_unreachable_store_fails_no_export(database, settings, store, job_id):
    class AwayStore(S3Store):
        def read_small(self, key: str) -> bytes:
            raise StoreUnavailable

    export_id = exporting.order(database, job_id, "webdataset")
    exporting.run_once(database, settings, AwayStore(settings))
    assert exporting.read(database, export_id).state == "running"  # type: ignore[union-attr]
    exporting.age_leases(database)
    exporting.run(database, settings, store, "another")
    assert exporting.read(database, export_id).state == "completed"  # type: ignore[union-attr]


def test_a_writer_that_lost_its_lease_records_nothing(database, settings, store, job_id):
    class StolenStore(S3Store):
        """While it takes a file, another scheduler takes the lease."""

        def put_file(self, key: str, file: Any, media_type: str) -> None:
            super().put_file(key, file, media_type)
            with database.begin_system() as connection:
                connection.execute(text("UPDATE leases SET holder = 'another', epoch = epoch + 1"))

    export_id = exporting.order(database, job_id, "zip")
    exporting.run_once(database, settings, StolenStore(settings))
    late = exporting.read(database, export_id)
    assert late is not None and (late.state, late.next_shard) == ("running", 0)
    assert exporting.sums(database, export_id) == {}
    exporting.run(database, settings, store, "another")
    assert exporting.read(database, export_id).state == "completed"  # type: ignore[union-attr]


def test_no_more_than_a_few_large_pictures_are_in_memory_at_once(database, settings, store, monkeypatch):
    monkeypatch.setattr(shards, "_LOT_BYTES", 1)  # all are large
    requests = [{"prompt": "a mug", "size": "64x64", "n": 60}]
    job_id = exporting.finished_job(database, settings, store, requests)
    asked = 0

    class CountingStore(S3Store):
        def read_small(self, key: str) -> bytes:
            nonlocal asked
            asked += 1
            return super().read_small(key)

    export = replace(
        exporting.read(database, exporting.order(database, job_id, "zip")),
        plan=records.ShardPlan({"train": (1, 60)}, {}),
    )
    writer = shards.ExportWriter(export, CountingStore(settings), settings.secret, lambda: None)
    found = members.of_split(database, export, "train", 0, writer.keep)
    for taken, (member, data) in enumerate(writer.pictures(found), 1):
        assert len(data) == member.bytes
        assert asked <= taken + 16
    assert taken == asked == 60


def test_a_large_file_is_stored_in_parts_and_its_lease_is_kept_meanwhile(database, settings, store, job_id):
    kept = 0

    def keep() -> None:
        nonlocal kept
        kept += 1

    export = exporting.read(database, exporting.order(database, job_id, "zip"))
    content = os.urandom(1 << 20) * 20
    file = io.BytesIO(content)
    found = shards.ExportWriter(export, store, "", keep).put("data/large.zip", file, "application/zip", 1)
    assert store.size(found.object_key) == found.bytes == len(content)
    assert hashlib.sha256(store.read(found.object_key)).digest() == found.sha256
    assert kept >= 3 and not file.closed


def test_what_is_cancelled_deleted_or_expired_leaves_no_object_behind(database, settings, store, job_id):
    """Also of a shard that was stored and not recorded."""
    cancelled = exporting.order(database, job_id, "imagefolder", images_per_shard=5)
    dying = DyingStore(settings)
    with pytest.raises(Killed):
        exporting.run(database, settings, dying)
    exporting.age_leases(database)
    expired = exporting.order(database, job_id, "webdataset")
    removed = exporting.order(database, job_id, "zip")
    before = exporting.read(database, cancelled)
    assert before is not None and before.next_shard == 1
    assert len(list(store.under(before.folder))) == 12  # two folders, one of them recorded
    with database.begin(factories.TENANT) as connection:
        exports.cancel(connection, factories.TENANT, cancelled)
        exports.cancel(connection, factories.TENANT, cancelled)
    exporting.run(database, settings, store)
    with database.begin(factories.TENANT) as connection:
        exports.remove(connection, factories.TENANT, removed)
        connection.execute(text("UPDATE exports SET expires_at = now() WHERE id = :id"), {"id": expired})
    exporting.run(database, settings, store)
    assert list(store.under(f"exports/{factories.TENANT}/{records.public_id(cancelled)}")) == []
    assert list(store.under(f"exports/{factories.TENANT}/{records.public_id(expired)}")) == []
    assert list(store.under(f"exports/{factories.TENANT}/{records.public_id(removed)}")) == []
    found = exporting.read(database, cancelled)
    assert found is not None and (found.state, found.next_shard, found.bytes) == ("cancelled", -1, 0)
    assert exporting.read(database, expired) is exporting.read(database, removed) is None
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM export_files")).scalar_one() == 0


def test_a_scheduler_that_is_killed_leaves_an_export_that_the_next_one_ends(
    database, settings, store, environ, tmp_path
):
    requests = [{"prompt": f"mug {n}", "seed": n, "size": "64x64", "n": 8} for n in range(5)]
    job_id = exporting.finished_job(database, settings, store, requests)
    smooth = exporting.export(database, settings, store, job_id, "webdataset", images_per_shard=1)
    export_id = exporting.order(database, job_id, "webdataset", images_per_shard=1)
    with scheduler(environ) as first:
        until(lambda: exporting.read(database, export_id).next_shard > 5, every=0.01)  # type: ignore[union-attr]
        first.kill()
        first.wait()
    half = exporting.read(database, export_id)
    assert half is not None and half.state == "running" and half.next_shard < 40
    exporting.age_leases(database)
    with scheduler(environ):
        until(lambda: exporting.read(database, export_id).state == "completed")  # type: ignore[union-attr]
    assert exporting.sums(database, export_id) == exporting.sums(database, smooth.id)


class scheduler:  # noqa: N801
    """A real one, as its own process."""

    def __init__(self, environ: dict[str, str]) -> None:
        self._environ = {**os.environ, **environ}

    def __enter__(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scheduler.app"], env=self._environ, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
