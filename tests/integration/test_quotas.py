"""Quotas: what each door refuses, what two at once may take together, what a claim passes over, and what is counted."""

import base64
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.batches import batch_jobs, validation
from services.core.bulk import task as bulk_task
from services.core.db.leases import Lease
from services.core.deletion import task as deletion_task
from services.core.jobs import lifecycle
from services.core.model.quotas import Quotas
from services.core.model.specs import FailedImage
from services.core.notify import Notifier
from services.core.queue import counters, job_states, rooms, segments
from services.core.storage.s3 import S3Store
from services.core.tenants import admission, usage
from tests import cataloguing, exporting, factories
from tests.waiting import until
from tests.web import Api

LINE = {"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a", "n": 3}}


def limit(api: Api, **quotas: Any) -> None:
    answer = api.http.patch("/v1/tenants/default", json={"quotas": quotas})
    assert answer.status_code == 200, answer.text


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


def used(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.http.get("/v1/usage").json()["usage"]
    return found


def fold(api: Api) -> None:
    with api.database.begin_system() as connection:
        counters.fold(connection)


def counted_by_hand(api: Api) -> dict[str, int]:
    """The same numbers, from the images, pictures and files themselves."""
    with api.database.begin_system() as connection:
        row = connection.execute(
            text("""
            SELECT (SELECT count(*) FROM images JOIN jobs ON jobs.id = job_id WHERE images.state = 0) AS images_queued,
                   (SELECT count(*) FROM images WHERE state = 1) AS images_in_flight,
                   (SELECT coalesce(sum(bytes), 0) FROM results)
                   + (SELECT coalesce(sum(bytes), 0) FROM files WHERE purpose = 'batch_output') AS bytes_stored,
                   (SELECT coalesce(sum(bytes), 0) FROM files WHERE purpose <> 'batch_output')
                   + (SELECT coalesce(sum(bytes), 0) FROM upload_parts) AS bytes_spooled""")
        ).one()
    return {name: int(value) for name, value in row._mapping.items()}


def test_of_two_submits_that_together_overrun_the_quota_exactly_one_is_taken(api: Api) -> None:
    limit(api, images_queued=5)
    body = {"images": [{"prompt": "a", "n": 3}]}
    for _ in range(5):
        begin = threading.Barrier(2)

        def submit(begin: threading.Barrier = begin) -> httpx.Response:
            begin.wait()
            return httpx.post(f"{api.url}/v1/jobs", json=body, headers=api.http.headers, timeout=30, trust_env=False)

        with ThreadPoolExecutor(2) as pool:
            answers = [future.result() for future in [pool.submit(submit) for _ in range(2)]]
        assert sorted(answer.status_code for answer in answers) == [202, 429]
        [taken, full] = sorted(answers, key=lambda answer: answer.status_code)
        assert int(full.headers["Retry-After"]) > 0
        assert refused(full)[1:] == (
            "quota_exceeded",
            (
                "The tenant default may have 5 images queued and has 3; this asks for 3 more; try again when some are "
                "rendered."
            ),
        )
        assert used(api)["images_queued"] == 3
        assert api.http.post(f"/v1/jobs/{taken.json()['id']}/cancel").status_code == 200
        with api.database.begin_system() as connection:
            segments.sweep_cancelled(connection)
            counters.fold(connection)


def test_a_refused_submission_leaves_nothing_and_one_that_never_fits_is_refused_for_good(api: Api) -> None:
    limit(api, images_queued=2)
    before = api.rows()
    answer = api.http.post("/v1/jobs", json={"images": [{"prompt": "a", "n": 3}]}, headers={"Idempotency-Key": "k"})
    assert refused(answer) == (
        422, "quota_exceeded",
        "The tenant default may have 2 images queued, and this asks for 3; ask for less, or for a higher quota.",
    )  # fmt: skip
    assert "Retry-After" not in answer.headers and api.rows() == before
    assert used(api)["images_queued"] == 0
    limit(api, images_queued=3)
    again = api.http.post("/v1/jobs", json={"images": [{"prompt": "a", "n": 3}]}, headers={"Idempotency-Key": "k"})
    assert again.status_code == 202


def test_a_large_submission_is_refused_before_its_rows_are_written(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr("services.core.jobs.submissions.Submission.copy", lambda *_: copied.append(1))
    limit(api, images_queued=1_000)
    api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]})
    copied.clear()
    assert api.http.post("/v1/jobs", json={"images": [{"prompt": "a", "n": 1000}]}).status_code == 429
    assert copied == []


