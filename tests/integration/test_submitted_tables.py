"""`presswork submit` of messy tables: bad rows are counted, or skipped and kept; custom_ids are made valid."""

import csv
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.model import ids
from tests.processes import PRESSWORK, take_interrupts
from tests.waiting import until
from tests.web import Api

Run = Callable[..., Result]
MESSY = (
    "Prompt;Custom ID;seed;size;note;;\r\n"
    "a red mug;mug;1;64x64;fine\r\n"
    "a blue jug;mug;2;64x64;its id is used\r\n"
    ";vase;3;64x64;it has no prompt\r\n"
    '"a "big" hat";hat;4;64x64;quotes\r\n'
    "a bowl;bowl;-5;64x64;seed\r\n"
    "a bag;bag;6;100x100;nobody serves this size\r\n"
    "a cup; with milk;cup;7;64x64;an unquoted semicolon\r\n"
    ";;;;\r\n"
    "a pot;pot;8,0;;fine\r\n"
)


@pytest.fixture
def run(emptied: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSWORK_URL", emptied.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", emptied.key)
    monkeypatch.setenv("PRESSWORK_CONFIG", str(tmp_path / "config.toml"))

    def call(*words: str, code: int = 0, stdin: bytes | None = None) -> Result:
        result = CliRunner().invoke(app, list(words), input=stdin)
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return call


def jobs(api: Api) -> list[Any]:
    found: list[Any] = api.http.get("/v1/jobs").json()["data"]
    return found


def recorded(api: Api) -> list[tuple[Any, ...]]:
    """Name, prompt and seed of each request of the newest job."""
    with api.database.begin_system() as connection:
        rows = connection.execute(
            text("SELECT custom_id, prompt, seed FROM payloads WHERE job_id = :id ORDER BY index"),
            {"id": ids.parse_job(jobs(api)[0]["id"])},
        )
        return [tuple(row) for row in rows]


def rejected(path: Path, delimiter: str = ";") -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter=delimiter))


