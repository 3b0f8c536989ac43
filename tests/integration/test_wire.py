"""HTTP as stock tools expect it: HEAD, OPTIONS, validators, ranges, kept connections, problems and request ids."""

import hashlib
import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from services.core import logs
from services.core.storage.s3 import S3Store
from tests import factories
from tests.waiting import until
from tests.web import Api

LINE = b'{"prompt":"a mug"}\n'
DATA = b'{"custom_id": "a"}\n' * 50
REQUEST_ID = re.compile(r"req_[0-9a-z]{13}")


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


@pytest.fixture
def file(api: Api) -> str:
    form: dict[str, Any] = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", DATA)}}
    return str(api.http.post("/v1/files", **form).json()["id"])


def talk(api: Api, *parts: bytes, answers: int = 1) -> list[bytes]:
    """The answers to what is sent on one connection, as many as come before it is closed, each with its body (no
    answer to a HEAD, whose length is that of a body which does not follow)."""
    found = b""
    with closing(api.connect()) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        while not (found.count(b"HTTP/1.1 ") >= answers and _is_whole(found)) and (chunk := connection.recv(65536)):
            found += chunk
    return [b"HTTP/1.1 " + answer for answer in found.split(b"HTTP/1.1 ")[1:]]


def _is_whole(answers: bytes) -> bool:
    """Whether the last of these answers is there with its body."""
    head, end, body = answers.rpartition(b"HTTP/1.1 ")[2].partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


def drawn(api: Api, picture: bytes = b"a picture") -> str:
    """The address of a done image."""
    job = api.submit({"prompt": "a mug", "custom_id": "mug"})["id"]
    claim = factories.claim(api.database)
    assert claim is not None
    stored = factories.stored(claim, picture)
    for image in stored:
        S3Store(api.settings).put(image.object_key, picture, "image/png", {}, claim_id=claim.id)
    factories.settle(api.database, claim, stored=stored)
    return str(api.http.get(f"/v1/jobs/{job}/images").json()["data"][0]["url"])


# --- methods


def test_head_answers_as_get_does_and_without_a_body(api: Api, file: str) -> None:
    job = api.submit()["id"]
    known = {"job_id": str(job), "file_id": file, "name": "simulated", "index": "0"}
    for template, methods in api.http.get("/openapi.json").json()["paths"].items():
        path = re.sub(r"\{(\w+)\}", lambda found: known.get(found[1], "none"), template)
        head = api.http.request("HEAD", path)
        with api.http.stream("GET", path) as get:  # which may go on
            pass
        assert head.content == b""
        assert (head.status_code, head.headers.keys()) == (get.status_code, get.headers.keys()), path
        assert head.headers["Content-Type"].partition(";")[0] == get.headers["Content-Type"].partition(";")[0]
        assert head.status_code != 405 or "get" not in methods


def test_options_says_which_methods_an_address_takes(api: Api) -> None:
    for template, methods in api.http.get("/openapi.json").json()["paths"].items():
        path = re.sub(r"\{(\w+)\}", "none", template)
        answer = httpx.request("OPTIONS", f"{api.url}{path}", headers={"Origin": "http://evil.example"})
        taken = {method.upper() for method in methods}
        allow = sorted(taken | {"OPTIONS"} | ({"HEAD"} if "GET" in taken else set()))
        assert (answer.status_code, answer.headers["Allow"], answer.content) == (204, ", ".join(allow), b"")
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert httpx.request("OPTIONS", f"{api.url}/nothing").status_code == 404


def test_head_of_an_image_link_is_answered_here_with_its_size_and_type(api: Api) -> None:
    """The store would refuse it: a presigned address is signed for one method."""
    url = drawn(api)
    found = httpx.head(url)
    assert (found.status_code, found.content, found.headers["Content-Length"]) == (200, b"", "9")
    assert (found.headers["Content-Type"], found.headers["Accept-Ranges"]) == ("image/png", "bytes")
    assert found.headers["Content-Disposition"] == 'attachment; filename="mug.png"'
    assert found.headers["ETag"] == f'"{hashlib.sha256(b"a picture").hexdigest()}"'
    assert httpx.head(f"{url[:-1]}!").status_code == 404
    assert httpx.head(url.partition("?")[0]).status_code == 401
    ranged = httpx.get(url, headers={"Range": "bytes=2-4"}, follow_redirects=True)
    assert (ranged.status_code, ranged.content) == (206, b"pic")


# --- what the client has already


def test_an_image_that_the_client_has_is_not_sent_again(api: Api) -> None:
    url = drawn(api)
    redirect = httpx.get(url)
    assert (redirect.status_code, redirect.headers["Cache-Control"]) == (307, "no-store")
    tag = redirect.headers["ETag"]
    for given in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        for method in ("GET", "HEAD"):
            answer = httpx.request(method, url, headers={"If-None-Match": given})
            assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", tag)
    assert httpx.get(url, headers={"If-None-Match": '"x"'}).status_code == 307
    assert httpx.get(f"{url[:-1]}!", headers={"If-None-Match": "*"}).status_code == 404