def _draft(api: Api) -> httpx.Response:
    draft = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    return api.http.put(f"/v1/jobs/{draft}/chunks/0", json={"images": [{"prompt": "a", "n": 2}]})


def _ended(api: Api, images: int = 2) -> str:
    """A job all of whose images failed."""
    job = api.http.post("/v1/jobs", json={"images": [{"prompt": "b", "n": images}]}).json()["id"]
    while (claim := factories.claim(api.database)) is not None:
        failed = [FailedImage(image.job_id, image.index, "error", "It broke.") for image in claim.images]
        factories.settle(api.database, claim, failed=failed)
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
        counters.fold(connection)
    return str(job)


DOORS: dict[str, Callable[[Api], httpx.Response]] = {
    "submit": lambda api: api.http.post("/v1/jobs", json={"images": [{"prompt": "a", "n": 2}]}),
    "lines": lambda api: api.http.post(
        "/v1/jobs", content=b'{"prompt": "a", "n": 2}', headers={"Content-Type": "application/x-ndjson"}
    ),
    "draft": _draft,
    "generations": lambda api: api.http.post(
        "/v1/images/generations", json={"prompt": "a", "n": 2}, headers={"Prefer": "respond-async"}
    ),
    "edits": lambda api: api.http.post(
        "/v1/images/edits", data={"prompt": "a", "n": "2"}, headers={"Prefer": "respond-async"},
        files={"image": ("a.png", exporting.picture(0))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_every_door_through_which_images_come_passes_the_check(api: Api, door: str) -> None:
    limit(api, images_queued=2)
    assert api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]}).status_code == 202
    assert refused(DOORS[door](api))[:2] == (429, "quota_exceeded")
    assert used(api)["images_queued"] == 1 and counted_by_hand(api)["images_queued"] == 1
    limit(api, images_queued=3)
    assert DOORS[door](api).status_code in (200, 202)


def test_retries_and_acts_on_many_jobs_pass_it_too(api: Api) -> None:
    jobs = [_ended(api), _ended(api, 1)]
    limit(api, images_queued=2)
    assert api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]}).status_code == 202
    assert refused(api.http.post(f"/v1/jobs/{jobs[0]}/retry"))[:2] == (429, "quota_exceeded")
    act = api.http.post("/v1/jobs/actions", json={"action": "retry", "status": ["failed"]}).json()["id"]
    with api.database.begin_system() as connection:
        number = connection.execute(text("SELECT id FROM bulk_acts")).scalar_one()
    lease = Lease(api.database, f"bulk/{number}", "tests")
    assert lease.take()
    bulk_task.run(api.settings, Notifier(api.settings.redis_url), number, lease)
    found = api.http.get(f"/v1/jobs/actions/{act}").json()
    assert (found["status"], found["done"], found["lost"]) == ("completed", 1, 1), found
    assert "may have 2 images queued" in json.dumps(found)
    assert used(api)["images_queued"] == 2 == counted_by_hand(api)["images_queued"]


