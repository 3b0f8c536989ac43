"""Actions on a submitted job, and ways to list jobs: priority, pause, retry, filters, failed first."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from services.core.db.database import Connection
from services.core.jobs import lifecycle, request_queries
from services.core.model import ids
from services.core.model.specs import Claim, FailedImage
from services.core.queue import counters, job_states
from tests import factories
from tests.waiting import until
from tests.web import Api


@pytest.fixture
def api(emptied: Api) -> Api:
    return emptied


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def claimed(api: Api, seats: int = 16) -> Claim:
    claim = factories.claim(api.database, seats)
    assert claim is not None
    return claim


def render(api: Api, *fail: int, seats: int = 1000) -> None:
    """Settles one claim: as done, but for the images of these indexes."""
    claim = claimed(api, seats)
    failed = [FailedImage(image.job_id, image.index, "broken", "No.") for image in claim.images if image.index in fail]
    stored = [image for image in factories.stored(claim) if image.index not in fail]
    factories.settle(api.database, claim, stored=stored, failed=failed)


def finished(api: Api, job: str) -> str:
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
    return str(api.http.get(f"/v1/jobs/{job}").json()["status"])


def submitted(api: Api, *images: dict[str, object], **head: object) -> str:
    return str(api.submit(*images, **head)["id"])


def retried(api: Api, job: str, **body: Any) -> httpx.Response:
    return api.http.post(f"/v1/jobs/{job}/retry", json=body)


# --- changing


def test_another_priority_holds_for_all_that_is_not_claimed_yet(api: Api) -> None:
    slow = submitted(api, {"prompt": "a", "n": 2}, priority="low")
    submitted(api, {"prompt": "b"}, priority="normal")
    changed = api.http.patch(f"/v1/jobs/{slow}", json={"priority": "high", "labels": {"a": "b"}})
    assert (changed.status_code, changed.json()["priority"], changed.json()["labels"]) == (200, "high", {"a": "b"})
    claim = factories.claim(api.database, 1, turn=0)
    assert claim is not None and claim.images[0].job_id == ids.parse_job(slow)
    assert api.http.patch(f"/v1/jobs/{slow}", json={}).json()["priority"] == "high"


def test_whose_job_it_is_is_known_before_its_lock_is_waited_for(api: Api) -> None:
    job = submitted(api)
    _, key = api.new_tenant("a stranger")
    stranger = {"Authorization": f"Bearer {key}"}
    with api.database.begin_system() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": ids.parse_job(job)})
        for verb in ("cancel", "pause", "resume"):  # a wait for the lock ends as 503
            assert api.http.post(f"/v1/jobs/{job}/{verb}", headers=stranger).status_code == 404
        changed = api.http.patch(f"/v1/jobs/{job}", json={"priority": "low"}, headers=stranger)
        assert changed.status_code == 404


def test_a_finished_job_takes_other_labels_and_no_other_priority(api: Api) -> None:
    job = submitted(api)
    render(api)
    assert finished(api, job) == "completed"
    assert code(api.http.patch(f"/v1/jobs/{job}", json={"priority": "low"})) == (409, "job_finished")
    assert code(api.http.patch(f"/v1/jobs/{job}", json={"priority": "low", "labels": {}})) == (409, "job_finished")
    assert api.http.patch(f"/v1/jobs/{job}", json={"labels": {"kept": "yes"}}).json()["labels"] == {"kept": "yes"}


def test_a_bad_change_is_refused(api: Api) -> None:
    job = submitted(api)
    address = f"/v1/jobs/{job}"
    for body in ({"priority": "urgent"}, {"priority": None}, {"labels": {"a": 1}}, {"state": "done"}, []):
        assert api.http.patch(address, json=body).status_code == 422, body
    assert api.http.patch(address, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert api.http.patch(address, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    large = {"labels": {"a": "x" * 100_000}}
    assert code(api.http.patch(address, json=large)) == (413, "body_too_long")


def test_nothing_of_a_paused_job_is_claimed_until_it_is_resumed(api: Api) -> None:
    job = submitted(api, {"prompt": "a", "n": 3})
    claim = claimed(api, 1)
    for _ in range(2):
        paused = api.http.post(f"/v1/jobs/{job}/pause")
        assert (paused.status_code, paused.json()["paused"]) == (200, True)
    assert factories.claim(api.database) is None
    factories.settle(api.database, claim)  # what was being rendered goes on
    for _ in range(2):
        resumed = api.http.post(f"/v1/jobs/{job}/resume")
        assert (resumed.status_code, resumed.json()["paused"]) == (200, False)
    assert resumed.json()["counts"]["done"] == 1
    render(api)
    assert finished(api, job) == "completed"
    for verb in ("pause", "resume"):
        assert code(api.http.post(f"/v1/jobs/{job}/{verb}")) == (409, "job_finished")


# --- retrying


def test_a_retry_is_a_new_job_of_the_failed_images_with_their_seeds_and_names(api: Api) -> None:
    """Seeds wrap around at 2^63; images of one request that failed apart become requests of their own."""
    words = {"prompt": "a\tb\\", "negative_prompt": "c", "guidance_scale": 3.5, "output_format": "webp"}
    job = submitted(
        api,
        {"prompt": "first", "size": "64x64", "seed": 1, "n": 3},
        {**words, "size": "64x64", "seed": 2**63 - 2, "n": 5, "custom_id": "x", "output_compression": 40},
        {"prompt": "last", "size": "256x256", "seed": 9},
        labels={"run": "1"}, priority="low", dedupe=True,
    )  # fmt: skip
    assert code(retried(api, job)) == (409, "job_not_finished")
    render(api, 0, 4, 5, 7)
    render(api, 8)
    assert finished(api, job) == "completed"
    answer = retried(api, job)
    child = answer.json()
    assert (answer.status_code, child["retry_of"], child["status"]) == (202, job, "queued")
    assert (child["labels"], child["priority"], child["dedupe"]) == ({"run": "1"}, "low", True)
    assert (child["counts"]["total"], child["counts"]["queued"], child["requests"]) == (5, 5, 4)
    with api.database.begin_system() as connection:
        kept = connection.execute(
            text("SELECT index, n, seed, custom_id, prompt, negative_prompt, guidance_scale, output_format,"
                 " output_compression FROM payloads WHERE job_id = :id ORDER BY index"),
            {"id": ids.parse_job(child["id"])},
        ).all()  # fmt: skip
    same = ("x", "a\tb\\", "c", 3.5, "webp", 40)
    assert [tuple(row)[:4] for row in kept] == [
        (0, 1, 1, None), (1, 2, 2**63 - 1, "x"), (3, 1, 2, "x"), (4, 1, 9, None),
    ]  # fmt: skip
    assert tuple(kept[1])[3:] == tuple(kept[2])[3:] == same
    specs = []
    while (claim := factories.claim(api.database)) is not None:
        specs += [(image.index, image.spec.width, image.spec.seed) for image in claim.images]
        factories.settle(api.database, claim)
    assert sorted(specs) == [(0, 64, 1), (1, 64, 2**63 - 1), (2, 64, 0), (3, 64, 2), (4, 256, 9)]
    old = api.http.get(f"/v1/jobs/{job}").json()
    assert (old["status"], old["counts"]["failed"], old["retry_of"]) == ("completed", 5, None)


def test_cancelled_images_are_tried_again_when_that_is_asked_for(api: Api) -> None:
    job = submitted(api, {"prompt": "a", "n": 4})
    render(api, 1, seats=2)
    api.http.post(f"/v1/jobs/{job}/cancel")
    assert finished(api, job) == "cancelled"
    assert retried(api, job).json()["counts"]["total"] == 1
    both = retried(api, job, include_cancelled=True, priority="high", labels={}).json()
    assert (both["counts"]["total"], both["priority"], both["labels"]) == (3, "high", {})
    images = api.http.get(f"/v1/jobs/{both['id']}/images").json()["data"]
    seeds = [image["seed"] for image in api.http.get(f"/v1/jobs/{job}/images").json()["data"]]
    assert [image["seed"] for image in images] == seeds[1:]


def test_there_may_be_nothing_to_retry(api: Api) -> None:
    job = submitted(api)
    render(api)
    finished(api, job)
    before = api.rows()
    assert code(retried(api, job)) == (409, "nothing_to_retry")
    assert code(retried(api, job, include_cancelled=True)) == (409, "nothing_to_retry")
    for body in ({"include_cancelled": 1}, {"priority": "x"}, {"what": 1}):
        assert retried(api, job, **body).status_code == 422
    assert api.rows() == before


def test_a_key_makes_one_retry(api: Api) -> None:
    job = submitted(api)
    render(api, 0)
    assert finished(api, job) == "failed"
    address, headers = f"/v1/jobs/{job}/retry", {"Idempotency-Key": "r1"}
    first = api.http.post(address, headers=headers)
    again = api.http.post(address, json={}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"] and again.headers["Idempotent-Replayed"] == "true"
    assert code(api.http.post(address, json={"priority": "low"}, headers=headers)) == (422, "idempotency_key_reused")
    assert retried(api, job).json()["id"] != first.json()["id"]


def test_some_failed_images_are_retried_by_cause_or_by_index(api: Api) -> None:
    job = submitted(api, *({"prompt": f"{nth}", "seed": nth} for nth in range(6)))
    claim = claimed(api)
    wrong = [FailedImage(one.job_id, one.index, "ab"[one.index % 2], "No.") for one in claim.images[:5]]
    factories.settle(api.database, claim, stored=factories.stored(claim)[5:], failed=wrong)
    assert finished(api, job) == "completed"

    def again(**body: Any) -> list[int]:
        child = retried(api, job, **body).json()["id"]
        return [image["seed"] for image in api.http.get(f"/v1/jobs/{child}/images").json()["data"]]

    assert again(cause="b") == [1, 3]
    assert again(indexes=[4, 0]) == [0, 4]
    assert again(indexes=[3, 4], cause="b") == [3]
    assert again() == [0, 1, 2, 3, 4]
    for nothing in ({"cause": "c"}, {"indexes": [5]}, {"indexes": [7]}):
        answer = retried(api, job, **nothing)
        assert code(answer) == (409, "nothing_to_retry")
        assert answer.json()["error"]["message"].startswith("None of these images failed")
    for wrong_body in ({"indexes": []}, {"indexes": [-1]}, {"cause": ""}, {"indexes": 3}):
        assert retried(api, job, **wrong_body).status_code == 422, wrong_body


# --- looking


def test_jobs_are_listed_by_status_and_by_label(api: Api) -> None:
    made = [submitted(api, labels={"run": str(n % 2), "x:y": "z"}) for n in range(4)]
    api.http.post(f"/v1/jobs/{made[0]}/cancel")
    finished(api, made[0])

    def listed(query: str) -> list[str]:
        return sorted(job["id"] for job in api.http.get(f"/v1/jobs?{query}").json()["data"])

    assert listed("status=cancelled") == [made[0]]
    assert listed("label=run:1") == sorted([made[1], made[3]])
    assert listed("label=run:0&status=queued") == [made[2]]
    assert listed("label=run:") == listed("status=expired") == listed("label=x:y:z") == []
    page = api.http.get("/v1/jobs?label=run:1&limit=1").json()
    assert listed(f"label=run:1&cursor={page['next_cursor']}") == sorted([made[1], made[3]])[:1]
    assert code(api.http.get(f"/v1/jobs?label=run:0&cursor={page['next_cursor']}")) == (400, "invalid_cursor")
    for query in ("status=done", "label=run", "label=:x", "label=a:%00", f"label={'n' * 65}:x", "label="):
        assert code(api.http.get(f"/v1/jobs?{query}")) == (422, "invalid_parameter"), query


def pages(api: Api, address: str) -> list[dict[str, Any]]:
    found, cursor = [], ""
    while True:
        page = api.http.get(address + cursor).json()
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def test_images_that_failed_are_listed_first_when_asked_for(api: Api) -> None:
    job = submitted(api, {"prompt": "a", "n": 10})
    render(api, 2, 5, 6, seats=8)
    for limit in (1, 2, 3, 4, 100):
        found = pages(api, f"/v1/jobs/{job}/images?order=failed_first&limit={limit}")
        assert [image["index"] for image in found] == [2, 5, 6, 0, 1, 3, 4, 7, 8, 9]
    by_state = pages(api, f"/v1/jobs/{job}/images?order=failed_first&status=done")
    assert [image["index"] for image in by_state] == [0, 1, 3, 4, 7]
    assert code(api.http.get(f"/v1/jobs/{job}/images?order=seed")) == (422, "invalid_parameter")


def mixed(api: Api) -> str:
    """Requests that are done, failed, cancelled, queued and rendering, some of them only in part."""
    job = submitted(api, *({"prompt": f"p{n}", "n": 1 + n % 2, "custom_id": f"r{n}"} for n in range(20)))
    render(api, 0, 7, 8, seats=12)  # requests 0 to 7
    claimed(api, 5)  # 8 to 10, and half of 11
    with api.database.begin_system() as connection:  # as a sweep would, half way
        connection.execute(text("UPDATE images SET state = 4 WHERE index IN (20, 24)"))
        connection.execute(text("INSERT INTO counter_deltas (job_id, queued, cancelled) VALUES (:id, -2, 2)"),
                           {"id": ids.parse_job(job)})  # fmt: skip
    return job


def test_requests_are_listed_failed_first_with_their_images(api: Api) -> None:
    job = mixed(api)
    whole = api.http.get(f"/v1/jobs/{job}/requests").json()
    assert whole["next_cursor"] is None
    shown = [(request["status"], int(request["custom_id"][1:])) for request in whole["data"]]
    order = ["failed", "rendering", "queued", "cancelled", "done"]
    assert shown == sorted(shown, key=lambda entry: (order.index(entry[0]), entry[1]))
    assert len(shown) == 20
    by_status = {status: [number for found, number in shown if found == status] for status in order}
    assert (by_status["failed"], by_status["rendering"]) == ([0, 5], [8, 9, 10, 11])
    assert (by_status["cancelled"], by_status["done"]) == ([13, 16], [1, 2, 3, 4, 6, 7])
    for request in whole["data"]:
        states = {image["status"] for image in request["images"]}
        assert len(request["images"]) == request["n"] and request["images"][0]["index"] == request["index"]
        assert request["status"] in states and (request["object"], request["prompt"][0]) == ("job.request", "p")
    for limit in (1, 3, 7):
        assert pages(api, f"/v1/jobs/{job}/requests?limit={limit}") == whole["data"]
    for status in order:
        found = pages(api, f"/v1/jobs/{job}/requests?status={status}&limit=2")
        assert [int(request["custom_id"][1:]) for request in found] == by_status[status]


def test_a_page_of_requests_ends_early_when_it_holds_enough_images(api: Api) -> None:
    job = submitted(api, *({"prompt": f"p{n}", "n": 1000} for n in range(13)))
    first = api.http.get(f"/v1/jobs/{job}/requests").json()
    assert len(first["data"]) == request_queries.MAX_IMAGES // 1000
    rest = api.http.get(f"/v1/jobs/{job}/requests?cursor={first['next_cursor']}").json()
    assert len(rest["data"]) == 3 and rest["next_cursor"] is None


def test_lines_may_ask_for_dedupe_and_embed_prompt_in_the_address(api: Api) -> None:
    headers = {"Content-Type": "application/x-ndjson"}
    line = b'{"prompt":"a"}\n'
    job = api.http.post("/v1/jobs?dedupe=true&embed_prompt=false", content=line, headers=headers).json()
    assert (job["dedupe"], job["embed_prompt"]) == (True, False)
    job = api.submit(dedupe=False, embed_prompt=True)
    assert (job["dedupe"], job["embed_prompt"], job["reused"], job["requests"]) == (False, True, 0, 1)
    assert code(api.http.post("/v1/jobs?dedupe=1", content=line, headers=headers)) == (422, "invalid_parameter")
    refused = api.http.post("/v1/jobs?dedupe=true", json={"images": [{"prompt": "a"}]})
    assert code(refused) == (422, "unknown_parameter")
    assert api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}], "dedupe": "true"}).status_code == 422


# --- running out of time


@contextmanager
def expiring(api: Api, held: int) -> Iterator[Connection]:
    """The periodic task runs, and waits for the lock of a job that the block's transaction holds as a claim does."""
    waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
                 "(SELECT oid FROM pg_database WHERE datname = current_database())")  # fmt: skip
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with api.database.begin_system() as connection:
                job_states.expire(connection)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    with api.database.begin_system() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock_shared(:id)"), {"id": held})
        thread.start()
        until(lambda: connection.execute(waits).scalar_one())
        yield connection
    thread.join()
    assert not failed


