"""Versions that are pushed to a dataset repository, with `huggingface_hub` itself, against a small server that speaks
the hub's API. The live hub was not reached."""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from presswork_client.pulling import JOURNAL
from services.cli.app import app
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import collecting, exporting
from tests.hub import TOKEN, Hub
from tests.web import Api


def captions(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"prompt": f"mug {first + n}", "size": "64x64", "seed": first + n} for n in range(count)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def run(api: Api, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)

    def call(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(app, ["dataset", "push", *words])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words and not code else result

    return call


@pytest.fixture
def job(api: Api, settings: Settings, store: S3Store) -> int:
    """A job of nine images, and a dataset with a first version of five shards."""
    found = collecting.rendered(api.database, settings, store, captions(9))
    collecting.make(api.database, found, images_per_shard=2)
    collecting.export(api.database, settings, store)
    return found


def held(hub: Hub, name: str = "lab/mugs") -> dict[str, str]:
    """The sha256 of each file of the repository but those of its own."""
    files = hub.repos[name].files if name in hub.repos else {}
    return {
        path: hashlib.sha256(data).hexdigest()
        for path, data in files.items()
        if path not in (".gitattributes", JOURNAL)
    }


def test_a_version_is_one_commit_of_a_private_repository_and_a_newer_one_takes_its_place(
    api, settings, store, hub, run, job
):
    first = collecting.sums(api.database, 1)
    done = run("mugs", "lab/mugs", "--json")
    repo = hub.repos["lab/mugs"]
    assert held(hub) == first and repo.private and repo.commits[1:] == ["mugs, version 1"]
    assert (done["files"], done["public"]) == (len(first), False) and done["commit"].startswith(hub.url)
    assert repo.files["README.md"].startswith(b"---\npretty_name")
    uploaded = list(hub.uploaded)
    run("mugs", "lab/mugs")
    assert hub.uploaded == uploaded and len(repo.commits) == 2  # nothing has changed: no commit
    collecting.mark(api.database, job, [1], "rejected")
    collecting.add(api.database, collecting.rendered(api.database, settings, store, captions(2, 50)))
    collecting.export(api.database, settings, store)
    second = collecting.sums(api.database, 2)
    run("mugs", "lab/mugs", "--keep")
    assert held(hub) == first | second
    fresh = [name for name in second if first.get(name) != second[name] and name.endswith(".tar")]
    assert len(hub.uploaded) == len(uploaded) + len(fresh)
    done = run("mugs", "lab/mugs", "--json")
    assert held(hub) == second and done["deleted"] == len(first.keys() - second.keys())


def test_large_files_go_up_in_parts_and_only_once_however_often_a_push_breaks_off(
    api, settings, store, hub, run, monkeypatch
):
    small = exporting.picture
    monkeypatch.setattr(exporting, "picture", lambda *how: small(*how) + bytes(300_000))
    job = collecting.rendered(api.database, settings, store, captions(6))
    collecting.make(api.database, job, images_per_shard=2)
    collecting.export(api.database, settings, store)
    hub.chunk = 100_000
    hub.rule = lambda method, path, body: (500, "away") if "/commit/" in path else None
    words = run("mugs", "lab/mugs", "-p", "2", code=1).stderr
    assert "The hub refuses lab/mugs with 500: away; it is busy or away: the same command goes on later." in line(words)
    assert not held(hub) and len(hub.uploaded) == 3
    hub.rule = lambda *_: None
    run("mugs", "lab/mugs")
    assert held(hub) == collecting.sums(api.database, 1) and len(hub.uploaded) == 3


@pytest.mark.parametrize(
    ("where", "status", "said", "words"),
    [
        ("/lab/mugs", 401, "Invalid", "with 401: Invalid; is HF_TOKEN, or the login, one of its tokens?"),
        ("/repos/create", 403, "No", "with 403: No; the token needs the right to write to datasets of that owner."),
        ("/lfs/", 403, "Private repository storage limit reached", "free some space there, and the same command goes"),
        ("/objects/batch", 402, "Pay", "with 402: Pay; free some space there, and the same command goes on."),
        ("/commit/", 412, "Since", "with 412: Since; somebody else has changed it meanwhile: run the command again."),
        ("/validate-yaml", 400, "license_name", "The hub does not take lab/mugs: Invalid metadata in README.md."),
    ],
)
def test_what_the_hub_refuses_is_one_sentence_and_changes_nothing(hub, run, job, where, status, said, words):
    hub.rule = lambda method, path, body: (status, said) if where in path else None
    found = run("mugs", "lab/mugs", code=5).stderr
    assert words in line(found) and not held(hub)


def test_a_repository_of_something_else_or_that_everybody_sees_is_left_as_it_is(
    api, settings, store, hub, run, job, monkeypatch
):
    done = run("mugs", "lab/seen", "--public", "--json")
    assert done["public"] and not hub.repos["lab/seen"].private
    collecting.mark(api.database, job, [1], "rejected")
    collecting.export(api.database, settings, store)
    words = run("mugs", "lab/seen", code=5).stderr
    assert "lab/seen is a public repository; --public pushes to it nevertheless." in line(words)
    assert held(hub, "lab/seen") == collecting.sums(api.database, 1)
    run("mugs", "lab/mugs")
    hub.repos["lab/mugs"].files["notes.txt"] = b"ours"
    run("mugs", "lab/mugs", "--version", "1")
    assert hub.repos["lab/mugs"].files["notes.txt"] == b"ours"
    del hub.repos["lab/mugs"].files[JOURNAL]
    words = run("mugs", "lab/mugs", code=2).stderr
    assert "lab/mugs holds something other than the dataset mugs; name another repository." in line(words)
    run("mugs", "mugs", code=2)
    monkeypatch.setenv("HF_TOKEN", "")
    assert "The hub needs a token that may write: set HF_TOKEN" in run("mugs", "lab/mugs", code=2).stderr


def test_a_hub_that_is_not_there_is_said(hub, run, job, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "The hub cannot be reached" in run("mugs", "lab/mugs", code=1).stderr


def line(words: str) -> str:
    return " ".join(words.split())
