"""The HTTP API with a real server, database, store and notifier."""

import dataclasses
import hashlib
import itertools
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import psycopg
import pytest
from fastapi.routing import iter_route_contexts

from presswork_client import Client, ClientError
from services.api.app import create_app
from services.core.jobs import lifecycle
from services.core.model.specs import Claim, FailedImage, StoredImage
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from services.local.stack import Stack
from tests import factories
from tests.processes import Process
from tests.proxy import Proxy
from tests.waiting import until
from tests.web import Api, serving

NDJSON = {"Content-Type": "application/x-ndjson"}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
PICTURE = b"a picture, if you are kind"


def plain(url: str) -> str:
    """As psycopg itself takes it."""
    return url.replace("+psycopg", "")


def ended(api: Api, job: dict[str, Any]) -> str:
    """The job's status, once the periodic task that finishes jobs has run."""
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
    return str(api.http.get(f"/v1/jobs/{job['id']}").json()["status"])


def render(api: Api, store: S3Store, seats: int = 16) -> Claim:
    """Claims some images and stores one and the same picture for each."""
    claim = factories.claim(api.database, seats)
    assert claim is not None
    stored: list[StoredImage] = []
    for image in factories.stored(claim, PICTURE):
        store.put(image.object_key, PICTURE, "image/png", {}, claim_id=claim.id)
        stored.append(image)
    factories.settle(api.database, claim, stored=stored)
    return claim


# --- submitting


def test_a_submitted_job_is_shown_with_all_that_it_was_given(api: Api) -> None:
    job = api.submit({"prompt": "a mug", "n": 3}, {"prompt": "a jug"}, priority="low", labels={"run": "nightly"})
    assert re.fullmatch(r"job_[0-9a-z]{13}", str(job["id"]))
    assert job["counts"] == {"total": 4, "queued": 4, "rendering": 0, "done": 0, "failed": 0, "cancelled": 0}
    assert (job["object"], job["status"], job["priority"], job["labels"]) == (
        "job",
        "queued",
        "low",
        {"run": "nightly"},
    )
    assert (job["paused"], job["started_at"], job["finished_at"], job["eta_seconds"]) == (False, None, None, None)
    assert MOMENT.fullmatch(str(job["created_at"])) and MOMENT.fullmatch(str(job["as_of"]))
    shown = api.http.get(f"/v1/jobs/{job['id']}").json()
    assert {**shown, "as_of": ""} == {**job, "as_of": ""}


def test_lines_make_the_same_job_as_a_list(api: Api) -> None:
    requests = [{"prompt": f"mug {n}", "seed": n, "size": "64x64", "custom_id": f"m{n}"} for n in range(300)]
    body = b"\xef\xbb\xbf" + "\r\n".join(json.dumps(request) for request in requests).encode()
    by_lines = api.http.post("/v1/jobs?priority=high", content=body, headers=NDJSON).json()
    by_list = api.submit(*({**request} for request in requests), priority="high")
    assert by_lines["priority"] == by_list["priority"] == "high"
    listed = [
        [(image["index"], image["custom_id"], image["seed"]) for image in api.http.get(
            f"/v1/jobs/{job['id']}/images?limit=1000").json()["data"]]
        for job in (by_lines, by_list)
    ]  # fmt: skip
    assert listed[0] == listed[1] == [(n, f"m{n}", n) for n in range(300)]


def test_defaults_hold_for_the_requests_that_do_not_say_otherwise(api: Api) -> None:
    defaults = {"seed": 7, "size": "64x64", "output_format": "webp", "n": 2}
    job = api.submit({"prompt": "a"}, {"prompt": "b", "seed": 1, "n": 1}, defaults=defaults)
    images = api.http.get(f"/v1/jobs/{job['id']}/images").json()["data"]
    assert [(image["seed"], image["output_format"]) for image in images] == [(7, "webp"), (8, "webp"), (1, "webp")]


def test_seeds_are_exact_follow_one_another_and_are_recorded_when_drawn(api: Api) -> None:
    job = api.submit(
        {"prompt": "a", "seed": 2**53 + 1}, {"prompt": "b", "seed": 2**63 - 1, "n": 2}, {"prompt": "c", "n": 2}
    )
    images = api.http.get(f"/v1/jobs/{job['id']}/images").json()["data"]
    assert [image["seed"] for image in images[:3]] == [2**53 + 1, 2**63 - 1, 0]
    assert images[4]["seed"] == (images[3]["seed"] + 1) % 2**63
    assert [image["seed_string"] for image in images] == [str(image["seed"]) for image in images]


def test_the_bell_rings_for_the_models_of_a_new_job(api: Api, redis_admin: Any) -> None:
    redis_admin.flushall()
    api.submit()
    until(lambda: redis_admin.llen("presswork.simulated"))


# --- sending again


def test_a_key_used_again_answers_with_the_job_that_stands(api: Api) -> None:
    headers = {"Idempotency-Key": "k1", "Content-Type": "application/json"}
    first = api.http.post("/v1/jobs", content=b'{"images":[{"prompt":"a","n":2}],"priority":"low"}', headers=headers)
    again = api.http.post(
        "/v1/jobs", content=b' {"priority":"low",\n"images": [ {"n":2, "prompt":"\\u0061"} ]}', headers=headers
    )
    assert (first.status_code, again.status_code) == (202, 202)
    assert "Idempotent-Replayed" not in first.headers and again.headers["Idempotent-Replayed"] == "true"
    assert first.json()["id"] == again.json()["id"]
    assert api.rows()["jobs"] == 1


