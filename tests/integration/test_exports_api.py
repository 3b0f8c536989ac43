"""Exports over HTTP: asked for, watched, fetched; what is refused, and whose they are."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from services.core.events import numbering
from services.core.events import queries as events
from services.core.exports import records
from services.core.model import ids
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.local.stack import Stack
from tests import exporting
from tests.web import Api, open_api


@pytest.fixture(scope="module")
def api(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[Api]:
    """One server for all of these."""
    with fresh_database(template) as url, open_api(Settings.read(stack.values | {"DATABASE_URL": url})) as running:
        yield running


@pytest.fixture(scope="module")
def shelf(api: Api) -> S3Store:
    store = S3Store(api.settings)
    store.prepare()
    return store


@pytest.fixture(scope="module")
def job_id(api: Api, shelf: S3Store) -> str:
    return ids.public_job(exporting.finished_job(api.database, api.settings, shelf))


@pytest.fixture
def stranger(api: Api) -> Iterator[httpx.Client]:
    _, key = api.new_tenant("other")
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as client:
        yield client


def ask(api: Api, job_id: str, form: str = "zip", key: str | None = None, **options: Any) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return api.http.post(f"/v1/jobs/{job_id}/exports", json={"format": form, "options": options}, headers=headers)


def written(api: Api, shelf: S3Store, export: dict[str, Any]) -> dict[str, Any]:
    exporting.run(api.database, api.settings, shelf)
    found: dict[str, Any] = api.http.get(f"/v1/exports/{export['id']}").json()
    return found


def test_an_export_is_asked_for_watched_and_fetched(api, shelf, job_id):
    answer = ask(api, job_id, "webdataset", images_per_shard=7, split={"val": 0.5, "train": 0.5})
    assert answer.status_code == 202, answer.text
    export = answer.json()
    assert re.fullmatch(r"export_[0-9a-z]{13}", export["id"])
    assert {**export, "id": "", "created_at": ""} == {
        "id": "",
        "object": "export",
        "job_id": job_id,
        "format": "webdataset",
        "options": {
            "images_per_shard": 7,
            "include_flagged": True,
            "mark": None,
            "scores": [],
            "metadata": [],
            "split": {"train": 0.5, "val": 0.5},
            "images": "inline",
            "expires_in_seconds": 604800,
        },
        "status": "queued",
        "counts": {"total": 19, "done": 0},
        "bytes": 0,
        "created_at": "",
        "finished_at": None,
        "expires_at": None,
        "error": None,
    }
    waiting = api.http.get(f"/v1/exports/{export['id']}/files")
    assert (waiting.status_code, waiting.json()["error"]["code"]) == (409, "export_not_completed")
    done = written(api, shelf, export)
    assert (done["status"], done["counts"]) == ("completed", {"total": 19, "done": 19})
    assert done["expires_at"] > done["finished_at"] >= done["created_at"]
    files = everything(api, f"/v1/exports/{export['id']}/files", limit=2)
    assert [file["path"] for file in files] == sorted(file["path"] for file in files)
    assert {"manifest.json", "SHA256SUMS"} < {file["path"] for file in files}
    assert sum(file["bytes"] for file in files) == done["bytes"]
    assert sum(file["images"] for file in files) == 19
    for file in files:
        fetched = httpx.get(file["url"], trust_env=False, follow_redirects=True)
        assert hashlib.sha256(fetched.content).hexdigest() == file["sha256"]
        assert file["path"].rpartition("/")[2] in fetched.headers["content-disposition"]


def test_a_files_link_answers_head_and_if_none_match_and_is_its_exports_alone(api, shelf, job_id):
    export, other = (ask(api, job_id, images_per_shard=number).json()["id"] for number in (17, 18))
    exporting.run(api.database, api.settings, shelf)
    files = api.http.get(f"/v1/exports/{export}/files").json()["data"]
    file = next(file for file in files if file["path"].endswith(".zip"))
    url = httpx.URL(file["url"])
    with httpx.Client(trust_env=False) as browser:  # without a key
        head = browser.head(url)
        assert (head.status_code, head.headers["content-length"]) == (200, str(file["bytes"]))
        assert head.headers["etag"] == f'"{file["sha256"]}"'
        part = browser.get(url, headers={"Range": "bytes=3-9"}, follow_redirects=True)
        assert (part.status_code, len(part.content)) == (206, 7)
        assert browser.get(url, headers={"If-None-Match": head.headers["etag"]}).status_code == 304
        for wrong in (
            url.copy_set_param("signature", "0" * 32),
            url.copy_with(path=url.path.replace(file["path"], "manifest.json"), query=url.query),
            url.copy_with(path=url.path.replace(export, other), query=url.query),
        ):
            assert browser.get(wrong).status_code == 404, wrong
        assert browser.get(url.copy_remove_param("signature")).status_code == 401
        mine = api.http.get(f"/v1/exports/{export}/content/{file['path']}")
        assert mine.status_code == 307
        for path in ("nothing.tar", "data", "a%00b", "%ff", "..%2Ffiles", ""):
            assert api.http.get(f"/v1/exports/{export}/content/{path}").status_code == 404, path
        assert api.http.delete(f"/v1/exports/{export}").status_code == 204
        assert browser.get(url).status_code == 404


def everything(api: Api, path: str, limit: int) -> list[dict[str, Any]]:
    """All pages."""
    found, cursor = [], None
    while True:
        page = api.http.get(path, params={"limit": limit, **({"cursor": cursor} if cursor else {})}).json()
        found += page["data"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_a_jobs_exports_are_listed_newest_first_and_deleted_ones_are_not(api, shelf, job_id):
    first, second, third = (ask(api, job_id, images_per_shard=number).json()["id"] for number in (11, 12, 13))
    path = f"/v1/jobs/{job_id}/exports"
    assert [export["id"] for export in everything(api, path, limit=2)][:3] == [third, second, first]
    exporting.run(api.database, api.settings, shelf)
    for gone in (first, second):
        assert api.http.delete(f"/v1/exports/{gone}").status_code == 204
        for address in (f"/v1/exports/{gone}", f"/v1/exports/{gone}/files"):
            assert api.http.get(address).status_code == 404
        assert api.http.post(f"/v1/exports/{gone}/cancel").status_code == 404
        assert api.http.delete(f"/v1/exports/{gone}").status_code == 404
    found = [export["id"] for export in everything(api, path, limit=100)]
    assert third in found and not {first, second} & set(found)


def test_the_deletion_of_an_export_is_logged_once_whether_it_was_written_or_not(api, shelf, job_id):
    finished = ask(api, job_id).json()
    exporting.run(api.database, api.settings, shelf)
    waiting = ask(api, job_id).json()
    for export in (finished, waiting):
        assert [api.http.delete(f"/v1/exports/{export['id']}").status_code for _ in range(2)] == [204, 404]
    with api.database.begin_system() as connection:
        numbering.number(connection)
        found = [
            [event.kind for event in events.of_subject(connection, 1, f"export/{records.parse_id(export['id'])}")]
            for export in (finished, waiting)
        ]
    assert found == [["export.created", "export.completed", "export.deleted"], ["export.created", "export.deleted"]]


def test_an_export_is_cancelled_once_and_a_completed_one_is_not(api, shelf, job_id):
    export = ask(api, job_id).json()
    for _ in range(2):
        answer = api.http.post(f"/v1/exports/{export['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert written(api, shelf, export)["status"] == "cancelled"
    completed = written(api, shelf, ask(api, job_id).json())
    answer = api.http.post(f"/v1/exports/{completed['id']}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "export_ended")


def test_an_idempotency_key_makes_one_export(api, job_id):
    first, again = (ask(api, job_id, key="nightly", images_per_shard=3) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true" and "Idempotent-Replayed" not in first.headers
    other = ask(api, job_id, key="nightly", images_per_shard=4)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")


def test_a_job_that_has_not_finished_or_has_nothing_done_is_not_exported(api):
    job = api.submit()
    answer = ask(api, str(job["id"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_not_finished")
    assert api.http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
    exporting.finish(api.database, ids.parse_job(str(job["id"])))
    answer = ask(api, str(job["id"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "nothing_to_export")


def test_of_anothers_exports_nobody_learns_anything(api, shelf, job_id, stranger):
    export = written(api, shelf, ask(api, job_id).json())["id"]
    unknown_job, unknown = "job_0000000000000", "export_0000000000000"
    body = {"format": "zip"}
    theirs = stranger.post(f"/v1/jobs/{job_id}/exports", json=body)
    assert theirs.status_code == 404
    nobodys = stranger.post(f"/v1/jobs/{unknown_job}/exports", json=body)
    assert theirs.text.replace(str(job_id), "") == nobodys.text.replace(unknown_job, "")
    for method, path in (("GET", ""), ("GET", "/files"), ("POST", "/cancel"), ("DELETE", "")):
        theirs = stranger.request(method, f"/v1/exports/{export}{path}")
        assert theirs.status_code == 404, path
        nobodys = stranger.request(method, f"/v1/exports/{unknown}{path}")
        assert theirs.text.replace(export, "") == nobodys.text.replace(unknown, "")
    assert api.http.get(f"/v1/exports/{export}").json()["status"] == "completed"
    for name in ("export_", "export_" + "z" * 13, job_id, export[7:], export.upper(), "x"):
        assert api.http.get(f"/v1/exports/{name}").status_code == 404, name


BAD: list[tuple[int, str, str | None, object]] = [
    (422, "missing_field", "format", {}),
    (422, "invalid_value", "format", {"format": "tar"}),
    (422, "invalid_value", "format", {"format": None}),
    (422, "unknown_field", "colour", {"format": "zip", "colour": 1}),
    (422, "unknown_field", "options.colour", {"format": "zip", "options": {"colour": 1}}),
    (422, "wrong_type", "options", {"format": "zip", "options": []}),
    (422, "invalid_value", "options.images_per_shard", {"format": "zip", "options": {"images_per_shard": 0}}),
    (422, "invalid_value", "options.images_per_shard", {"format": "zip", "options": {"images_per_shard": 100_001}}),
    (422, "wrong_type", "options.images_per_shard", {"format": "zip", "options": {"images_per_shard": "7"}}),
    (422, "wrong_type", "options.images_per_shard", {"format": "zip", "options": {"images_per_shard": True}}),
    (422, "wrong_type", "options.include_flagged", {"format": "zip", "options": {"include_flagged": 1}}),
    (422, "invalid_value", "options.split", {"format": "zip", "options": {"split": {"train": 0.5}}}),
    (422, "invalid_value", "options.split", {"format": "zip", "options": {"split": {"train": 1.5, "val": -0.5}}}),
    (422, "invalid_value", "options.split", {"format": "zip", "options": {"split": {"../x": 1}}}),
    (422, "invalid_value", "options.split", {"format": "zip", "options": {"split": {"": 1}}}),
    (422, "invalid_value", "options.split", {"format": "zip", "options": {"split": {}}}),
    (422, "wrong_type", "options.split", {"format": "zip", "options": {"split": {"train": "1"}}}),
    (422, "wrong_type", "options.split", {"format": "zip", "options": {"split": "train"}}),
    (
        422,
        "invalid_value",
        "options.split",
        {"format": "zip", "options": {"split": {f"s{n}": 0.05 for n in range(20)}}},
    ),
    (422, "invalid_value", "options.images", {"format": "parquet", "options": {"images": "links"}}),
    (422, "invalid_value", "options.images", {"format": "zip", "options": {"images": "reference"}}),
    (422, "invalid_value", "options.expires_in_seconds", {"format": "zip", "options": {"expires_in_seconds": 59}}),
    (422, "wrong_type", "options.expires_in_seconds", {"format": "zip", "options": {"expires_in_seconds": "1"}}),
    (422, "wrong_type", None, []),
    (400, "invalid_json", None, b"{"),
    (422, "duplicate_key", None, b'{"format":"zip","format":"zip"}'),
    (422, "invalid_number", None, b'{"format":"zip","options":{"split":{"train":NaN}}}'),
    (413, "body_too_long", None, b" " * 70_000),
]


@pytest.mark.parametrize(("status", "code", "param", "body"), BAD)
def test_what_cannot_be_exported_is_refused_with_a_code_and_a_sentence(api, job_id, status, code, param, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    before = len(everything(api, f"/v1/jobs/{job_id}/exports", limit=100))
    answer = api.http.post(f"/v1/jobs/{job_id}/exports", content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["message"].endswith(".")
    assert len(everything(api, f"/v1/jobs/{job_id}/exports", limit=100)) == before


def test_an_export_is_asked_for_in_json_alone(api, job_id):
    answer = api.http.post(
        f"/v1/jobs/{job_id}/exports", content=b'{"format":"zip"}', headers={"Content-Type": "application/x-ndjson"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_cursor_of_another_list_is_refused(api, shelf, job_id):
    export = written(api, shelf, ask(api, job_id).json())["id"]
    cursor = api.http.get(f"/v1/exports/{export}/files?limit=1").json()["next_cursor"]
    other = written(api, shelf, ask(api, job_id).json())["id"]
    answer = api.http.get(f"/v1/exports/{other}/files?cursor={cursor}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_cursor")