def test_a_batch_that_overruns_fails_with_the_sentence(api: Api, store: S3Store) -> None:
    limit(api, images_queued=2)
    form = {"files": {"file": ("a.jsonl", json.dumps(LINE).encode())}, "data": {"purpose": "batch"}}
    file = api.http.post("/v1/files", **form).json()["id"]
    order = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    batch = api.http.post("/v1/batches", json=order).json()["id"]
    with api.database.begin_system() as connection:
        [waiting] = batch_jobs.validating(connection)
    lease = Lease(api.database, f"validate/{waiting.id}", "tests")
    assert lease.take()
    validation.run(api.settings, store, Notifier(api.settings.redis_url), waiting.id, lease)
    found = api.http.get(f"/v1/batches/{batch}").json()
    assert found["status"] == "failed"
    assert found["errors"]["data"][0]["code"] == "quota_exceeded"
    assert "may have 2 images queued" in found["errors"]["data"][0]["message"]


def _work(api: Api, store: S3Store) -> None:
    """What schedulers do, until nothing is left to do now."""
    tasks = background_tasks(api.settings, store, Notifier(api.settings.redis_url))
    runner = BackgroundTaskRunner(api.database, tasks, "scheduler-a")
    while runner.run_once():
        pass


def test_a_schedules_run_that_overruns_is_refused_with_the_sentence(api: Api, store: S3Store) -> None:
    limit(api, images_queued=2)
    target = {"job": {"images": [{"prompt": "a", "n": 3}]}}
    asked = {"name": "nightly", "cron": "0 1 * * *", "target": target}
    assert api.http.post("/v1/schedules", json=asked).status_code == 201
    assert api.http.post("/v1/schedules/nightly/run").status_code < 300
    _work(api, store)
    [run] = api.http.get("/v1/schedules/nightly/runs").json()["data"]
    assert run["status"] == "refused" and "may have 2 images queued" in run["reason"]
    assert used(api)["images_queued"] == 0


def test_a_catalogues_run_that_overruns_fails_with_the_sentence_and_leaves_nothing_queued(
    api: Api, store: S3Store
) -> None:
    limit(api, images_queued=2)
    feed = {"file": ("shop.csv", b"sku,title\na,red\nb,teal\nc,pink")}
    file = api.http.post("/v1/files", files=feed, data={"purpose": "batch"}).json()["id"]
    assert api.http.put("/v1/catalogues/shop", json=cataloguing.DEFINITION).status_code < 300
    assert api.http.put("/v1/catalogues/shop/file", json={"file_id": file}).status_code < 300
    run = api.http.post("/v1/catalogues/shop/runs").json()["id"]
    _work(api, store)
    found = api.http.get(f"/v1/catalogues/shop/runs/{run}").json()
    assert (found["state"], found["error"]["code"]) == ("failed", "quota_exceeded"), found
    assert "may have 2 images queued" in found["error"]["message"]
    assert used(api)["images_queued"] == 0 == counted_by_hand(api)["images_queued"]
    limit(api, images_queued=3)
    run = api.http.post("/v1/catalogues/shop/runs").json()["id"]
    _work(api, store)
    assert api.http.get(f"/v1/catalogues/shop/runs/{run}").json()["state"] == "rendering"


def test_pictures_that_come_with_a_request_are_counted_and_refused_without_a_trace(api: Api) -> None:
    picture = exporting.picture(0)
    limit(api, bytes_spooled=len(picture) + 10)
    body = {"images": [{"prompt": "a", "strength": 0.5, "image": _data_url(picture)}]}
    assert api.http.post("/v1/jobs", json=body).status_code == 202
    assert used(api)["bytes_spooled"] == len(picture)
    before = api.rows()
    again = {"images": [{"prompt": "a", "strength": 0.5, "image": _data_url(exporting.picture(1))}]}
    assert refused(api.http.post("/v1/jobs", json=again))[:2] in ((429, "quota_exceeded"), (422, "quota_exceeded"))
    assert api.rows() == before and used(api)["bytes_spooled"] == len(picture)


