"""The `presswork` command against the real API: what a person sees, what a program reads, and how each command ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from click.testing import Result
from pyarrow import parquet
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.client import Client
from tests import factories
from tests.web import Api

Run = Callable[..., Result]


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


@pytest.fixture
def client(api: Api) -> Client:
    return Client(api.url, api.key)


def payloads(api: Api) -> list[dict[str, Any]]:
    """What was recorded of each request, in order."""
    with api.database.begin() as connection:
        rows = connection.execute(
            text("SELECT custom_id, prompt, negative_prompt, seed, output_format FROM payloads ORDER BY index")
        )
        return [dict(row._mapping) for row in rows]


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def render(api: Api, failed: int = 0) -> None:
    """A worker's work, all of it; the first images fail."""
    while (claim := factories.claim(api.database)) is not None:
        images = claim.images
        lost, made = images[:failed], images[failed:]
        stored = [
            one for one in factories.stored(claim) if (one.job_id, one.index) in {(i.job_id, i.index) for i in made}
        ]
        factories.settle(
            api.database, claim, stored=stored, failed=[(i.job_id, i.index, "error", "It broke.") for i in lost]
        )
        failed = 0


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


def test_parquet_is_read_as_a_table_from_a_file_and_from_stdin(run: Run, api: Api, tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["a", "b"], "n": [1.0, None], "guidance_scale": [3, 4], "custom_id": [12, 13]})
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
    assert api.rows()["jobs"] == 0


def test_a_line_that_is_no_json_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": \n')
    for options in ([], ["--label", "a=b"], ["--seed", "1"]):
        found = document(run("submit", "p.jsonl", *options, "--json", code=5))["error"]["errors"]
        assert [(entry["line"], entry["code"]) for entry in found] == [(3, "invalid_json")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["submit", "p.xyz"], "does not say what it is"),
        (["submit"], "Say what to submit"),
        (["submit", "p.txt", "--label", "nothing"], "it must be NAME=VALUE"),
        (["submit", "p.txt", "--column", "promt=a"], "names the field 'promt'"),
        (["submit", "p.txt", "--vary", "a=b"], "belong to --matrix"),
    ],
)
def test_wrong_usage_is_a_sentence_and_ends_with_2(run: Run, words: list[str], said: str) -> None:
    assert said in run(*words, code=2).stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.txt", None, "No such file"),
        ("latin.txt", "caf\xe9\n".encode("latin-1"), "is not UTF-8"),
        ("p.parquet", b"no table", "is no Parquet file"),
        ("p.csv", b"caption\na\n", "has no column 'prompt'"),
        ("broken.csv", b'prompt\n"a\n', "line 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(
    run: Run, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run("submit", name, code=1)
    assert said in result.stderr
    assert "Traceback" not in result.output
