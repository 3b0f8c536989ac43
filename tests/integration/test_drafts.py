"""Jobs that come in chunks: appended once each, claimed by nobody before they are finalized, and then whole."""

import dataclasses
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import text

from services.core.fleet import models
from services.core.jobs import drafts, lifecycle, submissions
from services.core.model import ids
from services.core.policy import policies
from services.core.queue import job_states, segments
from services.local.stack import Stack
from tests import factories
from tests.processes import Process
from tests.waiting import until
from tests.web import Api, serving

NDJSON = {"Content-Type": "application/x-ndjson"}


def opened(api: Api, **head: Any) -> str:
    answer = api.http.post("/v1/jobs", json={"draft": True, **head})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def put(api: Api, job: str, number: int, *requests: dict[str, Any]) -> httpx.Response:
    body = "".join(json.dumps(request) + "\n" for request in requests)
    return api.http.put(f"/v1/jobs/{job}/chunks/{number}", content=body.encode(), headers=NDJSON)


def finalize(api: Api, job: str, chunks: int, **more: Any) -> httpx.Response:
    return api.http.post(f"/v1/jobs/{job}/finalize", json={"chunks": chunks, **more})


def shown(api: Api, job: str) -> dict[str, Any]:
    found: dict[str, Any] = api.http.get(f"/v1/jobs/{job}").json()
    counts = dict(found["counts"])
    assert counts.pop("total") == sum(counts.values())
    return found


def rows(api: Api, job: str) -> dict[str, int]:
    """Images that there really are, by state."""
    with api.database.begin_system() as connection:
        found = connection.execute(
            text("SELECT state, count(*) FROM images WHERE job_id = :id GROUP BY state"),
            {"id": ids.parse_job(job)},
        )
        return {str(state): count for state, count in found}


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_draft_grows_by_chunks_is_claimed_by_nobody_and_wholly_after_it_is_finalized(api: Api) -> None:
    job = opened(api, priority="high", labels={"run": "bulk"}, dedupe=True, embed_prompt=True)
    draft = shown(api, job)
    assert (draft["status"], draft["counts"]["total"], draft["requests"]) == ("draft", 0, 0)
    assert (draft["dedupe"], draft["embed_prompt"], draft["labels"]) == (True, True, {"run": "bulk"})
    expires, created = (datetime.fromisoformat(draft[name]) for name in ("expires_at", "created_at"))
    assert expires - created == timedelta(days=7)
    first = put(api, job, 0, {"prompt": "a", "n": 3}, {"prompt": "b", "size": "64x64"})
    assert first.status_code == 200
    assert first.json() | {"sha256": ""} == {
        "object": "job.chunk", "number": 0, "requests": 2, "images": 4, "sha256": "", "replayed": False,
    }  # fmt: skip
    assert (
        api.http.put(
            f"/v1/jobs/{job}/chunks/1",
            json={"images": [{"prompt": "c"}, {"prompt": "d", "size": "256x256"}], "defaults": {"size": "64x64"}},
        ).status_code
        == 200
    )
    assert put(api, job, 2, {"prompt": "e"}).status_code == 200
    assert (shown(api, job)["counts"]["queued"], shown(api, job)["requests"]) == (7, 5)
    assert rows(api, job) == {"0": 7}
    for verb in ("pause", "resume"):
        assert code(api.http.post(f"/v1/jobs/{job}/{verb}")) == (409, "job_not_queued")
    assert factories.claim(api.database) is None
    done = finalize(api, job, 3, images=7)
    assert (done.status_code, done.json()["status"], done.json()["expires_at"]) == (202, "queued", None)
    claimed: list[tuple[int, int]] = []
    while (claim := factories.claim(api.database)) is not None:
        claimed += factories.places(claim)
        assert all(image.dedupe and image.embed_prompt for image in claim.images)
        factories.settle(api.database, claim)
    assert sorted(index for _, index in claimed) == list(range(7))
    assert shown(api, job)["counts"]["done"] == 7


