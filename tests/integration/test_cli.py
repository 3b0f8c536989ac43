"""The `presswork` command against the real API: what a person sees, what a program reads, and how each command ends."""

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import typer
from click.testing import Result
from PIL import Image
from pyarrow import parquet
from sqlalchemy import text
from typer.testing import CliRunner

from presswork_client import Client, ClientError
from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.cli import follow, standstill
from services.cli.app import app
from services.cli.examples import EXAMPLES
from services.core.events import numbering
from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.model.specs import FailedImage
from services.core.notify import Notifier
from services.core.queue import counters
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.home import write_env_file
from services.local.stack import Stack
from tests import factories
from tests.processes import take_interrupts
from tests.waiting import until
from tests.web import Api, open_api

ROOT = Path(__file__).parents[2]
Run = Callable[..., Result]


def _picture() -> bytes:
    drawn = io.BytesIO()
    Image.new("RGB", (16, 16)).save(drawn, "png")
    return drawn.getvalue()


PICTURE = _picture()


@pytest.fixture(scope="module")
def servers(
    stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]
) -> Iterator[tuple[Api, S3Store]]:
    """One server for all tests of this file; each has a tenant of its own."""
    with fresh_database(template) as url:
        settings = Settings.read(dict(stack.values) | {"DATABASE_URL": url})
        store = S3Store(settings)
        store.prepare()
        with open_api(settings) as running:
            yield running, store


