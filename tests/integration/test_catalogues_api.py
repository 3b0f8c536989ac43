"""Catalogues over HTTP: definitions, runs and what they report, versions, pictures, and public links."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, names
from services.core.catalogues.changes import Change
from services.core.storage.s3 import S3Store
from tests import cataloguing
from tests.cataloguing import change
from tests.waiting import until
from tests.web import Api

ODD = ["../x", "a/b", "ü", "%2e", "ö" * 200, "x" * 200, ".", "a b?c#d", "~YQ"]
ITEMS = sorted(["a", "b", *ODD])
PLACE = "/v1/catalogues/shop"
DEFINITION = cataloguing.DEFINITION | {"publish": {"public": True, "require": 0.5}, "removed_limit": 1}


@dataclass
class Shop:
    """A catalogue of which three nights are over. Version 3 has another `a`, no `b`, and a stale `ü`."""

    api: Api
    store: S3Store
    nights: list[runs.Run]

    def night(self, *found: Change, unchanged: int = 0, failing: tuple[str, ...] = ()) -> None:
        with self.api.database.begin_system() as connection:
            catalogue = cataloguing.catalogues.find(connection, 1, "shop")
        run_id = cataloguing.plan(self.api.database, self.store, catalogue, found, unchanged)
        for _ in range(2):
            cataloguing.tend(self.api.database, self.api.settings, self.store)
            cataloguing.render(self.api.database, self.store, failing=failing)
        cataloguing.tend(self.api.database, self.api.settings, self.store)
        self.nights.append(cataloguing.read(self.api.database, run_id))

    def get(self, path: str, **parts: Any) -> Any:
        answer = self.api.http.get(PLACE + path, **parts)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def everything(self, path: str, limit: int = 2, **asked: Any) -> list[dict[str, Any]]:
        """All pages of a list."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self.get(path, params=asked | {"limit": limit} | ({"cursor": cursor} if cursor else {}))
            found += page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    def run(self, night: int) -> str:
        return f"/runs/{runs.public_id(self.nights[night].id)}"

    def publish(self, version: int) -> None:
        answer = self.api.http.post(f"{PLACE}/publish", json={"version": version})
        assert (answer.status_code, answer.json()["published"]) == (200, version), answer.text

    def public(self, item: str) -> str:
        return f"{self.get('')['public_url']}/front/{names.of_item(item)}"


@pytest.fixture(scope="module")
def shop(served: Api) -> Shop:
    store = S3Store(served.settings)
    assert served.http.put(PLACE, json=DEFINITION).status_code == 201
    shop = Shop(served, store, [])
    shop.night(*(change(item, "red") for item in ITEMS))
    shop.night(change("a", "blue", kind="changed"), unchanged=len(ITEMS) - 1)
    broken = change("c", kind="broken", code="empty_prompt", message="The prompt is empty.")
    shop.night(
        change("a", "green", kind="changed"), change("ü", "odd", kind="changed"), change("b", kind="removed"), broken,
        unchanged=len(ITEMS) - 3, failing=("odd",),
    )  # fmt: skip
    assert [night.state for night in shop.nights] == ["published"] * 3
    return shop


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    """Without a key."""
    with httpx.Client(trust_env=False) as client:
        yield client


def dated(browser: httpx.Client, link: str) -> httpx.Response:
    """The head of an answer, once it says since when the picture is there: not in its first second."""

    def asked() -> httpx.Response | None:
        answer = browser.head(link)
        return answer if "Last-Modified" in answer.headers else None

    found = until(asked)
    assert found is not None
    return found


def picture(item: str, prompt: str) -> bytes:
    request = change(item).request
    assert request is not None
    return f"{prompt} {request['seed']}".encode()


