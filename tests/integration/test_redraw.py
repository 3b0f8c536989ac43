"""Image to image, from the request to the stored picture: what may be named, what is kept, and what fails alone."""

import base64
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from sqlalchemy import text

from services.core.batches import line_format
from services.core.files import files, pictures
from services.core.fleet.abilities import Abilities
from services.core.queue import looks
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import factories
from tests.rendering import rendering, scheduling
from tests.waiting import until
from tests.web import Api
from worker.inputs import DAMAGED, GONE


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


@pytest.fixture
def settings(served: Api) -> Settings:
    return served.settings


@pytest.fixture
def worker(settings: Settings, store: S3Store, api: Api) -> Iterator[None]:
    with rendering(settings, store):
        yield


def picture(red: int = 200, size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (red, 20, 40)).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def upload(api: Api, data: bytes, http: httpx.Client | None = None, purpose: str = "vision") -> dict[str, Any]:
    answer = (http or api.http).post("/v1/files", files={"file": ("photo.png", data)}, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def request(image: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": "a red mug", "size": "64x64", "seed": 5, "image": image, "strength": 0.5, **fields}


def ended(api: Api, job: Any) -> dict[str, Any]:
    path = f"/v1/jobs/{job['id']}"
    return until(lambda: (found := api.http.get(path).json())["counts"]["queued"] + found["counts"]["rendering"] == 0
                 and found)  # fmt: skip


def images(api: Api, job: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.http.get(f"/v1/jobs/{job['id']}/images").json()["data"]
    return found


def problems(api: Api, *rows: dict[str, Any], http: httpx.Client | None = None) -> list[tuple[str, str, str]]:
    answer = (http or api.http).post("/v1/jobs", json={"images": list(rows)})
    assert answer.status_code == 422, answer.text
    return [(one["code"], one["param"], one["message"]) for one in answer.json()["error"]["errors"]]


def test_a_file_a_data_url_and_an_earlier_image_are_redrawn(api: Api, worker: None, store: S3Store):
    file = upload(api, picture())
    rows = [
        request(file["id"]), request(data_url(picture())), request(data_url(picture(90))),
        request(file["id"], strength=0.9), request(file["id"], n=2),
        {"prompt": "a red mug", "size": "64x64", "seed": 5},
    ]  # fmt: skip
    job = api.submit(*rows)
    assert ended(api, job)["counts"]["done"] == 7
    same, also, darker, stronger, first, second, plain = images(api, job)
    assert same["sha256"] == also["sha256"] == first["sha256"]  # the same bytes, however they came
    others = {one["sha256"] for one in (same, darker, stronger, second, plain)}
    assert len(others) == 5
    with api.database.begin_system() as connection:
        keys = connection.execute(text("SELECT encode(render_key, 'hex') FROM results ORDER BY index")).scalars().all()
        assert keys[0] == keys[1] == keys[4] and len(set(keys)) == 5
        result = connection.execute(text("SELECT object_key FROM results WHERE index = 0")).scalar_one()
    told = store.read(result).decode("latin-1")
    assert f"<presswork:InputSha256>{hashlib.sha256(picture()).hexdigest()}<" in told
    assert "compositeWithTrainedAlgorithmicMedia" in told
    again = api.submit(request(f"{job['id']}/0"))
    assert ended(api, again)["counts"]["done"] == 1
    listed = {entry["id"]: entry["purpose"] for entry in api.http.get("/v1/files?purpose=vision").json()["data"]}
    assert len(listed) == 3  # the uploaded one, and the two that came with requests


def test_what_an_unfinished_job_needs_cannot_be_deleted(api: Api, store: S3Store, settings: Settings):
    file = upload(api, picture())
    source = api.submit({"prompt": "a mug", "size": "64x64"})
    claim = factories.claim(api.database)
    assert claim is not None
    stored = [dataclasses.replace(factories.stored(claim, picture())[0], object_key="test/source.png")]
    store.put("test/source.png", picture(), "image/png", {}, claim_id=claim.id)
    factories.settle(api.database, claim, stored=stored)
    with scheduling(settings, store):
        until(lambda: api.http.get(f"/v1/jobs/{source['id']}").json()["status"] == "completed")
        job = api.submit(request(file["id"]), request(f"{source['id']}/0"), request(data_url(picture(1))))
        refused = api.http.delete(f"/v1/files/{file['id']}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "file_in_use")
        refused = api.http.delete(f"/v1/jobs/{source['id']}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_in_use")
        assert job["id"] in refused.json()["error"]["message"]
        with api.database.begin_system() as connection:  # its time is over, and still it is kept
            connection.execute(text("UPDATE files SET expires_at = now() - interval '1 day'"))
            assert files.doomed(connection) == []
            connection.execute(text("UPDATE files SET expires_at = NULL"))
        api.http.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        until(lambda: api.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled")
        assert api.http.delete(f"/v1/files/{file['id']}").status_code == 200
        assert api.http.delete(f"/v1/jobs/{job['id']}").status_code in (200, 202, 204)
        assert api.http.delete(f"/v1/jobs/{source['id']}").status_code in (200, 202, 204)

        def left() -> int:
            with api.database.begin_system() as connection:
                tables = "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM job_inputs)"
                return int(connection.execute(text(f"{tables} + (SELECT count(*) FROM files)")).scalar_one())

        until(lambda: left() == 0)  # with the picture that came with a request


def test_a_retry_needs_what_its_parent_needed(api: Api, store: S3Store):
    file = upload(api, picture())
    job = api.submit(request(file["id"]))
    api.http.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
    with scheduling(api.settings, store):
        until(lambda: api.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled")
    answer = api.http.post(f"/v1/jobs/{job['id']}/retry", json={"include_cancelled": True})
    assert answer.status_code == 202
    assert api.http.delete(f"/v1/files/{file['id']}").status_code == 409
    claim = factories.claim(api.database)
    assert claim is not None
    assert (claim.shape.first_step, claim.images[0].spec.input_sha256) == (6, hashlib.sha256(picture()).hexdigest())


def test_others_pictures_are_not_there(api: Api):
    file = upload(api, picture())
    job = api.submit({"prompt": "a mug", "size": "64x64"})
    claim = factories.claim(api.database)
    assert claim is not None
    factories.settle(api.database, claim)
    mine = request(file["id"]), request(f"{job['id']}/0")
    _, key = api.new_tenant("stranger")
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as http:
        found = problems(api, *mine, http=http)
        assert [(code, param) for code, param, _ in found] == [
            ("image_not_found", "images[0].image"), ("image_not_found", "images[1].image"),
        ]  # fmt: skip
    assert api.http.post("/v1/jobs", json={"images": list(mine)}).status_code == 202
    never = problems(api, request("file-0000000000000"), request(f"{job['id']}/1"), request("file-zzzzzzzzzzzzz"))
    assert {code for code, _, _ in never} == {"image_not_found"}
    lines = upload(api, b'{"prompt": "a"}\n', purpose="batch")
    assert problems(api, request(lines["id"]))[0][0] == "image_not_found"  # a file of another purpose


@pytest.mark.parametrize(
    ("row", "code", "said"),
    [
        ({"image": "https://example.org/a.png"}, "invalid_value", 'purpose "vision"'),
        ({"image": "data:image/gif;base64,R0lG"}, "invalid_value", "data URL"),
        ({"image": data_url(b"no picture")}, "invalid_image", "not a PNG, JPEG or WebP"),
        ({"image": "data:image/png;base64,abcde"}, "invalid_image", "not valid base64"),
        ({"image": data_url(picture()[:70])}, "invalid_image", "damaged"),
        ({"strength": 0.5}, "invalid_value", "needs an image"),
        ({"image": data_url(picture()), "strength": 0}, "invalid_value", "above 0"),
        ({"image": data_url(picture()), "strength": 1.5}, "invalid_value", "at most 1"),
        ({"image": data_url(picture()), "strength": 0.05}, "invalid_value", "at least 0.1: with 10 steps"),
    ],
)
def test_what_cannot_be_an_input_is_refused_in_a_sentence(api: Api, row: dict[str, Any], code: str, said: str):
    ((found, _, message),) = problems(api, {"prompt": "a", "size": "64x64", **row})
    assert found == code
    assert said in message
    assert api.rows()["jobs"] == 0


def test_a_photograph_that_is_too_long_for_a_body_is_taken_as_a_file(api: Api, worker: None):
    file = io.BytesIO()
    Image.frombytes("RGB", (1200, 1200), np.random.default_rng(1).bytes(1200 * 1200 * 3)).save(file, "PNG")
    photograph = file.getvalue()
    assert len(photograph) > 4_000_000
    row, way = request(data_url(photograph)), "send a picture as a file (POST /v1/files, purpose vision)"
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": row}).encode()
    for path, body, kind in (
        ("/v1/jobs", json.dumps({"images": [{"prompt": "a"}, row]}), "application/json"),
        ("/v1/jobs", json.dumps({"images": [{"prompt": "a"}], "defaults": row | {"prompt": None}}), "application/json"),
        ("/v1/jobs", json.dumps({"prompt": "a"}) + "\n" + json.dumps(row), "application/x-ndjson"),
        ("/v1/jobs", json.dumps(row) + "\n" + json.dumps({"prompt": "a"}), "application/x-ndjson"),
        ("/v1/images/generations", json.dumps(row), "application/json"),
    ):
        answer = api.http.post(path, content=body.encode(), headers={"Content-Type": kind})
        assert answer.status_code == 413 and way in answer.text, answer.text[:500]
    with pytest.raises(line_format.LineTooLong, match=re.escape(way)):
        list(line_format.split([line[:100_000], line[100_000:]]))
    long = api.http.post("/v1/jobs", content=b"x" * 70_000, headers={"Content-Type": "application/x-ndjson"})
    assert long.status_code == 413 and "picture" not in long.text  # what is none gets no advice on pictures
    job = api.submit(request(upload(api, photograph)["id"]))
    assert ended(api, job)["counts"]["done"] == 1
    form = {"prompt": "a", "size": "64x64"}
    edited = api.http.post("/v1/images/edits", files={"image": ("a.png", photograph)}, data=form, timeout=60)
    assert edited.status_code == 200 and len(edited.json()["data"]) == 1
    small = data_url(picture(size=(700, 700)))
    answer = api.http.post("/v1/jobs", json={"images": [request(small)]})
    assert answer.status_code == 202


def test_a_file_that_is_no_picture_is_refused_when_it_is_uploaded(api: Api):
    answer = api.http.post("/v1/files", files={"file": ("a.png", b"no")}, data={"purpose": "vision"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image")


def test_an_image_whose_input_is_gone_or_damaged_fails_alone(api: Api, store: S3Store, settings: Settings):
    gone, damaged, well = (upload(api, picture(red)) for red in (1, 2, 3))
    job = api.submit(*(request(file["id"]) for file in (gone, damaged, well)), request(gone["id"]))
    with api.database.begin_system() as connection:
        keys = dict(connection.execute(text("SELECT id, object_key FROM files")).all())
    gone_key, damaged_key = (keys[files.parse_id(file["id"])] for file in (gone, damaged))
    store.drop(gone_key)
    store.put_file(damaged_key, io.BytesIO(picture(77)), "image/png")
    with api.database.begin_system() as connection:  # the simulated worker's revision
        connection.execute(text("UPDATE segments SET model_revision = 'simulated-1'"))
    with rendering(settings, store):
        assert ended(api, job)["counts"]["failed"] == 3
    found = images(api, job)
    assert [one["status"] for one in found] == ["failed", "failed", "done", "failed"]
    assert [one["error"] and (one["error"]["code"], one["error"]["message"]) for one in found] == [
        ("input_gone", GONE), ("input_damaged", DAMAGED), None, ("input_gone", GONE),
    ]  # fmt: skip


def test_a_worker_that_takes_no_inputs_claims_none(api: Api):
    api.submit(request(data_url(picture())), {"prompt": "a mug", "size": "64x64"})
    with api.database.begin_system() as connection:
        rows = looks.candidates(connection, factories.REVISION, 1, "worker-a", Abilities(redraws=False)).rows
        assert [row.first_step for row in rows] == [0]
        assert len(looks.candidates(connection, factories.REVISION, 1, "worker-a").rows) == 2
    plain = dataclasses.replace(factories.CARD, revision="plain-1", redraws=False)
    factories.register(api.database, plain)
    ((code, _, message),) = problems(api, request(data_url(picture())))
    assert (code, "takes no input pictures" in message) == ("unsupported_image", True)


def test_the_stock_client_edits_a_picture(api: Api, worker: None):
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as client:
        named = ("photo.png", picture(size=(90, 70)))
        answer = client.images.edit(
            image=named, prompt="a red mug", n=2, size="64x64", response_format="b64_json",
            extra_body={"seed": 5, "strength": 0.5},
        )  # fmt: skip
        assert [image.seed for image in answer.data] == [5, 6]
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))))
        below = np.asarray(pictures.decode(named[1], (64, 64), 10_000))
        assert drawn.shape == below.shape
        assert np.abs(drawn.astype(int) - below).max() <= 128  # half of it is the input
        one = client.images.edit(image=[named], prompt="a", size="64x64")  # as a list of one
        assert one.data[0].url
        for body, said in (
            ({"mask": ("mask.png", picture())}, "no mask"),
            ({"image": [named, named]}, "given twice"),
            ({"image": ("a.png", b"no picture")}, "not a PNG, JPEG or WebP"),
            ({"input_fidelity": "high"}, "strength is what decides it here"),
            ({"background": "transparent"}, "no transparency"),
            ({"n": 11}, "from 1 to 10"),
            ({"extra_body": {"strength": 2}}, "at most 1"),
            ({"extra_body": {"strange": 2}}, "no field strange|strange"),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                client.images.edit(**({"image": named, "prompt": "a", "size": "64x64"} | body))


def test_lines_of_a_batch_and_chunks_of_a_draft_take_inputs(api: Api, settings: Settings, store: S3Store, worker: None):
    file = upload(api, picture())
    draft = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    chunk = {"images": [request(file["id"], custom_id="a"), request(data_url(picture(4)))]}
    for _ in range(2):  # sent again, it is the same
        assert api.http.put(f"/v1/jobs/{draft}/chunks/0", json=chunk).status_code in (200, 201)
    api.http.post(f"/v1/jobs/{draft}/finalize", json={"chunks": 1}).raise_for_status()
    assert ended(api, {"id": draft})["counts"]["done"] == 2
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as client:
        line = (
            f'{{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {{"prompt": "a", '
            f'"size": "64x64", "image": "{file["id"]}"}}}}\n'
        )
        made = client.files.create(file=("a.jsonl", line.encode()), purpose="batch")
        with scheduling(settings, store):
            batch = client.batches.create(
                input_file_id=made.id, endpoint="/v1/images/generations", completion_window="24h"
            )
            done = until(lambda: (found := client.batches.retrieve(batch.id)).status == "completed" and found)
            assert done.request_counts.completed == 1


def test_an_idempotency_key_covers_the_picture(api: Api, store: S3Store):
    headers = {"Idempotency-Key": "once"}
    body = {"images": [request(data_url(picture()))]}
    first = api.http.post("/v1/jobs", json=body, headers=headers).json()["id"]
    again = api.http.post("/v1/jobs", json=body, headers=headers)
    assert (again.json()["id"], again.headers["Idempotent-Replayed"]) == (first, "true")
    other = {"images": [request(data_url(picture(9)))]}
    refused = api.http.post("/v1/jobs", json=other, headers=headers)
    assert refused.json()["error"]["code"] == "idempotency_key_reused"
    with api.database.begin_system() as connection:
        rows = connection.execute(text("SELECT id, object_key FROM files")).all()
    assert len(rows) == 1
    assert hashlib.sha256(store.read(rows[0].object_key)).digest() == hashlib.sha256(picture()).digest()


def test_a_store_that_is_away_fails_no_image_and_uses_no_attempt(api: Api, settings: Settings, store: S3Store):
    away = dataclasses.replace(settings, s3_endpoint_url="http://127.0.0.1:1", storing_seconds=0.3)

    def asked(sql: str) -> Any:
        with api.database.begin_system() as connection:
            return tuple(connection.execute(text(sql)).one())

    with rendering(away, S3Store(away)):
        job = api.submit(request(data_url(picture())))
        until(lambda: asked("SELECT count(*) FROM claims WHERE state <> 'open'") != (0,))
        assert asked("SELECT attempt, lost FROM images") == (0, 0)
    with rendering(settings, store):
        assert ended(api, job)["counts"] | {"done": 1, "failed": 0} == ended(api, job)["counts"]
