"""A large JSON body, read element by element, is what a strict reader of the whole makes of it, in less memory."""

import io
import json
import random
import tracemalloc
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest

from services.api.body import json_object, json_stream, streaming
from services.api.body.json_stream import StreamedList
from services.api.errors import ApiError
from services.core.fleet.models import Model, Registry
from services.core.jobs import submissions
from services.core.jobs.submission_body import SubmissionBody
from services.core.jobs.submissions import Submission
from services.core.policy import policies
from services.core.settings import Settings

SETTINGS = Settings.read({"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x", "PRESSWORK_MODEL": "usual"})
REGISTRY = Registry({"usual": Model("usual", "usual-1", (512, 512), 10, 7.5, {(512, 512): 50}, datetime.now(UTC))})
WELL_FORMED = [
    "{}", ' {"images" : [ ] }\n', '{"images":[{"prompt":"a"}]}',
    '{"images":[1,-2.5e3,null,true,"é\\u00e9🙂\\ud83d\\ude42",[],{}]}',
    '{\n "labels": {"a": "b"},\r\n\t"images": [{"prompt": "x", "n": 2}, 12, 345],\n "priority": "high"}',
    '{"images":{"a":[1]}}', '{"images":null,"matrix":{"vary":{"a":[1,2]}}}', '{"a\\u0062":"\\ud800"}',
    "\ufeff{}", '\ufeff {"images":[{"prompt":"a"}, 2]}', "null", "17", '"text"', "[1,2]", "true", "[]",
    '{"images":[' + "[" * 30 + "]" * 30 + "]}", '{"x":' + "[" * 31 + "]" * 31 + "}",
]  # fmt: skip
MALFORMED = [
    "", "  \n", "{", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', "{,}", '{"a" 1}', "{1:2}",
    '{"images":[', '{"images":[1', '{"images":[1,]}', '{"images":[1 2]}', '{"images":[,]}', '{"images":[]',
    '{"images":[]}]', '{"images":[]}{}', '{"images":[nul]}', '{"images":[tru]}', '{"images":[01]}',
    '{"images":[NaN]}', '{"images":[-Infinity]}', '{"images":[1e999]}', '{"images":[' + "9" * 5000 + "]}",
    '{"a":1,"a":2}', '{"images":[{"a":1,"a":2}]}', '{"images":[],"images":[]}',
    '{"images":["\\x"]}', '{"images":["a\nb"]}', '{"images":["abc]}', "\ufeff", "\ufeff\ufeff{}", "{\ufeff}",
    "\ufeff[", "nul", "{\0",
    '{"images":[' + "[" * 31 + "]" * 31 + "]}", '{"x":' + "[" * 32 + "]" * 32 + "}", "[" * 5000, '{"images":' * 5000,
    '{\n"images": [\n{"prompt": "a"},\n {"prompt": }\n]}', "{" + ",".join(f'"k{n}":1' for n in range(1001)) + "}",
]  # fmt: skip
PIECES = [b"", b'"', b"[", b"]", b"{", b"}", b",", b"9", b"\\", b"\n"]


def whole(body: bytes) -> object:
    """What the strict reader of a whole body finds: the object, or the refusal."""
    try:
        return json_object.read(body)
    except ApiError as error:
        return error.status, error.code, _said(error)


def streamed(body: bytes) -> object:
    try:
        found = json_stream.read(io.BytesIO(body))
    except ApiError as error:
        return error.status, error.code, _said(error)
    again = {name: list(value) if isinstance(value, StreamedList) else value for name, value in found.items()}
    assert all(not isinstance(value, StreamedList) or len(value) == len(again[name]) for name, value in found.items())
    return again


def _said(error: ApiError) -> str:
    """The message; of one limit the two readers say how many keys there are, or that they stopped there."""
    return "" if error.code == "too_many_keys" else str(error)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 18])
def test_it_finds_what_a_reader_of_the_whole_finds_however_the_body_is_cut(monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    for text in (*WELL_FORMED, *MALFORMED):
        if chunk < 7 and len(text) > 2000:
            continue
        body = text.encode()
        assert streamed(body) == whole(body), text[:80]


def test_it_finds_the_same_in_bodies_that_are_broken_anywhere(monkeypatch):
    chance = random.Random(27)
    good = b'{"a":{"b":"\xc3\xa9"},"images":[{"prompt":"a \\"mug\\"","n":2,"guidance_scale":7.5e0},12],"dedupe":false}'
    for chunk in (3, 16, 1 << 18):
        monkeypatch.setattr(json_stream, "_CHUNK", chunk)
        for _ in range(400):
            body = bytearray(good)
            for _ in range(chance.randint(1, 2)):
                at = chance.randrange(len(body))
                body[at : at + chance.randint(0, 3)] = chance.choice(PIECES)
            assert streamed(bytes(body)) == whole(bytes(body)), bytes(body)


@pytest.mark.parametrize("chunk", [1, 5, 1 << 18])
def test_a_byte_that_is_not_utf_8_is_named_by_its_place(monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    for body in (b'{"images":["\xc3\xa9\xff"]}', b'{"images":["ab\xe2\x82"]}', b'{"images":[]} \xf0\x9f\x99'):
        assert streamed(body) == whole(body)


def test_a_value_is_at_most_as_long_as_the_limit(monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 10_000)
    long = "x" * 6_000_000
    for body in ({"images": [{"prompt": long}]}, {"images": [], "matrix": long}, long, {long: 1}):
        assert streamed(json.dumps(body).encode())[:2] == (413, "body_too_long")
    many = {"images": []} | {f"field-{number}": "x" * 1_100_000 for number in range(4)}
    assert streamed(json.dumps(many).encode())[:2] == (413, "body_too_long")


def _peak(lines: Iterable[bytes], as_json: bool) -> int:
    """The most memory that checking such a body takes, in bytes."""
    body = b'{"images":[' + b",".join(lines) + b"]}" if as_json else b"\n".join(lines) + b"\n"
    spool = io.BytesIO(body)
    del body
    tracemalloc.start()
    with Submission(SETTINGS, REGISTRY, policy=policies.NOTHING) as submission:
        if as_json:
            SubmissionBody.of(json_stream.read(spool), 10**6).fill(submission)
        else:
            submissions.read_lines(submission, streaming.lines(spool))
        assert submission.requests == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_json_takes_about_as_much_memory_as_the_same_requests_line_by_line():
    lines = [json.dumps({"prompt": f"a mug, number {n}, " + "on a table " * 20}).encode() for n in range(20_000)]
    by_line, as_json = _peak(lines, False), _peak(lines, True)
    assert as_json < by_line + 4 * json_stream._CHUNK < sum(map(len, lines))