def test_a_refusal_leaves_no_object_behind(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    put, drop = S3Store.put_file, S3Store.drop

    def put_file(store: S3Store, key: str, *rest: Any) -> Any:
        there.add(key)
        return put(store, key, *rest)

    def dropped(store: S3Store, key: str) -> Any:
        there.discard(key)
        return drop(store, key)

    monkeypatch.setattr(S3Store, "put_file", put_file)
    monkeypatch.setattr(S3Store, "drop", dropped)
    limit(api, images_queued=2)
    api.submit({"prompt": "a"})
    picture = {"prompt": "a", "strength": 0.5, "n": 2, "image": _data_url(exporting.picture(0))}
    assert api.http.post("/v1/jobs", json={"images": [picture]}).status_code == 429
    assert there == set()
    limit(api, bytes_spooled=1)
    assert api.http.post("/v1/jobs", json={"images": [picture | {"n": 1}]}).status_code in (422, 429)
    form = {"files": {"file": ("a", b"xx")}, "data": {"purpose": "batch"}, "headers": {"Idempotency-Key": "k"}}
    assert api.http.post("/v1/files", **form).status_code == 422
    assert there == set()
    limit(api, images_queued=9, bytes_spooled=None)
    waits = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 7209421 AND NOT granted")
    with ThreadPoolExecutor(1) as pool:  # one that fitted when it was looked at, and does not when it is committed
        with api.database.begin_system() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(7209421, 1)"))
            late = pool.submit(api.http.post, "/v1/jobs", json={"images": [picture]})
            until(lambda: connection.execute(waits).scalar_one() == 1)
            connection.execute(text("UPDATE tenants SET max_images_queued = 2 WHERE id = 1"))
        assert late.result().status_code == 429
    assert there == set()
    assert api.http.post("/v1/jobs", json={"images": [picture | {"n": 1}]}).status_code == 202
    with api.database.begin_system() as connection:
        assert there == set(connection.execute(text("SELECT object_key FROM files")).scalars())


def _data_url(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def test_what_is_sent_is_counted_and_refused_before_it_is_stored(api: Api) -> None:
    limit(api, bytes_spooled=10)

    def send(size: int) -> httpx.Response:
        return api.http.post("/v1/files", files={"file": ("a", b"x" * size)}, data={"purpose": "batch"})

    first = send(6)
    assert first.status_code == 200 and used(api)["bytes_spooled"] == 6
    assert refused(send(5)) == (
        429, "quota_exceeded",
        (
            "The tenant default may have 10 B spooled and has 6 B; this asks for 5 B more; try again when files are "
            "deleted."
        ),
    )  # fmt: skip
    assert refused(send(11))[:2] == (422, "quota_exceeded")
    upload = {"filename": "a.jsonl", "purpose": "batch", "bytes": 5, "mime_type": "application/jsonl"}
    assert refused(api.http.post("/v1/uploads", json=upload))[:2] == (429, "quota_exceeded")
    open_one = api.http.post("/v1/uploads", json=upload | {"bytes": 4}).json()["id"]
    assert send(3).status_code == 200  # 9 of 10
    part = api.http.post(f"/v1/uploads/{open_one}/parts", files={"data": ("a", b"1234")})
    assert refused(part)[:2] == (429, "quota_exceeded")
    limit(api, bytes_spooled=13)
    part = api.http.post(f"/v1/uploads/{open_one}/parts", files={"data": ("a", b"1234")})
    assert part.status_code == 200 and used(api)["bytes_spooled"] == 13
    done = api.http.post(f"/v1/uploads/{open_one}/complete", json={"part_ids": [part.json()["id"]]})
    assert done.status_code == 200  # its bytes were asked for part by part
    assert used(api)["bytes_spooled"] == counted_by_hand(api)["bytes_spooled"] == 17
    with api.database.begin_system() as connection:
        connection.execute(text("DELETE FROM upload_parts"))  # as the background task does
    assert used(api)["bytes_spooled"] == counted_by_hand(api)["bytes_spooled"] == 13


def test_of_two_files_that_together_overrun_the_quota_exactly_one_is_kept(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(api, bytes_spooled=10)
    monkeypatch.setattr(admission, "look", lambda *_, **__: None)  # each was told that there is room for it

    def send(_number: int) -> httpx.Response:
        files = {"file": ("a", b"x" * 6)}
        data = {"purpose": "batch"}
        return httpx.post(f"{api.url}/v1/files", files=files, data=data, headers=api.http.headers, trust_env=False)

    with ThreadPoolExecutor(2) as pool:
        kept, full = sorted(pool.map(send, range(2)), key=lambda answer: answer.status_code)
    assert (kept.status_code, full.status_code, full.json()["error"]["code"]) == (200, 429, "quota_exceeded")
    assert int(full.headers["Retry-After"]) > 0
    assert used(api)["bytes_spooled"] == counted_by_hand(api)["bytes_spooled"] == 6


def _render(api: Api, *, size: int = 1_000, seconds: float = 2.0) -> int:
    """Renders one claim; returns how many images it had."""
    claim = factories.claim(api.database)
    if claim is None:
        return 0
    stored = factories.stored(claim, b"x" * size)
    factories.settle(api.database, claim, stored=stored, render_seconds=seconds)
    return len(claim.images)


def test_when_the_bytes_stored_are_used_up_nothing_more_is_asked_for(api: Api, store: S3Store) -> None:
    limit(api, bytes_stored=2_000)
    job = str(api.submit({"prompt": "a", "n": 2})["id"])
    assert _render(api) == 2
    fold(api)
    assert used(api)["bytes_stored"] == 2_000 == counted_by_hand(api)["bytes_stored"]
    status, code, message = refused(api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]}))
    assert (status, code) == (429, "quota_exceeded")
    assert message == (
        "The tenant default may have 2 kB stored and has 2.0 kB; delete jobs, exports or datasets before you ask for "
        "more pictures."
    )
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
    made = api.http.post("/v1/datasets", json={"name": "mugs", "jobs": [job], "format": "webdataset"})
    assert made.status_code == 201, made.text
    for door, body in ((f"/v1/jobs/{job}/exports", {"format": "zip"}), ("/v1/datasets/mugs/versions", {})):
        status, code, message = refused(api.http.post(door, json=body))
        assert (status, code) == (429, "quota_exceeded"), door
        assert message.endswith("before you ask for more exports or datasets.")
    limit(api, bytes_stored=2_001)
    assert api.http.post("/v1/datasets/mugs/versions", json={}).status_code == 202
    assert api.http.post("/v1/datasets/mugs/versions/1/cancel").status_code in (200, 202)
    assert api.http.delete("/v1/datasets/mugs").status_code in (200, 202)
    assert api.http.delete(f"/v1/jobs/{job}").status_code == 202
    with api.database.begin_system() as connection:
        [doomed] = deletion_task.pending(connection)
    lease = Lease(api.database, f"delete/{doomed.id}", "tests")
    assert lease.take()
    deletion_task.run(store, doomed.id, lease)
    assert used(api)["bytes_stored"] == 0
    assert api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]}).status_code == 202