def test_a_catalogue_is_made_changed_listed_and_deleted(served: Api) -> None:
    made = served.http.put("/v1/catalogues/other", json=cataloguing.DEFINITION)
    assert made.status_code == 201, made.text
    assert made.json() | {"created_at": "", "updated_at": ""} == {
        "object": "catalogue", "name": "other", "definition": cataloguing.DEFINITION, "file_id": None, "version": 0,
        "published": None, "public_url": None, "destination": None, "created_at": "", "updated_at": "",
    }  # fmt: skip
    again = served.http.put("/v1/catalogues/other", json=cataloguing.DEFINITION | {"keep": 5})
    assert (again.status_code, again.json()["definition"]["keep"]) == (200, 5)
    assert served.http.get("/v1/catalogues/other").json() == again.json()
    served.http.put("/v1/catalogues/another", json=cataloguing.DEFINITION)
    first = served.http.get("/v1/catalogues", params={"limit": 1}).json()
    rest = served.http.get("/v1/catalogues", params={"cursor": first["next_cursor"]}).json()
    assert [one["name"] for one in first["data"] + rest["data"]][:2] == ["another", "other"]
    assert served.http.get("/v1/catalogues/other/items").json()["error"]["message"] == (
        "No version of the catalogue other is published yet."
    )
    assert [served.http.delete("/v1/catalogues/other").status_code for _ in range(2)] == [204, 404]
    assert served.http.delete("/v1/catalogues/another").status_code == 204


