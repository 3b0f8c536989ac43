"""What the content policy refuses is recorded the same way at every door: one event, with who asked, and one count."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
from sqlalchemy import text

from services.core.auditing import audits
from services.core.auditing import task as audit_task
from services.core.batches import validation
from services.core.bulk import bulk
from services.core.bulk import task as bulk_task
from services.core.catalogues import catalogues
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.events import numbering
from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.model.specs import FailedImage
from services.core.notify import Notifier
from services.core.policy import refusals
from services.core.storage import installation
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from tests import cataloguing, exporting, factories, scheduling
from tests.web import Api

ROOT = Path(__file__).parents[2]
TERM = "forbiddenmarker"
BAD = f"a {TERM} mug"
IMAGES = [{"prompt": BAD, "n": 2}, {"prompt": "a mug"}, {"prompt": BAD}]  # two prompts are refused
LINES = b"".join(json.dumps(one).encode() + b"\n" for one in IMAGES)
NDJSON = {"Content-Type": "application/x-ndjson"}
SCHEDULE = {"cron": "0 1 * * *", "target": {"job": {"images": IMAGES}}}
Way = Callable[[Api, S3Store], Any]


def refuse(api: Api) -> None:
    assert api.http.post("/v1/policy/terms", json={"term": TERM}).status_code == 201


def finish(database: Database) -> None:
    with database.begin_system() as connection:
        lifecycle.finish(connection)


def post(path: str, **body: Any) -> Way:
    def way(api: Api, _store: S3Store) -> None:
        refuse(api)
        assert api.http.post(path, **body).status_code in (400, 422)

    return way


def draft(api: Api, _store: S3Store) -> None:
    refuse(api)
    job = api.http.post("/v1/jobs", json={"draft": True}).json()["id"]
    for _ in range(2):  # sent again, it is one chunk
        assert api.http.put(f"/v1/jobs/{job}/chunks/0", content=LINES, headers=NDJSON).status_code == 200


def batch(api: Api, store: S3Store) -> None:
    refuse(api)
    lines = b"".join(
        json.dumps({"custom_id": f"l{n}", "method": "POST", "url": "/v1/images/generations", "body": one}).encode()
        + b"\n"
        for n, one in enumerate(IMAGES)
    )
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as client:
        file = client.files.create(file=("a.jsonl", lines), purpose="batch")
        made = client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")
    job = ids.parse("batch_", made.id, "batch")
    lease = Lease(api.database, f"validate/{job}", "here")
    assert lease.take()
    validation.run(api.settings, store, Notifier(api.settings.redis_url), job, lease)


def schedule_of_before(api: Api, _store: S3Store) -> None:
    assert api.http.post("/v1/schedules", json={"name": "nightly", **SCHEDULE}).status_code == 201
    refuse(api)
    assert api.http.post("/v1/schedules/nightly/run").status_code == 202
    submit = scheduling.submitter(api.database, api.settings)
    while submit():
        pass


def failed_job(api: Api) -> str:
    """A job that was accepted before the term was refused, all images of which failed."""
    job = str(api.submit(*IMAGES)["id"])
    while claim := factories.claim(api.database):
        failed = [FailedImage(image.job_id, image.index, "error", "No.") for image in claim.images]
        factories.settle(api.database, claim, failed=failed)
    finish(api.database)
    refuse(api)
    return job


def retry(api: Api, _store: S3Store) -> None:
    job = failed_job(api)
    for _ in range(2):  # sent again, it is one retry
        answer = api.http.post(f"/v1/jobs/{job}/retry", headers={"Idempotency-Key": "once"})
        assert answer.status_code == 202, answer.text


def retry_of_many(api: Api, _store: S3Store) -> None:
    failed_job(api)
    assert api.http.post("/v1/jobs/actions", json={"action": "retry"}).status_code == 202
    with api.database.begin_system() as connection:
        [asked] = bulk.pending(connection)
    lease = Lease(api.database, f"bulk/{asked.id}", "here")
    assert lease.take()
    bulk_task.run(api.settings, Notifier(api.settings.redis_url), asked.id, lease)


def catalogue(api: Api, store: S3Store, **more: Any) -> None:
    api.http.put("/v1/catalogues/shop", json=cataloguing.DEFINITION | more)
    night(api, store, f"sku,title\n1,{BAD}\n2,a mug\n3,{BAD}\n")


def night(api: Api, store: S3Store, items: str) -> str:
    with api.database.begin_system() as connection:
        found = catalogues.find(connection, factories.TENANT, "shop")
    cataloguing.upload_text(api.database, store, found, items)
    run = str(api.http.post("/v1/catalogues/shop/runs", json={}).json()["id"])
    cataloguing.tend(api.database, api.settings, store)
    cataloguing.render(api.database, store)
    cataloguing.tend(api.database, api.settings, store)
    return run


def new_catalogue(api: Api, store: S3Store) -> None:
    refuse(api)
    catalogue(api, store)


def redraw(api: Api, store: S3Store) -> None:
    catalogue(api, store, publish={"review": "changed", "require": 0})
    run = night(api, store, f"sku,title\n1,red {BAD}\n2,a mug\n3,red {BAD}\n")
    refuse(api)
    answer = api.http.post(f"/v1/catalogues/shop/runs/{run}/redraw", json={"indexes": [0, 1]})
    assert answer.status_code == 202, answer.text


def repair(api: Api, store: S3Store) -> None:
    installation.claim_prefix(api.database, store)
    job = str(api.submit({"prompt": BAD}, {"prompt": BAD}, {"prompt": "a mug"})["id"])
    claim = factories.claim(api.database)
    assert claim is not None
    factories.settle(api.database, claim, stored=factories.stored(claim, b"gone"))
    exporting.finish(api.database, ids.parse_job(job))
    refuse(api)
    with api.database.begin_system() as connection:
        asked = audits.request(connection, 1.0)
    lease = Lease(api.database, "audit-storage/test", "here")
    assert lease.take()
    audit_task.run(api.settings, store, asked.id, lease, orphan_days=7)


MATRIX = {"template": "a {what} mug", "vary": {"what": ["red", TERM, f"green {TERM}"]}}
ONE = {"prompt": BAD}
WAYS: dict[str, tuple[refusals.Name, int, Way]] = {
    "job": ("job", 2, post("/v1/jobs", json={"images": IMAGES})),
    "lines": ("job", 2, post("/v1/jobs", content=LINES, headers=NDJSON)),
    "matrix": ("job", 2, post("/v1/jobs", json={"matrix": MATRIX})),
    "generation": ("image", 1, post("/v1/images/generations", json=ONE)),
    "edit": ("image", 1, post("/v1/images/edits", data=ONE, files={"image": ("a.png", exporting.picture(0))})),
    "schedule": ("schedule", 2, post("/v1/schedules", json={"name": "nightly", **SCHEDULE})),
    "run": ("schedule", 2, schedule_of_before),
    "draft": ("draft", 2, draft),
    "batch": ("batch", 2, batch),
    "catalogue": ("catalogue", 2, new_catalogue),
    "retry": ("retry", 2, retry),
    "retry of many": ("retry", 2, retry_of_many),
    "redraw": ("redraw", 2, redraw),
    "repair": ("repair", 2, repair),
}


def counted() -> dict[str, float]:
    return {name: refusals.REFUSED.labels(name)._value.get() for name in get_args(refusals.Name)}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_refused_at_a_door_is_one_event_and_counted(api: Api, store: S3Store, way: str) -> None:
    door, prompts, come = WAYS[way]
    before = counted()
    come(api, store)
    with api.database.begin_system() as connection:
        numbering.number(connection)
        jobs = set(connection.execute(text("SELECT id FROM jobs")).scalars())
    [event] = api.http.get("/v1/actions?verb=policy.refused").json()["data"]
    assert (event["subject_type"], event["data"]["door"], event["data"]["prompts"]) == ("tenant", door, prompts)
    assert event["actor"] in (f"key/{api_keys.id_of(api.key)}", "schedule/nightly", "tests", "presswork tests")
    is_kept = door in ("draft", "batch", "catalogue", "retry", "redraw", "repair")
    assert ("job" in event["data"]) == is_kept
    assert not is_kept or ids.parse_job(event["data"]["job"]) in jobs
    assert "marker" not in json.dumps(event)
    assert counted() == before | {door: before[door] + prompts}


def test_every_door_is_tried_and_nobody_goes_around_one() -> None:
    assert {door for door, _, _ in WAYS.values()} == set(get_args(refusals.Name))
    files = [file for folder in ("services", "scheduler", "worker") for file in (ROOT / folder).rglob("*.py")]
    sources = {str(file.relative_to(ROOT)): file.read_text() for file in files}

    def whoever(pattern: str) -> set[str]:
        return {name for name, source in sources.items() if re.search(pattern, source)}

    assert whoever(r"policies\.of_tenant\(") == {"services/api/v1/policy.py", "services/cli/model_move.py"}
    assert whoever(r"refusals\.(whole|kept)\(") == {
        "services/core/jobs/submissions.py",
        "services/core/queue/images.py",
    }
    named = {name for source in sources.values() for name in re.findall(r"\b[Dd]oor\([^()]*?\"(\w+)\"", source)}
    assert named == set(get_args(refusals.Name))