TAG = f'"{hashlib.sha256(DATA).hexdigest()}"'


@pytest.mark.parametrize(
    ("headers", "status", "part"),
    [
        ({"Range": "bytes=0-0"}, 206, (0, 0)),
        ({"Range": "Bytes=5-9"}, 206, (5, 9)),
        ({"Range": "bytes=900-"}, 206, (900, 949)),
        ({"Range": "bytes=900-5000"}, 206, (900, 949)),
        ({"Range": "bytes=-7"}, 206, (943, 949)),
        ({"Range": "bytes=-5000"}, 206, (0, 949)),
        ({"Range": "bytes=0-4", "If-Range": TAG}, 206, (0, 4)),
        ({"Range": "bytes=0-4", "If-Range": '"another"'}, 200, (0, 949)),
        ({"Range": "bytes=0-4", "If-Range": f"W/{TAG}"}, 200, (0, 949)),
        ({"Range": "bytes=0-4", "If-None-Match": TAG}, 304, None),
        ({"Range": "bytes=0-4,10-14"}, 200, (0, 949)),
        ({"Range": "bytes=9-5"}, 200, (0, 949)),
        ({"Range": "bytes=-"}, 200, (0, 949)),
        ({"Range": "lines=0-4"}, 200, (0, 949)),
        ({"Range": f"bytes=0-{'9' * 30}"}, 200, (0, 949)),
        ({"Range": "bytes=950-"}, 416, None),
        ({"Range": "bytes=-0"}, 416, None),
    ],
)
def test_a_file_is_read_in_ranges_and_not_at_all_by_who_has_it(
    api: Api, file: str, headers: dict[str, str], status: int, part: tuple[int, int] | None
) -> None:
    answer = api.http.get(f"/v1/files/{file}/content", headers=headers)
    assert answer.status_code == status
    if status == 416:
        assert answer.headers["Content-Range"] == "bytes */950"
        assert answer.json()["error"]["code"] == "range_not_satisfiable"
        return
    assert (answer.headers["ETag"], answer.headers["Cache-Control"]) == (TAG, "private, no-cache")
    assert answer.content == (b"" if part is None else DATA[part[0] : part[1] + 1])
    assert answer.headers.get("Content-Range") == (f"bytes {part[0]}-{part[1]}/950" if status == 206 and part else None)


def test_head_of_a_file_reads_nothing_from_the_store(api: Api, file: str) -> None:
    with api.database.begin_system() as connection:
        key = connection.execute(text("SELECT object_key FROM files ORDER BY id DESC LIMIT 1")).scalar_one()
    S3Store(api.settings).drop(key)
    found = api.http.head(f"/v1/files/{file}/content")
    assert (found.status_code, found.headers["Content-Length"], found.headers["ETag"]) == (200, "950", TAG)
    assert api.http.get(f"/v1/files/{file}/content").status_code == 410


# --- where to look


def test_what_is_accepted_says_where_to_look(api: Api) -> None:
    def looked(answer: httpx.Response, status: int = 202) -> Any:
        assert answer.status_code == status, answer.text
        assert answer.headers["Location"].startswith(f"{api.url}/v1/")
        found = api.http.get(answer.headers["Location"]).json()
        assert found["id"] == answer.json()["id"]
        return found["id"]

    job = looked(api.http.post("/v1/jobs", json={"images": [{"prompt": "a mug"}]}))
    draft = looked(api.http.post("/v1/jobs", json={"draft": True}), 201)
    api.http.put(f"/v1/jobs/{draft}/chunks/0", json={"images": [{"prompt": "a mug"}]})
    looked(api.http.post(f"/v1/jobs/{draft}/finalize", json={"chunks": 1}))
    looked(api.http.post(f"/v1/jobs/{draft}/finalize", json={"chunks": 1}), 200)
    for prefer in ("respond-async", "wait=0"):
        looked(api.http.post("/v1/images/generations", json={"prompt": "a mug"}, headers={"Prefer": prefer}))
    api.http.post(f"/v1/jobs/{job}/cancel")
    until(lambda: api.http.get(f"/v1/jobs/{job}").json()["counts"]["cancelled"])
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET state = 'cancelled', finished_at = now()"))
    looked(api.http.post(f"/v1/jobs/{job}/retry", json={"include_cancelled": True}))
    api.http.delete(f"/v1/jobs/{draft}")
    url = drawn(api)
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET state = 'completed', finished_at = now() WHERE finished_at IS NULL"))
    done = url.partition("/v1/jobs/")[2].partition("/")[0]
    looked(api.http.post(f"/v1/jobs/{done}/exports", json={"format": "webdataset"}))


