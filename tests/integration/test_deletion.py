"""Deletion of jobs: what is gone at once, what is deleted in the background, what stays, and when it is refused."""

import dataclasses
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.db import tables
from services.core.db.database import Database
from services.core.deletion import jobs as deletion
from services.core.deletion import task
from services.core.events import numbering
from services.core.events import queries as events
from services.core.exports import exports
from services.core.files import files
from services.core.jobs import lifecycle, queries, retry
from services.core.model import ids, requests
from services.core.model.errors import Conflict, NotFound
from services.core.model.specs import FailedImage
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.queue import dedupe, segments
from services.core.settings import Settings
from services.core.storage import installation, keys
from services.core.storage.s3 import S3Store
from tests import exporting, factories
from tests.factories import TENANT
from tests.processes import Process
from tests.waiting import until
from tests.web import Api

ENDPOINT = "/v1/images/generations"
OF_JOBS = sorted(
    name for name, table in tables.metadata.tables.items() if "job_id" in table.c and name != "idempotency"
)
MANY = 40_000


@pytest.fixture
def runner(database: Database, settings: Settings, store: S3Store) -> BackgroundTaskRunner:
    return BackgroundTaskRunner(
        database, background_tasks(settings, store, Notifier(settings.redis_url)), "scheduler-1"
    )


def render(database: Database, store: S3Store) -> None:
    """Renders what waits: images of prompts with "bad" in them fail, the others are stored where a worker does."""
    while claim := factories.claim(database):
        stored, failed = [], []
        for image, result in zip(claim.images, factories.stored(claim), strict=True):
            if "bad" in image.spec.prompt:
                failed.append(FailedImage(image.job_id, image.index, "error", "It broke."))
                continue
            key = keys.image_name(
                image.tenant_id, ids.public_job(image.job_id), image.index, image.render_key, image.output_format
            )
            kept = store.put(key, b"picture", "image/png", {}, claim_id=claim.id)
            stored.append(dataclasses.replace(result, object_key=kept.key, render_key=bytes.fromhex(image.render_key)))
        factories.settle(database, claim, stored=stored, failed=failed)


def ended(database: Database, settings: Settings, store: S3Store, *rows: dict[str, Any], **more: Any) -> int:
    """A finished job of these requests; its id."""
    job_id = factories.submit(database, settings, rows or [{"prompt": "a mug", "n": 3}], **more)
    render(database, store)
    exporting.finish(database, job_id)
    return job_id


def a_batch(api: Api, runner: BackgroundTaskRunner, store: S3Store) -> dict[str, Any]:
    """A batch that has ended, with an output file and an error file."""
    bodies = [{"prompt": "a mug", "n": 2}, {"prompt": "a bad mug"}]
    lines = [{"custom_id": f"r{n}", "method": "POST", "url": ENDPOINT, "body": body} for n, body in enumerate(bodies)]
    data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    file = api.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", data)}).json()
    asked = {"input_file_id": file["id"], "endpoint": ENDPOINT, "completion_window": "24h"}
    batch = api.http.post("/v1/batches", json=asked, headers={"Idempotency-Key": "again"}).json()
    runner.run_once()
    render(api.database, store)
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
    runner.run_once()
    found: dict[str, Any] = api.http.get(f"/v1/batches/{batch['id']}").json()
    assert found["output_file_id"] and found["error_file_id"]
    return found | {"asked": asked}


def rows(database: Database, job_id: int) -> dict[str, int]:
    """How many rows of a job each table has that holds rows of jobs."""
    with database.begin_system() as connection:
        count = "SELECT count(*) FROM {} WHERE {} = :id"
        found = {
            name: connection.execute(text(count.format(name, "job_id")), {"id": job_id}).scalar_one()
            for name in OF_JOBS
        }
        found["jobs"] = connection.execute(text(count.format("jobs", "id")), {"id": job_id}).scalar_one()
        return {name: number for name, number in found.items() if number}


def delete(database: Database, job_id: int, tenant: int = TENANT) -> None:
    with database.begin_system() as connection:
        deletion.delete(connection, tenant, job_id)


def told_in_a_tenants_transaction(database: Database, call: str, job_id: int) -> Any:
    """What a function of the database answers there; None where a tenant may not call it."""
    try:
        with database.begin(TENANT) as connection:
            return connection.execute(text(f"SELECT {call}"), {"id": job_id}).scalar_one()
    except ProgrammingError as error:
        if "permission denied" not in str(error):
            raise
        return None