def test_a_catalogues_schedule_follows_its_definition(served: Api) -> None:
    nightly = {"cron": "0 1 * * *", "timezone": "Europe/Berlin", "deadline": "06:00"}
    place, schedule = "/v1/catalogues/nightly", "/v1/schedules/catalogue.nightly"
    served.http.put(place, json=cataloguing.DEFINITION | {"schedule": nightly})
    found = served.http.get(schedule).json()
    assert {name: found[name] for name in (*nightly, "target")} == nightly | {
        "target": {"catalogue": {"name": "nightly"}}
    }
    served.http.patch(schedule, json={"paused": True})
    served.http.put(place, json=cataloguing.DEFINITION | {"schedule": nightly | {"cron": "0 2 * * *"}})
    found = served.http.get(schedule).json()
    assert (found["cron"], found["paused"]) == ("0 2 * * *", True)
    refused = served.http.put(place, json=cataloguing.DEFINITION | {"keep": 9, "schedule": {"cron": "0 0 31 2 *"}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "schedule.cron"), refused.text
    assert "never fires" in refused.json()["error"]["message"]
    both = {"keep": 0, "schedule": {"cron": "0 25 * * *"}}
    answered = served.http.put(place, json=cataloguing.DEFINITION | both).json()["error"]["errors"]
    assert [one["param"] for one in answered] == ["keep", "schedule.cron"]
    often = {"schedule": {"cron": "* * * * *"}}
    answered = served.http.put(place, json=cataloguing.DEFINITION | often).json()["error"]["errors"]
    assert [(one["param"], one["code"]) for one in answered] == [("schedule.cron", "too_often")]
    assert served.http.get(place).json()["definition"]["keep"] == 3  # nothing was changed
    served.http.put(place, json=cataloguing.DEFINITION)
    assert served.http.get(schedule).status_code == 404
    served.http.put(place, json=cataloguing.DEFINITION | {"schedule": nightly})
    assert served.http.delete(place).status_code == 204
    assert served.http.get(schedule).status_code == 404


def test_every_problem_of_a_definition_is_named(served: Api) -> None:
    wrong = cataloguing.DEFINITION | {"keep": 0, "sourc": 1}
    error = served.http.put("/v1/catalogues/shop", json=wrong)
    assert error.status_code == 422
    assert [(one["param"], one["code"]) for one in error.json()["error"]["errors"]] == [
        ("keep", "invalid_value"),
        ("sourc", "unknown_field"),
    ]
    assert served.http.put("/v1/catalogues/No%20name", json=wrong).json()["error"]["code"] == "invalid_name"
    for name in ("nothing", "No", "%00", "%2e%2e", "ü"):
        answer = served.http.get(f"/v1/catalogues/{name}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), name


def test_runs_read_the_file_that_was_named_last(served: Api) -> None:
    served.http.put("/v1/catalogues/filed", json=cataloguing.DEFINITION)
    form: dict[str, Any] = {"files": {"file": ("shop.csv", b"sku\n1\n")}, "data": {"purpose": "batch"}}
    file = served.http.post("/v1/files", **form).json()["id"]
    _, key = served.new_tenant("the file's stranger")
    theirs = httpx.post(f"{served.url}/v1/files", headers={"Authorization": f"Bearer {key}"}, **form).json()["id"]
    place = "/v1/catalogues/filed/file"
    assert served.http.put(place, json={"file_id": file}).json()["file_id"] == file
    for other in (theirs, "file-0000000000000", "x"):
        refused = served.http.put(place, json={"file_id": other})
        assert (refused.status_code, refused.json()["error"]["message"]) == (404, f'There is no file "{other}".')
    assert served.http.get("/v1/catalogues/filed").json()["file_id"] == file


def test_a_run_is_begun_once_and_cancelled(served: Api) -> None:
    served.http.put("/v1/catalogues/busy", json=cataloguing.DEFINITION)
    place = "/v1/catalogues/busy/runs"
    key = {"Idempotency-Key": "first-night"}
    asked = {"accept_removed": True, "deadline": "2100-01-01T06:00:00+01:00"}
    made = served.http.post(place, json=asked, headers=key)
    assert made.status_code == 202, made.text
    run = made.json()
    assert made.headers["Location"] == f"{served.url}{place}/{run['id']}"
    assert (run["state"], run["accept_removed"], run["deadline"]) == ("queued", True, "2100-01-01T05:00:00.000Z")
    again = served.http.post(place, json=asked, headers=key)
    assert (again.json()["id"], again.headers["Idempotent-Replayed"]) == (run["id"], "true")
    assert served.http.post(place, headers=key).json()["error"]["code"] == "idempotency_key_reused"
    second = served.http.post(place)
    assert (second.status_code, second.json()["error"]["code"]) == (409, "run_in_progress")
    assert run["id"] in second.json()["error"]["message"]
    plan = served.http.post(place, json={"plan_only": True}).json()
    for _ in range(2):
        cancelled = served.http.post(f"{place}/{run['id']}/cancel")
        assert (cancelled.status_code, cancelled.json()["cancel_requested_at"] is None) == (200, False)
    served.http.post(f"{place}/{plan['id']}/cancel")
    for deadline in ("yesterday", "2020-01-01T00:00:00Z", "2100-01-01T06:00:00"):
        refused = served.http.post(place, json={"deadline": deadline})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "deadline")
    assert [one["id"] for one in served.http.get(place).json()["data"]] == [plan["id"], run["id"]]
    cataloguing.tend(served.database, served.settings, S3Store(served.settings))
    assert served.http.get(f"{place}/{run['id']}").json()["state"] == "cancelled"


def test_a_runs_report_and_its_changes(shop: Shop) -> None:
    report = shop.get(shop.run(2))
    assert (report["state"], report["base"], report["version"], report["catalogue"]) == ("published", 2, 3, "shop")
    counts = {name: count for name, count in report["counts"].items() if count}
    assert counts == {"changed": 2, "removed": 1, "broken": 1, "unchanged": 8, "done": 1, "failed": 2, "images": 10}
    assert report["job_id"].startswith("job_")
    assert report["causes"] == {"empty_prompt": 1, "error": 1}
    assert report["device_seconds"] == 0  # nobody measured it
    assert report["seconds"]["total"] >= report["seconds"]["planning"] >= 0
    found = shop.everything(f"{shop.run(2)}/changes")
    assert [(one["item"], one["kind"], one["outcome"], one["index"]) for one in found] == [
        ("a", "changed", "done", 0), ("ü", "changed", "failed", 1), ("b", "removed", "removed", None),
        ("c", "broken", "failed", None),
    ]  # fmt: skip
    assert shop.api.http.get(found[0]["before"]).content == picture("a", "blue")
    assert shop.api.http.get(found[0]["after"]).content == picture("a", "green")
    assert (found[1]["after"], found[1]["error"]["message"], found[1]["line"]) == (None, "It cannot be drawn.", 2)
    assert found[3]["error"] == {"code": "empty_prompt", "message": "The prompt is empty."}
    troubled = shop.everything(f"{shop.run(2)}/changes", troubled="true")
    assert [one["item"] for one in troubled] == ["ü", "c"]
    assert [one["item"] for one in shop.everything(f"{shop.run(2)}/changes", kind="changed")] == ["a", "ü"]
    estimate = shop.get(f"{shop.run(2)}/estimate")
    assert (estimate["images"], estimate["shapes"][0]["size"]) == (2, "64x64")
    assert [one["id"] for one in shop.everything("/runs")] == [shop.run(night)[6:] for night in (2, 1, 0)]


def test_versions_differ_and_are_published_and_rolled_back(shop: Shop) -> None:
    listed = shop.get("/versions")["data"]
    assert [(one["version"], one["published"], one["images"]) for one in listed] == [
        (3, True, 10), (2, False, 11), (1, False, 11),
    ]  # fmt: skip
    found = shop.everything("/diff", limit=1, **{"from": 1})
    assert [(one["item"], one["kind"]) for one in found] == [("a", "changed"), ("b", "removed")]
    assert (found[0]["before"]["prompt"], found[0]["after"]["prompt"], found[1]["after"]) == ("red", "green", None)
    back = shop.everything("/diff", **{"from": 3, "to": 1})
    assert [(one["item"], one["kind"]) for one in back] == [("a", "changed"), ("b", "added")]
    assert shop.everything("/diff", **{"from": 2, "to": 2}) == []
    shop.publish(1)
    assert shop.api.http.get(f"{PLACE}/items/front", params={"id": "a"}).content == picture("a", "red")
    shop.publish(3)
    shop.publish(3)
    for version, status in ((9, 404), (0, 422), ("x", 422)):
        assert shop.api.http.post(f"{PLACE}/publish", json={"version": version}).status_code == status
    gone = shop.api.http.post(f"{PLACE}/publish", json={"version": 9}).json()["error"]["message"]
    assert gone == "There is no version 9; `versions` lists those that are kept."


def test_a_file_that_a_catalogue_reads_is_kept(served: Api) -> None:
    def upload(**more: str) -> str:
        form: dict[str, Any] = {"files": {"file": ("shop.csv", b"sku,title\n1,red\n")}}
        return str(served.http.post("/v1/files", **form, data={"purpose": "batch"} | more).json()["id"])

    place = "/v1/catalogues/kept"
    served.http.put(place, json=cataloguing.DEFINITION)
    first, second = upload(), upload()
    fleeting = upload(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"})
    refused = served.http.put(f"{place}/file", json={"file_id": fleeting})
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        409, f"The file {fleeting} expires; a catalogue needs one that stays, without expires_after.",
    )  # fmt: skip
    served.http.put(f"{place}/file", json={"file_id": first})
    refused = served.http.delete(f"/v1/files/{first}")
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        409, "The catalogue kept reads this file; upload another one for it, or delete the catalogue, first.",
    )  # fmt: skip
    run = served.http.post(f"{place}/runs").json()["id"]
    served.http.put(f"{place}/file", json={"file_id": second})
    assert served.http.delete(f"/v1/files/{first}").status_code == 409  # the run has not read it yet
    served.http.post(f"{place}/runs/{run}/cancel")
    cataloguing.tend(served.database, served.settings, S3Store(served.settings))
    assert served.http.delete(f"/v1/files/{first}").status_code == 200
    served.http.put(place, json=cataloguing.DEFINITION | {"source": {"url": "https://shop.example/feed.csv"}})
    assert served.http.delete(f"/v1/files/{second}").status_code == 200  # nothing reads it any more
    assert served.http.delete(place).status_code == 204


