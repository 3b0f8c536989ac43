"""`metadata` of a request: taken at every door, kept to the digit, and shown wherever the request is."""

import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from services.core.jobs import request_queries
from services.core.model import ids, metadata_filters, requests
from services.core.model.specs import FailedImage
from tests import exporting, factories
from tests.rendering import rendering, scheduling
from tests.waiting import until
from tests.web import Api

NDJSON = {"Content-Type": "application/x-ndjson"}
ODD: dict[str, Any] = {
    "sku": 9007199254740993,
    "huge": 10**400 + 7,
    "negative": -(2**63),
    "price": 0.1,
    "whole": 1.0,
    "tiny": 5e-324,
    "gift": True,
    "sold": None,
    "say": '=1+1 "quoted" \\ \\N \\.\ttab\nline \u2028 caf\u00e9 \U0001f600 :',
    "__proto__": "{}",
    "a.b/c:d": "",
    "\u732b" * 64: "x" * 1_000,
}


def exact(value: dict[str, Any]) -> str:
    """Its text, which tells 1 from 1.0 and true."""
    return json.dumps(value, sort_keys=True)


def images(api: Api, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.http.get(f"/v1/jobs/{job}/images").json()["data"]
    return found


def by_json(api: Api) -> str:
    return str(api.submit({"prompt": "a mug", "n": 2, "metadata": ODD}, {"prompt": "a jug"})["id"])


def by_lines(api: Api) -> str:
    lines = [{"prompt": "a mug", "n": 2, "metadata": ODD}, {"prompt": "a jug", "metadata": {}}]
    body = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    answer = api.http.post("/v1/jobs", content=body, headers=NDJSON)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def by_defaults(api: Api) -> str:
    given = [{"prompt": "a mug", "n": 2}, {"prompt": "a jug", "metadata": {}}]
    return str(api.submit(*given, defaults={"metadata": ODD})["id"])


def by_chunks(api: Api) -> str:
    job = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    body = json.dumps({"prompt": "a mug", "n": 2, "metadata": ODD}).encode()
    assert api.http.put(f"/v1/jobs/{job}/chunks/0", content=body, headers=NDJSON).status_code == 200
    chunk = {"images": [{"prompt": "a jug", "metadata": {}}], "defaults": {"metadata": ODD}}
    assert api.http.put(f"/v1/jobs/{job}/chunks/1", json=chunk).status_code == 200
    assert api.http.post(f"/v1/jobs/{job}/finalize", json={"chunks": 2}).status_code == 202
    return str(job)


@pytest.mark.parametrize("door", [by_json, by_lines, by_defaults, by_chunks])
def test_metadata_is_shown_with_every_image_and_request_digit_for_digit(
    emptied: Api, door: Callable[[Api], str]
) -> None:
    job = door(emptied)
    assert [exact(image["metadata"]) for image in images(emptied, job)] == [exact(ODD), exact(ODD), "{}"]
    listed = emptied.http.get(f"/v1/jobs/{job}/requests").json()["data"]
    assert [exact(request["metadata"]) for request in listed] == [exact(ODD), "{}"]
    assert [exact(image["metadata"]) for request in listed for image in request["images"]] == [
        exact(ODD), exact(ODD), "{}",
    ]  # fmt: skip


def test_every_request_of_a_matrix_has_its_defaults_metadata(emptied: Api) -> None:
    matrix = {"template": "a {c} mug", "vary": {"c": ["red", "blue"]}}
    body = {"matrix": matrix, "defaults": {"metadata": ODD}}
    shown = emptied.http.post("/v1/jobs/preview", json=body).json()
    assert exact(shown["first"][1]["metadata"]) == exact(ODD)
    job = emptied.http.post("/v1/jobs", json=body).json()["id"]
    assert [exact(image["metadata"]) for image in images(emptied, job)] == [exact(ODD)] * 2


VALUE = "text, a number, true, false or null, under a name of 1 to 64 characters"


@pytest.mark.parametrize(
    ("written", "code", "param", "said"),
    [
        ("[]", "wrong_type", "metadata", "is a list; it must be a flat object of at most 4,096 bytes as JSON"),
        ('{"a": {}}', "wrong_type", "metadata.a", f"is an object; it must be {VALUE}"),
        ('{"a": [1]}', "wrong_type", "metadata.a", f"is a list; it must be {VALUE}"),
        ('{"": 1}', "invalid_value", 'metadata.""', f'is ""; it must be {VALUE}'),
        (json.dumps({"n" * 65: 1}), "too_long", "metadata." + "n" * 65, "(65 characters)"),
        ('{"a": "\\u0000"}', "invalid_character", "metadata.a", "U+0000 at 0"),
        ('{"a\\u0007": 1}', "invalid_character", 'metadata."a\\u0007"', "U+0007 at 1"),
        ('{"a": "\\ud800"}', "invalid_character", "metadata.a", "U+D800 at 0"),
        ('{"a": NaN}', "invalid_number", None, "NaN is not a JSON number"),
        ('{"a": -Infinity}', "invalid_number", None, "-Infinity is not a JSON number"),
        ('{"a": 1e400}', "invalid_number", None, "too large"),
        ('{"a": 1, "a": 2}', "duplicate_key", None, 'The key "a" appears twice'),
        (json.dumps({"a": "é" * 2_045}), "too_long", "metadata", "is an object of 4,098 bytes"),
        (json.dumps({str(n): n for n in range(600)}), "too_long", "metadata", "bytes; it must be a flat object"),
    ],
)
def test_what_is_no_metadata_is_refused_by_its_place(
    emptied: Api, written: str, code: str, param: str | None, said: str
) -> None:
    before = emptied.rows()
    line = f'{{"prompt": "a mug", "metadata": {written}}}'
    for body, kind, prefix in (
        (line, "application/x-ndjson", ""),
        (f'{{"images": [{line}]}}', "application/json", "images[0]."),
        (f'{{"images": [{{"prompt": "x"}}], "defaults": {{"metadata": {written}}}}}', "application/json", "defaults."),
    ):
        answer = emptied.http.post("/v1/jobs", content=body.encode(), headers={"Content-Type": kind})
        error = answer.json()["error"]
        assert 400 <= answer.status_code < 500
        assert said in error["message"], error
        found = error["errors"][0] if error.get("errors") else error
        assert found["code"] == code, error
        if param is not None:
            assert found["param"] == (prefix + param)[:80], error
    assert emptied.rows() == before


def test_the_largest_metadata_is_taken(emptied: Api) -> None:
    largest = {"a": "é" * 2_044}
    assert len(json.dumps(largest, ensure_ascii=False, separators=(",", ":")).encode()) == requests.METADATA_LIMIT
    job = str(emptied.submit({"prompt": "a mug", "metadata": largest})["id"])
    assert images(emptied, job)[0]["metadata"] == largest


def test_metadata_decides_nothing_of_the_picture_and_no_worker_reads_it(emptied: Api) -> None:
    emptied.submit({"prompt": "a mug", "seed": 1}, {"prompt": "a mug", "seed": 1, "metadata": ODD})
    claim = factories.claim(emptied.database)
    assert claim is not None
    first, second = claim.images
    assert first.spec == second.spec and first.render_key == second.render_key


def test_a_key_stands_for_its_metadata_too_in_whatever_order(emptied: Api) -> None:
    headers = {"Idempotency-Key": "metadata-1"}

    def send(**more: Any) -> Any:
        return emptied.http.post("/v1/jobs", json={"images": [{"prompt": "a", **more}]}, headers=headers)

    first = send(metadata={"a": 1, "b": 2})
    assert send(metadata={"b": 2, "a": 1}).json()["id"] == first.json()["id"]
    for other in ({"metadata": {"a": 1}}, {"metadata": {"a": 1.0, "b": 2}}, {"metadata": {}}, {}):
        assert send(**other).status_code == 422


def test_a_retry_keeps_it(emptied: Api) -> None:
    job = str(emptied.submit({"prompt": "a mug", "n": 3, "metadata": ODD}, {"prompt": "a jug"})["id"])
    claim = factories.claim(emptied.database)
    assert claim is not None
    failed = [FailedImage(image.job_id, image.index, "error", "No.") for image in claim.images if image.index != 1]
    stored = [image for image in factories.stored(claim) if image.index == 1]
    factories.settle(emptied.database, claim, stored=stored, failed=failed)
    exporting.finish(emptied.database, ids.parse_job(job))
    child = emptied.http.post(f"/v1/jobs/{job}/retry").json()["id"]
    assert [exact(image["metadata"]) for image in images(emptied, child)] == [exact(ODD), exact(ODD), "{}"]


def test_a_page_of_requests_stays_small_however_much_they_carry(emptied: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is listed with its request's metadata."""
    monkeypatch.setattr(request_queries, "MAX_IMAGES", 100)
    heavy = {"a": "x" * 4_000}
    job = str(emptied.submit(*[{"prompt": "a mug", "n": 5, "metadata": heavy}] * 5)["id"])
    sizes, cursor, seen = [], None, 0
    while True:
        page = emptied.http.get(f"/v1/jobs/{job}/requests", params={"cursor": cursor} if cursor else {}).json()
        sizes.append(len(page["data"]))
        seen += sum(len(request["images"]) for request in page["data"])
        if (cursor := page["next_cursor"]) is None:
            break
    assert sizes == [2, 2, 1]
    assert seen == 25


# --- the stock client


def test_a_files_lines_and_its_results_carry_metadata_and_the_batchs_own_is_the_jobs_labels(
    api: Api, settings: Any, store: Any
) -> None:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as client:
        lines = [
            {"custom_id": name, "method": "POST", "url": "/v1/images/generations",
             "body": {"prompt": prompt, "size": "64x64", **more}}
            for name, prompt, more in (
                ("with", "a mug", {"metadata": ODD}), ("without", "a jug", {}), ("null", "a jug", {"metadata": None}),
                ("bad", "fault:nan", {"metadata": {"sku": 7}}),
            )
        ]  # fmt: skip
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        file = client.files.create(file=("requests.jsonl", data), purpose="batch").id
        wrong = client.files.create(
            file=("wrong.jsonl", json.dumps(lines[0] | {"body": {"prompt": "x", "metadata": {"a": []}}}).encode()),
            purpose="batch",
        ).id
        given: dict[str, Any] = {"endpoint": "/v1/images/generations", "completion_window": "24h"}
        faults = dataclasses.replace(settings, simulated_faults=True)
        with scheduling(settings, store), rendering(faults, store):
            batch = client.batches.create(input_file_id=file, metadata={"project": "kitchen"}, **given)
            other = client.batches.create(input_file_id=wrong, **given)
            done = until(lambda: (b := client.batches.retrieve(batch.id)).status == "completed" and b)
            refused = until(lambda: (b := client.batches.retrieve(other.id)).status == "failed" and b)
        (problem,) = refused.errors.data
        assert (problem.line, problem.param) == (1, "body.metadata.a")
        assert done.metadata == {"project": "kitchen"}
        found = [
            json.loads(line)
            for id_ in (done.output_file_id, done.error_file_id)
            for line in client.files.content(id_).text.splitlines()
        ]
    told = {entry["custom_id"]: exact(entry["response"]["body"]["metadata"]) for entry in found}
    assert told == {"with": exact(ODD), "without": "{}", "null": "{}", "bad": '{"sku": 7}'}


def test_the_stock_client_sends_it_with_a_picture_that_it_waits_for(api: Api, settings: Any, store: Any) -> None:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as client:
        with rendering(settings, store):
            answer = client.images.generate(prompt="a mug", size="64x64", extra_body={"metadata": ODD})  # type: ignore[call-overload]
        job = api.http.get("/v1/jobs").json()["data"][0]
        assert answer.data[0].job_id == job["id"]
        assert [exact(image["metadata"]) for image in images(api, job["id"])] == [exact(ODD)]
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt="a mug", extra_body={"metadata": {"a": [1]}})
    assert refused.value.param == "metadata.a"


# --- exports

MIXED: list[dict[str, Any]] = [{"a": 1}, {"a": "one", "b": 10**30}, {}, ODD, {"a": None, "c": 0.5}]


@pytest.fixture
def exported(database: Any, settings: Any, store: Any) -> int:
    wanted = [
        {"prompt": f"mug {n}", "size": "64x64", **({"metadata": given} if given else {})}
        for n, given in enumerate(MIXED)
    ]
    return exporting.finished_job(database, settings, store, wanted)


@pytest.fixture
def tree(database: Any, settings: Any, store: Any, exported: int, tmp_path: Path) -> Callable[[str], Path]:
    def make(form: str) -> Path:
        made = exporting.export(database, settings, store, exported, form, images_per_shard=2)
        assert made.state == "completed", made.error
        return exporting.download(database, store, made.id, tmp_path / form)

    return make


def load(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None = None) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    given = {"data_dir": str(path)} if kind else {}
    return datasets.load_dataset(kind or str(path), cache_dir=str(tmp_path / "cache"), **given)["train"]


def told(texts: Any) -> list[str]:
    return [exact(json.loads(text)) for text in texts]


EXPECTED = [exact(given) for given in MIXED]


def test_webdataset_holds_it_as_one_text_that_datasets_takes_for_one_type(tree, tmp_path, monkeypatch):
    loaded = load(tree("webdataset") / "data", tmp_path, monkeypatch)
    assert told(row["json"]["metadata"] for row in loaded) == EXPECTED


def test_an_image_folder_holds_it_as_one_text_that_datasets_takes_for_one_type(tree, tmp_path, monkeypatch):
    loaded = load(tree("imagefolder"), tmp_path, monkeypatch, "imagefolder")
    assert told(row["metadata"] for row in sorted(loaded, key=lambda row: row["index"])) == EXPECTED


def test_parquet_holds_it_as_a_column_of_text_that_the_command_line_reads_again(tree, tmp_path, monkeypatch):
    import pyarrow.parquet

    from services.core.items import reading

    path = tree("parquet")
    shards = sorted((path / "data").iterdir())
    table = pyarrow.parquet.read_table(shards)
    assert table.schema.field("metadata").type == pyarrow.string()
    assert told(table.column("metadata").to_pylist()) == EXPECTED
    assert told(row["metadata"] for row in load(path, tmp_path, monkeypatch)) == EXPECTED
    again = [json.loads(row.line)["metadata"] for shard in shards for row in reading.source(shard, None, {}, {}).rows()]
    assert [exact(given) for given in again] == EXPECTED


def test_a_zip_holds_it_in_its_lines_and_its_table(tree):
    lines, table = [], []
    for path in sorted((tree("zip") / "data").iterdir()):
        with zipfile.ZipFile(path) as archive:
            lines += [json.loads(line) for line in archive.read("records.jsonl").decode().splitlines()]
            text = archive.read("spreadsheet.csv").decode("utf-8-sig")
            table += list(csv.DictReader(io.StringIO(text, newline="")))
    assert told(line["metadata"] for line in lines) == EXPECTED
    assert told(row["metadata"] for row in table) == EXPECTED


# --- columns, and filters


TYPED: list[dict[str, Any]] = [
    {"split": "train", "size": 1, "weight": 1, "mixed": 1, "ok": True},
    {"split": "val", "size": 2**60, "weight": 0.5, "mixed": "one", "ok": False},
    {"size": None, "big": 2**53 + 1},
    {"split": "val, too", "big": 0.5},
]
CELLS = {
    "metadata.big": [None, None, str(2**53 + 1), "0.5"],
    "metadata.mixed": ["1", "one", None, None],
    "metadata.ok": [True, False, None, None],
    "metadata.size": [1, 2**60, None, None],
    "metadata.split": ["train", "val", None, "val, too"],
    "metadata.weight": [1.0, 0.5, None, None],
}


@pytest.fixture
def typed(database: Any, settings: Any, store: Any) -> int:
    wanted = [{"prompt": f"mug {n}", "size": "64x64", "metadata": given, "n": 2} for n, given in enumerate(TYPED)]
    return exporting.finished_job(database, settings, store, wanted)


def test_every_table_has_a_column_of_one_type_for_each_name(database, settings, store, typed, tmp_path, monkeypatch):
    for form in ("parquet", "imagefolder", "zip"):
        made = exporting.export(database, settings, store, typed, form, images_per_shard=3)
        assert made.state == "completed", made.error
        tree = exporting.download(database, store, made.id, tmp_path / form)
        rows = sorted(load(tree, tmp_path, monkeypatch), key=lambda row: row["index"])
        for name, cells in CELLS.items():
            found = [row[name] for row in rows]
            assert found[::2] == found[1::2] == cells, (form, name)
            assert [type(cell) for cell in found[::2]] == [type(cell) for cell in cells], (form, name)


WISHES = [
    (["split=val"], [2, 3]),
    (["metadata.split=val"], [2, 3]),
    (["split!=val"], [0, 1, 4, 5, 6, 7]),
    (["split=val", "split=train"], [0, 1, 2, 3]),
    (["split=val, too"], [6, 7]),
    (["split="], [4, 5]),
    (["ok=true", "weight=1"], [0, 1]),
    (["weight=0.5"], [2, 3]),
    (["ok=false", "split=train"], []),
]


@pytest.mark.parametrize(("wished", "indexes"), WISHES)
def test_a_filter_means_the_same_in_an_export_and_in_python(database, settings, store, typed, wished, indexes):
    from services.core.model import metadata_filters

    conditions = metadata_filters.conditions(wished)
    assert [n for n in range(8) if metadata_filters.holds(TYPED[n // 2], conditions)] == indexes
    made = exporting.export(database, settings, store, typed, "parquet", metadata=wished)
    assert (made.state, made.images_done) == ("completed", len(indexes))


def test_a_list_is_filtered_by_metadata_page_by_page(emptied: Api) -> None:
    given = [{"prompt": "a", "metadata": {"split": "val" if n % 3 else "train"}, "n": 1 + n % 2} for n in range(10)]
    job = str(emptied.submit(*given, {"prompt": "b", "metadata": {"split": "a,b"}})["id"])
    every = images(emptied, job)
    for asked, value in (("split=val", "val"), ("metadata.split=train", "train"), ("split=a\\,b", "a,b")):
        found: list[int] = []
        cursor: str | None = None
        while True:
            parameters = {"metadata": asked, "status": "queued", "limit": 2} | ({"cursor": cursor} if cursor else {})
            page = emptied.http.get(f"/v1/jobs/{job}/images", params=parameters).json()
            found += [image["index"] for image in page["data"]]
            if (cursor := page["next_cursor"]) is None:
                break
        assert found == [image["index"] for image in every if image["metadata"]["split"] == value]
    assert emptied.http.get(f"/v1/jobs/{job}/images", params={"metadata": "split=val", "status": "done"}).json() == {
        "data": [], "next_cursor": None,
    }  # fmt: skip
    for parameters in ({"metadata": "split"}, {"metadata": "split=val", "mark": "accepted"}):
        answer = emptied.http.get(f"/v1/jobs/{job}/images", params=parameters)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "metadata")


def test_the_command_submits_labels_of_a_table_and_downloads_those_of_a_split(
    api: Api, settings: Any, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet
    from typer.testing import CliRunner

    from services.cli.app import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    (tmp_path / "p.csv").write_text("caption,Split,size\na mug,val,64x64\na jug,train,64x64\n")
    words = ["submit", "p.csv", "--column", "prompt=caption", "--column", "split=Split", "--json"]
    with scheduling(settings, store), rendering(settings, store):
        job = json.loads(CliRunner().invoke(app, words).stdout)["id"]
        until(lambda: api.http.get(f"/v1/jobs/{job}").json()["status"] == "completed")
        result = CliRunner().invoke(app, ["download", job, "-o", "out", "--metadata", "split=val"])
        assert result.exit_code == 0, result.output
        words = ["export", job, "-o", "exported", "-f", "parquet", "--metadata", "split=train"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    (line,) = (tmp_path / "out/records.jsonl").read_text().splitlines()
    assert json.loads(line)["metadata"] == {"split": "val"}
    table = pyarrow.parquet.read_table(tmp_path / "out/metadata.parquet")
    assert table.column("metadata.split").to_pylist() == ["val"]
    (shard,) = (tmp_path / "exported/data").iterdir()
    assert pyarrow.parquet.read_table(shard).column("metadata.split").to_pylist() == ["train"]
    listed = CliRunner().invoke(app, ["images", job, "--metadata", "split=val", "--json"]).stdout.splitlines()
    assert [json.loads(one)["metadata"] for one in listed] == [{"split": "val"}]


@pytest.mark.parametrize(
    ("given", "wished"),
    [("1e-05", "0.00001"), ("0.00001", "1E-5"), ("1.0", "1"), ("1", "1.00"), ("-0.0", "0"), ("1e22", f"1{'0' * 22}"),
     (f"1{'0' * 22}", "1e+22"), ("9007199254740993", "9007199254740993"), ("1.5e300", "1.5e300")],
)  # fmt: skip
def test_a_number_is_found_however_it_is_written(emptied: Api, given: str, wished: str) -> None:
    text = f'{{"images": [{{"prompt": "a", "metadata": {{"n": {given}}}}}, {{"prompt": "b", "metadata": {{"n": 7}}}}]}}'
    job = emptied.http.post("/v1/jobs", content=text, headers={"Content-Type": "application/json"}).json()["id"]
    for condition, indexes in ((f"n={wished}", [0]), (f"n!={wished}", [1])):
        found = emptied.http.get(f"/v1/jobs/{job}/images", params={"metadata": condition}).json()["data"]
        assert [one["index"] for one in found] == indexes
        read = found[0]["metadata"]
        assert metadata_filters.holds(read, metadata_filters.conditions([condition]))