@pytest.mark.parametrize("body", [b'{"images":[{"prompt":"b"}]}', b'{"images":[{"prompt":"a"}],"priority":"high"}'])
def test_a_key_used_for_another_body_is_refused(api: Api, body: bytes) -> None:
    headers = {"Idempotency-Key": "k1", "Content-Type": "application/json"}
    assert api.http.post("/v1/jobs", content=b'{"images":[{"prompt":"a"}]}', headers=headers).status_code == 202
    before = api.rows()
    refused = api.http.post("/v1/jobs", content=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert api.rows() == before


def test_tenants_do_not_share_keys(api: Api) -> None:
    _, other = api.new_tenant("other")
    ids = {
        api.http.post(
            "/v1/jobs", json={"images": [{"prompt": "a"}]},
            headers={"Idempotency-Key": "k1", "Authorization": f"Bearer {key}"},
        ).json()["id"]
        for key in (api.key, other)
    }  # fmt: skip
    assert len(ids) == 2


def test_fifty_parallel_submissions_with_one_key_make_one_job(api: Api) -> None:
    def send(_: int) -> httpx.Response:
        return httpx.post(
            f"{api.url}/v1/jobs", json={"images": [{"prompt": "a", "n": 100}] * 5}, timeout=60,
            headers={"Idempotency-Key": "one", "Authorization": f"Bearer {api.key}"},
        )  # fmt: skip

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(send, range(50)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len({answer.json()["id"] for answer in accepted}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in accepted) == 1
    assert api.rows() | {"payloads": 0} == {
        "jobs": 1, "segments": 1, "images": 500, "payloads": 0, "counters": 1, "idempotency": 1,
    }  # fmt: skip


def test_a_twin_of_a_submission_under_way_is_told_to_come_back(api: Api, database_url: str) -> None:
    with psycopg.connect(plain(database_url)) as other:
        other.execute("INSERT INTO idempotency VALUES (1, 'k1', '\\x00', 5, now())")
        answer = api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]}, headers={"Idempotency-Key": "k1"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        other.rollback()
    assert api.rows()["jobs"] == 0


def test_a_client_that_never_hears_the_answer_gets_its_one_job_by_asking_again(
    api: Api, stack: Stack, database_url: str
) -> None:
    body = b'{"images":[{"prompt":"a"}]}'
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nIdempotency-Key: lost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    name = database_url.rpartition("/")[2]
    admin = f"{plain(stack.superuser_url).rpartition('/')[0]}/{name}"  # who sees what other roles wait for
    with psycopg.connect(plain(database_url)) as other, psycopg.connect(admin, autocommit=True) as watch:
        other.execute("LOCK TABLE counters IN EXCLUSIVE MODE")  # so that the submission stops short of its commit
        connection = api.connect()
        connection.sendall(head.encode() + body)
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        until(lambda: watch.execute(waiting).fetchone() == (1,))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()  # with a reset
    until(lambda: api.rows()["jobs"])
    again = api.http.post(
        "/v1/jobs", content=body, headers={"Idempotency-Key": "lost", "Content-Type": "application/json"}
    )
    assert again.headers["Idempotent-Replayed"] == "true"
    assert api.rows()["jobs"] == 1


def test_an_upload_that_breaks_off_leaves_nothing(api: Api) -> None:
    with api.connect() as connection:
        connection.sendall(
            f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n"
            "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b'13\r\n{"prompt":"a mug"}\n\r\n'
        )
    assert api.http.get("/v1/jobs").json()["data"] == []
    assert api.rows()["jobs"] == 0


# --- reading


def test_jobs_are_listed_newest_first_page_by_page(api: Api) -> None:
    made = []
    for _ in range(5):
        made.append(api.submit()["id"])
        time.sleep(0.002)  # ids are ordered by the millisecond
    seen, cursor, pages = [], "", 0
    while True:
        page = api.http.get(f"/v1/jobs?limit=2{cursor}").json()
        seen += [job["id"] for job in page["data"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert (seen, pages) == (made[::-1], 3)


def test_a_cursor_is_good_for_its_own_list_alone(api: Api) -> None:
    first, second = (api.submit({"prompt": "a", "n": 5})["id"] for _ in range(2))
    cursor = api.http.get(f"/v1/jobs/{first}/images?limit=2").json()["next_cursor"]
    page = api.http.get(f"/v1/jobs/{first}/images?limit=2&cursor={cursor}")
    assert [image["index"] for image in page.json()["data"]] == [2, 3]
    flipped = cursor[:5] + ("A" if cursor[5] != "A" else "B") + cursor[6:]
    for path in (
        f"/v1/jobs/{second}/images?cursor={cursor}",
        f"/v1/jobs/{first}/images?status=queued&cursor={cursor}",
        f"/v1/jobs?cursor={cursor}",
        f"/v1/jobs/{first}/images?cursor={flipped}",
        f"/v1/jobs/{first}/images?cursor={cursor}A",
        f"/v1/jobs/{first}/images?cursor={cursor}%3D",
    ):
        answer = api.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor"), path
    _, other = api.new_tenant("other")
    listing = api.http.get("/v1/jobs?limit=1").json()["next_cursor"]
    foreign = api.http.get(f"/v1/jobs?cursor={listing}", headers={"Authorization": f"Bearer {other}"})
    assert foreign.status_code == 400


def test_a_done_image_is_shown_with_its_checksum_and_downloads_byte_for_byte(api: Api, store: S3Store) -> None:
    job = api.submit({"prompt": "a", "n": 3, "size": "64x64"})
    render(api, store, seats=2)
    page = api.http.get(f"/v1/jobs/{job['id']}/images").json()["data"]
    assert [image["status"] for image in page] == ["done", "done", "queued"]
    shown = page[1]
    assert (shown["sha256"], shown["bytes"]) == (hashlib.sha256(PICTURE).hexdigest(), len(PICTURE))
    assert shown["url"].startswith(f"{api.url}/v1/jobs/{job['id']}/images/1/content?signature=")
    assert (shown["truncated"], shown["reproducibility_class"], shown["error"]) == (False, "test/16", None)
    assert (shown["flagged"], shown["unknown_words"], shown["versions"]) == (None, [], "presswork 0.1.0")
    assert page[2]["url"] is None
    assert [page[2][name] for name in ("truncated", "flagged", "unknown_words", "versions")] == [None] * 4
    redirect = api.http.get(shown["url"])
    assert redirect.status_code == 307 and redirect.headers["Cache-Control"] == "no-store"
    found = httpx.get(redirect.headers["Location"])
    assert (found.status_code, found.content) == (200, PICTURE)
    assert found.headers["Content-Disposition"] == f'attachment; filename="{job["id"]}-000001.png"'
    waiting = api.http.get(f"/v1/jobs/{job['id']}/images/2/content")
    assert (waiting.status_code, waiting.json()["error"]["code"]) == (409, "not_done")
    filtered = api.http.get(f"/v1/jobs/{job['id']}/images?status=done&limit=1").json()
    assert [image["index"] for image in filtered["data"]] == [0] and filtered["next_cursor"]


def test_what_the_model_said_of_a_picture_is_shown_and_a_flagged_one_downloads_as_it_was_drawn(
    api: Api, store: S3Store
) -> None:
    job = api.submit({"prompt": "a qzx by Åsa", "size": "64x64"})
    claim = factories.claim(api.database)
    assert claim is not None
    [image] = factories.stored(claim, PICTURE)
    store.put(image.object_key, PICTURE, "image/png", {}, claim_id=claim.id)
    said = dataclasses.replace(image, truncated=True, flagged=True, unknown_words=("qzx", "Åsa"))
    factories.settle(api.database, claim, stored=[said])
    [shown] = api.http.get(f"/v1/jobs/{job['id']}/images").json()["data"]
    assert (shown["status"], shown["error"], shown["truncated"], shown["flagged"]) == ("done", None, True, True)
    assert shown["unknown_words"] == ["qzx", "Åsa"]
    found = httpx.get(api.http.get(shown["url"]).headers["Location"])
    assert (found.status_code, found.content) == (200, PICTURE)


def test_a_custom_id_names_the_downloaded_file(api: Api, store: S3Store) -> None:
    job = api.submit({"prompt": "a", "custom_id": "sku-42.front"})
    render(api, store)
    redirect = api.http.get(f"/v1/jobs/{job['id']}/images/0/content")
    found = httpx.get(redirect.headers["Location"])
    assert found.headers["Content-Disposition"] == 'attachment; filename="sku-42.front.png"'


def test_a_failed_image_says_why(api: Api) -> None:
    job = api.submit()
    claim = factories.claim(api.database)
    assert claim is not None
    failed = FailedImage(claim.images[0].job_id, 0, "render_failed", "The pipeline failed three times.")
    factories.settle(api.database, claim, failed=[failed])
    [shown] = api.http.get(f"/v1/jobs/{job['id']}/images?status=failed").json()["data"]
    assert shown["error"] == {"code": "render_failed", "message": "The pipeline failed three times."}
    assert (shown["status"], shown["url"], shown["sha256"]) == ("failed", None, None)
    assert api.http.get(f"/v1/jobs/{job['id']}").json()["counts"]["failed"] == 1
    assert api.http.get(f"/v1/jobs/{job['id']}/images/0/content").status_code == 409


# --- cancelling


def test_cancelling_ends_a_small_job_at_once_and_may_be_asked_twice(api: Api) -> None:
    job = api.submit({"prompt": "a", "n": 20})
    first = api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert first.status_code == 200 and first.json()["counts"]["cancelled"] == 20
    assert MOMENT.fullmatch(first.json()["cancel_requested_at"])
    assert factories.claim(api.database) is None
    assert api.http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    assert ended(api, job) == "cancelled"
    assert api.http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200


def test_a_finished_job_cannot_be_cancelled(api: Api, store: S3Store) -> None:
    job = api.submit()
    render(api, store)
    assert ended(api, job) == "completed"
    refused = api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_finished")


# --- whose is what

JOB_ROUTES = {
    ("GET", "/v1/jobs/{job_id}"),
    ("GET", "/v1/jobs/{job_id}/images"),
    ("GET", "/v1/jobs/{job_id}/images/{index}/content"),
    ("GET", "/v1/jobs/{job_id}/chunks"),
    ("GET", "/v1/jobs/{job_id}/requests"),
    ("GET", "/v1/jobs/{job_id}/search"),
    ("GET", "/v1/jobs/{job_id}/events"),
    ("PUT", "/v1/jobs/{job_id}/chunks/{number}"),
    ("PATCH", "/v1/jobs/{job_id}"),
    ("DELETE", "/v1/jobs/{job_id}"),
    ("GET", "/v1/jobs/{job_id}/deletion"),
    ("POST", "/v1/jobs/{job_id}/cancel"),
    ("POST", "/v1/jobs/{job_id}/finalize"),
    ("POST", "/v1/jobs/{job_id}/pause"),
    ("POST", "/v1/jobs/{job_id}/resume"),
    ("POST", "/v1/jobs/{job_id}/retry"),
    ("GET", "/v1/jobs/{job_id}/exports"),
    ("GET", "/v1/jobs/{job_id}/failures"),
    ("GET", "/v1/jobs/{job_id}/rates"),
    ("GET", "/v1/jobs/{job_id}/marks"),
    ("PUT", "/v1/jobs/{job_id}/marks"),
    ("GET", "/v1/jobs/{job_id}/near-duplicates"),
}
EXPORT_ROUTES = {  # test_exports_api.py shows that other tenants' exports are not found
    ("POST", "/v1/jobs/{job_id}/exports"),
    ("GET", "/v1/exports/{export_id}"),
    ("GET", "/v1/exports/{export_id}/files"),
    ("GET", "/v1/exports/{export_id}/content/{path}"),
    ("POST", "/v1/exports/{export_id}/cancel"),
    ("DELETE", "/v1/exports/{export_id}"),
}
CATALOGUE_ROUTES = {  # test_catalogues_api.py shows that other tenants' catalogues are not found
    ("PUT", "/v1/catalogues/{catalogue}"),
    ("GET", "/v1/catalogues/{catalogue}"),
    ("DELETE", "/v1/catalogues/{catalogue}"),
    ("PUT", "/v1/catalogues/{catalogue}/file"),
    ("POST", "/v1/catalogues/{catalogue}/runs"),
    ("GET", "/v1/catalogues/{catalogue}/runs"),
    ("GET", "/v1/catalogues/{catalogue}/runs/{run_id}"),
    ("GET", "/v1/catalogues/{catalogue}/runs/{run_id}/changes"),
    ("GET", "/v1/catalogues/{catalogue}/runs/{run_id}/estimate"),
    ("POST", "/v1/catalogues/{catalogue}/runs/{run_id}/cancel"),
    ("POST", "/v1/catalogues/{catalogue}/runs/{run_id}/redraw"),
    ("GET", "/v1/catalogues/{catalogue}/versions"),
    ("GET", "/v1/catalogues/{catalogue}/versions/{version}/manifest"),
    ("GET", "/v1/catalogues/{catalogue}/diff"),
    ("POST", "/v1/catalogues/{catalogue}/publish"),
    ("GET", "/v1/catalogues/{catalogue}/items"),
    ("GET", "/v1/catalogues/{catalogue}/items/{variant}"),
}
DATASET_ROUTES = {  # test_datasets_api.py shows that other tenants' datasets are not found
    ("GET", "/v1/datasets/{dataset}"),
    ("PATCH", "/v1/datasets/{dataset}"),
    ("DELETE", "/v1/datasets/{dataset}"),
    ("POST", "/v1/datasets/{dataset}/sources"),
    ("POST", "/v1/datasets/{dataset}/sources/remove"),
    ("POST", "/v1/datasets/{dataset}/versions"),
    ("GET", "/v1/datasets/{dataset}/versions"),
    ("GET", "/v1/datasets/{dataset}/versions/{version}"),
    ("DELETE", "/v1/datasets/{dataset}/versions/{version}"),
    ("GET", "/v1/datasets/{dataset}/versions/{version}/files"),
    ("POST", "/v1/datasets/{dataset}/versions/{version}/cancel"),
    ("GET", "/v1/datasets/{dataset}/diff"),
    ("GET", "/v1/dataset-files/{dataset_id}/{version}/{path}"),
}
# The same for what the stock client makes; each is asked for with `thing`, the id of one.
THING_ROUTES = {
    ("GET", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("DELETE", "/v1/files/{file_id}"),
    ("POST", "/v1/uploads/{upload_id}/parts"),
    ("POST", "/v1/uploads/{upload_id}/complete"),
    ("POST", "/v1/uploads/{upload_id}/cancel"),
    ("GET", "/v1/batches/{batch_id}"),
    ("POST", "/v1/batches/{batch_id}/cancel"),
    ("DELETE", "/v1/keys/{key_id}"),
    ("PATCH", "/v1/views/{view_id}"),
    ("DELETE", "/v1/views/{view_id}"),
    ("DELETE", "/v1/policy/terms/{term_id}"),
    ("GET", "/v1/jobs/actions/{action_id}"),
    ("POST", "/v1/jobs/actions/{action_id}/stop"),
    ("GET", "/v1/webhooks/{webhook_id}"),
    ("PATCH", "/v1/webhooks/{webhook_id}"),
    ("DELETE", "/v1/webhooks/{webhook_id}"),
    ("GET", "/v1/webhooks/{webhook_id}/secret"),
    ("POST", "/v1/webhooks/{webhook_id}/rotate"),
    ("POST", "/v1/webhooks/{webhook_id}/test"),
    ("GET", "/v1/webhooks/{webhook_id}/deliveries"),
    ("GET", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}"),
    ("POST", "/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver"),
    ("GET", "/v1/schedules/{schedule}"),
    ("PATCH", "/v1/schedules/{schedule}"),
    ("DELETE", "/v1/schedules/{schedule}"),
    ("POST", "/v1/schedules/{schedule}/run"),
    ("GET", "/v1/schedules/{schedule}/times"),
    ("GET", "/v1/schedules/{schedule}/runs"),
}
TENANT_ROUTES = {
    ("GET", "/v1/images"),
    ("GET", "/v1/catalogues"),
    ("GET", "/v1/datasets"),  # test_datasets_api.py shows that it is of one tenant
    ("POST", "/v1/datasets"),
    ("GET", "/v1/events"),  # test_feed.py shows that others' events are not in it
    ("GET", "/v1/jobs"),
    ("POST", "/v1/jobs"),
    ("POST", "/v1/jobs/preview"),
    ("POST", "/v1/jobs/estimate"),
    ("GET", "/v1/files"),
    ("POST", "/v1/files"),
    ("POST", "/v1/uploads"),
    ("GET", "/v1/batches"),
    ("POST", "/v1/batches"),
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("GET", "/v1/models"),
    ("GET", "/v1/near-duplicates"),  # test_scores.py shows that it is of one tenant
    ("GET", "/v1/models/{name}"),
    ("POST", "/v1/models/{name}/license/accept"),  # test_licenses_accepted.py shows that it is of one tenant
    ("GET", "/v1/overview"),  # test_overview.py shows that it is of one tenant
    ("GET", "/v1/rates"),  # test_rates.py shows that others' images are not in them
    ("GET", "/v1/actions"),
    ("GET", "/v1/audit"),  # test_audit.py shows that it is of one tenant
    ("GET", "/v1/lanes"),  # test_lanes.py shows that others' images are not in it
    ("GET", "/v1/workers"),  # the fleet is one for all tenants
    ("GET", "/v1/fleet/backlog"),  # test_backlog.py shows that others' images are not in it
    ("POST", "/v1/workers/{worker_id}/drain"),
    ("POST", "/v1/workers/{worker_id}/resume"),
    ("GET", "/v1/jobs/actions"),
    ("POST", "/v1/jobs/actions"),
    ("POST", "/v1/jobs/actions/preview"),
    ("GET", "/v1/webhooks"),  # test_webhooks_api.py shows that others' are not in them
    ("POST", "/v1/webhooks"),
    ("GET", "/v1/webhook-messages"),
    ("GET", "/v1/schedules"),
    ("POST", "/v1/schedules"),
    ("PUT", "/v1/schedules/{schedule}"),  # each tenant has its own names: test_schedules_api.py
    ("POST", "/v1/sign-in-links"),
    ("GET", "/v1/views"),
    ("GET", "/v1/policy/terms"),
    ("POST", "/v1/policy/terms"),
    ("POST", "/v1/policy/check"),
    ("POST", "/v1/views"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/tenants"),  # of these test_tenants.py and test_isolation.py show who sees what
    ("POST", "/v1/tenants"),
    ("GET", "/v1/tenants/{tenant_id}"),
    ("PATCH", "/v1/tenants/{tenant_id}"),
    ("GET", "/v1/tenants/{tenant_id}/keys"),
    ("POST", "/v1/tenants/{tenant_id}/keys"),
    ("DELETE", "/v1/tenants/{tenant_id}/keys/{key_id}"),
    ("DELETE", "/v1/tenants/{tenant_id}"),
    ("GET", "/v1/tenants/{tenant_id}/deletion"),
    ("GET", "/v1/retention"),
    ("PATCH", "/v1/retention"),
    ("GET", "/v1/retention/due"),
}
BODIES: dict[tuple[str, str], dict[str, Any]] = {  # of routes that look at nothing without one
    ("PUT", "/v1/jobs/{job_id}/chunks/{number}"): {"images": [{"prompt": "a"}]},
    ("PATCH", "/v1/jobs/{job_id}"): {"labels": {"a": "b"}},
    ("POST", "/v1/jobs/{job_id}/finalize"): {"chunks": 1},
    ("PUT", "/v1/jobs/{job_id}/marks"): {"mark": "accepted", "matching": {}},
    ("PATCH", "/v1/schedules/{schedule}"): {"paused": True},
    ("PATCH", "/v1/views/{view_id}"): {"name": "theirs"},
    ("PATCH", "/v1/webhooks/{webhook_id}"): {"enabled": False},
}
MODEL_UNUSABLE = {  # what a job in progress does not take
    ("PUT", "/v1/jobs/{job_id}/chunks/{number}"),
    ("POST", "/v1/jobs/{job_id}/finalize"),
    ("POST", "/v1/jobs/{job_id}/retry"),
    ("DELETE", "/v1/jobs/{job_id}"),
}
PAGES = {("GET", "/docs"), ("GET", "/openapi.json")}
IDS = (
    "job_id", "file_id", "upload_id", "batch_id", "export_id", "key_id", "worker_id", "action_id", "view_id", "term_id",
    "schedule", "name", "catalogue", "run_id", "variant", "version",
    "dataset", "dataset_id", "tenant_id", "webhook_id", "delivery_id",
)  # fmt: skip
PUBLIC_ROUTES = {("GET", "/c/{public_id}/{variant}/{item}")}
OPEN_ROUTES = {("GET", "/livez"), ("GET", "/readyz"), ("GET", "/metrics")} | PAGES


def routes(settings: Settings) -> set[tuple[str, str]]:
    found = iter_route_contexts(create_app(settings).routes)
    return {
        (method, (route.path or "").replace(":path", ""))
        for route in found
        for method in (route.methods or set()) - {"HEAD"}
    }


def test_every_route_is_known_to_the_tests_of_tenants(settings: Settings) -> None:
    """A new route fails here until it is added to one of these sets, and so to the tests below."""
    assert routes(settings) == (
        JOB_ROUTES
        | THING_ROUTES
        | EXPORT_ROUTES
        | CATALOGUE_ROUTES
        | DATASET_ROUTES
        | TENANT_ROUTES
        | OPEN_ROUTES
        | PUBLIC_ROUTES
    )


@pytest.fixture
def others(api: Api, store: S3Store) -> tuple[dict[str, Any], httpx.Client]:
    """A job with one image done, and a client with another tenant's key."""
    job = api.submit({"prompt": "a", "n": 2})
    render(api, store, seats=1)
    _, key = api.new_tenant("other")
    return job, httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"})


def test_on_every_route_anothers_job_is_404(api: Api, others: tuple[dict[str, Any], httpx.Client]) -> None:
    job, stranger = others
    last = ("POST", "/v1/jobs/{job_id}/cancel")
    for method, path in [*sorted(JOB_ROUTES - {last}), last]:
        asked = "?text=a" if path.endswith("/search") else ""
        address = path.format(job_id=job["id"], index=0, number=0) + asked
        body = BODIES.get((method, path))
        theirs = stranger.request(method, address, json=body)
        nowhere = path.format(job_id="job_0000000000000", index=0, number=0) + asked
        unknown = stranger.request(method, nowhere, json=body)
        assert theirs.status_code == 404, path
        assert theirs.text.replace(str(job["id"]), "job_0000000000000") == unknown.text
        own = api.http.request(method, address, json=body).status_code
        assert own in ((409,) if (method, path) in MODEL_UNUSABLE else (200, 307)), path
    assert api.http.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelling"  # by its owner, last of all


def test_anothers_file_upload_and_batch_are_404(api: Api) -> None:
    file = api.http.post("/v1/files", files={"file": ("a", b"{}")}, data={"purpose": "batch"}).json()["id"]
    upload = {"filename": "a", "purpose": "batch", "bytes": 2, "mime_type": "text/plain"}
    body = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    things = {
        "file_id": file,
        "upload_id": api.http.post("/v1/uploads", json=upload).json()["id"],
        "batch_id": api.http.post("/v1/batches", json=body).json()["id"],
        "key_id": api.key.split("_")[1],
        "action_id": api.http.post("/v1/jobs/actions", json={"action": "pause"}).json()["id"],
        "schedule": "everybody-elses",
        "view_id": api.http.post("/v1/views", json={"page": "jobs", "name": "mine", "query": ""}).json()["id"],
        "term_id": api.http.post("/v1/policy/terms", json={"term": "gore"}).json()["id"],
        "webhook_id": (hook := api.http.post("/v1/webhooks", json={"url": "https://93.184.216.34/"}).json()["id"]),
        "delivery_id": api.http.post(f"/v1/webhooks/{hook}/test").json()["id"],
    }
    target = {"job": {"images": [{"prompt": "a mug"}]}}
    asked = {"name": "everybody-elses", "cron": "0 1 * * *", "target": target}
    assert api.http.post("/v1/schedules", json=asked).status_code == 201
    unknown = {"file_id": "file-0000000000000", "upload_id": "upload_0000000000000", "batch_id": "batch_0000000000000"}
    unknown |= {
        "key_id": "00000000",
        "action_id": "bulk_0000000000000",
        "view_id": "view_0000000000000",
        "term_id": "term_0000000000000",
        "webhook_id": "whe_0000000000000",
        "delivery_id": "whd_0000000000000",
        "schedule": "nobodys",
    }
    _, key = api.new_tenant("other")
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}) as stranger:
        for method, path in sorted(THING_ROUTES):
            more: dict[str, Any] = {"files": {"data": ("a", b"{}")}} if path.endswith("/parts") else {}
            if path.endswith("/complete"):
                more = {"json": {"part_ids": ["part_0000000000000"]}}
            if (method, path) in BODIES:
                more = {"json": BODIES[method, path]}
            theirs = stranger.request(method, path.format(**things), **more)
            assert theirs.status_code == 404, path
            text = theirs.text
            for kind, thing in things.items():
                text = text.replace(thing, unknown[kind])
            assert text == stranger.request(method, path.format(**unknown), **more).text
        assert stranger.post("/v1/batches", json=body).json()["error"]["param"] == "input_file_id"
        for listing in ("/v1/files", "/v1/batches"):
            assert stranger.get(listing).json()["data"] == []
            assert len(api.http.get(listing).json()["data"]) == 1


def test_a_link_is_good_for_its_own_image_and_for_no_other(api: Api, store: S3Store) -> None:
    job = api.submit({"prompt": "a", "n": 2})
    render(api, store, seats=2)
    first, second = (shown["url"] for shown in api.http.get(f"/v1/jobs/{job['id']}/images").json()["data"])
    assert httpx.get(first).status_code == 307
    crossed = second.partition("?")[0] + "?" + first.partition("?")[2]
    for bad in (crossed, first[:-1], first + "0", first.partition("=")[0] + "=", first.partition("=")[0] + "=é"):
        assert httpx.get(bad).status_code == 404, bad
    assert httpx.get(first.partition("?")[0]).status_code == 401


def test_lists_hold_only_ones_own(api: Api, others: tuple[dict[str, Any], httpx.Client]) -> None:
    job, stranger = others
    assert stranger.get("/v1/jobs").json()["data"] == []
    own = stranger.post("/v1/jobs", json={"images": [{"prompt": "b"}]}).json()["id"]
    assert [shown["id"] for shown in stranger.get("/v1/jobs").json()["data"]] == [own]
    assert [shown["id"] for shown in api.http.get("/v1/jobs").json()["data"]] == [job["id"]]


def test_without_a_key_only_the_open_routes_answer(api: Api) -> None:
    for method, path in sorted(
        JOB_ROUTES | THING_ROUTES | EXPORT_ROUTES | CATALOGUE_ROUTES | DATASET_ROUTES | TENANT_ROUTES
    ):
        ids = dict.fromkeys(IDS, "job_0000000000000")
        answer = httpx.request(method, api.url + path.format(index=0, number=0, path="a", **ids))
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="presswork"'), path
    for method, path in sorted(OPEN_ROUTES):
        assert httpx.request(method, api.url + path).status_code == 200, path


def test_a_revoked_key_is_refused_from_the_next_request_on(api: Api) -> None:
    with api.database.begin_system() as connection:
        assert api_keys.revoke_key(connection, api.key.split("_")[1])
    assert api.http.get("/v1/jobs").status_code == 401


OTHER_ROWS = (  # of tables that nothing above has written to
    (
        "INSERT INTO files (id, tenant_id, purpose, filename, bytes, sha256, object_key)"
        " VALUES (1, 1, 'batch', 'f', 1, %(sha256)s, 'k')"
    ),
    "INSERT INTO uploads (id, tenant_id, purpose, filename, bytes, expires_at) VALUES (1, 1, 'batch', 'f', 1, now())",
    (
        "INSERT INTO upload_parts (id, upload_id, tenant_id, bytes, sha256, object_key)"
        " VALUES (1, 1, 1, 1, %(sha256)s, 'k')"
    ),
    (
        "INSERT INTO job_chunks (job_id, number, tenant_id, sha256, first_index, requests, images)"
        " VALUES (%(job_id)s, 0, 1, %(sha256)s, 0, 1, 1)"
    ),
    "INSERT INTO job_inputs VALUES (%(job_id)s, 'file', 1, 1)",
    (
        "INSERT INTO audit_seals (tenant_id, first, seqs, from_at, to_at, previous, hash)"
        " VALUES (1, 1, '{1}', now(), now(), %(sha256)s, %(sha256)s)"
    ),
    "INSERT INTO retention_rules (tenant_id, payload_days) VALUES (1, 7)",
    "INSERT INTO retention_work (job_id, tenant_id, kind) VALUES (%(job_id)s, 1, 'payloads')",
    "INSERT INTO tenant_deletions (tenant_id, name, requested_by) VALUES (1, 'default', 'cli/x')",
    "INSERT INTO storage_findings (job_id, index, kind, audit_id) VALUES (%(job_id)s, 0, 'missing', 1)",
    "INSERT INTO exports (id, tenant_id, job_id, format) VALUES (1, 1, %(job_id)s, 'zip')",
    (
        "INSERT INTO bulk_acts (id, tenant_id, actor, verb, filter, options, jobs, images, is_all, last_job)"
        " VALUES (1, 1, 'key/x', 'cancel', '{}', '{}', 0, 0, true, 0)"
    ),
    (
        "INSERT INTO schedules (id, tenant_id, name, cron, timezone, target_kind, target, base_url, misfire,"
        " misfire_limit, overlap, paused)"
        " VALUES (1, 1, 'nightly', '0 1 * * *', 'UTC', 'job', '{}', 'http://x', 'latest', 1, 'skip', true)"
    ),
    "INSERT INTO schedule_runs (id, schedule_id, tenant_id, instant, state) VALUES (1, 1, 1, now(), 'waiting')",
    ("INSERT INTO catalogues (id, tenant_id, name, public_id, definition) VALUES (1, 1, 'shop', 'p', '{}')"),
    (
        "INSERT INTO catalogue_runs (id, tenant_id, catalogue_id, state, plan_only, accept_removed, definition)"
        " VALUES (1, 1, 1, 'queued', false, false, '{}')"
    ),
    "INSERT INTO catalogue_changes (run_id, position, item, variant, kind) VALUES (1, 0, 'a', 'front', 'new')",
    (
        "INSERT INTO catalogue_destinations (catalogue_id, tenant_id, place, rule, version, step)"
        " VALUES (1, 1, 'a/b', %(sha256)s, 1, 'done')"
    ),
    (
        "INSERT INTO catalogue_copies (catalogue_id, place, name, item, variant, rule, sha256)"
        " VALUES (1, 'a/b', 'a.png', 'a', 'front', %(sha256)s, %(sha256)s)"
    ),
    (
        "INSERT INTO catalogue_entries (catalogue_id, item, variant, from_version, render_key, object_key, sha256,"
        " bytes, request, model_revision, reproducibility_class, rendered_at, job_id, index)"
        " VALUES (1, 'a', 'b', 1, 'k', 'k', 's', 1, '{}', 'r', 'c', now(), 1, 0)"
    ),
    "INSERT INTO datasets (id, tenant_id, name, format, definition) VALUES (1, 1, 'mugs', 'zip', '{}')",
    "INSERT INTO dataset_versions (dataset_id, number, tenant_id, definition) VALUES (1, 1, 1, '{}')",
    (
        "INSERT INTO dataset_shards (dataset_id, since, split, ordinal, tenant_id, images, members)"
        " VALUES (1, 1, 'train', 0, 1, 1, %(sha256)s)"
    ),
    (
        "INSERT INTO dataset_files (dataset_id, since, path, tenant_id, bytes, sha256, images, object_key)"
        " VALUES (1, 1, 'p', 1, 1, %(sha256)s, 1, 'k')"
    ),
    "INSERT INTO dataset_jobs VALUES (1, 1, %(job_id)s, 1, %(job_id)s, true, '')",
    "INSERT INTO tenant_usage VALUES (1, 1, 1, 1) ON CONFLICT DO NOTHING",
    "INSERT INTO tenant_usage_deltas (tenant_id) VALUES (1)",
    "INSERT INTO views (id, tenant_id, page, name, query, created_by) VALUES (1, 1, 'jobs', 'v', '', 'key/x')",
    "INSERT INTO policy_terms (id, tenant_id, term, folded, created_by) VALUES (1, 1, 'gore', 'gore', 'key/x')",
    "INSERT INTO license_acceptances (tenant_id, license, sha256, accepted_by) VALUES (1, 'l', %(sha256)s, 'key/x')",
    (
        "INSERT INTO webhook_endpoints (id, tenant_id, url, description, events, labels, secret, created_by)"
        " VALUES (1, 1, 'https://x', '', '{*}', '{}', 's', 'key/x')"
    ),
    (
        "INSERT INTO webhook_deliveries (id, endpoint_id, tenant_id, message_id, type, body, next_at)"
        " VALUES (1, 1, 1, 'm', 't', '{}', now())"
    ),
    "INSERT INTO webhook_tries VALUES (1, 1, 1, now(), 1, 200, NULL, NULL)",
    "INSERT INTO rates VALUES (1, 'hour', now(), 1, 1, 1, 1, 1)",
    "INSERT INTO marks VALUES (%(job_id)s, 0, 'accepted', 'key/x', now())",
    "INSERT INTO mark_counts VALUES (%(job_id)s, 1, 0, 0)",
    "INSERT INTO failure_counts VALUES (%(job_id)s, 'error', 1, 0, 'm', now())",
    "INSERT INTO image_scores VALUES (%(job_id)s, 'sharpness', 0.5, 0)",
    "INSERT INTO failure_hours VALUES (1, now(), 'error', 1, NULL, NULL, 'm', now())",
    (
        "INSERT INTO export_files (export_id, path, tenant_id, shard, bytes, sha256, images, object_key)"
        " VALUES (1, 'p', 1, 0, 1, %(sha256)s, 1, 'k')"
    ),
)


def test_a_tenants_session_that_names_no_tenant_sees_no_row_of_anybody(
    api: Api, others: tuple[dict[str, Any], httpx.Client], database_url: str
) -> None:
    claim = factories.claim(api.database)
    assert claim is not None
    failed = FailedImage(claim.images[0].job_id, claim.images[0].index, "render_failed", "No.")
    factories.settle(api.database, claim, failed=[failed])
    api.http.post("/v1/jobs", json={"images": [{"prompt": "c"}]}, headers={"Idempotency-Key": "k"})
    with psycopg.connect(plain(database_url), autocommit=True) as session:
        for statement in OTHER_ROWS:
            session.execute(statement, {"job_id": claim.images[0].job_id, "sha256": b"0" * 32})
        tables = {
            row[0]
            for row in session.execute(
                "SELECT DISTINCT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
                "WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = 'public'::regnamespace "
                "AND (a.attname IN ('tenant_id', 'job_id', 'job_ids') OR c.relname IN ('jobs', 'tenants'))"
            )
        }
        assert {"jobs", "images", "payloads", "results", "failures", "claims", "api_keys"} <= tables
        for name in tables:
            for said in ("", "*"):  # programs of the release before say *
                session.execute("SELECT set_config('app.tenant', %s, false)", (said,))
                assert session.execute(f"SELECT count(*) FROM {name}").fetchone() > (0,), name
            mine = {"tenants": 1, "api_keys": 1, "events": 1}.get(name, 0)  # the event of its key
            # With the role of before too, which programs of the release before keep.
            for role in ("presswork_tenant", "presswork_app"):
                session.execute(f"SET ROLE {role}")
                session.execute("SELECT set_config('app.tenant', '2', false)")
                assert session.execute(f"SELECT count(*) FROM {name}").fetchone() == (mine,), name
            session.execute("SET ROLE presswork_tenant")
            for said in ("", "*"):
                session.execute("SELECT set_config('app.tenant', %s, false)", (said,))
                assert session.execute(f"SELECT count(*) FROM {name}").fetchone() == (0,), name
            session.execute("RESET app.tenant")
            assert session.execute(f"SELECT count(*) FROM {name}").fetchone() == (0,), name
            session.execute("RESET ROLE")
        leaves = session.execute("SELECT oid::regclass::text FROM pg_class WHERE relispartition AND relkind = 'r'")
        for role, (leaf,) in itertools.product(("presswork_app", "presswork_tenant"), leaves.fetchall()):
            session.execute(f"SET ROLE {role}")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(f"SELECT count(*) FROM {leaf}")


# --- watching over it


@pytest.fixture
def variant(settings: Settings) -> Iterator[Callable[..., str]]:
    """The API again, with other settings; its address."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(serving(dataclasses.replace(settings, **changes)))


def ready(url: str) -> tuple[int, dict[str, str]]:
    answer = httpx.get(f"{url}/readyz", timeout=30)
    checks = answer.json()["checks"]
    assert all(check["message"].endswith(".") for check in checks.values())
    return answer.status_code, {name: check["status"] for name, check in checks.items()}


def test_it_is_ready_when_a_submission_would_be_accepted_and_rendered(api: Api) -> None:
    assert ready(api.url) == (200, dict.fromkeys(("database", "store", "redis", "model", "worker"), "ok"))


def test_it_is_not_ready_before_a_model_is_registered_and_a_worker_was_up(
    settings: Settings, store: S3Store, variant: Callable[..., str]
) -> None:
    status, checks = ready(variant())
    assert (status, checks["model"], checks["worker"], checks["database"]) == (503, "failing", "failing", "ok")


def test_with_redis_unreachable_it_is_degraded_and_takes_jobs(api: Api, variant: Callable[..., str]) -> None:
    url = variant(redis_url="redis://:secret@127.0.0.1:9")
    status, checks = ready(url)
    assert (status, checks["redis"]) == (200, "degraded")
    began = time.monotonic()
    answer = httpx.post(f"{url}/v1/jobs", json={"images": [{"prompt": "a"}]}, headers=api.http.headers)
    assert answer.status_code == 202 and time.monotonic() - began < 1.5  # the notifier's own timeout is 2 s


def test_the_figures_for_machines_name_no_tenant_no_key_and_no_prompt(api: Api) -> None:
    _, key = api.new_tenant("zebra")
    asked = {"images": [{"prompt": "a striped zebra"}], "labels": {"team": "zebra"}}
    made = httpx.post(f"{api.url}/v1/jobs", json=asked, headers={"Authorization": f"Bearer {key}"})
    assert made.status_code == 202
    read = httpx.get(f"{api.url}/v1/jobs/{made.json()['id']}", headers={"Authorization": f"Bearer {key}"})
    assert read.status_code == 200
    for path in ("/metrics", "/readyz"):
        shown = httpx.get(api.url + path).text
        for secret in ("zebra", key, key[3:11], api.key, made.json()["id"]):
            assert secret not in shown, path


def test_with_the_store_unreachable_it_is_not_ready(api: Api, variant: Callable[..., str]) -> None:
    status, checks = ready(variant(s3_endpoint_url="http://127.0.0.1:9"))
    assert (status, checks["store"], checks["database"]) == (503, "failing", "ok")


def test_with_the_database_unreachable_it_answers_503_and_recovers(
    api: Api, settings: Settings, variant: Callable[..., str]
) -> None:
    server = httpx.URL(settings.database_url)
    proxy = Proxy(server.host, server.port or 5432)
    url = variant(database_url=str(server.copy_with(port=proxy.port)))
    assert ready(url)[0] == 200
    proxy.cut()
    for method, path in [("GET", "/v1/jobs"), ("POST", "/v1/jobs")]:
        answer = httpx.request(method, url + path, headers=api.http.headers, timeout=30)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), path
        assert answer.json()["error"] == {
            "message": "The database cannot be reached. Try again.",
            "type": "server_error", "param": None, "code": "database_away",
        }  # fmt: skip
    assert httpx.get(f"{url}/livez").json() == {"status": "ok"}
    assert "presswork_http_requests_total" in httpx.get(f"{url}/metrics").text  # its own, which it need not ask for
    until(lambda: ready(url)[0] == 503)
    proxy.mend()
    until(lambda: httpx.get(f"{url}/v1/jobs", headers=api.http.headers, timeout=30).status_code == 200)
    proxy.close()


# --- what every answer has


def test_every_answer_carries_the_security_headers_and_no_servers_name(api: Api) -> None:
    for path in ("/livez", "/v1/jobs", "/v1/jobs/job_0000000000000", "/nothing", "/openapi.json", "/docs", "/",
                 "/v1/jobs?x=1"):  # fmt: skip
        answer = api.http.get(path)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Server" not in answer.headers
        assert (answer.headers.get("Cache-Control") == "no-store") == (path.startswith("/v1/") or path == "/")


def test_what_nobody_foresaw_is_a_500_without_a_trace(
    api: Api, database_url: str, stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    admin = f"{plain(stack.superuser_url).rpartition('/')[0]}/{database_url.rpartition('/')[2]}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("ALTER VIEW job_counts RENAME TO lost")
    answer = api.http.get("/v1/jobs")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    for private in ("job_counts", "Traceback", ".py", "psycopg", "SELECT"):
        assert private not in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Request-Id"] in answer.json()["error"]["message"]
    assert "job_counts" in caplog.text


def test_openapi_tells_the_truth_about_bodies(api: Api) -> None:
    document = api.http.get("/openapi.json").json()
    content = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    named = {"components": document["components"]}
    schema = content["application/json"]["schema"] | named
    line = content["application/x-ndjson"]["schema"]["contentSchema"] | named
    for request in (
        {"prompt": "a"},
        {"prompt": "a", "seed": 2**63 - 1, "n": 1, "size": "64x64", "custom_id": "a", "model": "simulated"},
        {"prompt": "a", "seed": None},
        {"prompt": "a", "seed": 2**63},
        {"prompt": "a", "n": 1001},
        {"prompt": "a", "n": "1"},
        {"prompt": "a" * 2001},
        {"prompt": "a", "guidance_scale": 51},
        {"prompt": "a", "output_format": "gif"},
        {"prompt": "a", "colour": "red"},
        {"negative_prompt": "a"},
    ):
        body = {"images": [request]}
        accepted = api.http.post("/v1/jobs", json=body).status_code == 202
        assert jsonschema.Draft202012Validator(schema).is_valid(body) == accepted, request
        assert jsonschema.Draft202012Validator(line).is_valid(request) == accepted, request
    assert not jsonschema.Draft202012Validator(schema).is_valid({"images": []})
    assert '"default": null' not in json.dumps(document["components"]["schemas"]["Submission"])
    documented_body = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    open_routes = (OPEN_ROUTES | PUBLIC_ROUTES) - PAGES
    keyed = JOB_ROUTES | THING_ROUTES | EXPORT_ROUTES | CATALOGUE_ROUTES | DATASET_ROUTES | TENANT_ROUTES
    assert documented_body == keyed | open_routes
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert bool(operation.get("security")) == path.startswith("/v1/")


# --- the process


@pytest.fixture
def web(environ: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(**changes: str) -> Process:
        started.append(Process("services.web", environ | changes, tmp_path / f"web-{len(started)}.log"))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_what_makes_a_start_impossible_is_one_sentence(
    web: Callable[..., Process], stack: Stack, template: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        unmigrated = stack.values["DATABASE_URL"].rpartition("/")[0] + "/postgres"
        cases = {
            "PRESSWORK_SECRET is not set": web(PRESSWORK_SECRET=""),
            "PRESSWORK_PORT is '0'": web(PRESSWORK_PORT="0"),
            f"Cannot listen on 127.0.0.1 port {port} (Address already in use)": web(PRESSWORK_PORT=str(port)),
            "The database is at schema revision none": web(DATABASE_URL=unmigrated, PRESSWORK_PORT=str(free_port())),
        }
        for sentence, process in cases.items():
            assert process.popen.wait(90) == 2
            [told] = [line for line in process.text().splitlines() if not line.startswith("{")]
            assert told.startswith(f"web: {sentence}"), told


def test_it_starts_without_a_database_and_tells_each_request_in_one_line(
    web: Callable[..., Process], environ: dict[str, str]
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = httpx.URL(environ["DATABASE_URL"]).copy_with(port=9)
    process = web(PRESSWORK_PORT=str(port), DATABASE_URL=str(server))
    until(lambda: answers(url))
    key = f"pw_{'a' * 8}_{'b' * 43}"
    assert httpx.get(f"{url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 503
    assert httpx.get(f"{url}/v1/jobs?api_key={key}%0Aforged").status_code == 400
    assert httpx.get(f"{url}/a%0Ab%1b[2J").status_code == 404
    assert process.stop() == 0
    events = [json.loads(line) for line in process.text().splitlines()]
    told = [(event["method"], event["path"], event["status"]) for event in events if event["event"] == "request"]
    assert [entry for entry in told if entry[1] != "/livez"] == [
        ("GET", "/v1/jobs", 503), ("GET", "/v1/jobs", 400), ("GET", "/a\nb\x1b[2J", 404),
    ]  # fmt: skip
    assert key not in process.text() and "forged" not in process.text()


# --- the client


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, api.key) as client:
        yield client


def test_the_client_submits_follows_downloads_and_cancels(api: Api, client: Client, store: S3Store) -> None:
    job = client.submit([{"prompt": "a", "n": 2, "size": "64x64"}], priority="high", labels={"a": "b"})
    assert client.job(job["id"])["priority"] == "high"
    render(api, store, seats=1)
    assert [image["index"] for image in client.images(job["id"], status="done")] == [0]
    assert client.download(job["id"], 0) == PICTURE
    with pytest.raises(ClientError, match="queued") as refused:
        client.download(job["id"], 1)
    assert (refused.value.status, refused.value.code) == (409, "not_done")
    assert client.cancel(job["id"])["counts"]["cancelled"] == 1
    assert [listed["id"] for listed in client.jobs()] == [job["id"]]


def test_the_client_turns_all_pages(client: Client) -> None:
    job = client.submit([{"prompt": "a", "n": 1000}, {"prompt": "b", "n": 1000}, {"prompt": "c", "n": 1}])
    assert [image["index"] for image in client.images(job["id"])] == list(range(2001))


def test_the_client_sends_a_file_and_tells_its_problems(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt":"a"}\n' * 5000)
    assert client.submit_file(file, priority="low")["counts"]["total"] == 5000
    file.write_text('{"prompt":"a"}\n{"prompt":""}\n')
    with pytest.raises(ClientError) as refused:
        client.submit_file(file)
    assert refused.value.status == 422
    assert [(problem["line"], problem["param"]) for problem in refused.value.errors] == [(2, "prompt")]


def test_the_client_sends_again_until_an_outage_is_over_and_makes_one_job(api: Api, tmp_path: Path) -> None:
    proxy = Proxy(*api.address)
    proxy.cut()
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt":"a"}\n' * 10)
    with Client(f"http://127.0.0.1:{proxy.port}", api.key) as client:
        mended = threading.Timer(0.5, proxy.mend)
        mended.start()
        assert client.submit_file(file)["counts"]["total"] == 10
        mended.join()
    proxy.close()
    assert api.rows()["jobs"] == 1
    with Client("http://127.0.0.1:9", api.key, patience=0.2) as client, pytest.raises(ClientError) as refused:
        client.job("job_0000000000000")
    assert (refused.value.status, refused.value.code) == (0, "unreachable")


def test_the_client_waits_while_the_server_answers_503(
    api: Api, settings: Settings, variant: Callable[..., str]
) -> None:
    server = httpx.URL(settings.database_url)
    proxy = Proxy(server.host, server.port or 5432)
    proxy.cut()
    with Client(variant(database_url=str(server.copy_with(port=proxy.port))), api.key) as client:
        mended = threading.Timer(0.5, proxy.mend)
        mended.start()
        assert client.submit([{"prompt": "a"}])["counts"]["total"] == 1
        mended.join()
    proxy.close()
    assert api.rows()["jobs"] == 1


def test_the_clients_key_never_reaches_the_store(api: Api, store: S3Store, settings: Settings) -> None:
    """The redirect leads to another server: it gets the request that it needs, and no Authorization."""
    job = api.submit()
    render(api, store)
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

        thread = threading.Thread(target=answer)
        thread.start()
        public = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with serving(dataclasses.replace(settings, s3_public_url=public)) as url, Client(url, api.key) as client:
            assert client.download(job["id"], 0) == b"ok"
        thread.join()
    assert heard[0].startswith(b"GET /presswork/test/") and b"authorization" not in heard[0].lower()
    assert api.key.encode() not in heard[0]