def test_all_bad_rows_are_counted_and_the_first_ones_named(run: Run, emptied: Api, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(MESSY.encode("utf-16"))
    result = run("submit", "p.csv", "--json", code=5)
    error = json.loads(result.stdout)["error"]
    assert error["message"] == "refused: 6 of 8 rows are bad; nothing was submitted."
    assert [(entry["line"], entry["param"]) for entry in error["errors"]] == [
        (3, "custom_id"), (4, "prompt"), (5, None), (6, "seed"), (7, "size"), (8, None),
    ]  # fmt: skip
    assert "--fix-ids makes custom_ids valid; --skip-bad rejects.csv submits the other rows." in result.stderr
    assert "p.csv was read as semicolon-separated, UTF-16, 8 rows" in result.stderr
    lines = "".join(f"a mug {n},{'x' if n % 2 else n}\n" for n in range(500))
    (tmp_path / "many.csv").write_text("prompt,seed\n" + lines)
    for options in ([], ["--label", "a=b"], ["--dry-run"]):
        result = run("submit", "many.csv", *options, "--json", code=5)
        found = json.loads(result.stdout)["error"]
        assert "250 of 500 rows are bad; nothing was submitted." in found["message"]
        assert len(found["errors"]) == 100
    (tmp_path / "sizes.csv").write_text("prompt,size\n" + "a,64x64\n" * 20 + "a,100x100\n" * 130)
    assert "130 of 150 rows are bad" in run("submit", "sizes.csv", code=5).stderr
    assert jobs(emptied) == []


def test_good_rows_are_submitted_and_bad_ones_kept_with_their_reasons(run: Run, emptied: Api, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(MESSY.encode("cp1252"))
    said = run("submit", "p.csv", "--skip-bad", "bad.csv").stderr
    assert "6 bad rows were skipped; bad.csv holds them" in said
    assert "columns of p.csv that are no fields become metadata: note" in said
    assert recorded(emptied) == [("mug", "a red mug", 1), ("pot", "a pot", 8)]
    head, *rows = rejected(tmp_path / "bad.csv")
    assert head == ["line", "column", "reason", "Prompt", "Custom ID", "seed", "size", "note"]
    assert [(row[0], row[1]) for row in rows] == [
        ("3", "custom_id"), ("4", "prompt"), ("5", ""), ("6", "seed"), ("7", "size"), ("8", ""),
    ]  # fmt: skip
    assert "it was used at line 2 already" in rows[0][2]
    assert rows[0][3:] == ["a blue jug", "mug", "2", "64x64", "its id is used"]
    assert rows[2][3:] == ["", "", "", "", "", '"a "big" hat";hat;4;64x64;quotes']
    assert "it must be one of" in rows[4][2]
    assert rows[5][3:] == ["a cup", " with milk", "cup", "7", "64x64", "an unquoted semicolon"]
    refused = run("submit", "p.csv", "--skip-bad", "bad.csv", "--fix-ids", code=2).stderr
    assert "bad.csv exists already" in refused and "custom_ids" not in refused, "no row was read"
    assert len(jobs(emptied)) == 1
    # The file is corrected and submitted as it is; what is still wrong has one place and one reason again.
    again = (tmp_path / "bad.csv").read_text(encoding="utf-8-sig").replace("blue jug;mug", "blue jug;jug")
    (tmp_path / "bad.csv").write_text(again)
    run("submit", "bad.csv", "--skip-bad", "rest.csv")
    assert recorded(emptied) == [("jug", "a blue jug", 2)]
    assert [row[3:] for row in rejected(tmp_path / "rest.csv")] == [head[3:], *(row[3:] for row in rows[1:])]
    said = run("submit", "rest.csv", "--skip-bad", "all.csv", code=5).stderr
    assert "All rows are bad; nothing was submitted." in said
    assert len(rejected(tmp_path / "all.csv")) == 6
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv"] * 4


def test_every_format_keeps_its_bad_rows(run: Run, emptied: Api, tmp_path: Path) -> None:
    import openpyxl
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"promt": "b", "seed": 1}\nnothing\n')
    table = pa.table({"prompt": ["a", None, "c"], "seed": [1, 2, -3], "tags": [[], ["x"], ["y", "z"]]})
    parquet.write_table(table, tmp_path / "p.parquet")
    book = openpyxl.Workbook()
    for row in (["prompt", "seed", "tags"], ["a", 1.0, None], [None, 2, '["x"]'], ["c", -3, '["y", "z"]']):
        book.active.append(row)
    book.save(tmp_path / "p.xlsx")
    for name, kept in (
        ("p.jsonl", [["2", '{"promt": "b", "seed": 1}'], ["3", "nothing"]]),
        ("p.parquet", [["2", "", "2", '["x"]'], ["3", "c", "-3", '["y", "z"]']]),
        ("p.xlsx", [["3", "", "2", '["x"]'], ["4", "c", "-3", '["y", "z"]']]),
    ):
        run("submit", name, "--skip-bad", f"{name}.csv")
        assert [row[1] for row in recorded(emptied)] == ["a"], name
        assert [[row[0], *row[3:]] for row in rejected(tmp_path / f"{name}.csv", ",")[1:]] == kept, name


def test_ids_are_fixed_and_counted_and_a_repeated_command_makes_one_job(run: Run, emptied: Api, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt;custom_id\na;x\nb;x\nc;\nd;ä ö\ne;x-2\n")
    words = ("submit", "p.csv", "--fix-ids", "--skip-bad", "bad.csv", "--idempotency-key", "one")
    said = run(*words).stderr
    assert "4 custom_ids were changed: 2 duplicate, 1 invalid, 1 missing" in said
    assert "no row was bad" in said
    assert [row[0] for row in recorded(emptied)] == ["x", "x-2", "line-4", "a-o", "x-2-2"]
    run(*words)
    assert len(jobs(emptied)) == 1
    assert not (tmp_path / "bad.csv").exists()
    assert "belong to a FILE" in run("submit", "--matrix", "a {b}", "--vary", "b=c", "--fix-ids", code=2).stderr


def test_a_table_that_is_cut_off_goes_on_with_the_same_rows(run: Run, emptied: Api, tmp_path: Path) -> None:
    whole = ["prompt;custom_id;seed\n"] + [f"mug {n};id-{n // 2};{'x' if n % 10 == 9 else n}\n" for n in range(60)]
    words = ["submit", "-", "--fix-ids", "--skip-bad", "bad.csv", "--chunk", "10"]
    process = subprocess.Popen(
        [PRESSWORK, *words], cwd=tmp_path, text=True, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=take_interrupts,  # noqa: PLW1509  no lock of a thread is needed there
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.writelines(whole[:57])
    process.stdin.flush()
    draft = until(lambda: next((job["id"] for job in jobs(emptied)), None))
    until(lambda: len(emptied.http.get(f"/v1/jobs/{draft}/chunks").json()["data"]) >= 3)
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(90) == 130
    assert f"presswork {' '.join(words)} --resume {draft}" in said
    assert list(tmp_path.iterdir()) == []
    said = run(*words, "--resume", draft, stdin="".join(whole).encode()).stderr
    assert "6 bad rows were skipped" in said
    made = recorded(emptied)
    assert (len(jobs(emptied)), len(made), len({row[0] for row in made})) == (1, 54, 54)
    assert [row[0] for row in rejected(tmp_path / "bad.csv")[1:]] == [str(n) for n in range(11, 70, 10)]


def test_a_draft_counts_the_bad_rows_from_the_part_that_was_refused(run: Run, emptied: Api, tmp_path: Path) -> None:
    rows = [f"mug {n},{'x' if n in (33, 34, 47) else n}\n" for n in range(50)]
    (tmp_path / "p.csv").write_text("prompt,seed\n" + "".join(rows))
    said = run("submit", "p.csv", "--chunk", "10", code=5).stderr
    assert "refused: 3 of 20 rows are bad, counted from the part that was refused." in said
    rows[48] = '"mug,48\n'
    (tmp_path / "p.csv").write_text("prompt,seed\n" + "".join(rows).replace("x", "1"))
    said = run("submit", "p.csv", "--chunk", "10", "--resume", jobs(emptied)[0]["id"], code=5).stderr
    assert "refused: 1 of 10 rows is bad" in said
