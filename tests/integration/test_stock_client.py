"""The stock `openai` package, as it is, against the API on real servers, with a scheduler and a worker at work."""

import asyncio
import base64
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from sqlalchemy import text

from services.core.model.errors import ObjectMissing, StoreUnavailable
from services.core.model.specs import FailedImage
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import factories
from tests.rendering import rendering, scheduling
from tests.waiting import until
from tests.web import Api

ENDPOINT = "/v1/images/generations"


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


@pytest.fixture
def settings(served: Api) -> Settings:
    return served.settings


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as found:
        yield found


@pytest.fixture
def scheduler(settings: Settings, store: S3Store, api: Api) -> Iterator[None]:
    with scheduling(settings, store):
        yield


@pytest.fixture
def worker(settings: Settings, store: S3Store, api: Api) -> Iterator[None]:
    with rendering(settings, store):
        yield


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": {"size": "64x64", **body}}


def upload(client: openai.OpenAI, lines: list[Any]) -> str:
    data = b"".join(json.dumps(entry).encode() + b"\n" for entry in lines)
    return client.files.create(file=("requests.jsonl", data), purpose="batch").id


def start(client: openai.OpenAI, lines: list[Any], **more: Any) -> Any:
    return client.batches.create(
        input_file_id=upload(client, lines), endpoint=ENDPOINT, completion_window="24h", **more
    )


def finished(client: openai.OpenAI, batch_id: str) -> Any:
    return until(lambda: (found := client.batches.retrieve(batch_id)).status in ENDED and found)


ENDED = ("completed", "failed", "expired", "cancelled")


def read(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id
    return [json.loads(entry) for entry in client.files.content(file_id).text.splitlines()]


def test_a_file_is_uploaded_rendered_and_its_results_downloaded(client, scheduler, worker):
    batch = start(client, [
        line("one", prompt="a mug", n=3, seed=7),
        line("two", prompt="a jug", output_format="webp", output_compression=50, negative_prompt="cups", user="me"),
        line("three", prompt="a cup", num_inference_steps=5, guidance_scale=1.0, quality="auto", response_format="url"),
    ], metadata={"project": "kitchen"})  # fmt: skip
    assert batch.status == "validating"
    done = finished(client, batch.id)
    assert (done.status, done.error_file_id, done.errors) == ("completed", None, None)
    assert done.request_counts.model_dump() == {"total": 3, "completed": 3, "failed": 0}
    assert done.metadata == {"project": "kitchen"}
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at < done.expires_at
    results = {entry["custom_id"]: entry for entry in read(client, done.output_file_id)}
    assert list(results) == ["one", "two", "three"]
    one = results["one"]["response"]
    assert (one["status_code"], results["one"]["error"]) == (200, None)
    assert [image["seed"] for image in one["body"]["data"]] == [7, 8, 9]
    for image, kind in ((one["body"]["data"][2], "PNG"), (results["two"]["response"]["body"]["data"][0], "WEBP")):
        data = httpx.get(image["url"], follow_redirects=True).content  # no key: the link is signed
        assert hashlib.sha256(data).hexdigest() == image["sha256"]
        assert Image.open(BytesIO(data)).format == kind
        assert httpx.get(image["url"][:-1] + "!", follow_redirects=True).status_code == 404


def test_a_request_of_which_an_image_failed_stands_in_the_error_file_with_its_good_ones(client, scheduler, api):
    batch = start(client, [line("good", prompt="a mug"), line("bad", prompt="a jug"),
                           line("mixed", prompt="a cup", n=3, seed=5)])  # fmt: skip
    until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    claim = factories.claim(api.database)
    assert claim is not None
    broken = [FailedImage(claim.images[0].job_id, index, "invalid_output", "It came out as NaN.") for index in (1, 3)]
    stored = [image for image in factories.stored(claim) if image.index not in (1, 3)]
    factories.settle(api.database, claim, stored=stored, failed=broken)
    done = finished(client, batch.id)
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 2)
    assert [entry["custom_id"] for entry in read(client, done.output_file_id)] == ["good"]
    bad, mixed = read(client, done.error_file_id)
    for entry, name, seeds in ((bad, "bad", []), (mixed, "mixed", [5, 7])):
        response = entry["response"]
        assert (entry["custom_id"], response["status_code"]) == (name, 500)
        assert entry["error"]["code"] == response["body"]["error"]["code"] == "invalid_output"
        assert [image["seed"] for image in response["body"]["data"]] == seeds