def test_a_version_that_is_being_made_is_not_published(served: Api) -> None:
    served.http.put("/v1/catalogues/slow", json=cataloguing.DEFINITION)
    with served.database.begin_system() as connection:
        slow = cataloguing.catalogues.find(connection, 1, "slow")
    cataloguing.plan(served.database, S3Store(served.settings), slow, [change("a")])
    refused = served.http.post("/v1/catalogues/slow/publish", json={"version": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "version_not_whole")
    assert served.http.delete("/v1/catalogues/slow").status_code == 204


def test_manifests_list_what_the_version_has(shop: Shop, browser: httpx.Client) -> None:
    place = f"{PLACE}/versions/3/manifest"
    moved = shop.api.http.get(place)
    assert moved.status_code == 307
    lines = browser.get(moved.headers["Location"]).text.splitlines()
    assert [json.loads(line)["item"] for line in lines] == [item for item in ITEMS if item != "b"]
    table = shop.api.http.head(place, params={"format": "parquet"})
    assert (table.status_code, int(table.headers["content-length"]) > 100) == (200, True)
    assert shop.api.http.get(place, headers={"If-None-Match": moved.headers["ETag"]}).status_code == 304
    for version in ("4", "x", "03"):
        assert shop.api.http.get(f"{PLACE}/versions/{version}/manifest").status_code == 404


def test_pictures_are_listed_and_read_whatever_their_ids_are(shop: Shop) -> None:
    listed = shop.everything("/items", limit=3)
    assert [one["item"] for one in listed] == [item for item in ITEMS if item != "b"]
    assert {one["item"] for one in listed if one["stale"]} == {"ü"}
    assert {one["item"]: one["version"] for one in listed if one["version"] != 1} == {"a": 3}
    for one in listed:
        answer = shop.api.http.get(one["url"])
        assert answer.content == picture(one["item"], "green" if one["item"] == "a" else "red"), one["item"]
        assert answer.headers["ETag"] == f'"{one["sha256"]}"' == f'"{hashlib.sha256(answer.content).hexdigest()}"'
        assert answer.headers["Content-Type"] == "image/png"
        assert one["public_url"] == shop.public(one["item"])
    assert [one["item"] for one in shop.everything("/items", version=1)] == ITEMS
    assert {one["public_url"] for one in shop.everything("/items", version=1)} == {None}
    old = shop.api.http.get(f"{PLACE}/items/front", params={"id": "b", "version": 2}, headers={"Range": "bytes=0-2"})
    assert (old.status_code, old.content) == (206, b"red")
    for variant, asked in (("front", "b"), ("front", "\0"), ("side", "a"), ("%00", "a")):
        assert shop.api.http.get(f"{PLACE}/items/{variant}", params={"id": asked}).status_code == 404


def test_public_links_stream_the_published_pictures(shop: Shop, browser: httpx.Client) -> None:
    for item in ITEMS:
        answer = browser.get(shop.public(item))
        expected = 404 if item == "b" else 200
        assert (answer.status_code, len(answer.history)) == (expected, 0), item
        if expected == 200:
            assert answer.content == picture(item, "green" if item == "a" else "red")
    link = shop.public("a")
    head = dated(browser, link)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(picture("a", "green")))
    assert head.headers["ETag"] == f'"{hashlib.sha256(picture("a", "green")).hexdigest()}"'
    assert head.headers["Cache-Control"].startswith("public, max-age=60, stale-while-revalidate=")
    for given in ({"If-None-Match": head.headers["ETag"]}, {"If-Modified-Since": head.headers["Last-Modified"]}):
        unchanged = browser.get(link, headers=given)
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["Cache-Control"] == head.headers["Cache-Control"]
    part = browser.get(link, headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, picture("a", "green")[1:4])
    assert browser.get(f"{link}?utm_source=mail").status_code == 200