@pytest.fixture
def api(servers: tuple[Api, S3Store], tmp_path: Path) -> Iterator[Api]:
    shared, _ = servers
    _, key = shared.new_tenant(str(tmp_path))
    with httpx.Client(base_url=shared.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:
        yield dataclasses.replace(shared, key=key, http=http)


@pytest.fixture
def store(servers: tuple[Api, S3Store]) -> S3Store:
    return servers[1]


@pytest.fixture
def run(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process, in a folder of its own, with the server in its environment; its code is checked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    monkeypatch.setenv("PRESSWORK_CONFIG", str(tmp_path / "config.toml"))

    def call(*words: str, code: int = 0, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(app, list(words), input=stdin)
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return call


def payloads(api: Api) -> list[dict[str, Any]]:
    """What was recorded of each request of the tenant's newest job, in order."""
    job_id = ids.parse_job(api.http.get("/v1/jobs").json()["data"][0]["id"])
    with api.database.begin_system() as connection:
        rows = connection.execute(
            text("SELECT custom_id, prompt, seed, output_format FROM payloads WHERE job_id = :id ORDER BY index"),
            {"id": job_id},
        )
        return [dict(row._mapping) for row in rows]


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def render(api: Api, store: S3Store, job: str, *failed: int) -> None:
    """A worker's work, all of it; these images of the job fail."""
    lost = {(ids.parse_job(job), index) for index in failed}
    while (claim := factories.claim(api.database)) is not None:
        made = [one for one in factories.stored(claim, PICTURE) if (one.job_id, one.index) not in lost]
        for one in made:
            store.put(one.object_key, PICTURE, "image/png", {}, claim_id=claim.id)
        places = [place for place in factories.places(claim) if place in lost]
        broken = [FailedImage(job_id, index, "error", "It broke.") for job_id, index in places]
        factories.settle(api.database, claim, stored=made, failed=broken)
    with api.database.begin_system() as connection:
        counters.fold(connection)
        lifecycle.finish(connection)


# --- the whole, and marks


def test_the_overview_says_what_is_wrong_and_what_there_is(run: Run, api: Api, store: S3Store) -> None:
    job = api.submit(*[{"prompt": "a mug"}] * 3)["id"]
    render(api, store, job, 1)
    shown = run("overview", code=1).stdout
    assert "something is wrong" in shown
    assert "No scheduler is running" in shown
    assert "It broke." in shown
    found = document(run("overview", "--json", code=1))
    assert [(cause["code"], cause["count"]) for cause in found["failures"]] == [("error", 1)]
    assert {picture["job_id"] for picture in found["pictures"]} == {job}


def test_pictures_are_marked_counted_and_downloaded_by_their_mark(
    run: Run, api: Api, store: S3Store, tmp_path: Path
) -> None:
    job = api.submit({"prompt": "a mug", "n": 4}, {"prompt": "a hat"})["id"]
    render(api, store, job)
    assert "2 images accepted, 2 of them newly" in run("mark", job, "accepted", "--images", "1,3-3").stderr
    assert "3 images rejected, 3 of them newly" in run("mark", job, "rejected", "--all", "--now", "none").stderr
    assert run("mark", job).stdout == "2 accepted, 3 rejected, 0 starred\n"
    assert document(run("download", job, "--mark", "accepted", "-o", "some", "--json"))["files"] == 2
    assert len(list((tmp_path / "some").glob("*.png"))) == 2
    assert "The job has no done image 9" in run("mark", job, "starred", "--images", "9", code=5).output
    for wrong in ([], ["--images", "3-1"], ["--images", "a"], ["--images", "1", "--all"]):
        run("mark", job, "starred", *wrong, code=2)


# --- submitting


def test_a_text_file_becomes_a_job_with_a_prompt_a_line(run: Run, api: Api, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\ufeffa red mug\n\n  a blue vase, 青い花瓶\r\n", encoding="utf-8")
    job = document(run("submit", "prompts.txt", "--priority", "high", "--json"))
    assert (job["counts"]["total"], job["priority"]) == (2, "high")
    assert [row["prompt"] for row in payloads(api)] == ["a red mug", "a blue vase, 青い花瓶"]


def test_csv_columns_are_mapped_numbers_are_read_and_defaults_fill_what_is_empty(
    run: Run, api: Api, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text('id,caption,seed,n,price\nmug,"a mug,\nred",7,2.0,9\nvase,a vase,,,8\n')
    result = run("submit", "p.csv", "--column", "prompt=caption", "--column", "custom_id=id", "--seed", "3",
                 "--output-format", "webp", "--json")  # fmt: skip
    assert document(result)["counts"]["total"] == 3
    assert "price" in result.stderr
    assert [(row["custom_id"], row["prompt"], row["seed"], row["output_format"]) for row in payloads(api)] == [
        ("mug", "a mug,\nred", 7, "webp"),
        ("vase", "a vase", 3, "webp"),
    ]


def test_metadata_is_taken_as_it_stands_from_lines_columns_and_cells(run: Run, api: Api, tmp_path: Path) -> None:
    """A struct's row has all its fields, those that it lacks as null."""

    def sent(name: str) -> list[Any]:
        job = document(run("submit", name, "--json"))["id"]
        return [image["metadata"] for image in api.http.get(f"/v1/jobs/{job}/images").json()["data"]]

    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "metadata": {"sku": 9007199254740993, "x": 1.0}}\n')
    assert json.dumps(sent("p.jsonl")) == '[{"sku": 9007199254740993, "x": 1.0}]'
    (tmp_path / "p.csv").write_text('prompt,metadata\na,"{""sku"": 9007199254740993, ""gift"": true}"\nb,\n')
    assert json.dumps(sent("p.csv")) == '[{"gift": true, "sku": 9007199254740993}, {}]'
    prompts = ["a", "b", "c"]
    price = pa.array([Decimal("1.50"), None, Decimal("2.00")], pa.decimal128(5, 2))
    struct = pa.StructArray.from_arrays([pa.array([2**63 - 1, None, 3]), price], ["sku", "price"])
    pairs = pa.array([[("sku", 1)], None, []], pa.map_(pa.string(), pa.int64()))
    for name, column, expected in (
        ("struct", struct, [{"price": 1.5, "sku": 2**63 - 1}, {"price": None, "sku": None}, {"price": 2, "sku": 3}]),
        ("map", pairs, [{"sku": 1}, {}, {}]),
        ("text", pa.array(['{"sku": 1}', None, "{}"]), [{"sku": 1}, {}, {}]),
    ):
        parquet.write_table(pa.table({"prompt": prompts, "metadata": column}), tmp_path / f"{name}.parquet")
        assert sent(f"{name}.parquet") == expected, name
    twice = pa.array([[("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))
    parquet.write_table(pa.table({"prompt": ["a"], "metadata": twice}), tmp_path / "twice.parquet")
    assert "has a map with a repeated key" in run("submit", "twice.parquet", code=5).stderr
    (tmp_path / "bad.csv").write_text("prompt,metadata\na,sku=7\n")
    assert "must be a flat object" in run("submit", "bad.csv", code=5).stderr


def test_parquet_is_read_as_a_table_from_a_file_and_from_stdin(run: Run, api: Api, tmp_path: Path) -> None:
    cells = {"prompt": [b"a", b"b"], "n": [1.0, math.nan], "guidance_scale": [3, None], "custom_id": [12, 13]}
    table = pa.table(cells)
    parquet.write_table(table, tmp_path / "p.parquet")
    run("submit", "p.parquet")
    data = (tmp_path / "p.parquet").read_bytes()
    assert document(run("submit", "-", "--format", "parquet", "--json", stdin=data))["counts"]["total"] == 2
    assert {row["custom_id"] for row in payloads(api)} == {"12", "13"}


@pytest.mark.parametrize(("given", "prompt"), [('{"prompt": "a", "seed": 1}\n', "a"), ("a mug\n", "a mug")])
def test_stdin_is_requests_or_prompts_as_its_first_line_shows(run: Run, api: Api, given: str, prompt: str) -> None:
    run("submit", "-", stdin="\n" + given)
    assert [row["prompt"] for row in payloads(api)] == [prompt]


def test_labels_and_defaults_reach_the_job(run: Run, api: Api, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "seed": 5, "n": 2}\n')
    job = document(
        run("submit", "p.jsonl", "--label", "for=shop", "--label", "x=a=b", "--seed", "9", "-n", "3", "--json")
    )
    assert (job["labels"], job["counts"]["total"]) == ({"for": "shop", "x": "a=b"}, 5)
    assert [row["seed"] for row in payloads(api)] == [9, 5]


def test_dedupe_without_seeds_is_said_to_reuse_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a mug\na vase\n")
    matrix = ("--matrix", "a {colour} mug", "--vary", "colour=red,teal")
    for words in (("p.txt", "--dry-run"), ("p.txt",), (*matrix, "--dry-run"), matrix):
        assert "dedupe reuses nothing: no request has a seed" in " ".join(
            run("submit", *words, "--dedupe").output.split()
        ), words
        assert "dedupe reuses" not in run("submit", *words, "--dedupe", "--seed", "7").output
        assert "dedupe reuses" not in run("submit", *words).output
    assert len(document(run("submit", "p.txt", "--dedupe", "--json"))["warnings"]) == 1


@pytest.mark.parametrize("labels", [[], ["--label", "a=b"]])
def test_bad_lines_are_shown_in_a_table_at_their_places_and_nothing_is_recorded(
    run: Run, api: Api, tmp_path: Path, labels: list[str]
) -> None:
    (tmp_path / "p.csv").write_text('prompt,seed,size\na,1,64x64\n"two\nlines",abc,64x64\nb,2,large\n')
    result = run("submit", "p.csv", *labels, code=5)
    assert 'seed is "abc"; it must be a whole number' in result.stderr
    assert 'size is "large"' in result.stderr
    places = [line.split()[0] for line in result.stderr.splitlines() if line.strip()[:1].isdigit()]
    assert places == ["3", "5"]
    assert result.stdout == ""
    found = document(run("submit", "p.csv", *labels, "--json", code=5))["error"]
    assert [(entry["line"], entry["param"]) for entry in found["errors"]] == [(3, "seed"), (5, "size")]
    assert api.http.get("/v1/jobs").json()["data"] == []


def test_what_is_wrong_with_every_line_is_reported_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a mug\n" * 30)
    said = run("submit", "p.txt", "--size", "100x100", code=5).stderr
    assert said.count("it must be one of") == 1
    assert "(and 29 more with the same)" in " ".join(said.split())


def test_a_line_that_is_no_json_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": \n')
    for options in ([], ["--label", "a=b"], ["--seed", "1"]):
        found = document(run("submit", "p.jsonl", *options, "--json", code=5))["error"]["errors"]
        assert [(entry["line"], entry["code"]) for entry in found] == [(3, "invalid_json")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "p.xyz"], "has none of the known endings"),
        (["submit", "."], ". is a folder; name a file in it."),
        (["submit"], "Nothing to submit"),
        (["submit", "p.txt", "--label", "nothing"], "it must be NAME=VALUE"),
        (["submit", "p.txt", "--column", "promt=a"], "names 'promt', which is no field; did you mean prompt?"),
        (["submit", "p.txt", "--vary", "a=b"], "belong to --matrix"),
        (["submit", "-", "--column", "prompt=caption"], "plain text, which has no columns"),
    ],
)
def test_wrong_usage_is_a_sentence_and_ends_with_2(run: Run, words: list[str], said: str) -> None:
    assert said in run(*words, code=2).stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.txt", None, "No such file"),
        ("cyrillic.txt", "кружка\n".encode("cp1251"), "is neither UTF-8 nor like Windows-1252"),
        ("p.parquet", b"no table", "is no Parquet file"),
        ("p.csv", b"caption\na\n", "has no column 'prompt'"),
        ("broken.csv", b'prompt\n"a\n', "a quoted text begins here and does not end"),
        ("comma.csv", b"n,prompt\n1,a mug\n1,a red mug, on a table\n", "it has 3 cells, and the first line has 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(
    run: Run, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run("submit", name, code=1 if name.startswith("absent") else 5)
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_a_file_without_a_request_is_refused(run: Run, tmp_path: Path) -> None:
    for content in ("", "prompt\n", "prompt,seed\n,\n"):
        (tmp_path / "p.csv").write_text(content)
        assert "p.csv holds no requests." in run("submit", "p.csv", code=5).stderr


def test_empty_cells_beyond_the_last_column_are_no_mistake(run: Run, api: Api, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na mug,,\n")
    run("submit", "p.csv")
    assert [row["prompt"] for row in payloads(api)] == ["a mug"]


@pytest.mark.parametrize("labels", [[], ["--label", "a=b"]])
def test_the_first_of_two_equal_names_is_reported_at_its_place_in_the_file(
    run: Run, tmp_path: Path, labels: list[str]
) -> None:
    (tmp_path / "p.csv").write_text('prompt,custom_id\n"two\nlines",a\nb,b\nc,b\n')
    (problem,) = document(run("submit", "p.csv", *labels, "--json", code=5))["error"]["errors"]
    assert (problem["line"], problem["code"]) == (5, "duplicate_custom_id")
    assert "it was used at line 4 already" in problem["message"]


# --- following and steering


def test_ls_and_show_tell_how_jobs_stand(run: Run, api: Api, store: S3Store) -> None:
    assert "there are no jobs yet" in run("ls").stderr
    job = api.submit({"prompt": "a", "n": 3}, labels={"for": "the shop"})
    assert run("ls", "--json").stdout.count("\n") == 1
    render(api, store, str(job["id"]), 0)
    shown = run("ls").stdout
    assert re.search(rf"{job['id']} +completed +66 % +3 +1 ", shown)
    assert "for=the shop" in shown
    shown = run("show", str(job["id"])).stdout
    assert "2 of 3 done, 1 failed" in shown
    with api.database.begin_system() as connection:
        numbering.number(connection)
    assert "trace" not in shown
    traced = api.http.post(
        "/v1/jobs", json={"images": [{"prompt": "b"}]}, headers={"traceparent": f"00-{7:032x}-{7:016x}-01"}
    ).json()
    assert re.search(rf"trace +{7:032x}", run("show", str(traced["id"])).stdout)
    told = run("show", str(job["id"])).stdout
    assert re.search(r"created *\n.* queued *\n.* finalizing *\n.* completed +2 done, 1 failed, 3 total", told)
    assert f"presswork retry {job['id']}" in shown
    assert document(run("show", str(job["id"]), "--json"))["counts"]["failed"] == 1


def test_at_80_columns_only_the_labels_of_ls_are_cut(run: Run, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job = api.submit(labels={"for": "a shop with a rather long name", "season": "winter"})
    monkeypatch.setattr("services.cli.show._PIPED_WIDTH", 80)
    head, row = run("ls").stdout.splitlines()
    assert head.split() == ["JOB", "STATUS", "DONE", "OF", "FAILED", "LEFT", "AGE", "LABELS"]
    assert row.startswith(str(job["id"])) and row.rstrip().endswith("…") and len(row) <= 80


def test_ls_shows_as_many_as_asked_and_says_that_there_are_more(run: Run, api: Api) -> None:
    ids = [str(api.submit()["id"]) for _ in range(3)]
    result = run("ls", "--limit", "2")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ids[:0:-1]
    assert "there are more" in result.stderr
    assert len(run("ls", "--limit", "0", "--json").stdout.splitlines()) == 3


def test_ls_takes_the_filters_of_the_dashboards_list_and_its_address(run: Run, api: Api) -> None:
    low = str(api.submit(labels={"run": "nightly"}, priority="low")["id"])
    high = str(api.submit(labels={"run": "weekly"}, priority="high")["id"])
    for words, wanted in {
        "--priority low": [low],
        "--text WEEK --since 2h": [high],
        "--since 1h --sort oldest": [low, high],
        "--status unfinished --until 1h": [],
        "--submitted-by nobody": [],
        "--model nothing": [],
        f"--view {api.url}/jobs?label=run:nightly&since=2h": [low],
        f"--view {api.url}/jobs?sort=oldest&cursor=abc": [low, high],
    }.items():
        shown = run("ls", *words.split(), "--json").stdout
        assert [json.loads(line)["id"] for line in shown.splitlines()] == wanted, words
    assert "there are no jobs like that" in run("ls", "--model", "nothing").stderr
    assert "must be the address" in run("ls", "--view", f"{api.url}/images?q=a", code=2).output
    assert "either --view or" in run("ls", "--view", "/jobs?q=a", "--status", "failed", code=2).output
    assert "how long ago" in run("ls", "--since", "yesterday", code=5).output


def test_watch_ends_with_0_when_all_is_done_and_with_3_when_images_failed(run: Run, api: Api, store: S3Store) -> None:
    well, badly = (str(api.submit({"prompt": "a", "n": 2})["id"]) for _ in range(2))
    render(api, store, badly, 1)
    assert "2 of 2 done" in run("watch", well).stdout
    result = run("watch", badly, "--json", code=3)
    assert json.loads(result.stdout.splitlines()[-1])["counts"]["failed"] == 1


def test_watch_says_what_a_job_that_stands_still_waits_for(
    run: Run, api: Api, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standstill, "STILL_SECONDS", 0.3)
    told: list[str] = []
    monkeypatch.setattr(follow.show, "say", lambda sentence, style="": told.append(sentence))
    job = str(api.submit({"prompt": "a", "n": 2})["id"])
    set_limit = "UPDATE tenants SET max_device_seconds_per_day = :limit"
    with api.database.begin_system() as connection:
        connection.execute(text(set_limit), {"limit": 0})
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(run, "watch", job)
        until(lambda: any("has used its 0 accelerator-seconds of today" in sentence for sentence in told))
        assert api.http.get(f"/v1/jobs/{job}").json()["eta_seconds"] is None
        with api.database.begin_system() as connection:
            connection.execute(text(set_limit), {"limit": None})
        render(api, store, job)
        assert "2 of 2 done" in watching.result(60).stdout
    assert sum("accelerator-seconds" in sentence for sentence in told) == 1


def test_submit_with_watch_goes_on_until_a_worker_has_done_it(
    run: Run, api: Api, store: S3Store, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a\nb\n")
    with command(api, tmp_path, "submit", "p.txt", "--watch", "--json") as process:
        first = json.loads(process.stdout.readline())
        assert first["counts"]["queued"] == 2
        render(api, store, first["id"])
        last = [json.loads(line) for line in process.stdout][-1]
        assert (process.wait(90), last["status"]) == (0, "completed")


def test_ctrl_c_while_watching_says_that_the_job_goes_on(run: Run, api: Api, tmp_path: Path) -> None:
    job = str(api.submit()["id"])
    with command(api, tmp_path, "watch", job) as process:
        assert job in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 130
        assert f"`presswork watch {job}` looks again" in process.stderr.read()
    assert api.http.get(f"/v1/jobs/{job}").json()["status"] == "queued"


def test_cancel_takes_several_jobs_and_again_is_no_error(run: Run, api: Api) -> None:
    ids = [str(api.submit()["id"]) for _ in range(2)]
    shown = [json.loads(line) for line in run("cancel", *ids, "--json").stdout.splitlines()]
    assert [job["id"] for job in shown] == ids
    assert {job["status"] for job in shown} <= {"cancelling", "cancelled"}
    run("watch", ids[0], code=3) if shown[0]["finished_at"] else None


def test_items_shows_what_failed_first_and_why(run: Run, api: Api, store: S3Store) -> None:
    job = str(api.submit({"prompt": "a good one", "custom_id": "good"}, {"prompt": "a bad one"})["id"])
    render(api, store, job, 1)
    shown = run("items", job).stdout
    assert shown.index("failed") < shown.index("done ")
    assert "error: It broke." in shown
    assert document(run("items", job, "--status", "failed", "--json"))["images"][0]["error"]["code"] == "error"


def test_nothing_that_a_server_sends_commands_the_terminal(run: Run, api: Api) -> None:
    job = str(api.submit({"prompt": "a mug"})["id"])
    claim = factories.claim(api.database)
    assert claim is not None
    hostile = "\x1b]0;owned\x07 \x9b2J \u202e backwards [red]\r"
    failed = [FailedImage(*factories.places(claim)[0], "error", hostile)]
    factories.settle(api.database, claim, failed=failed)
    shown = run("items", job).output
    assert "]0;owned 2J backwards [red]" in " ".join(shown.split())
    as_json = run("items", job, "--json").stdout
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & {*shown, *as_json}
    assert json.loads(as_json)["images"][0]["error"]["message"] == hostile
    assert "\x1b" not in run("show", "job_\x1b[2J", code=4).output


def test_items_shows_what_a_prompt_lost(run: Run, api: Api) -> None:
    job = str(api.submit({"prompt": "a dragon", "n": 2})["id"])
    claim = factories.claim(api.database)
    assert claim is not None
    said = [dataclasses.replace(one, unknown_words=("dragon",), truncated=True) for one in factories.stored(claim)]
    factories.settle(api.database, claim, stored=said)
    shown = run("items", job).stdout
    assert shown.count("unknown to the model: dragon") == 1
    assert "truncated: the prompt is longer" in shown


def test_a_job_is_paused_resumed_and_what_failed_of_it_is_tried_again(run: Run, api: Api, store: S3Store) -> None:
    job = str(api.submit({"prompt": "a", "n": 3, "custom_id": "mug"})["id"])
    assert document(run("pause", job, "--json"))["paused"]
    assert "paused" in run("show", job).stdout
    assert not document(run("resume", job, "--json"))["paused"]
    assert "once it has finished" in run("retry", job, code=5).stderr
    render(api, store, job, 0, 2)
    again = document(run("retry", job, "--priority", "high", "--label", "again=yes", "--json"))
    assert (again["retry_of"], again["counts"]["total"], again["priority"]) == (job, 2, "high")


def test_models_are_listed_with_their_sizes_and_live_workers(run: Run, api: Api) -> None:
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE workers SET seen_at = now()"))
    assert "simulated" in run("models").stdout
    (model,) = document(run("models", "--json"))
    assert (model["default_size"], model["workers"]) == ("512x512", 1)


# --- drafts


def lines(count: int) -> str:
    return "".join(json.dumps({"prompt": f"mug {index}", "custom_id": f"mug-{index}"}) + "\n" for index in range(count))


def test_many_requests_go_as_a_draft_and_become_one_job(run: Run, api: Api, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(lines(35))
    result = run("submit", "p.jsonl", "--chunk", "10", "--priority", "low", "--label", "a=b", "--json")
    job = document(result)
    assert (job["status"], job["priority"], job["labels"], job["requests"]) == ("queued", "low", {"a": "b"}, 35)
    assert [row["prompt"] for row in payloads(api)] == [f"mug {index}" for index in range(35)]
    assert f"--resume {job['id']}" in result.stderr


def test_a_draft_names_the_bad_line_of_the_file_and_goes_on_once_it_is_right(
    run: Run, api: Api, tmp_path: Path
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("\n" + lines(35).replace('"mug 31"', "31"))
    found = document(run("submit", "p.jsonl", "--chunk", "10", "--json", code=5))["error"]
    assert [(entry["line"], entry["param"]) for entry in found["errors"]] == [(33, "prompt")]
    draft = api.http.get("/v1/jobs").json()["data"][0]["id"]
    file.write_text("\n" + lines(35))
    assert document(run("submit", "p.jsonl", "--chunk", "10", "--resume", draft, "--json"))["requests"] == 35
    assert "is not a draft any more" in run("submit", "p.jsonl", "--chunk", "10", "--resume", draft).stderr


def test_a_draft_refuses_to_go_on_with_another_input(run: Run, api: Api, tmp_path: Path) -> None:
    draft = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    api.http.put(f"/v1/jobs/{draft}/chunks/0", content=lines(2), headers={"Content-Type": "application/x-ndjson"})
    (tmp_path / "p.jsonl").write_text(lines(2).replace("mug 0", "jug 0"))
    assert "submit it as a new job" in run("submit", "p.jsonl", "--chunk", "2", "--resume", draft, code=5).stderr


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_submission_that_is_cut_off_goes_on_with_the_command_that_it_named(
    run: Run, api: Api, tmp_path: Path, blow: signal.Signals
) -> None:
    whole = lines(60).splitlines(keepends=True)
    with command(api, tmp_path, "submit", "-", "--format", "jsonl", "--chunk", "10") as process:
        process.stdin.writelines(whole[:45])
        process.stdin.flush()
        draft = until(lambda: next((job["id"] for job in api.http.get("/v1/jobs").json()["data"]), None))
        until(lambda: len(api.http.get(f"/v1/jobs/{draft}/chunks").json()["data"]) == 4)
        process.send_signal(blow)
        said = process.stderr.read()
        assert process.wait(90) == (130 if blow is signal.SIGINT else -blow)
    words = re.findall(r"presswork (submit - .*)", said)[-1].split()
    assert words == ["submit", "-", "--format", "jsonl", "--chunk", "10", "--resume", draft]
    job = document(run(*words, "--json", stdin="".join(whole)))
    assert (job["id"], job["requests"], job["status"]) == (draft, 60, "queued")


# --- matrices and estimates


def test_a_matrix_is_previewed_and_submitted(run: Run, api: Api) -> None:
    words = ["submit", "--matrix", "a {colour} {thing}", "--vary", 'colour=red,"deep, dark blue"', "--vary",
             "thing=mug,jug", "--vary", "guidance_scale=3,7.5", "--repeat", "2"]  # fmt: skip
    result = run(*words, "--size", "64x64", "--json")
    assert document(result)["counts"]["total"] == 16
    assert {row["prompt"] for row in payloads(api)} == {
        f"a {c} {t}" for c in ("red", "deep, dark blue") for t in ("mug", "jug")
    }
    result = run(*words)
    assert "8 combinations, 16 images" in result.stderr
    assert "a deep, dark blue mug" in result.stderr


def test_the_values_of_a_matrix_may_stand_in_a_file(run: Run, api: Api, tmp_path: Path) -> None:
    (tmp_path / "things.txt").write_text("mug\n# no thing\ndark, matt jug\n", encoding="utf-8")
    run("submit", "--matrix", "a {thing}", "--vary", "thing=@things.txt", "--size", "64x64")
    assert {row["prompt"] for row in payloads(api)} == {"a mug", "a dark, matt jug"}
    (tmp_path / "things.txt").write_text("2::mug\njug\n", encoding="utf-8")
    result = run("submit", "--matrix", "a {thing}", "--vary", "thing=@things.txt", code=2)
    assert "things.txt has weights, which `presswork prompts --sample` takes" in result.stderr


def test_a_matrix_stands_in_a_file_and_options_go_before_it(run: Run, api: Api, tmp_path: Path) -> None:
    matrix = {"template": "a {colour} mug", "vary": {"colour": ["red", "blue"]}, "repeat": 9}
    (tmp_path / "m.json").write_text("\ufeff" + json.dumps(matrix))  # with a byte order mark, as some editors save it
    job = document(run("submit", "--matrix", "m.json", "--vary", "colour=green", "--repeat", "3", "--json"))
    assert job["counts"]["total"] == 3
    assert "thing" in run("submit", "--matrix", "a {thing} {colour}", "--vary", "colour=red", code=5).stderr


def test_a_dry_run_checks_here_estimates_there_and_submits_nothing(run: Run, api: Api, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(lines(3))
    result = run("submit", "p.jsonl", "-n", "2", "--size", "64x64", "--dry-run", "--json")
    found = document(result)
    assert (found["images"], found["shapes"][0]["size"]) == (6, "64x64")
    assert "all well formed" in result.stderr
    assert "6" in run("estimate", "p.jsonl", "-n", "2").stdout
    assert document(run("estimate", "--images", "1000", "--steps", "20", "--json"))["shapes"][0]["images"] == 1000
    assert api.http.get("/v1/jobs").json()["data"] == []


def test_a_dry_run_tells_the_same_problems_as_the_server(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "seed": -1}\nnothing\n{"prompt": "b"}\n{"promt": "b"}\n')
    dry = document(run("submit", "p.jsonl", "--dry-run", "--json", code=5))["error"]["errors"]
    assert dry == document(run("submit", "p.jsonl", "--json", code=5))["error"]["errors"]
    (tmp_path / "p.jsonl").write_text(lines(1) * 2)
    assert "was used at line 1 already" in run("submit", "p.jsonl", "--dry-run", code=5).stderr


def test_what_no_worker_serves_is_reported_once_in_a_dry_run_and_for_the_request(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a\nb\n")
    said = run("submit", "p.txt", "--size", "100x100", "--dry-run", code=5).stderr
    assert said.count('size is "100x100"; it must be one of') == 1
    assert "shapes" not in said
    assert "thing" in (said := run("submit", "--matrix", "a {thing}", "--vary", "x=y", "--dry-run", code=5).stderr)
    assert said.count("The template names {thing}") == 1


# --- results


def test_images_are_downloaded_verified_and_named_and_a_second_time_kept(
    run: Run, api: Api, store: S3Store, tmp_path: Path
) -> None:
    job = str(api.submit({"prompt": "a mug", "custom_id": "mug"}, {"prompt": "a jug", "custom_id": "jug", "n": 2},
                         {"prompt": "b"})["id"])  # fmt: skip
    render(api, store, job, 0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metadata.jsonl").write_text("{}")  # from the release before
    found = document(run("download", job, "-o", "out", "--json", code=3))  # all that there is, and one image failed
    assert (found["files"], found["fetched"], found["kept"], found["failed"]) == (3, 3, 0, [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "000003.png",
        "README.md",
        "jug~0.png",
        "jug~1.png",
        "metadata.parquet",
        "records.jsonl",
    ]
    facts = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [(one["index"], one["file_name"], one["prompt"]) for one in facts] == [
        (1, "jug~0.png", "a jug"), (2, "jug~1.png", "a jug"), (3, "000003.png", "b"),
    ]  # fmt: skip
    (tmp_path / "out" / "jug~1.png").write_bytes(PICTURE[:-1] + b"!")
    assert (tmp_path / "out" / "jug~0.png").read_bytes() == PICTURE
    found = document(run("download", job, "-o", "out", "--json", code=3))
    assert (found["fetched"], found["kept"]) == (1, 2)
    assert (tmp_path / "out" / "jug~1.png").read_bytes() == PICTURE


def test_a_job_of_which_nothing_is_done_has_nothing_to_download(run: Run, api: Api) -> None:
    job = str(api.submit()["id"])
    assert "no image of the job is done" in run("download", job).stderr
    assert document(run("download", job, "--json"))["fetched"] == 0


def test_what_does_not_match_its_sha256_is_not_kept(run: Run, api: Api, store: S3Store, tmp_path: Path) -> None:
    job = str(api.submit({"prompt": "a mug"})["id"])
    render(api, store, job)
    with api.database.begin_system() as connection:
        connection.execute(
            text("UPDATE results SET sha256 = sha256(sha256) WHERE job_id = :id"), {"id": ids.parse_job(job)}
        )
    assert "does not match its sha256" in run("download", job, "-o", "out", code=1).stderr
    assert not list((tmp_path / "out").glob("*.png*"))


def test_every_image_of_a_retry_is_downloaded(run: Run, api: Api, store: S3Store, tmp_path: Path) -> None:
    """Of a request with gaps between its failed images several become, all with its custom_id."""
    wanted = [{"prompt": "a", "custom_id": name, "n": 8} for name in ("mug", "Mug", "jug")]
    job = str(api.submit(*wanted, {"prompt": "b", "custom_id": "hat"})["id"])
    render(api, store, job, *(index for index in range(25) if index % 3 or index == 24))
    again = document(run("retry", job, "--json"))["id"]
    render(api, store, again)
    result = run("download", again, "-o", "out", "--json")
    total = api.http.get(f"/v1/jobs/{again}").json()["counts"]["done"]
    found = document(result)
    assert (found["files"], found["fetched"]) == (total, total) == (17, 17)
    names = [path.name for path in (tmp_path / "out").glob("*.png")]
    assert len({name.casefold() for name in names}) == total
    assert f"{total} images are in out: 0 (0 B) downloaded, {total} were there already" in run(
        "download", again, "-o", "out"
    ).stderr.replace("\n", " ")


def test_a_folder_of_another_jobs_images_is_left_alone(run: Run, api: Api, store: S3Store, tmp_path: Path) -> None:
    first, second = (str(api.submit({"prompt": "a", "custom_id": "mug"})["id"]) for _ in range(2))
    render(api, store, first)
    run("download", first, "-o", "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "something other than the images of" in run("download", second, "-o", "out", code=2).stderr
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_file_that_is_gone_at_the_end_is_not_counted(
    run: Run, api: Api, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that takes two names for one."""
    job = str(api.submit({"prompt": "a", "n": 3})["id"])
    render(api, store, job)
    link = "000001.png.part"

    def replace(part: Path, target: Path) -> Path:
        os.rename(part, target)  # noqa: PTH104  replaced here
        if part.name == link:
            target.unlink()
            target.hardlink_to(target.with_name("000000.png"))
        return target

    monkeypatch.setattr(Path, "replace", replace)
    found = document(run("download", job, "-o", "out", "-p", "1", "--json", code=1))
    assert (found["files"], [entry["index"] for entry in found["failed"]]) == (2, [1])


def test_an_export_is_begun_followed_and_downloaded(run: Run, api: Api, store: S3Store, tmp_path: Path) -> None:
    job = str(api.submit(*[{"prompt": f"mug {index}", "size": "64x64"} for index in range(5)])["id"])
    assert "finished" in run("export", job, "--no-wait", code=5).stderr
    render(api, store, job)
    with exporter(api, store):
        made = document(run("export", job, "--option", "images_per_shard=2", "-o", "out", "--json"))
        assert (made["status"], made["counts"]["done"]) == ("completed", 5)
        names = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert len([name for name in names if name.suffix == ".tar"]) == 3
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.tar")}
        run("export", made["id"], "-o", "out")
        assert {path: path.stat().st_mtime_ns for path in before} == before
        assert made["id"] in run("exports", job).stdout
        assert "images_per_shard" in run("export", job, "--option", "images_per_shard=no", code=5).stderr
        # The shards of another export would be mixed in.
        for words in (("--option", "images_per_shard=3"), ("--format", "zip")):
            other = run("export", job, *words, "-o", "out", code=2)
            assert "out holds something other than" in other.stderr
        assert len(run("exports", job, "--json").stdout.splitlines()) == 1, "the server was not asked for it"
        assert {path: path.stat().st_mtime_ns for path in before} == before


@contextmanager
def exporter(api: Api, store: S3Store) -> Iterator[None]:
    """A scheduler's background tasks, until the end of the block."""
    stopping = threading.Event()
    running = BackgroundTaskRunner(
        api.database, background_tasks(api.settings, store, Notifier(api.settings.redis_url)), "here"
    )
    thread = threading.Thread(target=running.run, args=(stopping,))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_a_file_that_was_cut_off_goes_on_where_it_stopped(api: Api, store: S3Store, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    store.put("cli/whole", content, "application/zip", {}, claim_id=1)
    with Client(api.url, api.key) as client:
        path, seen = tmp_path / "file.zip", []
        (tmp_path / "file.zip.part").write_bytes(content[:60_000])
        file = {"path": "file.zip", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "images": 1,
                "url": store.presign("cli/whole", 60, "file.zip")}  # fmt: skip
        client.save(file, path, seen.append)
    assert (path.read_bytes(), sum(seen)) == (content, 40_000)


def test_a_part_that_is_not_of_this_file_is_found_out(api: Api, store: S3Store, tmp_path: Path) -> None:
    store.put("cli/other", b"content", "application/zip", {}, claim_id=1)
    (tmp_path / "file.zip.part").write_bytes(b"CON")
    file = {"path": "file.zip", "bytes": 7, "sha256": hashlib.sha256(b"content").hexdigest(), "images": 1,
            "url": store.presign("cli/other", 60, "file.zip")}  # fmt: skip
    with Client(api.url, api.key) as client:
        with pytest.raises(ClientError, match="does not match"):
            client.save(file, tmp_path / "file.zip")
        client.save(file, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == b"content"


# --- which server, and how it ends


def test_without_a_server_the_command_says_what_to_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRESSWORK_URL")
    assert "PRESSWORK_API_KEY is set and PRESSWORK_URL is not" in run("ls", code=2).stderr
    monkeypatch.delenv("PRESSWORK_API_KEY")
    assert "No server is named" in run("ls", code=2).stderr


def test_a_profile_is_chosen_by_option_environment_or_the_file_and_a_readable_one_is_warned_of(
    run: Run, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[profiles.here]\nurl = "{api.url}"\napi_key = "{api.key}"\n'
        '[profiles.bad]\nurl = "no address"\napi_key = "x"\n'
    )
    config.chmod(0o644)
    assert "other users may read it" in run("ls", "--profile", "here").stderr
    config.chmod(0o600)
    assert "others" not in run("ls", "--profile", "here").stderr
    assert "no profile 'there'; it has: bad, here" in run("ls", "--profile", "there", code=2).stderr
    assert "must be an address" in run("ls", "--profile", "bad", code=2).stderr
    for name in ("PRESSWORK_URL", "PRESSWORK_API_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PRESSWORK_PROFILE", "here")
    run("ls")
    monkeypatch.delenv("PRESSWORK_PROFILE")
    run("ls", code=2)
    config.write_text(
        '\ufeffdefault = "here"\n' + config.read_text()
    )  # with a byte order mark, as some editors save it
    run("ls")


def test_the_local_stack_in_the_folder_is_used_and_said_in_one_line(
    run: Run, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PRESSWORK_URL", "PRESSWORK_API_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / ".presswork").mkdir()
    write_env_file(tmp_path / ".presswork", {"PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key, "OTHER": "it's"})
    assert run("ls", "--json").stderr == f"presswork: using the local stack in .presswork, at {api.url}\n"


def test_an_address_as_the_stock_client_has_it_will_do(run: Run, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    job = str(api.submit()["id"])
    for end in ("/", "/v1", "/v1/"):
        monkeypatch.setenv("PRESSWORK_URL", api.url + end)
        assert job in run("ls").stdout


def test_what_is_not_there_ends_with_4_and_a_wrong_key_with_5(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["show", "job_0000000000000"], ["watch", "no-where?"], ["cancel", "job_0000000000000"]):
        result = run(*words, "--json", code=4)
        assert document(result)["error"]["code"] == "not_found", words
    monkeypatch.setenv("PRESSWORK_API_KEY", "pw_wrong")
    assert "not one of this server's" in run("ls", code=5).stderr


def test_what_was_not_found_is_named(run: Run, api: Api) -> None:
    for words, said in (
        (("show", "job_123"), 'There is no job "job_123".'),
        (("cancel", "job_0000000000000"), 'There is no job "job_0000000000000".'),
        (("export", "export_123"), 'There is no export "export_123".'),
        (("rm", "file-123"), 'There is no file "file-123".'),
    ):
        assert run(*words, code=4).stderr.strip().endswith(said)
    job = api.submit()["id"]
    for path, said in (
        (f"/v1/jobs/{job}/images/7/content", 'There is no image "7".'),
        ("/v1/models/none", 'There is no model "none".'),
        ("/v1/batches/batch_1", 'There is no batch "batch_1".'),
    ):  # fmt: skip
        assert api.http.get(path).json()["error"]["message"] == said


def test_a_server_that_cannot_be_reached_ends_with_6(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRESSWORK_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("services.cli.profile.PATIENCE_SECONDS", 0.5)
    result = run("show", "job_0000000000000", "--json", code=6)
    assert document(result)["error"]["code"] == "unreachable"
    assert "127.0.0.1:9 cannot be reached" in result.stderr


def test_a_reader_that_has_seen_enough_ends_nothing_badly(run: Run, api: Api, tmp_path: Path) -> None:
    for _ in range(3):
        api.submit()
    with command(api, tmp_path, "ls", "--json") as process:
        process.stdout.close()
        assert (process.wait(90), process.stderr.read()) == (0, "")


def test_help_names_every_exit_code_and_the_shells_completion_knows_the_commands(run: Run) -> None:
    shown = run("--help").stdout
    for code in ("0", "1", "2", "3", "4", "5", "6", "130"):
        assert re.search(rf"\b{code}\b", shown.partition("Exit codes")[2])
    words = {"_PRESSWORK_COMPLETE": "complete_bash", "COMP_WORDS": "presswork su", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "from services.cli.app import app; app(prog_name='presswork')"],
        env=os.environ | words, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["submit"]


def commands(group: Any, *words: str) -> Iterator[tuple[list[str], Any]]:
    for name, found in group.commands.items():
        if hasattr(found, "commands"):
            yield from commands(found, *words, name)
        else:
            yield [*words, name], found


def test_every_command_has_examples_that_its_own_parser_takes_and_help_that_fits_80_columns(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    known = dict.fromkeys(EXAMPLES)
    for words, found in commands(typer.main.get_command(app)):
        del known[" ".join(words)]
        for line in EXAMPLES[" ".join(words)]:
            assert len(line) < 79
            parts = shlex.split(line)
            given = parts[parts.index("presswork") + 1 :]
            assert given[: len(words)] == words
            found.make_context("presswork", given[len(words) :], resilient_parsing=words[0] == "bench")
        if words[0] != "bench":  # its process has the help
            shown = run(*words, "--help").output
            assert EXAMPLES[" ".join(words)][0].split("presswork", 1)[1] in shown
            assert not re.search(r"<bool>|<str>|list\[|One of list", shown), shown
            assert not re.search(r"<\w+\|[\w|]*(?![\w|>])", shown), f"a choice is broken: {shown}"
            assert not re.search(r"\S\n\S", found.help or ""), "line breaks of the source within a paragraph"
    assert not known, "examples of commands that there are not"
    assert "<bool>" not in run("--help").output
    assert "'--status': 'done' is not one of 'unfinished', 'draft'," in run("ls", "--status", "done", code=2).output


def test_the_shells_completion_knows_the_newest_jobs_and_keeps_silent_without_a_server(
    api: Api, tmp_path: Path
) -> None:
    job = str(api.submit(labels={"for": "shop"})["id"])

    def completed(word: str, **environ: str) -> tuple[str, str]:
        words = {"_PRESSWORK_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": f"presswork show {word}"}
        done = subprocess.run(
            [sys.executable, "-c", "from services.cli.app import app; app(prog_name='presswork')"], cwd=ROOT,
            env=os.environ | words | {"PRESSWORK_API_KEY": api.key} | environ,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout, done.stderr

    offered, said = completed(job[:6], PRESSWORK_URL=api.url)
    assert job in offered and "for=shop" in offered and not said
    assert job not in completed("job_zzz", PRESSWORK_URL=api.url)[0]
    none, said = completed("", PRESSWORK_URL="http://127.0.0.1:9")
    assert "job_" not in none and not said


def test_an_option_of_an_export_is_listed_where_it_is_missing_or_unknown(run: Run) -> None:
    for words in (("--help",), ("job_1", "--option"), ("job_1", "--option", "images_per_sard=3")):
        shown = run("export", *words, code=0 if words == ("--help",) else 2).output
        for name in ("images_per_shard", "include_flagged", "split", "images", "expires_in_seconds"):
            assert name in shown
    assert "did you mean images_per_shard?" in run("export", "job_1", "--option", "images_per_sard=3", code=2).output


def test_a_wrong_address_is_told_ours(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.cli.profile.PATIENCE_SECONDS", 0.1)
    for url, code in (("127.0.0.1:8000", 2), ("http://127.0.0.1:9", 6)):
        monkeypatch.setenv("PRESSWORK_URL", url)
        assert "http://127.0.0.1:8420" in run("ls", code=code).stderr
    (tmp_path / ".presswork").mkdir()
    write_env_file(tmp_path / ".presswork", {"PRESSWORK_URL": "http://127.0.0.1:18420", "PRESSWORK_API_KEY": "pw_a_b"})
    assert "in this folder it is http://127.0.0.1:18420." in run("ls", code=6).stderr


class Stranger(BaseHTTPRequestHandler):
    """A server that is not Presswork."""

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def test_an_address_that_is_not_presswork_s_is_told_apart_from_what_is_not_there(
    run: Run, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.cli.profile.PATIENCE_SECONDS", 0.1)
    monkeypatch.setenv("PRESSWORK_URL", f"{api.url}/docs")
    assert "has a path after the address, which looks like http://127.0.0.1:8420." in run("ls", code=1).stderr
    monkeypatch.setenv("PRESSWORK_URL", api.url.replace("http:", "https:"))
    assert "may begin with http:// instead of https://." in run("ls", code=6).stderr
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PRESSWORK_URL", f"http://127.0.0.1:{server.server_port}")
        said = run("ls", code=1).stderr
        server.shutdown()
    assert "not as Presswork does." in said and "In this folder it is http://127.0.0.1:8420." in said


def test_doctor_and_keys_name_the_env_file_that_is_not_sourced_and_the_stack_that_does_not_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"DATABASE_URL": "postgresql://x:y@127.0.0.1:9/x", "REDIS_URL": "redis://127.0.0.1:9/0"}
    here |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    for name in here:
        monkeypatch.delenv(name, raising=False)
    hint = "DATABASE_URL is not set; `presswork up` prints the file that sets it. Here that is `. .presswork/env`."
    assert hint not in run("keys", "list", code=2).stderr.replace("\n", " ")
    (tmp_path / ".presswork").mkdir()
    write_env_file(tmp_path / ".presswork", here)
    assert hint in run("doctor", code=1).stdout.replace("\n", " ")
    assert hint in run("keys", "list", code=2).stderr.replace("\n", " ")
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    assert "hint nothing of the stack in this folder runs; `presswork up` starts it" in run("doctor", code=1).stdout


def test_migrating_with_a_role_that_does_not_own_the_tables_says_so(
    run: Run, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", api.settings.database_url)
    monkeypatch.setenv("REDIS_URL", api.settings.redis_url)
    assert "The role in DATABASE_URL must own the tables" in run("migrate", code=1).stderr.replace("\n", " ")


def test_a_job_that_has_ended_is_watched_in_one_line(run: Run, api: Api, store: S3Store) -> None:
    job = str(api.submit()["id"])
    render(api, store, job)
    assert run("watch", job).stderr == f"presswork: {job} completed: 1 of 1 done\n"


@contextmanager
def command(api: Api, folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own, with pipes."""
    environ = os.environ | {"PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", *words], cwd=folder, env=environ, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=take_interrupts,  # noqa: PLW1509  no lock of a thread is needed there
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


# --- deleting


def test_rm_shows_what_it_takes_and_asks_before_it_deletes(run: Run, api: Api, store: S3Store) -> None:
    job = str(api.submit({"prompt": "a", "n": 3})["id"])
    refused = run("rm", job, "--yes", code=5)
    assert f"{job} stays: The job is queued; cancel it or let it end" in refused.stderr
    render(api, store, job)
    shown = run("rm", job, "--dry-run")
    assert re.search(rf"{job} +3 +{3 * len(PICTURE)} B", shown.stdout)
    assert f"would delete 1 job: 3 images, {3 * len(PICTURE)} B" in shown.stderr
    assert "nothing was deleted" in run("rm", job, stdin="n\n", code=1).stderr
    assert "--yes deletes without a question" in run("rm", job, stdin="", code=2).stderr
    assert api.http.get(f"/v1/jobs/{job}").status_code == 200
    assert "deleted 1;" in run("rm", job, stdin="y\n").stderr
    assert api.http.get(f"/v1/jobs/{job}").status_code == 404
    run("rm", "job_0000000000000", "--yes", code=4)
    for wrong in (
        [], [job, "--label", "a=b"], ["--older-than", "3 months"], ["--label", "a"], ["--status", "queued"],
        ["--older-than", "3d", "--text", "a"], [job, "--all"],
    ):  # fmt: skip
        run("rm", *wrong, "--yes", code=2)


def test_rm_takes_the_ended_jobs_of_a_label_and_an_age(run: Run, api: Api, store: S3Store) -> None:
    old, young, other = (
        str(api.submit({"prompt": "a"}, labels={"for": label})["id"]) for label in ("shop", "shop", "home")
    )
    render(api, store, old)
    waiting = str(api.submit({"prompt": "a"}, labels={"for": "shop"})["id"])
    with api.database.begin_system() as connection:
        aged = text("UPDATE jobs SET finished_at = finished_at - interval '31 days' WHERE id = ANY(:ids)")
        connection.execute(aged, {"ids": [ids.parse_job(old), ids.parse_job(other)]})

    def left() -> set[str]:
        return {job["id"] for job in api.http.get("/v1/jobs").json()["data"]}

    assert "there is nothing like that" in run("rm", "--older-than", "8w", "--yes").stderr
    told = run("rm", "--label", "for=shop", "--older-than", "30d", "--yes", "--json")
    assert document(told) == {"id": old, "deleted": True}
    assert left() == {young, other, waiting}
    dry = run("rm", "--status", "completed", "--older-than", "0h", "--dry-run", "--json").stdout.splitlines()
    assert {json.loads(line)["id"] for line in dry} == {young, other}
    run("rm", "--label", "for=shop", "--older-than", "0h", "--yes")
    assert left() == {other, waiting}  # what has not ended is not chosen


def test_rm_takes_exports_and_files_too(run: Run, api: Api, store: S3Store) -> None:
    job = str(api.submit({"prompt": "a"})["id"])
    render(api, store, job)
    export = api.http.post(f"/v1/jobs/{job}/exports", json={"format": "zip"}).json()["id"]
    data = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a"}}'
    file = api.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", data)}).json()["id"]
    assert f"{export} is still being written" in run("rm", job, "--yes", code=5).stderr
    told = run("rm", export, file, "--yes")
    assert f"1 export, 1 file: 0 images, {len(data)} B" in told.stderr
    for path in (f"/v1/exports/{export}", f"/v1/files/{file}"):
        assert api.http.get(path).status_code == 404
    run("rm", job, "--yes")
    run("rm", export, "--yes", code=4)
