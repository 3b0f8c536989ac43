"""Schedules over HTTP: made, changed, paused, run and deleted; and what is refused, in one sentence each."""

import dataclasses
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from tests.scheduling import NIGHT, fire, first_at, submitter
from tests.web import Api

TARGET = {"job": {"images": [{"prompt": "a mug"}], "labels": {"for": "shop"}}}
_numbers = itertools.count(1)
NIGHTLY = {"cron": "0 1 * * *", "timezone": "Europe/Berlin", "target": TARGET, "deadline": "06:00"}


@pytest.fixture
def api(served: Api) -> Iterator[Api]:
    """The server of the whole file, for a tenant of the test's own."""
    _, key = served.new_tenant(f"tenant-{next(_numbers)}")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=served.url, headers=headers, timeout=60, trust_env=False) as http:
        yield dataclasses.replace(served, key=key, http=http)


def put(api: Api, place: str = "nightly", **fields: Any) -> httpx.Response:
    asked = {**NIGHTLY, **fields}
    return api.http.put(
        f"/v1/schedules/{place}", json={key: value for key, value in asked.items() if value is not None}
    )


def events(api: Api) -> list[tuple[str, str, str]]:
    with api.database.begin_system() as connection:
        rows = connection.execute(
            text("SELECT actor, kind, subject FROM events WHERE kind ~ '^schedule' AND actor = :actor ORDER BY id"),
            {"actor": f"key/{api.key.split('_')[1]}"},
        )
        return [tuple(row) for row in rows]


def test_a_schedule_is_made_shown_changed_paused_resumed_and_deleted(api: Api) -> None:
    made = api.http.post("/v1/schedules", json={"name": "nightly", **NIGHTLY})
    assert made.status_code == 201
    shown = made.json()
    next_at = datetime.fromisoformat(shown["next_at"])
    assert datetime.now(UTC) < next_at < datetime.now(UTC) + timedelta(days=1, hours=2)
    assert shown["target"] == TARGET
    assert (shown["misfire"], shown["overlap"], shown["paused"], shown["last_run"]) == ("latest", "skip", False, None)
    assert api.http.get("/v1/schedules/nightly").json() == shown
    assert api.http.get("/v1/schedules").json() == {"data": [shown], "next_cursor": None}
    twice = api.http.post("/v1/schedules", json={"name": "nightly", **NIGHTLY})
    assert (twice.status_code, twice.json()["error"]["code"]) == (409, "schedule_exists")
    changed = put(api, cron="30 5 * * mon", overlap="queue").json()
    assert (changed["cron"], changed["overlap"], changed["created_at"]) == (
        "30 5 * * MON",
        "queue",
        shown["created_at"],
    )
    times = api.http.get("/v1/schedules/nightly/times?count=3").json()
    assert (times["timezone"], len(times["times"])) == ("Europe/Berlin", 3)
    assert times["times"][0] == changed["next_at"]
    for paused, next_times in ((True, 0), (True, 0), (False, 10)):
        answer = api.http.patch("/v1/schedules/nightly", json={"paused": paused}).json()
        assert (answer["paused"], answer["next_at"] is None) == (paused, paused)
        assert len(api.http.get("/v1/schedules/nightly/times").json()["times"]) == next_times
    assert api.http.delete("/v1/schedules/nightly").json()["deleted"] is True
    gone = api.http.get("/v1/schedules/nightly")
    assert (gone.status_code, gone.json()["error"]["message"]) == (404, 'There is no schedule "nightly".')
    key = f"key/{api.key.split('_')[1]}"
    kinds = ("created", "changed", "paused", "resumed", "deleted")
    assert events(api) == [(key, f"schedule.{kind}", "schedule/nightly") for kind in kinds]


def test_a_run_by_hand_is_asked_for_once_and_leads_to_its_job(api: Api) -> None:
    put(api)
    headers = {"Idempotency-Key": "once"}
    first = api.http.post("/v1/schedules/nightly/run", headers=headers)
    assert first.status_code == 202
    again = api.http.post("/v1/schedules/nightly/run", headers=headers)
    assert (again.headers["Idempotent-Replayed"], again.json()["id"]) == ("true", first.json()["id"])
    assert first.json()["asked_by"] == f"key/{api.key.split('_')[1]}"
    other = api.http.post("/v1/schedules/nightly/run")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "schedule_running")
    assert submitter(api.database, api.settings)()
    [run] = api.http.get("/v1/schedules/nightly/runs").json()["data"]
    assert run["status"] == "running"
    job = api.http.get(f"/v1/jobs/{run['job_id']}").json()
    assert job["labels"] | {"scheduled_for": ""} == {"for": "shop", "schedule": "nightly", "scheduled_for": ""}
    assert api.http.get("/v1/schedules/nightly").json()["last_run"] == run


