"""Every bad input that these routes can be given, one by one: refused with a stable code, and nothing is written.

The numbers in the ids are those of the project's list of bad inputs.
"""

import gzip
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text
from starlette.datastructures import UploadFile

from services.core.model import ids
from services.core.settings import Settings
from services.local.stack import Stack
from tests.web import Api, open_api

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
MEBIBYTE = 1 << 20
GOOD = b'{"images":[{"prompt":"a mug"}]}'
LINE = b'{"prompt":"a mug"}\n'


@pytest.fixture(scope="module")
def api(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[Api]:
    """One server for the whole table; its limits are small, so that they can be met."""
    with fresh_database(template) as url:
        values = stack.values | {
            "DATABASE_URL": url,
            "PRESSWORK_MAX_BODY_BYTES": str(2 * MEBIBYTE),
            "PRESSWORK_MAX_IMAGES_PER_JOB": "20000",
        }
        with open_api(Settings.read(values)) as running:
            yield running


@dataclass
class Case:
    name: str
    status: int
    code: str
    body: bytes = GOOD
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    said: str = ""  # what the message or the param must hold
    at: int | None = None  # the line or index that is named


def one(field_text: str) -> bytes:
    """A submission of one request with this text among its fields."""
    return b'{"images":[{"prompt":"a mug",' + field_text.encode("utf-8") + b"}]}"


def prompt(json_text: str) -> bytes:
    return b'{"images":[{"prompt":' + json_text.encode("utf-8") + b"}]}"


def custom_id(value: str) -> bytes:
    return one(f'"custom_id":{json.dumps(value)}')


def labelled(labels: dict[str, str]) -> bytes:
    return json.dumps({"images": [{"prompt": "x"}], "labels": labels}).encode()


def lines(*given: bytes, end: bytes = b"\n") -> bytes:
    return end.join(given) + end


def refusals(prefix: str, code: str, values: dict[str, bytes], status: int = 422, said: str = "") -> list[Case]:
    return [Case(f"{prefix}-{name}", status, code, body, said=said) for name, body in values.items()]


def fields(name: str, *texts: str) -> dict[str, bytes]:
    return {f"{name}-{value[:24]}": one(f'"{name}":{value}') for value in texts}


TRANSPORT = [
    Case("4-gzip-encoding", 415, "unsupported_encoding", gzip.compress(GOOD), JSON | {"Content-Encoding": "gzip"}),
    Case("4-identity-encoding", 415, "unsupported_encoding", GOOD, JSON | {"Content-Encoding": "identity"}),
    Case("5-zip", 415, "unsupported_media_type", b"PK\x03\x04", {"Content-Type": "application/zip"}),
    Case("5-zstd", 415, "unsupported_media_type", b"(\xb5/\xfd", {"Content-Type": "application/zstd"}),
    Case("6-plain-text", 415, "unsupported_media_type", GOOD, {"Content-Type": "text/plain"}),
    Case("6-no-type", 415, "unsupported_media_type", GOOD, {}),
    Case("6-utf-16-charset", 415, "unsupported_media_type", GOOD, {"Content-Type": "application/json; charset=utf-16"}),
    Case("7-broken-utf-8", 400, "invalid_encoding", b"\xff\xfe"),
    Case("8-utf-16", 400, "invalid_encoding", GOOD.decode().encode("utf-16")),
    Case("8-utf-16-without-mark", 400, "invalid_json", GOOD.decode().encode("utf-16-le")),
    Case("8-utf-32", 400, "invalid_encoding", GOOD.decode().encode("utf-32")),
    Case("9-two-marks", 400, "invalid_json", b"\xef\xbb\xbf" * 2 + GOOD),
    Case("10-empty", 422, "invalid_json", b""),
    Case("10-null", 422, "wrong_type", b"null", said="null"),
    Case("10-list", 422, "wrong_type", b"[]", said="a list"),
    Case("10-text", 422, "wrong_type", b'"x"'),
    Case("10-no-images", 422, "missing_field", b"{}", said="images"),
    Case("10-empty-images", 422, "invalid_value", b'{"images":[]}', said="images"),
    Case("10-images-is-text", 422, "wrong_type", b'{"images":"a mug"}', said="images"),
    Case("10-image-is-text", 422, "wrong_type", b'{"images":["a mug"]}', at=0),
    Case("10-empty-image", 422, "missing_field", b'{"images":[{}]}', said="prompt", at=0),
    Case("11-trailing-garbage", 400, "invalid_json", GOOD + b"]", said="column 32"),
    Case("12-deep-nesting", 400, "invalid_json", b"[" * 100_000 + b"]" * 100_000, said="deep"),
    Case("12-deep-objects", 400, "invalid_json", b'{"images":' * 90_000, said="deep"),
    Case("12-a-little-too-deep", 400, "invalid_json", prompt("[" * 40 + "]" * 40), said="deep"),
    Case("12-as-deep-as-python-goes", 400, "invalid_json", prompt("[" * 950 + "]" * 950), said="deep"),
    Case("13-key-twice", 422, "duplicate_key", one('"num_inference_steps":5,"num_inference_steps":500'), said="steps"),
    Case("13-head-twice", 422, "duplicate_key", b'{"images":[],"images":[{"prompt":"x"}]}'),
    Case("14-unknown-field", 422, "unknown_field", one('"model_path":"x"'), said="model_path", at=0),
    Case("14-unknown-in-head", 422, "unknown_field", b'{"images":[{"prompt":"x"}],"callback":"x"}', said="callback"),
    Case("14-unknown-in-defaults", 422, "unknown_field", b'{"images":[{"prompt":"x"}],"defaults":{"prompt":"y"}}'),
    Case("14-many-unknown", 422, "too_many_keys", one(",".join(f'"k{n}":1' for n in range(100_000)))),
    Case("14-name-that-is-no-text", 422, "unknown_field", one(r'"\ud800":1'), at=0),
    Case("16-empty-key", 400, "invalid_idempotency_key", GOOD, JSON | {"Idempotency-Key": ""}),
    Case("16-long-key", 400, "invalid_idempotency_key", GOOD, JSON | {"Idempotency-Key": "k" * 256}),
    Case("16-key-with-space", 400, "invalid_idempotency_key", GOOD, JSON | {"Idempotency-Key": "one, two"}),
]  # fmt: skip

NUMBERS = [
    *refusals("21", "invalid_number", fields("guidance_scale", "NaN", "Infinity", "-Infinity", "1e999", "-1e999")),
    *refusals("22", "invalid_value", fields("guidance_scale", "-1", "1e308", "50.1"), said="from 0 to 50"),
    *refusals("22", "wrong_type", fields("guidance_scale", '"7"', "true", "[]", "1" + "0" * 400)),
    *refusals("23", "invalid_value", fields("num_inference_steps", "0", "-1", "1000000000"), said="from 1"),
    *refusals("23", "unserved_steps", fields("num_inference_steps", "51", "151"), said="1 to 50"),
    *refusals("23", "wrong_type", fields("num_inference_steps", "20.5", '"20"', "true", "1e300")),
    *refusals("24", "invalid_value", fields("seed", "-1"), said="9223372036854775807"),
    *refusals("26", "invalid_value", fields("seed", str(2**63), str(2**64), "1" + "0" * 400)),
    *refusals("26", "wrong_type", fields("seed", "1.5", '"1"', "9007199254740992.0", "1e18")),
    *refusals("27", "invalid_number", fields("seed", "9" * 5000)),
    *refusals("28", "invalid_value", fields("size", '"0x512"', '"-512x512"', '"512"', '"512.0x512"', '"512X512"')),
    *refusals("28", "invalid_value", fields("size", '"512x512 "', '"1000000x512"', '"५१२x५१२"', '""')),
    *refusals("28", "unserved_size", fields("size", '"513x512"', '"1x1"', '"64x256"'), said="64x64, 256x256, 512x512"),
    *refusals("28", "wrong_type", fields("size", "512", '{"w":512}')),
    *refusals("30", "invalid_value", fields("n", "0", "-1", "1000000000", str(2**31), str(2**63)), said="1 to 1,000"),
    *refusals("30", "wrong_type", fields("n", "1.5", "true", '"4"')),
    Case("31-product", 422, "too_many_images", json.dumps({"images": [{"prompt": "x", "n": 1000}] * 21}).encode(),
         said="20,000", at=20),
    Case("32-priority-number", 422, "invalid_value", b'{"images":[{"prompt":"x"}],"priority":99}', said="high"),
    Case("32-priority-sql", 422, "invalid_value", b'{"images":[{"prompt":"x"}],"priority":"high; drop"}'),
    *refusals("34", "unknown_field", fields("batch_size", "4")),
    *refusals("35", "unknown_field", fields("state", '"done"') | fields("tenant_id", "2") | fields("attempt", "0")),
    Case("35-head", 422, "unknown_field", b'{"images":[{"prompt":"x"}],"tenant_id":2}', said="tenant_id"),
]  # fmt: skip
STRINGS = [
    *refusals("36", "invalid_value", {"empty": prompt('""'), "spaces": prompt('" \\t "')}, said="1 to 2,000"),
    *refusals("36", "wrong_type", {"null": prompt("null"), "number": prompt("5")}),
    *refusals("37", "too_long", {"2001": prompt(f'"{"x" * 2001}"'), "megabyte": prompt(f'"{"x" * MEBIBYTE}"')}),
    *refusals("38", "invalid_character", {"prompt": prompt(r'"a\u0000"')}, said="U+0000 at 1"),
    *refusals("38", "invalid_character", fields("negative_prompt", r'"\u0000"') | fields("model", r'"\u0000"')),
    *refusals("38", "invalid_value", fields("custom_id", r'"\u0000"') | fields("size", r'"\u0000"')),
    Case("38-label", 422, "invalid_character", b'{"images":[{"prompt":"x"}],"labels":{"a":"\\u0000"}}'),
    Case("38-label-name", 422, "invalid_character", b'{"images":[{"prompt":"x"}],"labels":{"\\u0000":"a"}}'),
    *refusals("39", "invalid_character", {"prompt": prompt(r'"\ud800"')} | fields("custom_id", r'"\udc00"')),
    *refusals("39", "wrong_type", fields("seed", r'"\ud800"') | {"in-a-list": prompt(r'["\ud800"]')}),
    *refusals("39", "invalid_character", fields("output_format", r'"\ud800"')),
    Case("39-label", 422, "invalid_character", b'{"images":[{"prompt":"x"}],"labels":{"a":"\\ud800"}}'),
    Case("39-label-name", 422, "invalid_character", b'{"images":[{"prompt":"x"}],"labels":{"\\ud800":"a"}}'),
    *refusals("40", "invalid_character", {name: prompt(f'"a{name}"') for name in (r"\u0001", r"\u001f", r"\u0085")}),
    *refusals("40", "invalid_character", {"del": prompt('"a\x7f"'), "carriage-return": prompt(r'"a\r"')}),
    Case("40-bare-control", 400, "invalid_json", prompt('"a\x01"')),
    *refusals("41", "invalid_character", {"ansi": prompt(r'"\u001b[2J"'), "link": prompt(r'"\u001b]8;;x\u0007"')}),
    *refusals("42", "invalid_value", {"bidi": custom_id("a\u202eb"), "homoglyph": custom_id("\u0430bc")}),
    *refusals("43", "too_long", {"marks": prompt('"a' + "\\u0301" * 10_000 + '"')}),
    Case("52-label-name", 422, "too_long", labelled({"n" * 65: ""})),
    Case("52-label-value", 422, "too_long", labelled({"n": "v" * 513})),
    Case("52-labels", 422, "invalid_value", labelled({f"n{n}": "" for n in range(17)})),
    *refusals("53", "invalid_value", {value or "empty": custom_id(value) for value in (
        "../../etc/passwd", "..\\..", "/abs", "a/b", ".", "..", "con", "COM1.txt", "a.", "a ", " a", "%2e%2e", "",
        "...", ".hidden")}),
    *refusals("54", "invalid_value", {"crlf": custom_id("x\r\nSet-Cookie: a"), "quote": custom_id('a";filename="b')}),
    *refusals("56", "too_long", {"129": custom_id("i" * 129)}, said="128"),
    *refusals("59", "unknown_model", fields("model", '"../../x"', '"http://evil/m.safetensors"', '"hf:a/b"', '""')),
    *refusals("59", "unknown_field", fields("custom_pipeline", '"x"')),
    *refusals("60", "unknown_field", fields("output_prefix", '"s3://other/"') | fields("bucket", '"other"')),
    *refusals("60", "invalid_value", fields("output_format", '"gif"', '"s3://x"', "5")),
]  # fmt: skip
DUPLICATE = b'{"images":[{"prompt":"x","custom_id":"a"},{"prompt":"y"},{"prompt":"z","custom_id":"a"}]}'
TYPED = [
    Case("57-duplicate-id", 422, "duplicate_custom_id", DUPLICATE, said="was used at index 0", at=2),
    Case("57-duplicate-id-in-lines", 422, "duplicate_custom_id",
         lines(*[b'{"prompt":"x","custom_id":"a"}'] * 2), NDJSON, said="was used at line 1", at=2),
    Case("61-one-broken-line", 422, "invalid_json", LINE * 4999 + b'{"prompt":\n' + LINE * 5000, NDJSON, at=5000),
    Case("63-lone-carriage-returns", 422, "invalid_json", LINE.replace(b"\n", b"\r") * 3, NDJSON, at=1),
    Case("64-blank-in-the-middle", 422, "blank_line", LINE + b"\n \r\n" + LINE, NDJSON, at=2),
    Case("64-only-blank", 422, "missing_field", b"\n\n\n", NDJSON),
    Case("64-empty", 422, "missing_field", b"", NDJSON),
    Case("65-mark-later", 422, "invalid_json", LINE * 3 + b"\xef\xbb\xbf" + LINE, NDJSON, at=4),
    Case("66-latin-1", 422, "invalid_encoding", LINE + '{"prompt":"caf\xe9"}\n'.encode("latin-1"), NDJSON, at=2),
    Case("66-utf-16", 422, "invalid_json", LINE + LINE.decode().encode("utf-16-le"), NDJSON, at=2),
    Case("67-long-line", 413, "line_too_long", LINE + b'{"prompt":"' + b"x" * 70_000 + b'"}\n', NDJSON, at=2),
    Case("67-long-last-line", 413, "line_too_long", LINE * 2 + b" " * (64 * 1024 + 1), NDJSON, at=3),
    Case("67-long-first-line", 413, "line_too_long", b"x" * 100_000 + b"\n" + LINE, NDJSON, at=1),
    Case("68-empty-objects", 422, "missing_field", b"{}\n" * 10_000, NDJSON, said="prompt", at=1),
    Case("68-a-list", 422, "missing_field", b'{"images":[' + b"{}," * 500_001 + b"{}]}", said="prompt", at=0),
    Case("68-too-many-lines", 422, "too_many_images", b"{}\n" * 20_002, NDJSON, said="20,000"),
    Case("69-array", 422, "wrong_type", LINE + b"[1]\n", NDJSON, at=2),
    Case("69-number", 422, "wrong_type", LINE + b"5\n", NDJSON, at=2),
    Case("69-null", 422, "wrong_type", b"null\n", NDJSON, at=1),
    Case("69-two-on-a-line", 422, "invalid_json", b"{}{}\n", NDJSON, at=1),
    Case("69-comment", 422, "invalid_json", b'{"prompt":"x"} // why\n', NDJSON, at=1),
    Case("69-trailing-comma", 422, "invalid_json", b'{"prompt":"x",}\n', NDJSON, at=1),
    Case("69-single-quotes", 422, "invalid_json", b"{'prompt':'x'}\n", NDJSON, at=1),
    Case("70-cut-last-line", 422, "invalid_json", LINE * 3 + LINE[:9], NDJSON, at=4),
    Case("71-gzip", 422, "invalid_encoding", gzip.compress(LINE), NDJSON, at=1),
    Case("72-nul-between", 422, "invalid_json", LINE + b"\0\n" + LINE, NDJSON, at=2),
    Case("72-sparse", 413, "line_too_long", LINE + b"\0" * 100_000, NDJSON, at=2),
    Case("73-too-many-shapes", 422, "too_many_shapes", lines(*(
        b'{"prompt":"x","num_inference_steps":%d,"guidance_scale":%d}' % (1 + n // 2, 7 * (n % 2)) for n in range(65)
    )), NDJSON, said="64 shapes", at=65),
    Case("74-over-the-limit", 422, "too_many_images", b'{"prompt":"x","n":1000}\n' * 21, NDJSON, said="20,000", at=21),
    Case("12-deep-line", 422, "invalid_json", LINE + b'{"prompt":' + b"[" * 9000 + b"]" * 9000 + b"}", NDJSON, at=2),
    Case("21-line-with-nan", 422, "invalid_number", LINE + b'{"prompt":"x","seed":NaN}', NDJSON, at=2),
]  # fmt: skip

ALL = [*TRANSPORT, *NUMBERS, *STRINGS, *TYPED]


@pytest.mark.parametrize("case", ALL, ids=[case.name.encode("ascii", "backslashreplace").decode() for case in ALL])
def test_a_bad_submission_is_refused_with_its_code_and_leaves_no_row(api: Api, case: Case) -> None:
    before = api.rows()
    headers = case.headers if "Idempotency-Key" in case.headers else case.headers | {"Idempotency-Key": "kept-free"}
    answer = api.http.post("/v1/jobs", content=case.body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (case.status, case.code), answer.text[:500]
    assert case.said in f"{error['message']} {error['param']}"
    assert error["type"] == "invalid_request_error"
    if case.at is not None:
        place = "line" if case.headers == NDJSON else "index"
        assert error["errors"][0][place] == case.at
        assert error["errors"][0]["code"] == case.code
    assert len(answer.content) < 100_000
    assert api.rows() == before
    assert api.http.post("/v1/jobs", content=case.body, headers=headers).status_code == case.status  # the key is free


def test_a_broken_submission_tells_its_first_hundred_problems(api: Api) -> None:
    answer = api.http.post("/v1/jobs", content=b'{"prompt":""}\n' * 250, headers=NDJSON)
    error = answer.json()["error"]
    assert [entry["line"] for entry in error["errors"]] == list(range(1, 101))
    assert error["more"] is True
    answer = api.http.post("/v1/jobs", json={"images": [{"prompt": "x"}, {"prompt": "", "n": 0}], "priority": "x"})
    error = answer.json()["error"]
    assert [(entry.get("index"), entry["param"]) for entry in error["errors"]] == [
        (None, "priority"), (1, "images[1].n"), (1, "images[1].prompt"),
    ]  # fmt: skip
    assert error["more"] is False


GOOD_ONES = [
    Case("9-mark-before-json", 202, "", b"\xef\xbb\xbf" + GOOD),
    Case("9-mark-before-lines", 202, "", b"\xef\xbb\xbf" + LINE, NDJSON),
    Case("16-key-of-255", 202, "", GOOD, JSON | {"Idempotency-Key": "k" * 255}),
    Case("22-tiny-guidance", 202, "", one('"guidance_scale":5e-324')),
    Case("22-whole-guidance", 202, "", one('"guidance_scale":7')),
    Case("26-largest-seed", 202, "", one(f'"seed":{2**63 - 1}')),
    Case("37-prompt-of-2000", 202, "", prompt(f'"{"x" * 2000}"')),
    Case("56-id-of-128", 202, "", custom_id("i" * 128)),
    Case("52-largest-labels", 202, "", labelled({f"{n:064}": "v" * 512 for n in range(16)})),
    Case("62-crlf", 202, "", lines(LINE.strip(), LINE.strip(), end=b"\r\n"), NDJSON),
    Case("62-mixed-ends", 202, "", LINE + LINE.strip() + b"\r\n" + LINE, NDJSON),
    Case("62-no-last-end", 202, "", LINE + LINE.strip(), NDJSON),
    Case("64-blank-at-the-end", 202, "", LINE + b"\n  \n\r\n", NDJSON),
    Case("6-charset-and-case", 202, "", GOOD, {"Content-Type": 'Application/JSON; charset="UTF-8"'}),
    Case("73-64-shapes", 202, "", lines(*(
        b'{"prompt":"x","num_inference_steps":%d,"guidance_scale":%d}' % (1 + n // 2, 7 * (n % 2)) for n in range(64)
    )), NDJSON),
]  # fmt: skip


@pytest.mark.parametrize("case", GOOD_ONES, ids=[case.name for case in GOOD_ONES])
def test_what_lies_just_within_the_rules_is_accepted(api: Api, case: Case) -> None:
    answer = api.http.post("/v1/jobs", content=case.body, headers=case.headers)
    assert answer.status_code == 202, answer.text


PROMPTS = [
    "émoji 🎨, 漢字, עברית, 𝔘𝔫𝔦",
    "e\u0301 is not \u00e9",
    "line\nbreak and tab\t, \u2028 too",
    "bidi \u202e and zero\u200bwidth",
    '<script>alert(1)</script> "><img onerror=x> javascript:x',
    "{{7*7}} ${jndi:ldap://x} %s%n {0.__class__}",
    "'; DROP TABLE images; --",
    "\\N \\. \\\\ a\\tb \\",
    "=HYPERLINK(1) 'quoted' \"twice\"",
]


def test_prompts_of_every_kind_are_kept_character_for_character(api: Api) -> None:
    """Rows 40 to 50: markup, formulas, templates and statements are only text."""
    given = [{"prompt": words, "negative_prompt": words} for words in PROMPTS]
    by_json = api.submit(*given)
    body = "\n".join(json.dumps(request, ensure_ascii=False) for request in given).encode()
    by_lines = api.http.post("/v1/jobs", content=body, headers=NDJSON).json()
    for job in (by_json, by_lines):
        with api.database.begin_system() as connection:
            kept = connection.execute(
                text("SELECT prompt, negative_prompt FROM payloads WHERE job_id = :id ORDER BY index"),
                {"id": ids.parse_job(str(job["id"]))},
            ).all()
        assert [tuple(row) for row in kept] == [(words, words) for words in PROMPTS]


def test_minus_zero_is_stored_as_zero(api: Api) -> None:
    job = api.submit({"prompt": "x", "guidance_scale": -0.0})
    with api.database.begin_system() as connection:
        kept = connection.execute(
            text("SELECT guidance_scale::text FROM payloads WHERE job_id = :id"),
            {"id": ids.parse_job(str(job["id"]))},
        ).scalar_one()
    assert kept == "0"


QUERIES: list[tuple[str, str, int, str]] = [
    ("33-limit-zero", "/v1/jobs?limit=0", 422, "invalid_parameter"),
    ("33-limit-negative", "/v1/jobs?limit=-1", 422, "invalid_parameter"),
    ("33-limit-huge", "/v1/jobs?limit=1000000000", 422, "invalid_parameter"),
    ("33-limit-1001", "/v1/jobs/{id}/images?limit=1001", 422, "invalid_parameter"),
    ("33-limit-spelled-otherwise", "/v1/jobs?limit=%2B5", 422, "invalid_parameter"),
    ("33-limit-with-a-leading-zero", "/v1/jobs?limit=05", 422, "invalid_parameter"),
    ("33-after-with-a-leading-zero", "/v1/jobs/{id}/events?after=01", 422, "invalid_parameter"),
    ("33-index-with-a-leading-zero", "/v1/jobs/{id}/images/00/content", 404, "not_found"),
    ("33-index-of-two-zeros", "/v1/jobs/{id}/images/00/content?signature=0", 404, "not_found"),
    ("33-index-spelled-otherwise", "/v1/jobs/{id}/images/%2B0/content", 404, "not_found"),
    ("33-limit-arabic", "/v1/jobs?limit=%D9%A5", 422, "invalid_parameter"),
    ("33-limit-fraction", "/v1/jobs?limit=5.0", 422, "invalid_parameter"),
    ("33-limit-of-thousands-of-digits", f"/v1/jobs?limit={'9' * 5000}", 422, "invalid_parameter"),
    ("33-limit-empty", "/v1/jobs?limit=", 422, "invalid_parameter"),
    ("33-cursor-made-up", "/v1/jobs?cursor=abc", 400, "invalid_cursor"),
    ("33-cursor-not-ascii", "/v1/jobs?cursor=%E2%82%AC", 400, "invalid_cursor"),
    ("33-cursor-empty", "/v1/jobs?cursor=", 400, "invalid_cursor"),
    ("33-cursor-long", f"/v1/jobs?cursor={'a' * 5000}", 422, "invalid_parameter"),
    ("33-offset", "/v1/jobs?offset=1000000000000", 422, "unknown_parameter"),
    ("108-unknown", "/v1/jobs/{id}?full=1", 422, "unknown_parameter"),
    ("108-twice", "/v1/jobs?limit=1&limit=9", 422, "repeated_parameter"),
    ("108-status-twice", "/v1/jobs/{id}/images?status=done&status=failed", 422, "repeated_parameter"),
    ("108-status-unknown", "/v1/jobs/{id}/images?status=DONE", 422, "invalid_parameter"),
    ("108-status-surrogate", "/v1/jobs/{id}/images?status=%ED%A0%80", 422, "invalid_parameter"),
    ("33-chunks-limit", "/v1/jobs/{id}/chunks?limit=0", 422, "invalid_parameter"),
    ("33-chunks-cursor", "/v1/jobs/{id}/chunks?cursor=abc", 400, "invalid_cursor"),
    ("33-requests-limit", "/v1/jobs/{id}/requests?limit=1001", 422, "invalid_parameter"),
    ("33-requests-cursor", "/v1/jobs/{id}/requests?cursor=abc", 400, "invalid_cursor"),
    ("108-requests-status", "/v1/jobs/{id}/requests?status=paused", 422, "invalid_parameter"),
    ("108-order", "/v1/jobs/{id}/images?order=random()", 422, "invalid_parameter"),
    ("108-job-status", "/v1/jobs?status='; DROP TABLE jobs", 422, "invalid_parameter"),
    ("108-label-without-value", "/v1/jobs?label=run", 422, "invalid_parameter"),
    ("38-label-nul", "/v1/jobs?label=a:%00", 422, "invalid_parameter"),
    ("108-on-readyz", "/readyz?verbose=1", 422, "unknown_parameter"),
    ("92-key-in-query", "/v1/jobs?api_key=x", 400, "key_in_query"),
    ("92-key-in-other-query", "/v1/jobs?cursor=pw_abcdefgh_x", 400, "key_in_query"),
    ("94-not-an-id", "/v1/jobs/42", 404, "not_found"),
    ("94-uuid", "/v1/jobs/6b2d2c1e-0d3b-4c55-9a38-3f4d3c8a9d10", 404, "not_found"),
    ("94-upper-case", "/v1/jobs/JOB_0000000000000", 404, "not_found"),
    ("94-beyond-63-bits", "/v1/jobs/job_zzzzzzzzzzzzz", 404, "not_found"),
    ("94-long", f"/v1/jobs/{'j' * 10_000}", 404, "not_found"),
    ("94-nul", "/v1/jobs/job_%00000000000000", 404, "not_found"),
    ("94-not-ascii", "/v1/jobs/job_%E2%82%AC000000000000", 404, "not_found"),
    ("99-index-unknown", "/v1/jobs/{id}/images/7/content", 404, "not_found"),
    ("99-index-huge", f"/v1/jobs/{{id}}/images/{2**31}/content", 404, "not_found"),
    ("99-index-negative", "/v1/jobs/{id}/images/-1/content", 404, "not_found"),
    ("99-index-words", "/v1/jobs/{id}/images/first/content", 404, "not_found"),
    ("99-index-digits", "/v1/jobs/{id}/images/%D9%A5/content", 404, "not_found"),
    ("99-not-done", "/v1/jobs/{id}/images/0/content", 409, "not_done"),
    ("20-parent", "/v1/jobs/%2e%2e/", 404, "unknown_route"),
    ("20-two-slashes", "/v1//jobs", 404, "unknown_route"),
    ("20-nul", "/v1/%00", 404, "unknown_route"),
    ("20-session", "/v1/jobs;jsessionid=1", 404, "unknown_route"),
    ("20-trailing-slash", "/v1/jobs/", 404, "unknown_route"),
    ("20-long", f"/{'a' * 20_000}", 404, "unknown_route"),
]


@pytest.fixture(scope="module")
def job_id(api: Api) -> str:
    return str(api.submit()["id"])


@pytest.mark.parametrize(("path", "status", "code"), [row[1:] for row in QUERIES], ids=[row[0] for row in QUERIES])
def test_a_bad_address_is_refused_in_the_envelope(api: Api, job_id: str, path: str, status: int, code: str) -> None:
    answer = api.http.get(path.replace("{id}", job_id))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("query", ["priority=urgent", "priority=low&priority=low", "labels=x"])
def test_a_bad_parameter_of_a_submission_is_refused(api: Api, query: str) -> None:
    """Rows 32 and 108."""
    assert api.http.post(f"/v1/jobs?{query}", content=LINE, headers=NDJSON).status_code == 422
    assert api.http.post("/v1/jobs?priority=low", content=GOOD, headers=JSON).status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/v1/jobs/{id}", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("TRACE", "/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("BREW", "/v1/jobs/{id}/images", "GET, HEAD, OPTIONS"),
        ("GET", "/v1/jobs/{id}/cancel", "OPTIONS, POST"),
        ("HEAD", "/v1/jobs/{id}/cancel", "OPTIONS, POST"),
        ("PUT", "/v1/jobs/{id}/exports", "GET, HEAD, OPTIONS, POST"),
        ("PATCH", "/v1/exports/{id}", "DELETE, GET, HEAD, OPTIONS"),
        ("POST", "/livez", "GET, HEAD, OPTIONS"),
        ("PUT", "/v1/jobs/estimate", "OPTIONS, POST"),
        ("POST", "/v1/jobs/{id}/chunks/0", "OPTIONS, PUT"),
        ("PUT", "/v1/jobs/{id}/finalize", "OPTIONS, POST"),
    ],
)
def test_a_method_that_an_address_does_not_take_is_405(
    api: Api, job_id: str, method: str, path: str, allowed: str
) -> None:
    """Rows 19, 100 and 102: no overriding header changes the method, and no other origin is let in."""
    headers = {"X-HTTP-Method-Override": "GET", "Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
    answer = api.http.request(method, path.replace("{id}", job_id), headers=headers)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == allowed
    assert not [name for name in answer.headers if name.startswith("access-control")]
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "method_not_allowed"


def keys(api: Api) -> dict[str, list[tuple[str, str]]]:
    start, name, proof = api.key.split("_")
    other = "A" if proof[-1] != "A" else "B"
    good = f"Bearer {api.key}"
    return {
        "none": [],
        "empty": [("Authorization", "")],
        "no scheme": [("Authorization", api.key)],
        "another scheme": [("Authorization", f"Basic {api.key}")],
        "another proof": [("Authorization", f"Bearer {start}_{name}_{proof[:-1]}{other}")],
        "another name": [("Authorization", f"Bearer {start}_{name[::-1]}_{proof}")],
        "another kind": [("Authorization", f"Bearer sk_{name}_{proof}")],
        "cut": [("Authorization", good[:-1])],
        "two in one": [("Authorization", f"{good}, {good}")],
        "two headers": [("Authorization", good), ("Authorization", good)],
        "a right and a wrong one": [("Authorization", good), ("Authorization", "Bearer x")],
        "long": [("Authorization", f"Bearer {'x' * 20_000}")],
        "SQL": [("Authorization", "Bearer pw_' OR 1=1_x")],
        "not ASCII": [("Authorization", "Bearer pw_caf\xe9")],
        "another header": [("X-API-Key", api.key)],
    }


def test_all_that_is_wrong_with_a_key_looks_the_same(api: Api) -> None:
    """Row 92."""
    streaming = set()
    for name, headers in keys(api).items():
        head = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += b"".join(f"{key}: {value}\r\n".encode("latin-1") for key, value in headers)
        answer = talk(api, head + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 401 "), name
        assert b"\r\nwww-authenticate: Bearer" in answer, name
        streaming.add(answer.partition(b"\r\n\r\n")[2])
    assert len(streaming) == 1


def talk(api: Api, *parts: bytes, patience: float = 20.0) -> bytes:
    """Sends as much as the server takes; all that it answers until it closes."""
    with api.connect() as connection:
        connection.settimeout(patience)
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # it has answered and closed
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    try:
        while chunk := connection.recv(65536):
            found += chunk
    except ConnectionResetError:
        pass
    return found


def head(api: Api, *more: str, kind: str = "application/json") -> bytes:
    rows = ["POST /v1/jobs HTTP/1.1", "Host: x", f"Authorization: Bearer {api.key}", f"Content-Type: {kind}", *more]
    return ("\r\n".join(rows) + "\r\n\r\n").encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def code_of(answer: bytes) -> Any:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


def test_a_body_that_is_declared_too_long_is_refused_before_it_is_read(api: Api) -> None:
    """Row 1."""
    answer = talk(api, head(api, f"Content-Length: {3 * MEBIBYTE}"))
    assert answer.startswith(b"HTTP/1.1 413 ") and code_of(answer) == "body_too_long"
    answer = talk(api, head(api, f"Content-Length: {'9' * 40}", "Connection: close"))
    assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))
    answer = talk(api, head(api, f"Content-Length: {3 * MEBIBYTE}", "Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_grows_past_the_limit_is_cut_off_there(api: Api) -> None:
    """Row 2: it is not read to its end, and the connection is closed."""
    before = api.rows()
    piece = chunk(b" " * 60_000)
    with api.connect() as connection:
        connection.sendall(head(api, "Transfer-Encoding: chunked"))
        sent = 0
        try:
            while sent < 200 * MEBIBYTE:
                sent += connection.send(piece)
        except OSError:
            pass
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") and code_of(answer) == "body_too_long"
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert sent < 64 * MEBIBYTE
    assert api.rows() == before


def test_a_line_without_end_is_cut_off_after_64_kilobytes(api: Api) -> None:
    """Row 67."""
    with api.connect() as connection:
        connection.sendall(head(api, "Transfer-Encoding: chunked", kind="application/x-ndjson") + chunk(LINE))
        connection.sendall(chunk(b'{"prompt":"' + b"x" * 66_000))  # and the body never ends
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") and code_of(answer) == "line_too_long"
    assert b'"line":2' in answer


def test_a_body_that_is_not_as_long_as_it_says_makes_no_job(api: Api) -> None:
    """Rows 3 and 70."""
    before = api.rows()
    short = talk(api, head(api, f"Content-Length: {len(GOOD) - 5}", "Connection: close"), GOOD)
    assert short.startswith(b"HTTP/1.1 400 ")
    with api.connect() as connection:
        connection.sendall(head(api, f"Content-Length: {len(GOOD) + 5}") + GOOD)
        connection.shutdown(socket.SHUT_WR)
        assert not read_all(connection).startswith(b"HTTP/1.1 2")
    for both in (("Content-Length: 31", "Transfer-Encoding: chunked"), ("Content-Length: 31", "Content-Length: 30")):
        assert talk(api, head(api, *both, "Connection: close"), chunk(GOOD) + b"0\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert api.rows() == before


def test_a_head_without_measure_is_refused_by_the_server(api: Api) -> None:
    """Row 15, and 16: a line break cannot be smuggled into a key."""
    for more in ([f"X-Long: {'x' * 64_000}"], [f"X-{n}: {'x' * 40}" for n in range(1000)], ["Idempotency-Key: a\rb"]):
        answer = talk(api, head(api, f"Content-Length: {len(GOOD)}", "Connection: close", *more), GOOD)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), answer[:200]


@pytest.mark.parametrize("name", ["Idempotency-Key", "Content-Type", "Content-Encoding"])
def test_a_header_that_may_stand_once_is_refused_twice(api: Api, name: str) -> None:
    """Row 16."""
    before = api.rows()
    twice = (f"{name}: application/json", f"{name}: application/json")
    answer = talk(api, head(api, f"Content-Length: {len(GOOD)}", "Connection: close", *twice), GOOD)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 415 "))
    assert api.rows() == before


@pytest.mark.parametrize("host", ["[", "a b", "x" * 3000, "%00", "evil.example/x?y#z"])
def test_a_strange_host_breaks_nothing(api: Api, job_id: str, host: str) -> None:
    rows = [f"GET /v1/jobs/{job_id}/images HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {api.key}"]
    answer = talk(api, "\r\n".join([*rows, "Connection: close", "", ""]).encode())
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 "))


STRANGE = "\x1b[2J" + "k" * 5_000


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/jobs", {"images": [{"prompt": "a"}], "labels": {STRANGE: "x"}}),
        ("POST", "/v1/jobs", {"draft": True, "labels": {STRANGE: 3}}),
        ("POST", "/v1/jobs", {"images": [{"prompt": "a", STRANGE: 1}]}),
        ("POST", "/v1/batches", {"input_file_id": "x", "endpoint": "/v1/images/generations", "completion_window": "1h",
                                 "metadata": {STRANGE: "x"}}),
        ("POST", "/v1/batches", {STRANGE: 1}),
        ("POST", "/v1/batches", {"input_file_id": "x", "endpoint": STRANGE, "completion_window": "1h"}),
        ("POST", "/v1/uploads", {"filename": STRANGE, "purpose": "batch", "bytes": 1, "mime_type": "text/plain"}),
        ("POST", "/v1/images/generations", {"prompt": "a", STRANGE: 1}),
        ("POST", "/v1/images/generations", {"prompt": "a", "user": STRANGE}),
        ("POST", "/v1/jobs", {"matrix": {"template": "{a}", "vary": {STRANGE: [1]}}}),
        ("POST", "/v1/jobs/estimate", {"shapes": [{"images": 1, STRANGE: 1}]}),
    ],
)  # fmt: skip
def test_errors_echo_little_of_the_input_and_no_control_character(
    api: Api, method: str, path: str, body: dict[str, Any]
) -> None:
    error = api.http.request(method, path, json=body).json()["error"]
    assert error["type"] == "invalid_request_error"
    for said in (error, *error.get("errors", [])):
        for words in (said["message"], said["param"] or ""):
            assert "k" * 81 not in words
            assert words.isprintable()


def test_a_file_that_there_is_no_room_for_can_be_sent_later(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UploadFile, "write", full)
    answer = api.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", b"{}")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_room")
    assert answer.headers["retry-after"]