def test_when_the_days_seconds_are_used_up_nothing_is_taken_and_nothing_claimed_until_the_next_day(api: Api) -> None:
    limit(api, device_seconds_per_day=2)
    api.submit({"prompt": "a", "n": 32})
    assert _render(api, seconds=2.5) == 16
    fold(api)
    assert used(api)["device_seconds_today"] == 2.5
    answer = api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]})
    assert refused(answer) == (
        429, "quota_exceeded",
        "The tenant default may use 2 accelerator-seconds a day and has used 2; new work is taken from 00:00 UTC on.",
    )  # fmt: skip
    now = datetime.now(UTC)
    left = 86_400 - (now.hour * 3600 + now.minute * 60 + now.second)
    assert abs(int(answer.headers["Retry-After"]) - left) < 60
    assert factories.claim(api.database) is None
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE rates SET at = at - interval '1 day' WHERE grain = 'hour'"))
    assert _render(api) == 16
    assert api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]}).status_code == 202


def test_what_is_queued_waits_while_the_bytes_stored_are_used_up(api: Api) -> None:
    number, _ = api.new_tenant("other")
    limit(api, bytes_stored=10_000)
    job = api.submit({"prompt": "a", "n": 100})["id"]

    def warnings() -> list[str]:
        found: list[str] = api.http.get(f"/v1/jobs/{job}").json()["warnings"]
        return found

    assert warnings() == []
    assert _render(api) == 16
    fold(api)
    assert factories.claim(api.database) is None
    [sentence] = warnings()
    assert sentence == (
        "Images of this job wait: the tenant default may have 10 kB stored and has 16.0 kB; they go on when jobs, "
        "exports or datasets are deleted, or the quota is raised."
    )
    theirs = factories.submit(api.database, api.settings, [{"prompt": "b"}], tenant=number)
    claim = factories.claim(api.database)
    assert claim is not None and {image.job_id for image in claim.images} == {theirs}
    limit(api, bytes_stored=20_000)
    assert warnings() == []
    assert _render(api) == 16
    limit(api, device_seconds_per_day=1)
    assert [sentence.rpartition("; ")[2] for sentence in warnings()] == ["they go on from 00:00 UTC."]


