"""What means the same is recorded the same, whichever door it comes through and however it is spelled."""

import io
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pyarrow as pa
import pytest
from click.testing import Result
from pyarrow import csv, parquet
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli.app import app
from services.core.model import ids
from tests.rendering import rendering, scheduling
from tests.waiting import until
from tests.web import Api

NDJSON = {"Content-Type": "application/x-ndjson"}
URL = "/v1/images/generations"
# Two spellings of the same three requests.
PLAIN: list[dict[str, Any]] = [
    {"prompt": "a mug\non a table\n", "custom_id": "12", "seed": 2**53 - 1, "n": 2, "num_inference_steps": 4,
     "size": "64x64", "negative_prompt": "blur\nnoise"},
    {"prompt": "a jug", "size": "64x64", "seed": 7, "custom_id": "13"},
    {"prompt": "a hat", "size": "64x64", "seed": 2**63 - 1, "custom_id": "14"},
]  # fmt: skip
OTHER = (
    (
        '{"prompt": "a mug\\r\\non a table\\r\\n", "custom_id": 12, "seed": 9007199254740991.0, "n": 2.0,'
        ' "num_inference_steps": 4e0, "size": "64x64", "negative_prompt": "blur\\r\\nnoise", "model": null}'
    ),
    (
        '{"prompt": "a jug", "size": "64x64", "seed": 7.0, "custom_id": 13.0, "negative_prompt": null, "n": null,'
        ' "guidance_scale": null, "output_format": null, "output_compression": 100, "metadata": null}'
    ),
    f'{{"prompt": "a hat", "size": "64x64", "seed": {2**63 - 1}, "custom_id": "14", "num_inference_steps": null}}',
)


def recorded(api: Api, job: str) -> list[dict[str, Any]]:
    """The payloads and shapes of a job."""
    with api.database.begin_system() as connection:
        rows = connection.execute(
            text("""
            SELECT p.custom_id, p.prompt, p.negative_prompt, p.seed, p.n, p.output_format, p.guidance_scale,
                   p.output_compression, p.metadata, s.width, s.height, s.steps
            FROM payloads p JOIN segments s ON s.job_id = p.job_id AND s.id = p.segment_id
            WHERE p.job_id = :id ORDER BY p.index"""),
            {"id": ids.parse_job(job)},
        )
        return [dict(row._mapping) for row in rows]


def newest(api: Api) -> str:
    return str(api.http.get("/v1/jobs").json()["data"][0]["id"])


def posted(api: Api, path: str, body: str, kind: str = "application/json", method: str = "POST") -> Any:
    answer = api.http.request(method, path, content=body.encode(), headers={"Content-Type": kind})
    assert answer.status_code < 300, answer.text
    return answer.json()


def by_json(api: Api) -> str:
    absent = ", ".join(f'"{name}": null' for name in ("priority", "labels", "defaults", "draft", "matrix"))
    return str(posted(api, "/v1/jobs", f'{{"images": [{",".join(OTHER)}], {absent}}}')["id"])


def by_lines(api: Api) -> str:
    return str(posted(api, "/v1/jobs", "\r\n".join(OTHER) + "\r\n", NDJSON["Content-Type"])["id"])


def by_defaults(api: Api) -> str:
    defaults = '{"size": "64x64", "n": null, "negative_prompt": null, "num_inference_steps": null}'
    images = ",".join(line.replace('"size": "64x64"', '"size": null') for line in OTHER)
    return str(posted(api, "/v1/jobs", f'{{"images": [{images}], "defaults": {defaults}}}')["id"])


def by_chunks(api: Api) -> str:
    job = posted(api, "/v1/jobs", '{"draft": true, "dedupe": null}')["id"]
    posted(api, f"/v1/jobs/{job}/chunks/0", OTHER[0] + "\r\n" + OTHER[1], NDJSON["Content-Type"], "PUT")
    posted(api, f"/v1/jobs/{job}/chunks/1", f'{{"images": [{OTHER[2]}]}}', method="PUT")
    posted(api, f"/v1/jobs/{job}/finalize", '{"chunks": 2.0, "images": null}')
    return str(job)


@pytest.mark.parametrize("door", [by_json, by_lines, by_defaults, by_chunks])
def test_every_native_door_records_the_same(emptied: Api, door: Callable[[Api], str]) -> None:
    expected = recorded(emptied, str(emptied.submit(*PLAIN)["id"]))
    assert recorded(emptied, door(emptied)) == expected


def test_a_matrix_takes_them_too(emptied: Api) -> None:
    matrix = {"template": "a {c}\r\nmug", "vary": {"c": ["red"], "seed": [7.0]}, "repeat": 3.0, "combine": None}
    body = {"matrix": matrix | {"negative_template": None, "seed": None}, "defaults": {"n": 2.0}}
    assert emptied.http.post("/v1/jobs/preview", json=body).json()["images"] == 3
    (row,) = recorded(emptied, emptied.http.post("/v1/jobs", json=body).json()["id"])
    assert (row["prompt"], row["seed"], row["n"]) == ("a red\nmug", 7, 3)


def test_an_estimate_of_shapes_takes_them_too(emptied: Api) -> None:
    shapes = '{"shapes": [{"images": 10.0, "size": "64x64", "num_inference_steps": 4.0, "model": null}]}'
    assert posted(emptied, "/v1/jobs/estimate", shapes)["images"] == 10


