"""What `datasets`, `webdataset`, pyarrow, polars and duckdb read back is what was asked for, in every form.

Polars and duckdb are large: `make loaders` installs them and runs this file.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from services.cli.app import app
from services.core.exports.formats import FORMATS
from services.core.exports.options import Options
from services.core.model import ids
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests import exporting
from tests.exporting import picture
from tests.web import Api, open_api

SPLIT = {"train": 0.5, "train_extra": 0.25, "holdout": 0.25}
# Alike dates, numbers, booleans, nulls, parts of paths and names of splits and files; all of a column, in its order.
IDS = [f"2024-01-{day:02}" for day in range(1, 13)]
ODD_IDS = ["007", "1e5", "NaN", "true", "null", "test", "my-train-1", "val", "a.csv", "b.parquet", "SKU", "sku"]
PROMPTS = ["2024-01-01", "007", "null", "=1+1", "caf\u00e9 \u732b \u2028 end", 'two\nlines, "quoted"']


@pytest.fixture(scope="module")
def api(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[Api]:
    with (
        fresh_database(template) as url,
        open_api(Settings.read(dict(stack.values) | {"DATABASE_URL": url})) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def shelf(api: Api) -> S3Store:
    store = S3Store(api.settings)
    store.prepare()
    return store


def requests(names: list[str], formats: tuple[str, ...]) -> list[dict[str, Any]]:
    """The first half in one format, so that a loader that looks at a few sees only that."""
    half = len(names) // 2
    return [
        {
            "prompt": PROMPTS[at % len(PROMPTS)], "custom_id": name, "size": "64x64", "seed": 2**63 - 1 - at,
            "output_format": formats[at >= half], "metadata": {"sku": "1e5", "at": at} if at >= half else {},
        }
        for at, name in enumerate(names)
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["dates", "odd"])
def job(request: pytest.FixtureRequest, api: Api, shelf: S3Store) -> tuple[int, list[dict[str, Any]]]:
    wanted = requests(IDS, ("png", "png")) if request.param == "dates" else requests(ODD_IDS, ("png", "jpeg"))
    flagged = frozenset({len(wanted) - 1})
    return exporting.finished_job(api.database, api.settings, shelf, wanted, flagged=flagged), wanted


@pytest.fixture(scope="module")
def trees(api: Api, shelf: S3Store, job: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every format, downloaded."""
    found = {}
    for form in FORMATS:
        made = exporting.export(api.database, api.settings, shelf, job[0], form, split=SPLIT, images_per_shard=4)
        assert made.state == "completed", made.error
        found[form] = exporting.download(api.database, shelf, made.id, tmp_path_factory.mktemp(form))
    return found


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """With `datasets`, without a cache of earlier loads."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()

    def call(*words: str, **more: Any) -> Any:
        return datasets.load_dataset(*words, cache_dir=str(tmp_path / "cache"), **more)

    return call


def split_of(custom_id: str) -> str:
    return Options(split=SPLIT).split_of(custom_id)


def check(rows: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Every row as it was asked for, in order of the indexes."""
    assert [row["index"] for row in rows] == list(range(len(wanted)))
    for row, one in zip(rows, wanted, strict=True):
        for name in ("prompt", "custom_id", "seed", "output_format"):
            assert row[name] == one[name] and type(row[name]) is type(one[name]), name
        assert row["seed_string"] == str(one["seed"])
        assert json.loads(row["metadata"]) == one["metadata"]