def test_a_tenant_at_its_limit_of_images_in_flight_is_passed_over_and_others_are_not(api: Api) -> None:
    number, key = api.new_tenant("other")
    limit(api, images_in_flight=20)
    api.submit({"prompt": "a", "n": 64})
    first, second = factories.claim(api.database), factories.claim(api.database)
    assert first is not None and second is not None
    assert (len(first.images), len(second.images)) == (16, 4)
    assert used(api)["images_in_flight"] == 20
    assert factories.claim(api.database) is None
    theirs = {"Authorization": f"Bearer {key}"}
    httpx.post(f"{api.url}/v1/jobs", json={"images": [{"prompt": "a", "n": 3}]}, headers=theirs, trust_env=False)
    third = factories.claim(api.database)
    assert third is not None and [image.tenant_id for image in third.images] == [number] * 3
    factories.settle(api.database, second, stored=factories.stored(second))
    assert used(api)["images_in_flight"] == 16
    fourth = factories.claim(api.database, seats=64)
    assert fourth is not None and len(fourth.images) == 4


def test_two_claims_at_once_do_not_both_take_the_last_room(api: Api) -> None:
    limit(api, images_in_flight=20)
    for _ in range(4):
        api.submit({"prompt": "a", "n": 16})
    begin = threading.Barrier(4)

    def take(worker: int) -> int:
        begin.wait()
        claim = factories.claim(api.database, worker=f"w{worker}")
        return 0 if claim is None else len(claim.images)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(take, range(4))) <= 20
    while factories.claim(api.database) is not None:
        pass
    assert used(api)["images_in_flight"] == 20


def test_what_is_used_stays_exact_through_claims_cancels_and_retries_and_a_count_finds_the_same(api: Api) -> None:
    jobs = [str(api.submit({"prompt": "a", "n": n})["id"]) for n in (40, 7, 20)]
    assert _render(api) == 16
    lost = factories.claim(api.database)
    assert lost is not None
    factories.settle(api.database, lost, released=[(image.job_id, image.index) for image in lost.images])
    held = factories.claim(api.database)
    assert held is not None
    api.http.post(f"/v1/jobs/{jobs[1]}/cancel")
    with api.database.begin_system() as connection:
        segments.sweep_cancelled(connection)
        job_states.expire(connection)
    _draft(api)
    api.http.post("/v1/files", files={"file": ("a", b"x" * 9)}, data={"purpose": "batch"})
    fold(api)
    expected = counted_by_hand(api)
    assert {name: used(api)[name] for name in expected} == expected
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE tenant_usage SET images_queued = 99, bytes_stored = 99, bytes_spooled = 99"))
        connection.execute(text("UPDATE tenant_usage SET counted_at = now() - interval '2 hours'"))
    api.submit({"prompt": "a", "n": 5})  # not folded when it is counted anew
    with api.database.begin_system() as connection:
        assert counters.recount_usage(connection) == 1
        assert counters.recount_usage(connection) == 0  # at most once an hour
    fold(api)
    expected = counted_by_hand(api)
    assert {name: used(api)[name] for name in expected} == expected