def finish_deletion(runner: BackgroundTaskRunner) -> None:
    def nothing_waits() -> bool:
        runner.run_once()
        with runner.database.begin_system() as connection:
            waits = connection.execute(text("SELECT count(*) FROM jobs WHERE deleted_at IS NOT NULL")).scalar_one()
            return not (waits or files.doomed(connection) or exports.pending(connection))

    until(nothing_waits, 60, every=0.01)


def test_a_deleted_job_is_gone_at_once_and_soon_nothing_of_it_is_left(api, runner, database, settings, store):
    before = set(store.under(""))
    factories.register(database)
    other = ended(database, settings, store)
    others = {image["url"] for image in api.http.get(f"/v1/jobs/{ids.public_job(other)}/images").json()["data"]}
    kept = set(store.under("")) - before
    batch = a_batch(api, runner, store)
    job = batch["job_id"]
    job_id = ids.parse_job(job)
    link = api.http.get(f"/v1/jobs/{job}/images?status=done").json()["data"][0]["url"]
    export = ids.public("export_", exporting.export(database, settings, store, job_id, "zip").id)
    stray = keys.image_name(TENANT, job, 1, "f" * 64, "png")
    store.put(stray, b"of a worker that lost its lease", "image/png", {}, claim_id=1)
    taken = api.http.get(f"/v1/jobs/{job}/deletion").json()
    assert (taken["images"], taken["stored_images"], taken["exports"], taken["files"]) == (3, 2, 1, 2)
    assert taken["refusal"] is None and not taken["bytes_estimated"]
    assert taken["bytes"] > 2 * len(b"picture")

    answer = api.http.delete(f"/v1/jobs/{job}")
    assert (answer.status_code, answer.json()) == (202, {"id": job, "object": "job", "deleted": True})
    assert api.http.delete(f"/v1/jobs/{job}").status_code == 202  # as after a lost answer
    paths = ["", "/images", "/requests", "/events", "/exports", "/deletion", "/images/0/content"]
    gone = [f"/v1/jobs/{job}{path}" for path in paths]
    gone += [f"/v1/exports/{export}", f"/v1/exports/{export}/files", f"/v1/batches/{batch['id']}"]
    gone += [f"/v1/files/{batch[name]}" for name in ("output_file_id", "error_file_id")]
    for path in gone:
        assert api.http.get(path).status_code == 404, path
    assert httpx.get(link, follow_redirects=False, trust_env=False).status_code == 404
    for path in ("/v1/jobs", "/v1/batches", "/v1/files"):
        assert job not in api.http.get(path).text, path
    for verb in ("cancel", "retry", "exports"):
        body = {"json": {"format": "zip"}} if verb == "exports" else {}
        assert api.http.post(f"/v1/jobs/{job}/{verb}", **body).status_code == 404
    again = api.http.post("/v1/batches", json=batch["asked"], headers={"Idempotency-Key": "again"})
    assert (again.status_code, again.json()["error"]["code"]) == (410, "idempotency_key_gone")

    finish_deletion(runner)
    assert rows(database, job_id) == {}
    assert api.http.get(f"/v1/files/{batch['input_file_id']}").status_code == 200  # it was uploaded, and stays
    assert set(store.under("")) - before == kept | {files.object_name(TENANT, files.parse_id(batch["input_file_id"]))}
    assert api.http.delete(f"/v1/jobs/{job}").status_code == 404
    assert rows(database, other) == {"jobs": 1, "counters": 1, "segments": 1, "images": 3, "payloads": 1, "results": 3,
                                     "counter_deltas": rows(database, other).get("counter_deltas", 0)}  # fmt: skip
    for url in others:
        assert httpx.get(url, follow_redirects=True, trust_env=False).content == b"picture"
    with database.begin_system() as connection:
        numbering.number(connection)
        told = [event.kind for event in events.of_subject(connection, TENANT, events.job(job_id))]
    assert told[-1] == "job.deleted"


def test_an_open_draft_is_deleted_with_its_chunks(api, runner, database):
    draft = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    api.http.put(f"/v1/jobs/{draft}/chunks/0", json={"images": [{"prompt": "a", "n": 5}]}).raise_for_status()
    for _ in range(2):  # the second time as after a lost answer, while the draft is being cancelled
        assert api.http.delete(f"/v1/jobs/{draft}").status_code == 202
    assert api.http.get(f"/v1/jobs/{draft}").status_code == 404
    assert api.http.put(f"/v1/jobs/{draft}/chunks/1", json={"images": [{"prompt": "b"}]}).status_code == 404
    runner.run_once()
    assert rows(database, ids.parse_job(draft))["images"] == 5  # of a job that has not ended nothing is deleted
    with database.begin_system() as connection:
        segments.sweep_cancelled(connection)
    exporting.finish(database, ids.parse_job(draft))
    finish_deletion(runner)
    assert rows(database, ids.parse_job(draft)) == {}