def test_a_rollback_is_seen_by_whoever_asks_again(shop: Shop, browser: httpx.Client) -> None:
    link = shop.public("a")
    newest = dated(browser, link).headers
    shop.publish(1)
    for given in ({"If-None-Match": newest["ETag"]}, {"If-Modified-Since": newest["Last-Modified"]}, {}):
        assert browser.get(link, headers=given).content == picture("a", "red"), given
    assert browser.get(shop.public("b")).content == picture("b", "red")
    shop.publish(3)


def test_a_client_that_knows_dates_alone_takes_no_picture_for_another_of_the_same_second(
    shop: Shop, browser: httpx.Client
) -> None:
    known: list[str] = []
    link, moments = shop.public("a"), []
    for version in (1, 3, 1, 3):
        shop.publish(version)
        answer = browser.get(link)
        known.append(answer.headers.get("Last-Modified") or answer.headers["Date"])
        with shop.api.database.begin_system() as connection:
            moved_at = catalogues.of_public_id(connection, link.split("/")[-3]).moved_at
            assert moved_at is not None
            moments.append(moved_at.replace(microsecond=0))
    assert moments == sorted(set(moments))
    now = dated(browser, link).headers["Last-Modified"]
    for given in known[:-1]:
        assert browser.get(link, headers={"If-Modified-Since": given}).content == picture("a", "green"), given
    assert browser.get(link, headers={"If-Modified-Since": now}).status_code == 304


