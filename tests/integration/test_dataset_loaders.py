"""A dataset's versions read back: by polars, duckdb, pyarrow and Lance from Parquet, by webdataset as img2dataset's
output is read, by Energon, and by torchdata's loader.

Counts, splits, types and bytes are compared with what was asked for. `make loaders` installs the large ones.
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from presswork_client import Client
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import collecting
from tests.exporting import picture
from tests.web import Api

ROOT = Path(__file__).parents[2]
SPLIT = {"train": 0.7, "val": 0.3}
TYPES = {
    "prompt": str, "seed": int, "width": int, "guidance_scale": float, "truncated": bool, "metadata.lang": str,
    "metadata.weight": float,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grown:
    """Version 2 of a dataset, downloaded: images were added, one was rejected, one failed and was retried."""

    tree: Path
    seeds: frozenset[int]

    def files(self, split: str, kind: str) -> list[str]:
        """What the manifest names, not what lies there."""
        found = [Path(file["path"]) for file in collecting.manifest(self.tree)["files"]]
        return [str(self.tree / path) for path in found if path.name.startswith(f"{split}-") and path.suffix == kind]

    def check(self, rows: dict[str, list[dict[str, Any]]]) -> None:
        every = [row for split in rows.values() for row in split]
        assert sorted(row["seed"] for row in every) == sorted(self.seeds)
        told = collecting.manifest(self.tree)["splits"]
        assert {split: len(found) for split, found in rows.items()} == {
            name: one["images"] for name, one in told.items()
        }
        for row in every:
            assert {name: type(row[name]) for name in TYPES} == TYPES
            assert (row["metadata.lang"], row["metadata.weight"], row["metadata.new"]) == (
                ("en", 1.0, None) if row["seed"] < 40 else ("de", 0.5, True)
            )
            data = row["image"]["bytes"]
            assert data == picture(row["seed"] % 251, row["output_format"])
            assert hashlib.sha256(data).hexdigest() == row["sha256"]


@pytest.fixture
def grown(request: Any, database: Any, settings: Settings, store: S3Store, tmp_path: Path) -> Grown:
    first = [
        {"prompt": f"mug {n}", "size": "64x64", "seed": n, "output_format": ("png", "jpeg")[n % 2],
         "metadata": {"lang": "en", "weight": 1}}
        for n in range(20)
    ]  # fmt: skip
    more = [
        {"prompt": f"mug {n}", "size": "64x64", "seed": n, "metadata": {"lang": "de", "weight": 0.5, "new": True}}
        for n in range(40, 50)
    ]
    job = collecting.rendered(database, settings, store, first, failed=frozenset({5}))
    collecting.retried(database, settings, store, job)
    collecting.make(database, job, split=SPLIT, images_per_shard=3, format=request.param)
    collecting.export(database, settings, store)
    collecting.add(database, collecting.rendered(database, settings, store, more))
    collecting.mark(database, job, [2], "rejected")
    collecting.export(database, settings, store)
    tree = collecting.download(database, store, 2, tmp_path / "tree")
    return Grown(tree, frozenset(range(20)) - {2} | frozenset(range(40, 50)))


def unified(files: list[str]) -> Any:
    """One table of all shards, with null where an older one lacks a column."""
    import pyarrow as pa
    from pyarrow import dataset, parquet

    schema = pa.unify_schemas([parquet.read_schema(file) for file in files])
    return dataset.dataset(files, schema=schema).to_table()


@pytest.mark.parametrize("grown", ["parquet"], indirect=True)
def test_pyarrow_reads_a_version_that_has_grown_and_shrunk(grown: Grown) -> None:
    grown.check({split: unified(grown.files(split, ".parquet")).to_pylist() for split in SPLIT})


@pytest.mark.parametrize("grown", ["parquet"], indirect=True)
def test_polars_and_duckdb_read_a_version_that_has_grown_and_shrunk(grown: Grown) -> None:
    polars = pytest.importorskip("polars", reason="`make loaders` installs it")
    duckdb = pytest.importorskip("duckdb", reason="`make loaders` installs it")
    by_polars, by_duckdb = {}, {}
    for split in SPLIT:
        files = grown.files(split, ".parquet")
        frames = [polars.read_parquet(file) for file in files]
        by_polars[split] = polars.concat(frames, how="diagonal").to_dicts()
        asked = f"SELECT * FROM read_parquet({files}, union_by_name=true)"
        by_duckdb[split] = duckdb.sql(asked).to_arrow_table().to_pylist()
    grown.check(by_polars)
    grown.check(by_duckdb)


@pytest.mark.parametrize("grown", ["parquet"], indirect=True)
def test_lance_takes_a_version_over_with_its_types_and_bytes(grown: Grown, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="`make loaders` installs it")
    rows = {}
    for split in SPLIT:
        table = unified(grown.files(split, ".parquet"))
        table = table.rename_columns([name.replace(".", "/") for name in table.column_names])  # Lance has no dots
        made = lance.write_dataset(table, str(tmp_path / f"{split}.lance"))
        found = made.to_table().to_pylist()
        assert made.take([1], columns=["seed"]).to_pylist() == [{"seed": found[1]["seed"]}]
        rows[split] = [{name.replace("/", "."): value for name, value in row.items()} for row in found]
    grown.check(rows)


@pytest.mark.parametrize("grown", ["webdataset"], indirect=True)
def test_shards_are_read_as_those_that_img2dataset_writes(grown: Grown) -> None:
    """A sample is a picture, .txt and .json under a key that no other sample of any shard has, in tars of so many."""
    import webdataset

    keys: list[str] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for split in SPLIT:
        dataset = webdataset.WebDataset(grown.files(split, ".tar"), shardshuffle=False, empty_check=False)
        samples = list(dataset.rename(image="jpg;png;webp", text="txt", record="json", keep=True))
        keys += [sample["__key__"] for sample in samples]
        rows[split] = []
        for sample in samples:
            record = json.loads(sample["record"])
            assert sample["text"].decode() == record["prompt"]
            with Image.open(io.BytesIO(sample["image"])) as drawn:
                assert drawn.format == {"png": "PNG", "jpeg": "JPEG"}[record["output_format"]]
            metadata = {f"metadata.{name}": value for name, value in json.loads(record["metadata"]).items()}
            columns = {"metadata.new": None} | metadata | {"metadata.weight": float(metadata["metadata.weight"])}
            rows[split].append(record | columns | {"image": {"bytes": sample["image"]}})
        shards = [Path(file).stem for file in grown.files(split, ".tar")]
        assert all(name.removeprefix(f"{split}-")[:5].isdigit() for name in shards)
    assert len(set(keys)) == len(keys)
    grown.check(rows)


@pytest.mark.parametrize("grown", ["webdataset"], indirect=True)
def test_energon_reads_a_version_by_the_files_beside_it(grown: Grown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / ".energon")])  # last: it holds other packages, too
    energon = pytest.importorskip("megatron.energon", reason="`make loaders` installs it")
    every: list[str] = []
    for split, told in collecting.manifest(grown.tree)["splits"].items():
        dataset = energon.get_train_dataset(
            str(grown.tree), split_part=split, batch_size=1, shuffle_buffer_size=None, max_samples_per_sequence=None,
            repeat=False, worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        )  # fmt: skip
        batches = list(energon.get_loader(dataset))
        assert len(batches) == told["images"] and {tuple(one.image.shape) for one in batches} == {(1, 3, 16, 16)}
        every += [one.caption[0] for one in batches]
    assert sorted(every) == sorted(f"mug {seed}" for seed in grown.seeds)


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, api.key) as found:
        yield found


def test_torchdata_s_loader_goes_on_in_mid_epoch(api: Api, settings: Settings, store: S3Store, client: Client) -> None:
    loading = pytest.importorskip("torchdata.stateful_dataloader", reason="`make loaders` installs it")
    wanted = [{"prompt": f"mug {n}", "size": "64x64", "seed": n} for n in range(20)]
    job = collecting.rendered(api.database, settings, store, wanted)
    collecting.make(api.database, job, images_per_shard=3)
    collecting.export(api.database, settings, store)

    def loader() -> Any:
        stream = client.dataset("mugs").stream(shuffle=4, seed=1)
        return loading.StatefulDataLoader(
            stream.torch(), batch_size=None, num_workers=2, multiprocessing_context="spawn", snapshot_every_n_steps=1
        )

    whole = [image.key for image in loader()]
    first = loader()
    images = iter(first)
    begin = [next(images).key for _ in range(7)]
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert begin + [image.key for image in second] == whole
    assert len(set(whole)) == 20