def test_a_draft_that_is_finalized_meanwhile_is_neither_deleted_nor_stopped(api, database, monkeypatch):
    draft = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    api.http.put(f"/v1/jobs/{draft}/chunks/0", json={"images": [{"prompt": "a"}]}).raise_for_status()
    cancel = deletion.job_states.cancel

    def after_it_is_finalized(*arguments: Any) -> bool:
        api.http.post(f"/v1/jobs/{draft}/finalize", json={"chunks": 1}).raise_for_status()
        return cancel(*arguments)

    monkeypatch.setattr(deletion.job_states, "cancel", after_it_is_finalized)
    with pytest.raises(Conflict, match="at this moment"):
        delete(database, ids.parse_job(draft))
    assert api.http.get(f"/v1/jobs/{draft}").json()["status"] == "queued"


def test_a_job_that_has_not_ended_is_refused_and_the_answer_says_what_would_do(api, store):
    job = api.submit({"prompt": "a", "n": 2})["id"]

    def refusal() -> tuple[int, str, str]:
        answer = api.http.delete(f"/v1/jobs/{job}")
        error = answer.json()["error"]
        told = api.http.get(f"/v1/jobs/{job}/deletion").json()["refusal"]
        assert told == {"code": error["code"], "message": error["message"]}
        return answer.status_code, error["code"], error["message"]

    assert refusal() == (409, "job_not_finished", "The job is queued; cancel it or let it end, then delete it.")
    claim = factories.claim(api.database)
    api.http.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    cancelling = "The job is cancelling; delete it when it has ended, in a moment."
    assert refusal() == (409, "job_not_finished", cancelling)
    factories.settle(api.database, claim)
    exporting.finish(api.database, ids.parse_job(job))
    assert api.http.delete(f"/v1/jobs/{job}").status_code == 202


def test_a_job_is_not_deleted_while_an_export_of_it_is_written(api, settings, store):
    job_id = ended(api.database, settings, store)
    job = ids.public_job(job_id)
    export = api.http.post(f"/v1/jobs/{job}/exports", json={"format": "zip"}).json()["id"]
    error = api.http.delete(f"/v1/jobs/{job}").json()["error"]
    assert error["code"] == "export_not_ended" and error["message"].startswith(f"{export} is still being written")
    api.http.post(f"/v1/exports/{export}/cancel").raise_for_status()
    assert api.http.delete(f"/v1/jobs/{job}").status_code == 202


@pytest.mark.parametrize("reader", ["retry", "export"])
def test_a_job_is_not_deleted_while_a_retry_or_an_export_of_it_is_recorded(database, settings, store, reader):
    factories.register(database)
    parent = ended(database, settings, store, {"prompt": "a mug"}, {"prompt": "a bad mug", "n": 2})
    with database.begin(TENANT) as connection:
        if reader == "retry":
            child = retry.retry(connection, TENANT, parent, requests.RetryOptions(), policy=policies.NOTHING).job_id
        else:
            exports.create(connection, TENANT, parent, exporting.options.parse({"format": "zip"}), base_url="")
        with pytest.raises(Conflict, match="at this moment"):
            delete(database, parent)
    if reader == "export":
        with pytest.raises(Conflict, match="still being written"):
            delete(database, parent)
        return
    delete(database, parent)
    with database.begin(TENANT) as connection:
        view = queries.job(connection, TENANT, child)
        assert (view.total, view.retry_of) == (2, parent)
        shown = queries.images(connection, TENANT, child, state=None, after=-1, limit=9)
    assert [image.payload.prompt for image in shown] == ["a bad mug", "a bad mug"]


def test_nobody_deletes_another_tenants_job(api, settings, store):
    job_id = ended(api.database, settings, store)
    tenant, key = api.new_tenant("other")
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) as stranger:
        assert stranger.delete(f"/v1/jobs/{ids.public_job(job_id)}").status_code == 404
        assert stranger.get(f"/v1/jobs/{ids.public_job(job_id)}/deletion").status_code == 404
    with pytest.raises(NotFound):
        delete(api.database, job_id, tenant)
    assert api.http.get(f"/v1/jobs/{ids.public_job(job_id)}").status_code == 200