# --- connections


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (b"Content-Length: 0\r\n\r\n", b"200"),
        (b"Content-Length: 2\r\n\r\n{}", b"200"),
        (b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"200"),
        (b"Authorization: x\r\nContent-Length: 2\r\n\r\n{}", b"401"),
    ],
)
def test_a_connection_is_kept_after_a_small_body_that_nobody_reads(api: Api, more: bytes, status: bytes) -> None:
    job = str(api.submit()["id"]).encode()
    head = b"POST /v1/jobs/%s/pause HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % (job, api.key.encode())
    first, second = talk(api, head + more, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", answers=2)
    assert first.startswith(b"HTTP/1.1 " + status) and b"connection: close" not in first
    assert second.startswith(b"HTTP/1.1 200 ")


def test_what_is_not_wanted_of_a_body_is_not_asked_for(api: Api) -> None:
    head = b"POST /v1/jobs/none/pause HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    assert talk(api, head)[0].startswith(b"HTTP/1.1 401 ")


# --- bodies


@pytest.mark.parametrize("name", ["ndjson", "x-ndjson", "jsonl", "x-jsonl", "jsonlines", "x-jsonlines", "json-lines"])
def test_every_name_for_one_object_a_line_is_taken(api: Api, name: str) -> None:
    answer = api.http.post("/v1/jobs", content=LINE * 3, headers={"Content-Type": f"application/{name}; charset=utf-8"})
    assert (answer.status_code, answer.json()["requests"]) == (202, 3)


PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (PROBLEM, PROBLEM),
        (f"{PROBLEM}, application/json", PROBLEM),
        (f"application/json;q=0.5, {PROBLEM};q=0.9", PROBLEM),
        (f"application/json, {PROBLEM};q=0.9", "application/json"),
        (f"{PROBLEM};q=0", "application/json"),
        (f"{PROBLEM};q=many", "application/json"),
        ("application/json", "application/json"),
        ("*/*", "application/json"),
    ],
)
def test_an_error_is_a_problem_for_whoever_asks_for_problems(api: Api, accept: str, kind: str) -> None:
    bad = {"images": [{"prompt": "a"}, {"prompt": ""}]}
    answers = [
        (api.http.post("/v1/jobs", json=bad, headers={"Accept": accept}), 422),
        (api.http.get("/nothing", headers={"Accept": accept}), 404),
        (api.http.get("/v1/jobs", headers={"Accept": accept, "Authorization": ""}), 401),
        (api.http.put("/v1/jobs", headers={"Accept": accept}), 405),
        (api.http.get("/livez", headers={"Accept": accept, "X-Long": "x" * 32_700}), 431),
    ]
    for answer, status in answers:
        assert (answer.status_code, answer.headers["Content-Type"], answer.headers["Vary"]) == (status, kind, "Accept")
        body = answer.json()
        if kind == PROBLEM:
            assert (body["type"], body["status"], "error" in body) == ("about:blank", status, False)
            assert body["title"] and body["detail"] and body["code"]
        else:
            assert body["error"]["message"]
    first = answers[0][0].json()
    problems = first["errors"] if kind == PROBLEM else first["error"]["errors"]
    assert [(entry["index"], entry["param"]) for entry in problems] == [(1, "images[1].prompt")]


# --- request ids


@pytest.fixture
def logged() -> Iterator[Any]:
    """The lines that the server has logged so far, as values."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLines("web"))
    level = logging.root.level
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.root.removeHandler(handler)
    logging.root.setLevel(level)


def test_every_answer_has_an_id_of_its_own_which_the_log_has_too(api: Api, logged: Any) -> None:
    key = api.key.encode()
    requests = {
        200: b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        204: b"OPTIONS /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
        401: b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n\r\n",
        404: b"GET /nothing HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\n\r\n",
        405: b"PUT /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        413: b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
             b"Content-Length: 99999999999\r\n\r\n" % key,
        422: b"GET /v1/jobs?x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % key,
        431: b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: %s\r\n\r\n" % (b"x" * 70_000),
        400: b"GET it, please\r\n\r\n",
    }  # fmt: skip
    ids = {}
    for status, request in requests.items():
        head, _, body = talk(api, request)[0].partition(b"\r\n\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert REQUEST_ID.fullmatch(headers["x-request-id"])
        assert headers["x-content-type-options"] == "nosniff"
        if status >= 400:
            assert json.loads(body)["error"]["code"]
        ids[headers["x-request-id"]] = status
    assert len(ids) == len(requests)
    until(lambda: {line["request_id"]: line["status"] for line in logged() if line["event"] == "request"} == ids)