def check_pictures(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        with Image.open(io.BytesIO(picture(row["index"], row["output_format"]))) as expected:
            assert row["image"].convert("RGB").getpixel((3, 3)) == expected.convert("RGB").getpixel((3, 3))


@pytest.mark.parametrize("form", list(FORMATS))
def test_datasets_reads_every_format_with_its_splits_types_and_pictures(
    load: Any, trees: dict[str, Path], job: Any, form: str
) -> None:
    _, wanted = job
    loaded = load(str(trees[form]))
    found = {name: list(split) for name, split in loaded.items()}
    if form in ("imagefolder", "zip"):  # `datasets` keeps the files of records in a set
        found = {name: sorted(rows, key=lambda row: row["index"]) for name, rows in found.items()}
    if form == "webdataset":
        for rows in found.values():
            rows[:] = [row["json"] | {"image": row.get("png") or row.get("jpg"), "txt": row["txt"]} for row in rows]
            assert all(row["txt"] == row["prompt"] for row in rows)
    assert {name: [row["custom_id"] for row in rows] for name, rows in found.items()} == {
        name: [one["custom_id"] for one in wanted if split_of(one["custom_id"]) == name]
        for name in SPLIT
        if any(split_of(one["custom_id"]) == name for one in wanted)
    }
    rows = sorted((row for rows in found.values() for row in rows), key=lambda row: row["index"])
    check(rows, wanted)
    check_pictures(rows)
    assert [bool(row["flagged"]) for row in rows] == [False] * (len(wanted) - 1) + [True]


def test_an_image_folder_that_is_read_without_its_readme_loses_no_image(
    load: Any, trees: dict[str, Path], job: Any
) -> None:
    loaded = load("imagefolder", data_dir=str(trees["imagefolder"]))
    assert list(loaded) == ["train"]
    check(sorted(loaded["train"], key=lambda row: row["index"]), job[1])


def test_webdataset_reads_its_shards(trees: dict[str, Path], job: Any) -> None:
    import webdataset

    shards = sorted(map(str, (trees["webdataset"] / "data").iterdir()))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    check(sorted((json.loads(sample["json"]) for sample in samples), key=lambda row: row["index"]), job[1])


def tables(trees: dict[str, Path], folder: Path) -> list[list[str]]:
    """The Parquet files of each format that has some."""
    for path in (trees["zip"] / "data").iterdir():
        with zipfile.ZipFile(path) as archive:
            (folder / f"{path.stem}.parquet").write_bytes(archive.read("metadata.parquet"))
    roots = (trees["parquet"], trees["imagefolder"], folder)
    return [[str(path) for path in root.rglob("*.parquet")] for root in roots]


def test_pyarrow_polars_and_duckdb_read_the_tables(trees: dict[str, Path], job: Any, tmp_path: Path) -> None:
    import pyarrow.parquet

    for files in tables(trees, tmp_path):
        rows = pyarrow.parquet.read_table(files).sort_by("index").to_pylist()
        check(rows, job[1])
    polars = pytest.importorskip("polars", reason="`make loaders` installs it")
    duckdb = pytest.importorskip("duckdb", reason="`make loaders` installs it")
    for files in tables(trees, tmp_path):
        check(polars.read_parquet(files).sort("index").to_dicts(), job[1])
        found = duckdb.sql(f"SELECT * FROM read_parquet({files}) ORDER BY index").to_arrow_table()
        check(found.to_pylist(), job[1])


@pytest.mark.parametrize("words", [["{}"], ["imagefolder"]])
def test_datasets_reads_a_download_with_its_types_by_its_path_and_as_an_image_folder(
    api: Api, load: Any, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    job_id, wanted = job
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    folder = tmp_path / "out"
    result = CliRunner().invoke(app, ["download", ids.public_job(job_id), "-o", str(folder)])
    assert result.exit_code == 0, result.output
    given = {} if words == ["{}"] else {"data_dir": str(folder)}
    loaded = load(words[0].format(folder), **given)
    assert list(loaded) == ["train"]
    rows = list(loaded["train"])
    check(rows, wanted)
    check_pictures(rows)
    assert [row["flagged"] for row in rows] == [None] * (len(wanted) - 1) + [True]
    assert rows[0]["output_compression"] is None
    polars = pytest.importorskip("polars", reason="`make loaders` installs it")
    check(polars.read_parquet(folder / "metadata.parquet").to_dicts(), wanted)
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    check([line | {"metadata": json.dumps(line["metadata"])} for line in lines], wanted)


@pytest.mark.parametrize("form", ["zip", "webdataset", "imagefolder", "parquet"])
def test_one_picture_is_a_data_set_too(api: Api, shelf: S3Store, load: Any, tmp_path: Path, form: str) -> None:
    job_id = exporting.finished_job(api.database, api.settings, shelf, requests(["2024-01-01"], ("png", "png")))
    made = exporting.export(api.database, api.settings, shelf, job_id, form)
    (row,) = load(str(exporting.download(api.database, shelf, made.id, tmp_path / "tree")))["train"]
    assert (row["json"] if form == "webdataset" else row)["custom_id"] == "2024-01-01"


@pytest.mark.parametrize("name", ["all", "con", "com1"])
def test_a_split_that_programs_take_for_something_else_is_refused(api: Api, job: Any, name: str) -> None:
    body = {"format": "zip", "options": {"split": {name: 1}}}
    answer = api.http.post(f"/v1/jobs/{ids.public_job(job[0])}/exports", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "options.split")