def test_the_database_deletes_rows_of_no_job_but_one_that_is_deleted_and_has_ended(database, settings, store):
    factories.register(database)
    finished = ended(database, settings, store)
    waiting = factories.submit(database, settings, 2)
    with database.begin_system() as connection:  # as a fault of ours might, past every check in Python
        connection.execute(text("UPDATE jobs SET deleted_at = now() WHERE id = :id"), {"id": waiting})
    before = rows(database, finished), rows(database, waiting)
    for job_id in (finished, waiting):
        with database.begin_system() as connection:
            for call in ("presswork_delete_images(:id, 0, 1000)", "presswork_delete_job(:id, 1000)"):
                assert not connection.execute(text(f"SELECT {call}"), {"id": job_id}).scalar_one()
    assert (rows(database, finished), rows(database, waiting)) == before
    delete(database, finished)
    for call in ("presswork_delete_images(:id, 0, 9)", "presswork_delete_job(:id, 9)"):
        assert not told_in_a_tenants_transaction(database, call, finished)
    with database.begin_system() as connection:  # the job's row is the last one, after its images
        assert not connection.execute(text("SELECT presswork_delete_job(:id, 9)"), {"id": finished}).scalar_one()
    assert rows(database, finished) == before[0]
    for table in ("jobs", "segments", "counters", "payloads", "results", "failures"):
        with pytest.raises(ProgrammingError, match="permission denied"), database.begin_system() as connection:
            connection.execute(text(f"DELETE FROM {table}"))


def test_an_image_of_a_deleted_job_is_not_reused(database, settings, store):
    factories.register(database)
    job_id = ended(database, settings, store, {"prompt": "a mug", "seed": 7})
    factories.submit(database, settings, [{"prompt": "a mug", "seed": 7}], head={"dedupe": True})
    wanted = factories.claim(database).images

    def reusable() -> int:
        with database.begin_system() as connection:
            return len(dedupe.find(connection, wanted, "test/16"))

    assert reusable() == 1
    delete(database, job_id)
    assert reusable() == 0


_MANY = f"""
WITH payload AS (
  INSERT INTO payloads (job_id, index, n, segment_id, seed, guidance_scale, output_format, prompt, negative_prompt)
  SELECT :id, nth, 1, 0, 1, 7.5, 'png', 'a mug', '' FROM generate_series(3, {MANY - 1}) AS nth
), image AS (
  INSERT INTO images (job_id, index, segment_id, state) SELECT :id, nth, 0, 3 FROM generate_series(3, {MANY - 1}) AS nth
), failure AS (
  INSERT INTO failures (job_id, index, claim_id, code, message, device, batch_images)
  SELECT :id, nth, 1, 'error', 'It broke.', 'd', 1 FROM generate_series(3, {MANY - 1}) AS nth
), counted AS (
  UPDATE counters SET failed = failed + {MANY - 3} WHERE job_id = :id
)
UPDATE jobs SET total = {MANY} WHERE id = :id
"""


def many(database: Database, settings: Settings, store: S3Store) -> int:
    """A job that has ended, with many images of which the first three have objects."""
    job_id = ended(database, settings, store)
    with database.begin_system() as connection:
        connection.execute(text(_MANY), {"id": job_id})
    return job_id


def test_many_images_are_deleted_in_small_transactions_whoever_is_killed(
    database, settings, store, environ, runner, tmp_path, monkeypatch
):
    factories.register(database)
    installation.claim_prefix(database, store)  # as the scheduler does
    before = set(store.under(""))
    job_id = many(database, settings, store)
    kept = factories.submit(database, settings, 2)
    delete(database, job_id)
    monkeypatch.setattr(task, "SLICE_SECONDS", 0.0)
    runner.run_once()
    left = rows(database, job_id)
    assert {name: left[name] for name in ("images", "payloads", "failures")} == {
        "images": MANY - task.IMAGES_AT_ONCE,
        "payloads": MANY - task.IMAGES_AT_ONCE,
        "failures": MANY - task.IMAGES_AT_ONCE,
    }
    monkeypatch.undo()
    scheduler = Process("scheduler.app", environ | {"PRESSWORK_SECRET": "x" * 32}, tmp_path / "scheduler.log")
    until(lambda: rows(database, job_id).get("images", 0) < left["images"], every=0.01)
    scheduler.kill()
    assert 0 < rows(database, job_id).get("images", 0) < left["images"], scheduler.text()
    with database.begin_system() as connection:
        job = connection.execute(text("SELECT deleted_at FROM jobs WHERE id = :id"), {"id": job_id}).scalar_one()
    assert job is not None
    exporting.age_leases(database)
    finish_deletion(runner)
    assert rows(database, job_id) == {}
    assert set(store.under("")) == before
    assert rows(database, kept)["images"] == 2