def test_a_file_of_requests_and_the_stock_route_take_them_too(api: Api, settings: Any, store: Any) -> None:
    expected = recorded(api, str(api.submit(*PLAIN)["id"]))
    bodies = [json.loads(line) for line in OTHER]
    lines = [{"custom_id": body.pop("custom_id"), "method": "POST", "url": URL, "body": body} for body in bodies]
    data = b"\r\n".join(json.dumps(line).encode() for line in lines)
    with (
        openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as client,
        scheduling(settings, store),
        rendering(settings, store),
    ):
        file = client.files.create(file=("requests.jsonl", data), purpose="batch").id
        batch = client.batches.create(input_file_id=file, endpoint=URL, completion_window="24h", metadata=None)
        done = until(lambda: (b := client.batches.retrieve(batch.id)).status == "completed" and b)
        assert recorded(api, done.job_id) == expected
        results = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
        shown = {image["seed_string"] for line in results for image in line["response"]["body"]["data"]}
        assert shown == {str(2**53 - 1), str(2**53), "7", str(2**63 - 1)}
        answer = api.http.post(URL, json=bodies[0] | {"partial_images": 0.0, "response_format": None})
        assert [picture["seed_string"] for picture in answer.json()["data"]] == [str(2**53 - 1), str(2**53)]
        assert recorded(api, newest(api)) == [expected[0] | {"custom_id": None}]
        assert api.http.post(URL, json=bodies[0] | {"n": 11.0}).json()["error"]["param"] == "n"


# --- the command


@pytest.fixture
def run(emptied: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSWORK_URL", emptied.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", emptied.key)
    monkeypatch.setenv("PRESSWORK_CONFIG", str(tmp_path / "config.toml"))

    def call(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
        return result

    return call


def tables(folder: Path) -> Iterator[str]:
    """The requests as the files that other programs write."""
    (folder / "crlf.jsonl").write_bytes("\r\n".join(OTHER).encode())
    yield "crlf.jsonl"
    table = pa.table({
        "prompt": [row["prompt"].replace("\n", "\r\n") for row in PLAIN],
        "custom_id": pa.array([12, 13, 14], pa.decimal128(38, 0)),
        "seed": pa.array([row["seed"] for row in PLAIN], pa.uint64()),
        "n": pa.array([2.0, None, float("nan")], pa.float64()),
        "num_inference_steps": pa.array([4, None, None], pa.float32()),
        "size": ["64x64"] * 3,
        "negative_prompt": ["blur\r\nnoise", None, None],
    })  # fmt: skip
    parquet.write_table(table, folder / "p.parquet")
    yield "p.parquet"
    file = io.BytesIO()
    csv.write_csv(table.set_column(3, "n", pa.array([2, None, None])), file)
    (folder / "crlf.csv").write_bytes(file.getvalue().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    yield "crlf.csv"


def test_every_file_that_the_command_reads_records_the_same(
    emptied: Api, run: Callable[..., Result], tmp_path: Path
) -> None:
    expected = recorded(emptied, str(emptied.submit(*PLAIN)["id"]))
    for name in tables(tmp_path):
        for options in ([], ["--label", "a=b"], ["--output-format", "png"]):
            run("submit", name, *options)
            assert recorded(emptied, newest(emptied)) == expected, (name, options)


HUGE = 2**63 - 1


@pytest.mark.parametrize(
    "column",
    [
        pa.array([HUGE], pa.int64()), pa.array([HUGE], pa.uint64()), pa.array([Decimal(HUGE)], pa.decimal128(19, 0)),
        pa.array([Decimal(HUGE)], pa.decimal128(38, 10)), pa.array([Decimal(HUGE)], pa.decimal256(76, 20)),
        pa.array([str(HUGE)]), pa.array([f"{HUGE}.00"]), pa.array([str(HUGE)]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type)[:24],
)  # fmt: skip
def test_a_whole_number_of_a_table_arrives_digit_for_digit(
    emptied: Api, run: Callable[..., Result], tmp_path: Path, column: Any
) -> None:
    metadata = pa.StructArray.from_arrays([column], ["sku"])
    parquet.write_table(pa.table({"prompt": ["a"], "seed": column, "metadata": metadata}), tmp_path / "p.parquet")
    run("submit", "p.parquet")
    (row,) = recorded(emptied, newest(emptied))
    assert row["seed"] == HUGE
    assert str(row["metadata"]["sku"]).removesuffix(".00") == str(HUGE)


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("seed", pa.array([2.0**53]), "seed is 9007199254740992 in a column of floats"),
        ("seed", pa.array([2.0**24], pa.float32()), "seed is 16777216 in a column of floats"),
        ("custom_id", pa.array([2.0**60]), "custom_id is 1152921504606846976 in a column of floats"),
        ("seed", pa.array([2**64 - 1], pa.uint64()), "seed is 18446744073709551615; it must be"),
        ("seed", pa.array([Decimal("1.5")]), "seed is 1.5; it must be"),
        ("seed", pa.array(["9.2E+18"]), 'seed is "9.2E+18"; it must be'),
        ("metadata", pa.array([{"a": Decimal("0.12345678901234567890")}]), "has more digits than a number in JSON"),
    ],
)  # fmt: skip
def test_a_number_that_may_have_lost_digits_is_refused_in_a_sentence(
    emptied: Api, run: Callable[..., Result], tmp_path: Path, name: str, column: Any, said: str
) -> None:
    parquet.write_table(pa.table({"prompt": ["a"], name: column}), tmp_path / "p.parquet")
    assert said in " ".join(run("submit", "p.parquet", code=5).stderr.split())