def test_nobody_learns_which_part_of_a_public_link_is_wrong(shop: Shop, browser: httpx.Client) -> None:
    begin = shop.get("")["public_url"]
    host, public_id = begin.rsplit("/", 1)
    wrong = [
        f"{begin}/front/nothing", f"{begin}/side/a", f"{host}/{public_id[:-1]}/front/a", f"{begin}/front/~YQ",
        f"{begin}/front/%7EYQ", f"{begin}/front/%00", f"{host}/%00/front/a", f"{begin}/%00/a", f"{begin}/front/..%5c",
    ]  # fmt: skip
    answers = [browser.get(link) for link in wrong]
    shop.api.http.put(PLACE, json=DEFINITION | {"publish": {"require": 0.5}})
    assert shop.get("")["public_url"] is None
    answers.append(browser.get(f"{begin}/front/a"))
    shop.api.http.put(PLACE, json=DEFINITION)
    assert {(answer.status_code, answer.text) for answer in answers} == {(404, answers[0].text)}
    assert {answer.headers["Cache-Control"] for answer in answers} == {"public, max-age=10"}
    assert browser.get(f"{begin}/front/{quote('a/b', safe='')}").status_code == 404


def test_anothers_catalogue_is_404_on_every_route(shop: Shop) -> None:
    from tests.integration.test_api import CATALOGUE_ROUTES

    _, key = shop.api.new_tenant("stranger")
    bodies: dict[str, Any] = {"publish": {"version": 3}, "file": {"file_id": "file-0000000000000"}, "runs": {}}
    bodies["redraw"] = {"indexes": [0]}
    names_of = {"run_id": shop.run(2)[6:], "version": "3", "variant": "front"}
    with httpx.Client(base_url=shop.api.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as stranger:
        for method, path in sorted(CATALOGUE_ROUTES - {("PUT", "/v1/catalogues/{catalogue}")}):
            asked = {"diff": "?from=1", "{variant}": "?id=a"}.get(path.rpartition("/")[2], "")
            body = bodies.get(path.rpartition("/")[2]) if method != "GET" else None
            theirs, unknown = (
                stranger.request(method, path.format(catalogue=name, **names_of) + asked, json=body)
                for name in ("shop", "nothing")
            )
            assert theirs.status_code == 404, (path, theirs.text)
            assert theirs.text.replace("shop", "nothing") == unknown.text
        assert stranger.get("/v1/catalogues").json()["data"] == []
        assert stranger.put(PLACE, json=DEFINITION).status_code == 201  # a name belongs to its tenant
    assert shop.get("")["published"] == 3


def test_a_redraw_is_refused_with_what_it_lacks(shop: Shop) -> None:
    """Of a run of that catalogue alone, while it is reviewed, with indexes."""
    place = f"{PLACE}{shop.run(2)}/redraw"
    ended = shop.api.http.post(place, json={"indexes": [0]})
    assert (ended.status_code, ended.json()["error"]["code"]) == (409, "review_ended")
    for body in ({}, {"indexes": []}, {"indexes": [-1]}, {"indexes": [2**31]}, {"indexes": list(range(1001))}):
        refused = shop.api.http.post(place, json=body)
        assert (refused.status_code, refused.json()["error"]["param"][:7]) == (422, "indexes"), body
    shop.api.http.put("/v1/catalogues/another", json=DEFINITION)
    of_another = shop.api.http.post(place.replace("/shop/", "/another/"), json={"indexes": [0]})
    assert of_another.status_code == 404
    assert shop.api.http.delete("/v1/catalogues/another").status_code == 204