def test_a_draft_that_is_finalized_while_it_runs_out_of_time_is_rendered(api: Api) -> None:
    job = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    api.http.put(f"/v1/jobs/{job}/chunks/0", json={"images": [{"prompt": "a mug"}]})
    number = ids.parse_job(job)
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET expires_at = now() - interval '1 s' WHERE id = :id"), {"id": number})
    with expiring(api, number):
        assert api.http.post(f"/v1/jobs/{job}/finalize", json={"chunks": 1}).status_code == 202
    assert api.http.get(f"/v1/jobs/{job}").json()["status"] == "queued"
    assert factories.claim(api.database) is not None


def test_jobs_out_of_time_are_locked_in_the_order_in_which_claims_lock_them(api: Api) -> None:
    first, second = sorted(ids.parse_job(str(api.submit()["id"])) for _ in range(2))
    overdue = text("UPDATE jobs SET expires_at = now() - make_interval(secs => :age) WHERE id = :id")
    with api.database.begin_system() as connection:
        connection.execute(overdue, [{"id": first, "age": 1}, {"id": second, "age": 2}])
    with expiring(api, first) as claim:
        assert claim.execute(text("SELECT pg_try_advisory_xact_lock_shared(:id)"), {"id": second}).scalar_one()


def test_a_job_that_was_cancelled_by_an_earlier_version_ends_and_keeps_no_other_from_it(api: Api) -> None:
    old, new = (str(api.submit()["id"]) for _ in range(2))
    for job in (old, new):
        api.http.post(f"/v1/jobs/{job}/cancel")
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET stop_reason = NULL WHERE id = :id"), {"id": ids.parse_job(old)})
        counters.fold(connection)
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
    assert [api.http.get(f"/v1/jobs/{job}").json()["status"] for job in (old, new)] == ["cancelled", "cancelled"]