def test_a_batch_of_which_every_request_failed_has_completed_and_says_so(client, scheduler, settings, store, api):
    with rendering(dataclasses.replace(settings, simulated_faults=True), store):
        done = finished(client, start(client, [line("bad", prompt="fault:nan")]).id)
    assert (done.status, done.output_file_id, done.request_counts.failed) == ("completed", None, 1)
    assert read(client, done.error_file_id)[0]["error"]["code"] == "invalid_output"


def test_a_file_with_bad_lines_is_refused_with_the_line_and_the_field_of_each(client, scheduler, api):
    before = api.rows()
    batch = start(client, [
        line("fine", prompt="a mug"),
        line("a/b", prompt="a mug"),
        line("fine", prompt="again"),
        {"custom_id": "m", "method": "GET", "url": "/v1/chat/completions", "body": {"prompt": "x"}},
        line("many", prompt="a mug", n=11),
        line("loud", prompt="a mug", quality="hd"),
        line("bytes", prompt="a mug", response_format="b64_json"),
        line("size", prompt="a mug", size="65x64"),
        line("who", prompt="a mug", model="dall-e-3"),
        line("none"),
        [1, 2],
    ])  # fmt: skip
    failed = finished(client, batch.id)
    assert (failed.status, failed.output_file_id) == ("failed", None)
    found = [(error.line, error.param, error.code) for error in failed.errors.data]
    assert found == [
        (2, "custom_id", "invalid_value"),
        (3, "custom_id", "duplicate_custom_id"),
        (4, "method", "invalid_value"),
        (4, "url", "invalid_value"),
        (5, "body.n", "invalid_value"),
        (6, "body.quality", "invalid_value"),
        (7, "body.response_format", "invalid_value"),
        (8, "body.size", "unserved_size"),
        (9, "body.model", "unknown_model"),
        (10, "body.prompt", "missing_field"),
        (11, None, "wrong_type"),
    ]
    assert "num_inference_steps" in failed.errors.data[5].message
    assert failed.request_counts.total == 0
    rows = api.rows()
    assert {name: rows[name] for name in ("images", "payloads", "segments")} == {
        name: before[name] for name in ("images", "payloads", "segments")
    }


NUMBERS = itertools.count()


def raw(**body: Any) -> str:
    """A good line with a name of its own, but for these fields of its body."""
    whole = line(f"line-{next(NUMBERS)}", prompt="a mug")
    return json.dumps({**whole, "body": {**whole["body"], **body}})