def test_the_images_of_a_draft_are_those_of_the_same_job_sent_at_once(api: Api) -> None:
    """Shapes that come back in a later chunk join their segment."""
    requests = [
        {"prompt": f"p{n}", "seed": n, "n": 1 + n % 3, "size": ["64x64", "256x256", "512x512"][n // 4 % 3]}
        for n in range(24)
    ]
    whole = str(api.submit(*({**request} for request in requests))["id"])
    job = opened(api)
    for number in range(6):
        assert put(api, job, number, *requests[number * 4 : number * 4 + 4]).status_code == 200
    assert finalize(api, job, 6).status_code == 202
    kept = []
    for one in (whole, job):
        with api.database.begin_system() as connection:
            found = connection.execute(
                text(
                    "SELECT i.index, i.segment_id, s.width, s.high, p.prompt, p.seed, s.open, s.low FROM images i "
                    "JOIN segments s ON s.job_id = i.job_id AND s.id = i.segment_id "
                    "LEFT JOIN payloads p ON p.job_id = i.job_id AND p.index = i.index "
                    "WHERE i.job_id = :id ORDER BY i.index"
                ),
                {"id": ids.parse_job(one)},
            )
            kept.append([tuple(row) for row in found])
    assert kept[0] == kept[1]
    assert len(kept[0]) == 48


def test_a_chunk_sent_again_is_committed_once(api: Api) -> None:
    job = opened(api)
    first = put(api, job, 0, {"prompt": "a", "n": 2})
    again = api.http.put(f"/v1/jobs/{job}/chunks/0", json={"images": [{"n": 2, "prompt": "a"}]})
    assert again.json() == first.json() | {"replayed": True}
    assert shown(api, job)["counts"]["total"] == 2 and rows(api, job) == {"0": 2}
    put(api, job, 1, {"prompt": "b"})
    assert put(api, job, 0, {"prompt": "a", "n": 2}).json()["replayed"] is True
    other = put(api, job, 0, {"prompt": "b", "n": 2})
    assert code(other) == (409, "chunk_conflict") and "Chunk 0" in other.json()["error"]["message"]
    assert shown(api, job)["counts"]["total"] == 3


def test_chunks_sent_all_at_once_are_each_committed_once_or_told_to_come_back(api: Api) -> None:
    job = opened(api)

    def send(number: int) -> int:
        while True:
            answer = put(api, job, number // 2, *({"prompt": f"{number // 2}"} for _ in range(50)))
            if answer.status_code == 200:
                return 200
            assert code(answer) == (409, "chunk_busy")

    with ThreadPoolExecutor(4) as pool:  # each chunk twice
        assert set(pool.map(send, range(12))) == {200}
    assert finalize(api, job, 6, images=300).status_code == 202
    assert rows(api, job) == {"0": 300}


def test_a_chunk_that_is_not_committed_leaves_nothing_and_can_be_sent_again(api: Api) -> None:
    """As when the web server dies between the chunk's rows and its commit."""
    job = ids.parse_job(opened(api))
    with api.database.begin_system() as connection:
        existing = drafts.existing(connection, factories.TENANT, job, 0)
        registry = models.registry(connection)

    def append(die: bool) -> None:
        with submissions.Submission(api.settings, registry, policy=policies.NOTHING, existing=existing) as submission:
            submission.add(0, {"prompt": "a", "n": 5})
            with api.database.begin_system() as connection:
                drafts.append(connection, factories.TENANT, submission, 0)
                if die:
                    raise InterruptedError

    with pytest.raises(InterruptedError):
        append(die=True)
    assert shown(api, ids.public_job(job))["counts"]["total"] == 0 and rows(api, ids.public_job(job)) == {}
    append(die=False)
    assert rows(api, ids.public_job(job)) == {"0": 5}


def test_a_chunk_is_whole_or_not_there_after_its_web_server_is_killed_before_the_commit(
    api: Api, stack: Stack, tmp_path: Path
) -> None:
    """The client got no answer and sends the chunk again, to another server."""
    job = opened(api)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environ = dict(stack.values) | {"DATABASE_URL": api.settings.database_url, "PRESSWORK_PORT": str(port)}
    doomed = Process("services.web", environ, tmp_path / "web.log")
    url = api.settings.database_url.replace("+psycopg", "")
    admin = f"{stack.superuser_url.rpartition('/')[0]}/{url.rpartition('/')[2]}"  # who sees what other roles wait for
    try:
        until(lambda: "listening" in doomed.text())
        headers = {**NDJSON, "Authorization": f"Bearer {api.key}"}
        with (
            psycopg.connect(url) as other,
            psycopg.connect(admin.replace("+psycopg", ""), autocommit=True) as watch,
            ThreadPoolExecutor(1) as pool,
        ):
            other.execute("LOCK TABLE images IN EXCLUSIVE MODE")  # its payloads are written, its images are not
            sent = pool.submit(
                httpx.put, f"http://127.0.0.1:{port}/v1/jobs/{job}/chunks/0", content=b'{"prompt":"a","n":3}\n',
                headers=headers, timeout=60,
            )  # fmt: skip
            waiting = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            until(lambda: watch.execute(waiting).fetchone() == (1,))
            doomed.kill()
            assert isinstance(sent.exception(), httpx.TransportError)
    finally:
        doomed.kill()
    assert shown(api, job)["counts"]["total"] == 0
    again = put(api, job, 0, {"prompt": "a", "n": 3})
    assert (again.status_code, again.json()["replayed"]) == (200, False)
    assert shown(api, job)["counts"]["queued"] == 3 and rows(api, job) == {"0": 3}


def test_the_chunks_are_listed_so_that_a_client_can_go_on(api: Api) -> None:
    job = opened(api)
    for number in (4, 0, 2):
        assert put(api, job, number, {"prompt": str(number)}).status_code == 200
    page = api.http.get(f"/v1/jobs/{job}/chunks?limit=2").json()
    assert [(chunk["number"], chunk["images"], len(chunk["sha256"])) for chunk in page["data"]] == [
        (0, 1, 64), (2, 1, 64),
    ]  # fmt: skip
    rest = api.http.get(f"/v1/jobs/{job}/chunks?cursor={page['next_cursor']}").json()
    assert [chunk["number"] for chunk in rest["data"]] == [4] and rest["next_cursor"] is None
    assert api.http.get(f"/v1/jobs?cursor={page['next_cursor']}").status_code == 400


def test_a_draft_with_gaps_or_another_count_is_not_finalized(api: Api) -> None:
    job = opened(api)
    assert code(finalize(api, job, 1)) == (422, "chunks_missing")
    for number in (0, 2):
        put(api, job, number, {"prompt": "a"})
    refused = finalize(api, job, 2000)
    assert code(refused) == (422, "chunks_missing")
    assert "1,998 are missing: 1, 3, 4, 5" in refused.json()["error"]["message"]
    assert code(finalize(api, job, 1)) == (422, "chunks_mismatch")
    put(api, job, 1, {"prompt": "a"})
    assert code(finalize(api, job, 3, images=4)) == (422, "images_mismatch")
    for body in ({}, {"chunks": 0}, {"chunks": "3"}, {"chunks": 3, "images": 0}, {"chunks": 3, "more": 1}):
        assert api.http.post(f"/v1/jobs/{job}/finalize", json=body).status_code == 422, body
    assert shown(api, job)["status"] == "draft"
    assert finalize(api, job, 3, images=3).status_code == 202


def test_a_custom_id_in_two_chunks_is_reported_with_both_places(api: Api) -> None:
    job = opened(api)
    put(api, job, 1, {"prompt": "a", "custom_id": "x"}, {"prompt": "a"}, {"prompt": "a", "n": 5, "custom_id": "y"})
    put(api, job, 0, {"prompt": "b", "n": 3}, {"prompt": "b", "custom_id": "y"}, {"prompt": "b", "custom_id": "z"})
    error = finalize(api, job, 2).json()["error"]
    assert (error["code"], error["more"], len(error["errors"])) == ("duplicate_custom_id", False, 1)
    assert error["errors"][0]["chunk"] == 0
    assert 'custom_id is "y" in request 2 of chunk 1 and in request 1 of chunk 0' in error["message"]
    many = opened(api)
    for number in range(2):
        put(api, many, number, *({"prompt": "a", "custom_id": f"i{n}"} for n in range(150)))
    error = finalize(api, many, 2).json()["error"]
    assert (len(error["errors"]), error["more"]) == (100, True)
    assert shown(api, many)["status"] == "draft"


def test_finalizing_again_answers_with_the_job_and_appending_is_over(api: Api) -> None:
    job = opened(api)
    put(api, job, 0, {"prompt": "a"})
    assert finalize(api, job, 1).status_code == 202
    again = finalize(api, job, 1)
    assert (again.status_code, again.json()["id"]) == (200, job)
    assert code(finalize(api, job, 2)) == (409, "not_a_draft")
    assert code(put(api, job, 0, {"prompt": "a"})) == (409, "not_a_draft")
    plain = str(api.submit()["id"])
    assert code(finalize(api, plain, 1)) == (409, "not_a_draft")
    assert code(put(api, plain, 0, {"prompt": "a"})) == (409, "not_a_draft")


def test_a_cancelled_draft_is_swept_and_an_old_one_expires(api: Api) -> None:
    cancelled, expired, empty = (opened(api) for _ in range(3))
    for job in (cancelled, expired):
        put(api, job, 0, {"prompt": "a", "n": 20})
    assert api.http.post(f"/v1/jobs/{cancelled}/cancel").json()["counts"]["cancelled"] == 20
    assert api.http.post(f"/v1/jobs/{empty}/cancel").status_code == 200
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL"))
        assert job_states.expire(connection) == 1
        segments.sweep_cancelled(connection)
        lifecycle.finish(connection)
    assert [(shown(api, job)["status"], shown(api, job)["stop_reason"]) for job in (cancelled, expired, empty)] == [
        ("cancelled", "cancelled"), ("expired", "expired"), ("cancelled", "cancelled"),
    ]  # fmt: skip
    assert code(put(api, expired, 1, {"prompt": "a"})) == (409, "not_a_draft")
    assert code(finalize(api, expired, 1)) == (409, "not_a_draft")


def test_a_sweep_leaves_the_images_of_a_draft_alone(api: Api) -> None:
    draft, cancelled = opened(api), opened(api)
    for job in (draft, cancelled):
        put(api, job, 0, {"prompt": "a", "n": 20})
    with api.database.begin(factories.TENANT) as connection:
        lifecycle.cancel(connection, factories.TENANT, ids.parse_job(cancelled))
    with api.database.begin_system() as connection:
        assert segments.sweep_cancelled(connection) == 20
    assert (rows(api, draft), rows(api, cancelled)) == ({"0": 20}, {"4": 20})
    assert finalize(api, draft, 1).json()["counts"]["queued"] == 20


def test_an_idempotency_key_opens_one_draft(api: Api) -> None:
    headers = {"Idempotency-Key": "d1"}
    answers = [api.http.post("/v1/jobs", json={"draft": True, "labels": {"a": "b"}}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[1].headers["Idempotent-Replayed"] == "true"
    other = api.http.post("/v1/jobs", json={"draft": True}, headers=headers)
    assert code(other) == (422, "idempotency_key_reused")


def test_a_draft_is_opened_without_images_and_says_so(api: Api) -> None:
    for extra in ({"images": [{"prompt": "a"}]}, {"defaults": {"n": 2}}, {"matrix": {}}):
        refused = api.http.post("/v1/jobs", json={"draft": True, **extra})
        assert refused.status_code == 422
        assert "each chunk" in refused.json()["error"]["message"]
    assert api.http.post("/v1/jobs", json={"draft": "yes", "images": [{"prompt": "a"}]}).status_code == 422
    assert api.http.post("/v1/jobs", json={"draft": True, "colour": "red"}).status_code == 422
    assert api.rows()["jobs"] == 0


def test_a_bad_chunk_is_refused_like_a_bad_submission_and_leaves_no_row(api: Api) -> None:
    job = opened(api)
    before = api.rows()
    bad = put(api, job, 0, {"prompt": "a"}, {"prompt": ""})
    assert bad.json()["error"]["errors"][0]["line"] == 2
    address = f"/v1/jobs/{job}/chunks/0"
    for body in ({}, {"images": []}, {"images": [{"prompt": "a"}], "priority": "high"}, {"matrix": {}}, []):
        assert api.http.put(address, json=body).status_code == 422, body
    assert api.http.put(address, content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    for number in ("-1", "1000000", "x", "1.0", "+1", "%D9%A5"):
        assert code(api.http.put(f"/v1/jobs/{job}/chunks/{number}", json={})) == (422, "invalid_parameter")
    assert api.rows() == before


def test_a_draft_holds_more_than_one_body_may_and_has_a_limit_of_its_own(api: Api) -> None:
    small = dataclasses.replace(api.settings, max_images_per_job=10, max_images_per_draft=25)
    job = opened(api)
    with serving(small) as url, httpx.Client(base_url=url, headers=dict(api.http.headers), timeout=60) as http:

        def send(number: int, n: int) -> httpx.Response:
            return http.put(f"/v1/jobs/{job}/chunks/{number}", json={"images": [{"prompt": "a", "n": n}]})

        refused = send(0, 11)
        assert code(refused) == (422, "too_many_images") and "more than 10" in refused.json()["error"]["message"]
        assert [send(number, 10).status_code for number in range(2)] == [200, 200]
        refused = send(2, 6)
        assert code(refused) == (422, "too_many_images") and "more than 25" in refused.json()["error"]["message"]
        assert send(2, 5).status_code == 200
        again = send(2, 5)
        assert (again.status_code, again.json().get("replayed")) == (200, True)
        assert code(send(2, 6))[0] == 422 and code(send(2, 4)) == (409, "chunk_conflict")
    assert finalize(api, job, 3, images=25).status_code == 202