def test_what_was_stored_before_it_was_counted_is_added_up_once(api: Api) -> None:
    for _ in range(3):
        api.submit({"prompt": "a", "n": 16})
        assert _render(api) == 16
    fold(api)
    with api.database.begin_system() as connection:  # as the migration leaves them
        connection.execute(text("UPDATE counters SET bytes = NULL"))
        connection.execute(text("UPDATE tenant_usage SET bytes_stored = 0"))
    api.submit({"prompt": "a", "n": 4})
    assert _render(api) == 4
    fold(api)
    with api.database.begin_system() as connection:
        assert counters.size_old(connection) == 1
        assert counters.size_old(connection) == 0
    fold(api)
    assert used(api)["bytes_stored"] == 52_000 == counted_by_hand(api)["bytes_stored"]


def test_how_long_to_wait_follows_from_how_fast_the_tenants_images_are_rendered(api: Api) -> None:
    limit(api, images_queued=100)
    api.submit({"prompt": "a", "n": 48})
    for _ in range(3):
        assert _render(api) == 16  # 48 images in two minutes: 0.4 a second
    fold(api)
    api.submit({"prompt": "a", "n": 90})

    def after(images: int) -> int:
        answer = api.http.post("/v1/jobs", json={"images": [{"prompt": "a", "n": images}]})
        assert answer.status_code == 429
        return int(answer.headers["Retry-After"])

    assert after(30) == 50  # 20 of them are too many
    assert after(11) == 3
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE rates SET at = at - interval '1 day'"))
    assert after(30) == 60  # nothing was rendered, so nobody knows


def test_without_quotas_admission_is_one_read_and_takes_no_lock(api: Api) -> None:
    with api.database.begin_system() as connection:
        found = usage.against_quotas(connection, factories.TENANT)
    assert found.quotas == Quotas()
    with api.database.begin_system() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(7209421, 1)"))
        assert api.http.post("/v1/jobs", json={"images": [{"prompt": "a"}]}).status_code == 202


def test_a_look_reads_the_open_claims_once_for_all_tenants_and_not_at_all_without_a_quota(api: Api) -> None:
    with api.database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (name) SELECT 't' || n FROM generate_series(1, 30) n"))
        connection.execute(
            text("""INSERT INTO claims (id, worker_id, job_ids, expires_at, images, tenant_ids, tenant_images)
                    SELECT n, 'w', ARRAY[1], now() + interval '1 hour', 1, ARRAY[1], ARRAY[1]
                    FROM generate_series(1, 50) n""")
        )
    assert claims_read(api) == 0
    with api.database.begin_system() as connection:
        connection.execute(text("UPDATE tenants SET max_images_in_flight = 60"))
        rows = connection.execute(text(f"SELECT id, room FROM ({rooms.TENANTS}) t ORDER BY id")).all()
    assert [row.room for row in rows] == [10, *[60] * 30]
    assert claims_read(api) == 50


def claims_read(api: Api) -> float:
    def read(plan: dict[str, Any]) -> float:
        own = plan["Actual Loops"] * plan["Actual Rows"] if plan.get("Relation Name") == "claims" else 0
        return own + sum(read(part) for part in plan.get("Plans", ()))

    with api.database.begin_system() as connection:
        [plan] = connection.execute(
            text(f"EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM ({rooms.TENANTS}) t")
        ).scalar_one()
    return read(plan["Plan"])
