"""Datasets over HTTP, with the client and the command: made, exported, compared, pulled and streamed."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from presswork_client import Client, ClientError, pulling
from services.cli import datasets as dataset_commands
from services.cli import show
from services.cli.app import app
from services.core.datasets import datasets
from services.core.db.database import Database
from services.core.model import ids
from tests import collecting
from tests.rendering import scheduling
from tests.waiting import until
from tests.web import Api


def captions(count: int, *, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"mug {first + n}", "size": "64x64", "seed": first + n, **more} for n in range(count)]


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, api.key) as found:
        yield found


@pytest.fixture
def run(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)

    def call(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["dataset", *words])
        assert result.exit_code == code, result.output
        return result

    return call


def test_the_command_makes_grows_compares_pulls_and_deletes_a_dataset(api: Api, settings, store, run, tmp_path):
    database = api.database
    first = collecting.rendered(database, settings, store, captions(8), head={"labels": {"run": "mugs"}})
    run(
        "create", "mugs", "--label", "run=mugs", "--split", "train=0.5", "--split", "val=0.5", "--images-per-shard", "3"
    )
    with scheduling(settings, store):
        made = json.loads(run("export", "mugs", "--json").stdout)
        assert (made["version"], made["status"], made["images"]) == (1, "completed", 8)
        pulled = json.loads(run("pull", "mugs", "-o", "data", "--json").stdout)
        assert (
            pulled["files"] == pulled["fetched"] == len(list((tmp_path / "data").rglob("*"))) - 3
        )  # two folders and `.presswork`
        assert json.loads(run("pull", "mugs", "-o", "data", "--json").stdout)["fetched"] == 0
        second = collecting.rendered(database, settings, store, captions(2, first=70))
        run("add", "mugs", ids.public_job(second))
        collecting.mark(database, first, [1], "rejected")
        run("export", "mugs")
    compared = json.loads(run("diff", "mugs", "1", "2", "--json").stdout)
    public = ids.public_job(first)
    assert (compared["added"], compared["removed"]) == (2, 1)
    assert compared["images"][0] == {"change": "removed", "job_id": public, "index": 1, "why": "rejected"}
    backwards = json.loads(run("diff", "mugs", "2", "1", "--json").stdout)
    assert (backwards["added"], backwards["removed"]) == (1, 2)
    before = {path.name for path in (tmp_path / "data/data").iterdir()}
    pulled = json.loads(run("pull", "mugs", "-o", "data", "--json").stdout)
    after = {path.name for path in (tmp_path / "data/data").iterdir()}
    assert pulled["deleted"] == len(before - after) == 2  # a shard and its index
    listed = json.loads((tmp_path / "data/manifest.json").read_text())
    assert {entry["path"] for entry in listed["files"] if entry["path"].startswith("data/")} == {
        f"data/{name}" for name in after
    }
    assert "holds something other than the dataset" in run("pull", "mugs", "-o", str(other(tmp_path)), code=2).stderr
    run("set", "mugs", "--mark", "accepted", "--mark", "starred")
    assert "marks: accepted or starred" in run("show", "mugs").stdout
    assert "VERSION" in run("show", "mugs").stdout and "mugs" in run("ls").stdout
    assert len(run("urls", "mugs").stdout.split()) * 2 == len(after)
    run("set", "mugs", "--mark", "accepted")
    run("set", "mugs", "--text", "lang")
    assert "Give a filter, --no-filters or --text" in run("set", "mugs", code=2).stderr
    changed = json.loads(run("show", "mugs", "--json").stdout)["definition"]
    assert (changed["filters"]["marks"], changed["types"]) == (["accepted"], {"lang": "text"})
    assert "The dataset mugs has no version 9" in run("rm", "mugs", "--version", "9", "--yes", code=4).stderr
    gone = run("rm", "mugs", "--version", "1", "--yes", "--json")
    assert "deletes version 1 of mugs, 8 images" in gone.stderr
    assert json.loads(gone.stdout) == {"dataset": "mugs", "version": 1, "object": "dataset.version", "deleted": True}
    assert "has no version 1" in run("diff", "mugs", "1", "2", code=4).stderr
    assert "has no version 1" in run("pull", "mugs", "--version", "1", "-o", "old", code=4).stderr
    with scheduling(settings, store):
        until(lambda: not _pending(database), 30)
    assert json.loads(run("pull", "mugs", "-o", "again", "--json").stdout)["files"] == pulled["files"]
    total = json.loads(run("show", "mugs", "--json").stdout)["versions"][0]["total_bytes"]
    assert total == sum(path.stat().st_size for path in (tmp_path / "again").rglob("*")
                        if path.is_file() and path.name != ".presswork")  # fmt: skip
    run("rm", "mugs", "--yes")
    assert "There is no such dataset" in run("show", "mugs", code=4).stderr


def _pending(database: Database) -> bool:
    with database.begin_system() as connection:
        return bool(datasets.pending(connection))


def other(tmp_path: Path) -> Path:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"job": "x"}')
    return folder


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_stream_gives_each_image_once_to_four_workers_on_two_ranks(api, settings, store, client, form):
    from torch.utils.data import DataLoader

    job = collecting.rendered(api.database, settings, store, captions(40, metadata={"lang": "en"}))
    collecting.make(api.database, job, images_per_shard=2, format=form, split={"train": 0.8, "val": 0.2})
    collecting.export(api.database, settings, store)
    mugs = client.dataset("mugs")
    every = [image.key for image in mugs.stream()]
    assert len(set(every)) == len(every) == 40
    one = next(iter(mugs.stream(split="val")))
    with pytest.raises(ClientError, match=r"has no split \"nope\"; it has train, val"):
        next(iter(mugs.stream(split="nope")))
    assert one.prompt.startswith("mug ") and one.metadata == {"lang": "en"} and one.data.startswith(b"\x89PNG")
    train = mugs.stream(split="train", shuffle=8, seed=3)
    assert [image.key for image in train] == [image.key for image in train]
    assert sorted(image.key for image in train) != [image.key for image in train]
    train.epoch = 1
    first_order = [image.key for image in train]
    found: list[str] = []
    for rank in range(2):
        stream = mugs.stream(shuffle=True, rank=rank, world_size=2)
        loader = DataLoader(stream.torch(), batch_size=None, num_workers=4, multiprocessing_context="fork")
        found += [image.key for image in loader]
    assert sorted(found) == sorted(every)
    assert len(first_order) == len(mugs.stream(split="train"))


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.chaos)])
def test_a_loader_that_stops_in_mid_epoch_gives_the_rest_once(api, settings, store, client, context):
    """Four workers on each of two ranks; the states go through JSON, as in a checkpoint."""
    job = collecting.rendered(api.database, settings, store, captions(60))
    collecting.make(api.database, job, images_per_shard=3)
    collecting.export(api.database, settings, store)
    mugs = client.dataset("mugs")
    every = sorted(image.key for image in mugs.stream())

    def loader(rank: int, workers: int = 4) -> Any:
        stream = mugs.stream(shuffle=5, seed=3, rank=rank, world_size=2)
        return stream.loader(2, num_workers=workers, multiprocessing_context=context, collate=keys)

    found: list[str] = []
    states = []
    for rank in range(2):
        one = loader(rank)
        one.stream.epoch = 2
        batches = iter(one)
        for _ in range(3 + rank):
            found += next(batches)
        states.append(json.dumps(one.state_dict()))
        batches.close()
    assert 0 < len(found) < 60 and len(set(found)) == len(found)
    for rank in range(2):
        one = loader(rank)
        one.load_state_dict(json.loads(states[rank]))
        assert one.stream.epoch == 2 and one.state_dict() == json.loads(states[rank])
        found += [key for batch in one for key in batch]
    assert sorted(found) == every
    with pytest.raises(ClientError, match="Each rank saves and loads its own"):
        loader(1).load_state_dict(json.loads(states[0]))
    with pytest.raises(ClientError, match="it has readers 8 instead of 4"):
        loader(0, 2).load_state_dict(json.loads(states[0]))


def keys(images: list[Any]) -> list[str]:
    return [image.key for image in images]


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_stream_that_stops_in_mid_epoch_gives_the_rest_in_the_same_order(api, settings, store, client, form):
    job = collecting.rendered(api.database, settings, store, captions(20))
    collecting.make(api.database, job, images_per_shard=3, format=form, split={"train": 0.9, "val": 0.1})
    collecting.export(api.database, settings, store)
    mugs = client.dataset("mugs")
    whole = list(mugs.stream(shuffle=4, seed=1))
    stream = mugs.stream(shuffle=4, seed=1)
    reading = iter(stream)
    begin = [next(reading) for _ in range(11)]
    again = mugs.stream(shuffle=4, seed=1)
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert begin + list(again) == whole == list(again)  # and then the epoch from its beginning
    others = {"seed": 2}, {"shuffle": 3}, {"split": "val"}, {"rank": 0, "world_size": 2}
    for other in (mugs.stream(**({"shuffle": 4, "seed": 1} | changed)) for changed in others):
        with pytest.raises(ClientError, match="The state is of another stream: it has"):
            other.load_state_dict(stream.state_dict())
    stream.torch()
    with pytest.raises(ClientError, match="use `loader`"):
        stream.state_dict()


def test_webdataset_reads_the_urls(api, settings, store, client):
    import webdataset

    job = collecting.rendered(api.database, settings, store, captions(5))
    collecting.make(api.database, job, images_per_shard=2)
    collecting.export(api.database, settings, store)
    urls = client.dataset("mugs").urls()
    samples = list(webdataset.WebDataset([f"pipe:curl -sfL '{url}'" for url in urls], shardshuffle=False))
    assert sorted(sample["txt"].decode() for sample in samples) == [f"mug {n}" for n in range(5)]


def test_a_pull_goes_on_where_it_ended_and_a_full_disk_loses_nothing(
    api, settings, store, client, tmp_path, monkeypatch
):
    job = collecting.rendered(api.database, settings, store, captions(9))
    collecting.make(api.database, job, images_per_shard=2)
    collecting.export(api.database, settings, store)
    mugs, folder = client.dataset("mugs"), tmp_path / "data"
    whole = mugs.pull(tmp_path / "whole")
    monkeypatch.setattr(
        pulling.shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("Free", (), {"free": 9})
    )
    with pytest.raises(ClientError, match=r"bytes free and .* are to come") as refused:
        mugs.pull(folder)
    assert refused.value.code == "disk_full" and not list(folder.iterdir())
    monkeypatch.undo()
    saved: list[Path] = []
    save = client._transport.save

    def full(url: str, path: Path, sha256: str, on_bytes: Any = None, *, part: Path) -> None:
        if len(saved) == 3:
            part.write_bytes(b"")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(url, path, sha256, on_bytes, part=part)
        saved.append(path)

    monkeypatch.setattr(client._transport, "save", full)
    with pytest.raises(ClientError, match="nothing is lost: free some space, and the same call goes on"):
        mugs.pull(folder, parallel=1)
    assert all(path.is_file() for path in saved) and len(saved) == 3
    assert not (folder / "manifest.json").exists()
    monkeypatch.undo()
    saved[0].write_bytes(b"damaged")
    counted: list[int] = []
    rest = mugs.pull(folder, on_bytes=counted.append)
    assert rest.fetched == whole.files - 2  # three were there, of which one was damaged
    assert sum(counted) == sum(file["bytes"] for file in mugs.files())


def test_other_tenants_find_nothing_and_a_link_holds_for_its_file_alone(api, settings, store, client):
    job = collecting.rendered(api.database, settings, store, captions(2))
    collecting.make(api.database, job)
    collecting.export(api.database, settings, store)
    _, key = api.new_tenant("other")
    file = next(file for file in client.dataset("mugs").files() if file["path"] == "README.md")
    with Client(api.url, key) as stranger:
        assert list(stranger.datasets()) == []
        theirs = stranger.dataset("mugs")
        for ask in (
            theirs.show, theirs.export, theirs.delete, lambda: theirs.version(1), lambda: theirs.cancel(1),
            lambda: theirs.delete_version(1),
            lambda: theirs.add([ids.public_job(job)]), lambda: theirs.diff(1, 1), lambda: list(theirs.versions()),
            lambda: list(theirs.files(1)), lambda: theirs.change(filters={}), lambda: theirs.remove(labels=["a:b"]),
        ):  # fmt: skip
            with pytest.raises(ClientError) as refused:
                ask()
            assert refused.value.status == 404
        with pytest.raises(ClientError, match="There is no job"):
            stranger.create_dataset("mine", jobs=[ids.public_job(job)])
    address, _, signature = file["url"].partition("?signature=")
    assert httpx.get(file["url"]).status_code == 307
    assert httpx.get(file["url"].replace("README.md", "manifest.json")).status_code == 404
    assert httpx.get(address).status_code == 401
    assert httpx.get(address, headers={"Authorization": f"Bearer {key}"}).status_code == 404
    assert httpx.get(address, headers={"Authorization": f"Bearer {api.key}"}).status_code == 307
    assert httpx.get(f"{address}?signature={signature[::-1]}").status_code == 404


def test_sources_that_are_added_stay_within_a_dataset_s_limit_and_too_many_can_still_be_read(emptied, monkeypatch):
    labels = [f"run:{n}" for n in range(120)]
    emptied.http.post("/v1/datasets", json={"name": "mugs", "labels": labels[:60]})
    refused = emptied.http.post("/v1/datasets/mugs/sources", json={"labels": labels[60:]})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, "labels")
    assert error["message"] == "labels: the dataset would have 120 and may have 100; take some out first."
    assert emptied.http.patch("/v1/datasets/mugs", json={"types": dict.fromkeys(labels, "text")}).status_code == 422
    monkeypatch.setattr(datasets, "check_sources", lambda *_: None)  # stored before there was the limit
    emptied.http.post("/v1/datasets/mugs/sources", json={"labels": labels[60:]})
    assert len(emptied.http.get("/v1/datasets/mugs").json()["definition"]["labels"]) == 120
    removed = emptied.http.post("/v1/datasets/mugs/sources/remove", json={"labels": labels[60:]})
    assert len(removed.json()["definition"]["labels"]) == 60


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": "Bad Name"}, "name"),
        ({"format": "lance"}, "format"),
        ({"split": {"train": 0.9}}, "split"),
        ({"split": {"con": 1}}, "split"),
        ({"filters": {"marks": ["liked"]}}, "filters.marks.0"),
        ({"filters": {"metadata": ["lang"]}}, "filters.metadata.0"),
        ({"filters": {"after": "yesterday"}}, "filters.after"),
        ({"labels": ["run"]}, "labels.0"),
        ({"jobs": ["job_1"]}, "jobs.0"),
        ({"types": {"size": "int"}}, "types.size"),
        ({"filters": {"mark": ["accepted"]}}, "filters.mark"),
    ],
)
def test_what_is_no_dataset_is_refused_by_its_place(emptied: Api, fields: dict[str, Any], param: str) -> None:
    answer = emptied.http.post("/v1/datasets", json={"name": "mugs", **fields})
    error = answer.json()["error"]
    assert answer.status_code == 422, error
    found = error["errors"][0] if error.get("errors") else error
    assert found["param"] == param, found
    words = (
        "must be one of", "must be an object", "must be a list", "must be 1 to", "must be a moment",
        "did you mean marks",
        "choose another name", 'must be "webdataset"',
    )  # fmt: skip
    assert any(word in found["message"] for word in words), found


def test_versions_of_a_million_images_fit_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("services.cli.show._PIPED_WIDTH", 80)
    version: Any = {
        "version": 1_000, "status": "completed", "images": 1_000_000, "counts": {"done": 1_000_000}, "removed": 99_999,
        "bytes": 999_900_000, "created_at": "2026-11-27T02:10:00Z",
    }  # fmt: skip
    show.render(dataset_commands._versions([version]))
    assert "2026-11-27T02:10" in capsys.readouterr().out