def test_an_uploaded_file_is_submitted_as_a_batch(api: Api) -> None:
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a mug"}}\n'
    file = api.http.post("/v1/files", files={"file": ("a.jsonl", line)}, data={"purpose": "batch"}).json()["id"]
    batch = {"input_file_id": file, "priority": "low"}
    assert put(api, target={"batch": batch}, timezone="UTC").json()["target"] == {"batch": batch}
    first_at(api.database, NIGHT)
    fire(api.database, NIGHT)
    submitter(api.database, api.settings)()
    [found] = api.http.get("/v1/batches").json()["data"]
    assert (found["input_file_id"], found["status"]) == (file, "validating")
    assert found["metadata"]["schedule"] == "nightly"
    api.http.delete(f"/v1/jobs/job_{found['id'].removeprefix('batch_')}")
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE files SET deleted_at = now()"))
        connection.execute(text("UPDATE schedule_runs SET state = 'completed', finished_at = now()"))
    first_at(api.database, NIGHT + timedelta(days=1))
    fire(api.database, NIGHT + timedelta(days=1))
    submitter(api.database, api.settings)()
    [run, _] = api.http.get("/v1/schedules/nightly/runs").json()["data"]
    assert (run["status"], run["reason"]) == (
        "refused", f'There is no input file "{file}"; upload one with the purpose "batch".',
    )  # fmt: skip


def test_lists_go_on_where_a_page_ended(api: Api) -> None:
    for number in range(5):
        put(api, f"s{number}", paused=True)
    with api.database.begin_system() as connection:
        connection.execute(text("INSERT INTO schedule_runs (id, schedule_id, tenant_id, instant, state, finished_at) "
            "SELECT nth, id, tenant_id, now() - nth * interval '1 day', 'skipped', now() "
            "FROM schedules, generate_series(1, 5) AS nth WHERE name = 's3'"))  # fmt: skip
    for path, name, newest in (("/v1/schedules", "name", None), ("/v1/schedules/s3/runs", "scheduled_for", True)):
        whole = [one[name] for one in api.http.get(path).json()["data"]]
        assert whole == sorted(whole, reverse=bool(newest)) and len(whole) == 5
        found, cursor = [], ""
        while cursor is not None:
            page = api.http.get(f"{path}?limit=2" + (f"&cursor={cursor}" if cursor else "")).json()
            found += [one[name] for one in page["data"]]
            cursor = page["next_cursor"]
        assert found == whole
    assert api.http.get("/v1/schedules/s2/runs").json() == {"data": [], "next_cursor": None}


def test_two_tenants_may_use_the_same_name(api: Api) -> None:
    put(api)
    _, key = api.new_tenant("a tenant with the same name of a schedule")
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}) as stranger:
        theirs = stranger.put("/v1/schedules/nightly", json={**NIGHTLY, "cron": "0 7 * * *"})
        assert theirs.status_code == 200
        assert stranger.get("/v1/schedules").json()["data"] == [theirs.json()]
    assert api.http.get("/v1/schedules/nightly").json()["cron"] == "0 1 * * *"


PAST = "2020-01-01T00:00:00Z"


REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"cron": "0 0 30 2 *"}, "never_fires", "cron", 'cron "0 0 30 2 *" never fires'),
    ({"cron": "* * * * *"}, "too_often", "cron", "more often than the least interval of 300 seconds"),
    ({"cron": "0 25 * * *"}, "invalid_cron", "cron", 'The hour of cron is "25"'),
    ({"cron": None}, "invalid_value", "cron", "Give either cron"),
    ({"at": "2099-01-01T00:00:00Z"}, "invalid_value", "cron", "Give either cron"),
    ({"timezone": "Mars/Phobos"}, "unknown_timezone", "timezone", 'There is no time zone "Mars/Phobos"'),
    ({"timezone": "Europe/Berln"}, "unknown_timezone", "timezone", "did you mean Europe/Berlin?"),
    ({"cron": None, "at": PAST}, "at_is_past", "at", "which is past"),
    ({"cron": None, "at": "2099-02-30T00:00:00Z"}, "invalid_value", "at", "a date and a time that exist"),
    ({"cron": None, "at": "2099-01-01T00:00:00"}, "invalid_value", "at", "with its offset from UTC"),
    ({"cron": None, "at": "9999-12-31T23:59:59Z"}, "invalid_value", "at", "before the year 2101"),
    ({"cron": None, "at": "0000-01-01T00:00:00Z"}, "invalid_value", "at", "a date and a time that exist"),
    ({"cron": None, "at": "1767225600000"}, "invalid_value", "at", "a date and a time that exist"),
    ({"cron": None, "at": 1767225600}, "wrong_type", "at", "at is 1767225600; it must be one moment"),
    ({"deadline": "25:00"}, "invalid_value", "deadline", 'deadline is "25:00"; it must be a time on the clock'),
    ({"deadline": "0h"}, "invalid_value", "deadline", 'deadline is "0h"'),
    ({"deadline": "99999h"}, "invalid_value", "deadline", 'deadline is "99999h"'),
    ({"misfire": "some"}, "invalid_value", "misfire", 'misfire is "some"; it must be "latest", "all" or "none"'),
    ({"misfire": "all", "overlap": "cancel"}, "invalid_value", "misfire", "exclude each other"),
    ({"misfire_limit": 0}, "invalid_value", "misfire_limit", "misfire_limit is 0"),
    ({"overlap": "wait"}, "invalid_value", "overlap", 'overlap is "wait"'),
    ({"crn": "0 1 * * *"}, "unknown_field", "crn", "did you mean cron?"),
    ({"target": None}, "missing_field", "target", "target is missing"),
    ({"target": {}}, "invalid_value", "target", "target is empty; it must be an object with one field"),
    ({"target": {"jobs": {}}}, "invalid_value", "target", 'target is an object with "jobs"'),
    ({"target": {"job": {}, "batch": {}}}, "invalid_value", "target", 'an object with "job", "batch"'),
    ({"target": {"job": []}}, "invalid_value", "target", "an object in which job is a list"),
    ({"target": {"job": {}}}, "missing_field", "target.job.images", "images is missing"),
    ({"target": {"job": {"images": []}}}, "invalid_value", "target.job.images", "images is empty"),
    ({"target": {"job": {"images": [{"prompt": "a", "size": "1x1"}]}}}, "unserved_size",
     "target.job.images[0].size", "must be one of"),
    ({"target": {"job": {"images": [{"prompt": "a"}], "draft": True}}}, "unknown_field", "target.job.draft", "draft"),
    ({"target": {"batch": {}}}, "missing_field", "target.batch.input_file_id", "input_file_id is missing"),
    ({"target": {"batch": {"input_file_id": "file-0000000000000"}}}, "no_such_file", "target.batch.input_file_id",
     "upload one"),
    ({"target": {"batch": {"input_file_id": "x", "completion_window": "1y"}}}, "invalid_value",
     "target.batch.completion_window", "up to 30 days"),
    ({"name": "other"}, "invalid_value", "name", "another one than in the address"),
]  # fmt: skip


def test_what_is_wrong_is_refused_in_one_sentence(served: Api) -> None:
    for fields, code, param, words in REFUSED:
        refused = put(served, "wrong", **fields)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (422, code, param), error
        assert words in error["message"]
    assert served.http.get("/v1/schedules/wrong").status_code == 404


def test_names_that_are_no_names_are_refused(served: Api) -> None:
    for name in ("", ".", "a/b", "a b", "ü", "x" * 65, "a.", "a\n"):
        refused = served.http.post("/v1/schedules", json={"name": name, **NIGHTLY})
        assert refused.status_code == 422 and "name is" in refused.json()["error"]["message"], name
    assert served.http.post("/v1/schedules", json=NIGHTLY).json()["error"]["code"] == "missing_field"
    for name in ("%0a", "a%20b", "x" * 65, "%00", "%f3%83%8d%b5"):
        assert put(served, name).status_code == 404
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/run"), ("GET", "/times"), ("GET", "/runs")):
            answer = served.http.request(method, f"/v1/schedules/{name}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), name