# The rows of bad inputs that a line of a file can hold, each with the code and the field of its one problem.
BAD_LINES: list[tuple[str, bytes, str, str | None]] = [
    (name, text.encode() if isinstance(text, str) else text, code, param)
    for name, text, code, param in [
        ("7 not UTF-8", b'{"custom_id": "\xff\xfe"}', "invalid_encoding", None),
        ("8 UTF-16", "{}".encode("utf-16"), "invalid_encoding", None),
        ("10 null", "null", "wrong_type", None),
        ("10 a number", "7", "wrong_type", None),
        ("11 garbage behind it", raw() + " x", "invalid_json", None),
        ("12 nested deep", '{"custom_id": ' + "[" * 500 + "]" * 500 + "}", "invalid_json", None),
        ("13 a key twice", '{"custom_id": "a", "custom_id": "b"}', "duplicate_key", None),
        ("14 an unknown field", raw(model_path="/etc"), "unknown_field", "body.model_path"),
        ("21 NaN", raw(guidance_scale=1).replace(": 1}", ": NaN}"), "invalid_number", None),
        ("21 1e999", raw(guidance_scale=1).replace(": 1}", ": 1e999}"), "invalid_number", None),
        ("22 guidance", raw(guidance_scale=51), "invalid_value", "body.guidance_scale"),
        ("23 steps 0", raw(num_inference_steps=0), "invalid_value", "body.num_inference_steps"),
        ("23 steps as text", raw(num_inference_steps="20"), "wrong_type", "body.num_inference_steps"),
        ("23 steps true", raw(num_inference_steps=True), "wrong_type", "body.num_inference_steps"),
        ("23 too many steps", raw(num_inference_steps=51), "unserved_steps", "body.num_inference_steps"),
        ("24 seed -1", raw(seed=-1), "invalid_value", "body.seed"),
        ("26 seed 2^63", raw(seed=2**63), "invalid_value", "body.seed"),
        ("27 seed of 5,000 digits", raw(seed=1).replace(": 1}", f": {'9' * 5000}}}"), "invalid_number", None),
        ("28 size 0x0", raw(size="0x0"), "invalid_value", "body.size"),
        ("28 a size nobody serves", raw(size="520x512"), "unserved_size", "body.size"),
        ("30 n 0", raw(n=0), "invalid_value", "body.n"),
        ("30 n 10^9", raw(n=10**9), "invalid_value", "body.n"),
        ("36 a blank prompt", raw(prompt="  "), "invalid_value", "body.prompt"),
        ("37 a long prompt", raw(prompt="a" * 2001), "too_long", "body.prompt"),
        ("38 NUL", raw(prompt="a\0b"), "invalid_character", "body.prompt"),
        ("39 a lone surrogate", raw(prompt="\ud800"), "invalid_character", "body.prompt"),
        ("41 an escape sequence", raw(prompt="\x1b[2J"), "invalid_character", "body.prompt"),
        ("42 an id with a bidi override", json.dumps(line("a\u202eb", prompt="x")), "invalid_value", "custom_id"),
        ("53 an id that is a path", json.dumps(line("../../etc/passwd", prompt="x")), "invalid_value", "custom_id"),
        ("54 an id with a line end", json.dumps(line("a\r\nb", prompt="x")), "invalid_value", "custom_id"),
        ("56 a long id", json.dumps(line("a" * 129, prompt="x")), "too_long", "custom_id"),
        ("59 a model that is a path", raw(model="../../x"), "unknown_model", "body.model"),
        ("60 a bucket", raw(output_prefix="s3://other"), "unknown_field", "body.output_prefix"),
        ("69 a list", "[]", "wrong_type", None),
        ("69 two in one line", "{}{}", "invalid_json", None),
        ("69 single quotes", "{'custom_id': 'a'}", "invalid_json", None),
        ("69 a trailing comma", '{"custom_id": "a",}', "invalid_json", None),
        ("70 cut off", raw()[:-9], "invalid_json", None),
        ("72 NUL bytes", b"\0" * 64, "invalid_json", None),
        ("compression of PNG", raw(output_compression=3), "invalid_value", "body.output_compression"),
        ("a style", raw(style="vivid"), "unknown_field", "body.style"),
        ("a stream", raw(stream=True), "invalid_value", "body.stream"),
        ("an id in the body", raw(custom_id="b"), "unknown_field", "body.custom_id"),
        ("a fifth field", json.dumps({**line("x", prompt="a"), "priority": 1}), "unknown_field", None),
    ]
]


def test_every_bad_line_is_named_with_what_is_wrong_and_nothing_of_it_is_echoed_at_length(client, scheduler, api):
    data = b"\n".join(text for _, text, _, _ in BAD_LINES)
    file = client.files.create(file=("bad.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    found = finished(client, batch.id).errors.data
    by_line = {error.line: (error.code, error.param) for error in found}
    assert {name: by_line.get(number) for number, (name, *_) in enumerate(BAD_LINES, 1)} == {
        name: (code, param) for name, _, code, param in BAD_LINES
    }
    assert len(found) == len(BAD_LINES)
    for error in found:
        assert "a" * 81 not in error.message
        assert error.message.isascii()
        assert error.message.isprintable()
    assert api.rows()["images"] == api.rows()["payloads"] == 0


@pytest.mark.parametrize(
    ("data", "code", "where"),
    [
        (b"", "empty_file", None),
        (b"\n\n", "missing_field", None),
        (b'{"custom_id": "a"\n', "invalid_json", 1),
        (b"\xef\xbb\xbf" + json.dumps(line("a", prompt="x")).encode() + b"\r\n\xef\xbb\xbf{}", "invalid_json", 2),
        (json.dumps(line("a", prompt="x")).encode() + b"\n\n" + json.dumps(line("b", prompt="x")).encode(),
         "blank_line", 2),
        (b"x" * 70_000, "line_too_long", 1),
        (b"\n" * 2_000, "blank_line", 1),
        (json.dumps(line("a", prompt="caf\u00e9"), ensure_ascii=False).encode("latin-1"), "invalid_encoding", 1),
        (b"\x1f\x8b\x08\x00gzip", "invalid_encoding", 1),
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_refused_with_a_sentence(client, scheduler, data, code, where):
    file = client.files.create(file=("bad.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    failed = finished(client, batch.id)
    assert [(error.code, error.line) for error in failed.errors.data] == [(code, where)]


def test_a_cancelled_batch_keeps_what_is_finished_and_lists_the_rest(client, scheduler, settings, store, api):
    with rendering(dataclasses.replace(settings, simulated_batch_ms=500), store):
        batch = start(client, [line(f"r{number}", prompt="a mug") for number in range(80)])
        until(lambda: client.batches.retrieve(batch.id).request_counts.completed)
        assert client.batches.cancel(batch.id).status == "cancelling"
        ended = finished(client, batch.id)
    assert (ended.status, ended.completed_at) == ("cancelled", None)
    assert ended.cancelled_at >= ended.cancelling_at
    assert len(read(client, ended.output_file_id)) == ended.request_counts.completed < 80
    errors = read(client, ended.error_file_id)
    assert {entry["error"]["code"] for entry in errors} == {"batch_cancelled"}
    assert len(errors) == ended.request_counts.failed == 80 - ended.request_counts.completed
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_a_file_that_is_being_read_stays_and_its_batch_can_be_cancelled(client, settings, store, api):
    batch = start(client, [line("a", prompt="a mug")])
    with pytest.raises(openai.ConflictError, match="being validated"):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    with scheduling(settings, store):
        ended = finished(client, batch.id)
    assert (ended.status, ended.request_counts.total, ended.error_file_id) == ("cancelled", 0, None)
    assert api.rows()["images"] == 0
    assert client.files.delete(batch.input_file_id).deleted


def test_a_file_that_is_gone_from_the_store_fails_its_batch_with_a_sentence(client, settings, store, api):
    batch = start(client, [line("a", prompt="a mug")])
    with api.database.begin_system() as connection:
        store.drop(connection.execute(text("SELECT object_key FROM files")).scalar_one())
    with scheduling(settings, store):
        failed = finished(client, batch.id)
    assert [(error.code, error.message) for error in failed.errors.data] == [
        ("file_gone", "The input file is not in the object store any more.")
    ]


def test_output_files_expire_when_their_batch_said_so(client, scheduler, worker, api, store):
    batch = start(client, [line("a", prompt="a mug")], output_expires_after={"anchor": "created_at", "seconds": 3600})
    output = client.files.retrieve(finished(client, batch.id).output_file_id)
    assert output.expires_at - output.created_at == 3600
    assert output.purpose == "batch_output"
    with api.database.begin_system() as connection:
        expire = (
            "UPDATE files SET expires_at = now() - interval '1 s' WHERE purpose = 'batch_output' RETURNING object_key"
        )
        key = connection.execute(text(expire)).scalar_one()
    assert store.read(key)
    with pytest.raises(openai.NotFoundError):
        client.files.content(output.id)

    def is_forgotten() -> bool:
        with api.database.begin_system() as connection:
            return not connection.execute(text("SELECT FROM files WHERE purpose = 'batch_output'")).all()

    until(is_forgotten)  # the scheduler deletes the file, and the object with it
    with pytest.raises(ObjectMissing):
        store.read(key)
    assert client.batches.retrieve(batch.id).output_file_id == output.id


def test_what_is_out_of_time_expires_and_says_so(client, scheduler, api):
    batch = start(client, [line("late", prompt="a mug")])
    until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET expires_at = now() - interval '1 second'"))
    expired = finished(client, batch.id)
    assert (expired.status, expired.output_file_id, expired.cancelling_at) == ("expired", None, None)
    assert expired.expired_at
    assert [entry["error"]["code"] for entry in read(client, expired.error_file_id)] == ["batch_expired"]


def test_lists_are_paged_by_the_client_itself(client, api):
    ids = [upload(client, [line("a", prompt="x")]) for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc", purpose="batch")] == ids
    batches = [client.batches.create(input_file_id=ids[0], endpoint=ENDPOINT, completion_window="7d").id
               for _ in range(5)]  # fmt: skip
    assert [batch.id for batch in client.batches.list(limit=2)] == batches[::-1]
    assert client.batches.list(limit=2).has_more


def test_a_file_can_be_looked_at_read_and_deleted(client, scheduler, api, store):
    data = b'{"custom_id": "a"}\n' * 3
    file = client.files.create(
        file=("../x/<b>name.jsonl", data), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.bytes, file.filename, file.status) == (len(data), "<b>name.jsonl", "processed")
    assert file.expires_at - file.created_at == 3600
    assert client.files.retrieve(file.id) == file
    content = client.files.content(file.id)
    assert (content.read(), content.response.headers["Content-Disposition"]) == (
        data,
        'attachment; filename="_b_name.jsonl"',
    )
    assert client.files.delete(file.id).deleted
    for verb in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            verb(file.id)
    count = text("SELECT count(*) FROM files")
    with_files = api.database.begin_system

    def gone() -> bool:
        with with_files() as connection:
            return connection.execute(count).scalar_one() == 0

    until(gone)


def test_a_large_file_comes_in_parts_in_any_order(client, api, store):
    pieces = [b"a" * 100_000, b"b" * 50_000, b"c" * 7]
    whole = b"".join(pieces)
    made = client.uploads.create(filename="big.jsonl", purpose="batch", bytes=len(whole), mime_type="application/jsonl")
    parts = {piece[0]: client.uploads.parts.create(made.id, data=piece).id for piece in reversed(pieces)}
    with pytest.raises(openai.BadRequestError, match="the upload announced"):
        client.uploads.complete(made.id, part_ids=[parts[ord("a")]])
    with pytest.raises(openai.BadRequestError, match="MD5"):
        client.uploads.complete(made.id, part_ids=[parts[ord(x)] for x in "abc"], md5="0" * 32)
    md5 = hashlib.md5(whole).hexdigest()
    done = client.uploads.complete(made.id, part_ids=[parts[ord(x)] for x in "abc"], md5=md5)
    assert (done.status, done.file.bytes) == ("completed", len(whole))
    assert client.files.content(done.file.id).read() == whole
    with pytest.raises(openai.ConflictError):
        client.uploads.parts.create(made.id, data=b"late")
    assert client.uploads.complete(made.id, part_ids=["x"]).file.id == done.file.id  # a retry after a lost answer
    other = client.uploads.create(filename="o", purpose="batch", bytes=1, mime_type="text/plain")
    with pytest.raises(openai.BadRequestError, match="the upload announced"):
        client.uploads.parts.create(other.id, data=b"two")
    assert client.uploads.cancel(other.id).status == "cancelled"


def test_a_part_whose_answer_was_lost_is_sent_again_and_counts_once(client, api):
    pieces = [b"a" * 100, b"b" * 50, b"a" * 100]  # the first and the last are alike
    whole = b"".join(pieces)
    made = client.uploads.create(filename="x", purpose="batch", bytes=len(whole), mime_type="application/jsonl")
    parts = [client.uploads.parts.create(made.id, data=piece).id for piece in (*pieces, *pieces)]
    assert parts[:3] == parts[3:]
    with api.database.begin_system() as connection:
        kept = connection.execute(text("SELECT sum(bytes), count(*) FROM upload_parts")).one()
    assert tuple(kept) == (150, 2)
    done = client.uploads.complete(made.id, part_ids=parts[:3])
    assert client.files.content(done.file.id).read() == whole


def test_images_are_made_while_the_client_waits(client, worker):
    answer = client.images.generate(prompt="a mug", n=2, size="64x64", extra_body={"seed": 5})
    assert answer.size == "64x64"
    assert [image.seed for image in answer.data] == [5, 6]
    for image in answer.data:
        data = base64.b64decode(image.b64_json)
        assert hashlib.sha256(data).hexdigest() == image.sha256
        assert httpx.get(image.url, follow_redirects=True).content == data
    only = client.images.generate(prompt="a mug", size="64x64", response_format="b64_json", output_format="jpeg")
    assert only.data[0].url is None
    assert Image.open(BytesIO(base64.b64decode(only.data[0].b64_json))).format == "JPEG"
    assert client.images.generate(prompt="a", size="64x64", response_format="url").data[0].b64_json is None


def test_what_cannot_be_asked_for_is_a_bad_request_with_its_field(client, worker):
    for body, param in (
        ({"prompt": "x", "n": 11}, "n"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x", "size": "63x63"}, "size"),
        ({"prompt": "x", "quality": "hd"}, "quality"),
        ({"prompt": "x", "output_format": "gif"}, "output_format"),
        ({"prompt": "x", "output_compression": 40}, "output_compression"),
        ({"prompt": "x", "extra_body": {"steps": 3}}, "steps"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(**body)
        assert refused.value.param == param


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"limit": 0}, "limit"), ({"limit": 10_001}, "limit"), ({"after": "x"}, "after"), ({"order": "up"}, "order"),
        ({"purpose": "x" * 41}, "purpose"), ({"extra_query": {"page": "2"}}, None),
    ],
)  # fmt: skip
def test_a_bad_parameter_of_a_list_is_a_bad_request(client, parameters, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.list(**parameters)
    assert refused.value.param == param
    assert refused.value.request_id.startswith("req_")


def test_bad_parameters_of_the_other_lists_are_bad_requests(client):
    lists: list[Callable[[], Any]] = [
        lambda: client.batches.list(limit=101),
        lambda: client.batches.list(after="batch_x"),
        lambda: client.models.list(extra_query={"x": "1"}),
    ]
    for ask in lists:
        with pytest.raises(openai.BadRequestError):
            ask()


def test_a_number_of_images_is_refused_with_the_limit_of_this_api(client, api):
    for n in (0, -1, 11, "2", True):
        with pytest.raises(openai.BadRequestError, match=r"n is .*; it must be a whole number from 1 to 10\."):
            client.images.generate(prompt="x", n=n)


def test_what_other_clients_send_by_default_is_taken_with_a_png(client, worker):
    [image] = client.images.generate(prompt="x", size="64x64", output_compression=100, output_format="png").data
    assert image.output_format == "png"


def test_a_client_that_does_not_wait_gets_the_job(client, api):
    raw = client.images.with_raw_response.generate(
        prompt="a mug", extra_headers={"Prefer": "respond-async", "Idempotency-Key": "once"}
    )
    job = json.loads(raw.text)
    assert (raw.http_response.status_code, job["object"], job["priority"]) == (202, "job", "high")
    again = client.images.with_raw_response.generate(
        prompt="a mug", extra_headers={"Prefer": "wait=0", "Idempotency-Key": "once"}
    )
    assert json.loads(again.text)["id"] == job["id"]
    applied = [answer.http_response.headers["Preference-Applied"] for answer in (raw, again)]
    assert applied == ["respond-async", "wait=0"]


def test_a_failed_image_is_said_once_and_not_tried_again(settings, store, api):
    with (
        openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=5) as client,
        rendering(dataclasses.replace(settings, simulated_faults=True), store),
        pytest.raises(openai.InternalServerError, match="0 of 1 images are done"),
    ):
        client.images.generate(prompt="fault:nan", size="64x64")
    assert api.rows()["jobs"] == 1


def test_an_outage_after_the_commit_is_said_once_and_nothing_is_rendered_twice(api, worker, monkeypatch):
    def away(*_: object) -> bytes:
        raise StoreUnavailable

    monkeypatch.setattr(S3Store, "read", away)
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=2) as client:
        with pytest.raises(openai.InternalServerError, match="It goes on: see /v1/jobs/job_"):
            client.images.generate(prompt="a mug", size="64x64")
        assert api.rows()["jobs"] == 1
        with pytest.raises(openai.InternalServerError, match="Try again"):
            client.images.generate(prompt="a mug", size="64x64", extra_headers={"Idempotency-Key": "once"})
        assert api.rows()["jobs"] == 2


def test_models_say_what_can_be_asked_for(client, api):
    (model,) = client.models.list()
    assert (model.id, model.object, model.default_size) == ("simulated", "model", "512x512")
    assert client.models.retrieve("simulated") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-1")


def test_the_asynchronous_client_does_it_all_as_well(api, scheduler, worker):
    async def all_of_it() -> tuple[Any, Any]:
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as client:
            data = json.dumps(line("a", prompt="a mug")).encode()
            file = await client.files.create(file=("r.jsonl", data), purpose="batch")
            batch, image = await asyncio.gather(
                client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"),
                client.images.generate(prompt="a jug", size="64x64"),
            )
            while batch.status not in ENDED:
                await asyncio.sleep(0.05)
                batch = await client.batches.retrieve(batch.id)
            content = await client.files.content(batch.output_file_id)
            return json.loads(content.text), image

    result, image = asyncio.run(all_of_it())
    assert result["custom_id"] == "a"
    assert image.data[0].url


def test_the_same_key_makes_one_file_and_one_batch(client, api):
    def make(name: str, **headers: str) -> Any:
        return client.files.create(file=(name, b"{}"), purpose="batch", extra_headers=headers)

    file = make("a.jsonl", **{"Idempotency-Key": "f"})
    assert make("a.jsonl", **{"Idempotency-Key": "f"}).id == file.id
    with pytest.raises(openai.UnprocessableEntityError):
        make("b.jsonl", **{"Idempotency-Key": "f"})

    def batch(**more: Any) -> Any:
        return client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h",
            extra_headers={"Idempotency-Key": "b"}, **more,
        )  # fmt: skip

    assert batch().id == batch().id
    with pytest.raises(openai.UnprocessableEntityError):
        batch(metadata={"other": "body"})


def test_bad_batches_are_refused_with_the_field(client, api):
    file_id = upload(client, [line("a", prompt="x")])
    fine = {"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h"}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"input_file_id": "file-0000000000000"}, "input_file_id"),
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "31d"}, "completion_window"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after.seconds"),
        ({"extra_body": {"tenant_id": 2}}, "tenant_id"),
    ]
    make: Callable[..., Any] = client.batches.create
    for change, param in refused:
        with pytest.raises(openai.BadRequestError) as error:
            make(**{**fine, **change})
        assert error.value.param == param
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"x"), purpose="fine-tune")


def test_a_base_url_without_v1_is_answered_with_how_addresses_begin(api):
    with (
        openai.OpenAI(base_url=api.url, api_key=api.key, max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="begin with /v1/"),
    ):
        client.models.list()
