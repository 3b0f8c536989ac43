"""Row-level security as a matrix: every route of the document with another tenant's ids, and every listing.

The routes are read from the document, so a new one is tried without being named here. It fails if a parameter of its
path has no value in `places`, or if it needs a body to come as far as the thing that it is about and has none in
`PARTS`. The stranger's key has every scope.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.api.app import create_app
from services.core.events import numbering
from services.core.model import licenses
from services.core.notify import Notifier
from services.core.storage.s3 import S3Store
from services.core.trail import sealing
from services.core.webhooks import deriving
from tests import cataloguing, exporting, factories
from tests.web import Api

MARK = "zebra9"  # in every name that the owner gives
UNKNOWN = 404
FILE = {"files": {"file": ("shop.csv", f"sku,title\n{MARK}-a,{MARK}".encode())}, "data": {"purpose": "batch"}}
PARTS: dict[str, dict[str, Any]] = {  # what an operation takes before it looks for the thing that its address names
    "change_job": {"json": {"labels": {"a": "b"}}},
    "append_chunk": {"json": {"images": [{"prompt": "a"}]}},
    "finalize_draft": {"json": {"chunks": 1}},
    "mark_images": {"json": {"mark": "accepted", "indexes": [0]}},
    "search_job": {"params": {"text": "a"}},
    "create_export": {"json": {"format": "zip"}},
    "change_view": {"json": {"name": "theirs"}},
    "change_dataset": {"json": {"filters": {"marks": ["accepted"]}}},
    "add_sources": {"json": {"labels": ["a:b"]}},
    "remove_sources": {"json": {"labels": ["a:b"]}},
    "compare_dataset_versions": {"params": {"before": 1, "after": 1}},
    "change_schedule": {"json": {"paused": True}},
    "set_catalogue_file": {"json": {"file_id": "file-0000000000000"}},
    "list_differences": {"params": {"from": 1, "to": 1}},
    "publish_version": {"json": {"version": 1}},
    "redraw_changes": {"json": {"indexes": [0]}},
    "read_item": {"params": {"id": f"{MARK}-a"}},
    "add_part": {"files": {"data": ("a", b"{}")}},
    "complete_upload": {"json": {"part_ids": ["part_0000000000000"]}},
    "change_webhook": {"json": {"enabled": False}},
    "delete_tenant": {"params": {"confirm": f"{MARK}-tenant"}},
    "change_tenant": {"json": {"weight": 2}},
    "create_tenant_key": {"json": {"name": "theirs"}},
}
LISTED: dict[str, dict[str, Any]] = {
    "find_images": {"params": {"custom_id": f"{MARK}-1"}},
    "list_webhook_messages": {"params": {"after": 0}},
    "find_near_duplicates": {"params": {"label": f"team:{MARK}"}},
    "show_backlog": {"params": {"model": "simulated"}},
}

NIGHTLY = {"cron": "0 1 * * *", "target": {"job": {"images": [{"prompt": "a"}]}}}
# Each tenant has names of its own, so these make the stranger's; and models are everybody's.
OWN = {
    "put_schedule": {"json": NIGHTLY},
    "put_catalogue": {"json": cataloguing.DEFINITION},
    "show_model": {},
    "accept_license": {},
}
# Listings in which nothing of the owner's is named: figures, and what is everybody's.
NAMELESS = {
    "list_models",
    "show_rates",
    "list_workers",
    "show_backlog",
    "list_near_duplicates",
    "find_near_duplicates",
    "follow_events",
    "show_retention",
    "list_retention_due",
}


class Owner:
    """A tenant with one of everything."""

    def __init__(self, api: Api, store: S3Store) -> None:
        self._api = api
        tasks = background_tasks(api.settings, store, Notifier(api.settings.redis_url))
        runner = BackgroundTaskRunner(api.database, tasks, "scheduler-a")

        def work() -> None:
            while runner.run_once():
                pass

        label = {"team": MARK}
        images = [{"prompt": f"a {MARK}", "custom_id": f"{MARK}-{number}"} for number in (1, 2)]
        job = self._make("/v1/jobs", json={"images": images, "labels": label})["id"]
        cataloguing.render(api.database, store, draw=lambda image: exporting.picture(image.index))
        export = self._make(f"/v1/jobs/{job}/exports", json={"format": "zip"})["id"]
        self._make("/v1/datasets", json={"name": f"{MARK}-mugs", "jobs": [job]})
        self._make(f"/v1/datasets/{MARK}-mugs/versions", json={})
        self._make("/v1/schedules", json={"name": f"{MARK}-nightly", **NIGHTLY})
        feed = self._make("/v1/files", **FILE)["id"]
        catalogue = f"/v1/catalogues/{MARK}-shop"
        assert api.http.put(catalogue, json=cataloguing.DEFINITION).status_code < 300
        assert api.http.put(f"{catalogue}/file", json={"file_id": feed}).status_code < 300
        work()
        run = self._make(f"{catalogue}/runs")["id"]
        work()
        cataloguing.render(api.database, store)
        work()
        batch = {"input_file_id": feed, "endpoint": "/v1/images/generations", "completion_window": "24h"}
        upload = {"filename": f"{MARK}.jsonl", "purpose": "batch", "bytes": 2, "mime_type": "application/jsonl"}
        view = {"page": "jobs", "name": f"{MARK}'s", "query": f"label=team%3A{MARK}"}
        self._make("/v1/tenants", json={"name": f"{MARK}-tenant"})
        api.http.patch("/v1/tenants/default", json={"name": f"{MARK}-house"})
        hook = self._make("/v1/webhooks", json={"url": f"https://93.184.216.34/{MARK}"})["id"]
        self.places: dict[str, Any] = {
            "job_id": job,
            "export_id": export,
            "file_id": feed,
            "upload_id": self._make("/v1/uploads", json=upload)["id"],
            "batch_id": self._make("/v1/batches", json=batch)["id"],
            "view_id": self._make("/v1/views", json=view)["id"],
            "action_id": self._make("/v1/jobs/actions", json={"action": "cancel", "label": f"team:{MARK}"})["id"],
            "webhook_id": hook,
            "delivery_id": self._make(f"/v1/webhooks/{hook}/test")["id"],
            "term_id": self._make("/v1/policy/terms", json={"term": f"{MARK} gore"})["id"],
            "key_id": self._make("/v1/keys", json={"name": MARK, "scopes": ["view"]})["id"],
            "tenant_id": f"{MARK}-tenant",
            "dataset": f"{MARK}-mugs",
            "dataset_id": self._dataset_id(),
            "schedule": f"{MARK}-nightly",
            "catalogue": f"{MARK}-shop",
            "run_id": run,
            "worker_id": "worker-a",
            "name": "simulated",
            "version": 1,
            "variant": "front",
            "index": 0,
            "number": 0,
            "path": api.http.get(f"/v1/exports/{export}/files").json()["data"][0]["path"],
        }
        work()
        self._make("/v1/jobs", json={"images": images, "labels": label})
        with api.database.begin_system() as connection:
            numbering.number(connection)
            deriving.derive(connection)
            sealing.seal(connection)
        card = dataclasses.replace(factories.CARD, license=licenses.named("creativeml-openrail-m"))
        factories.register(api.database, card)
        self.ids = [str(value) for name, value in self.places.items() if name.endswith("_id") and name != "worker_id"]

    def _make(self, path: str, **parts: Any) -> Any:
        answer = self._api.http.post(path, **parts)
        assert answer.status_code < 300, (path, answer.text)
        return answer.json()

    def _dataset_id(self) -> str:
        found = self._api.http.get(f"/v1/datasets/{MARK}-mugs/versions/1/files").json()["data"]
        return str(found[0]["url"]).partition("/dataset-files/")[2].partition("/")[0]

    def reads(self) -> dict[str, str]:
        """What the owner sees of all its things, but for what changes by itself."""
        return {path: self._api.http.get(path).text for path in (
            f"/v1/jobs/{self.places['job_id']}/marks", f"/v1/schedules/{MARK}-nightly", f"/v1/datasets/{MARK}-mugs",
            f"/v1/catalogues/{MARK}-shop", "/v1/views", "/v1/files", "/v1/batches", f"/v1/tenants/{MARK}-tenant",
        )}  # fmt: skip


@pytest.fixture
def owner(api: Api, store: S3Store) -> Owner:
    return Owner(api, store)


@pytest.fixture
def stranger(api: Api) -> Iterator[httpx.Client]:
    _, key = api.new_tenant("other")
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=api.url, headers=headers, timeout=30, trust_env=False) as http:
        yield http


def operations(api: Api) -> list[tuple[str, str, str]]:
    """Method, path and name of every operation that takes a key."""
    return [
        (method.upper(), path, operation["operationId"])
        for path, methods in create_app(api.settings).openapi()["paths"].items()
        for method, operation in methods.items()
        if "security" in operation
    ]


def answered(http: httpx.Client, method: str, path: str, **parts: Any) -> tuple[int, str]:
    """The status and the text; of a stream what comes until nothing more does for a second: its next sign of life comes
    after fifteen."""
    with http.stream(method, path, **parts) as answer:
        if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
            return answer.status_code, answer.read().decode("utf-8", "replace")
        answer.request.extensions["timeout"]["read"] = 1.0
        lines: list[str] = []
        with suppress(httpx.ReadTimeout):
            lines.extend(answer.iter_lines())
        assert lines, "a stream begins with what there is"
        return answer.status_code, "\n".join(lines)


def events_of(api: Api, tenant: int) -> int:
    with api.database.begin_system() as connection:
        asked = text("SELECT count(*) FROM events WHERE tenant_id = :tenant AND kind NOT LIKE 'job.%'")
        return int(connection.execute(asked, {"tenant": tenant}).scalar_one())


def test_every_route_answers_404_for_anothers_ids_and_changes_nothing(
    api: Api, owner: Owner, stranger: httpx.Client
) -> None:
    before, told = owner.reads(), events_of(api, 1)
    tried, own = [], []
    for method, path, name in operations(api):
        if "{" not in path:
            continue
        address = path.format(**owner.places)
        if name in OWN:
            own.append((method, address, name))
            continue
        answer = stranger.request(method, address, **PARTS.get(name, {}))
        assert answer.status_code == UNKNOWN, (name, answer.status_code, answer.text)
        assert MARK not in answer.text.replace(address, "").replace(f"{MARK}-", ""), (name, answer.text)
        tried.append(name)
    assert len(tried) > 60
    assert set(PARTS) <= set(tried), "PARTS names an operation that there is not"
    for method, address, name in own:  # last of all, since the stranger has things of these names from here on
        assert stranger.request(method, address, **OWN[name]).status_code < 300, name
    assert (owner.reads(), events_of(api, 1)) == (before, told)


def test_the_owner_finds_what_the_stranger_does_not(api: Api, owner: Owner) -> None:
    """So that each 404 of the matrix is about whose it is. What the address names is there for its owner."""
    lost = []
    for method, path, name in operations(api):
        if "{" in path and method == "GET" and name not in ("read_dataset_file", "show_tenant_deletion"):
            status, _ = answered(api.http, method, path.format(**owner.places), **PARTS.get(name, {}))
            if status >= 400:
                lost.append((name, status))
    assert lost == []


def test_no_listing_shows_anything_of_anothers(api: Api, owner: Owner, stranger: httpx.Client) -> None:
    with api.database.begin_system() as connection:
        sealing.seal(connection)  # as schedulers do, before which the trail shows nothing
    tried, empty = set(), set()
    for method, path, name in operations(api):
        if method != "GET" or "{" in path:
            continue
        status, shown = answered(stranger, method, path, **LISTED.get(name, {}))
        assert status == 200, (name, shown)
        for secret in (MARK, *owner.ids):
            assert secret not in shown, (name, secret)
        _, own = answered(api.http, method, path, **LISTED.get(name, {}))
        if not any(secret in own for secret in (MARK, *owner.ids)):
            empty.add(name)
        tried.add(name)
    assert len(tried) >= 20
    assert empty <= NAMELESS, "of these listings the owner sees nothing, so they prove nothing"


def test_ids_in_a_body_that_are_anothers_are_unknown_and_nothing_is_made_of_them(
    api: Api, owner: Owner, stranger: httpx.Client
) -> None:
    places, jobs = owner.places, "SELECT count(*) FROM jobs WHERE tenant_id <> 1"
    order = {"input_file_id": places["file_id"], "endpoint": "/v1/images/generations", "completion_window": "24h"}
    assert stranger.put("/v1/catalogues/mine", json=cataloguing.DEFINITION).status_code < 300
    image = {"prompt": "a", "strength": 0.5}
    for path, method, body in (
        ("/v1/batches", "POST", order),
        ("/v1/jobs", "POST", {"images": [image | {"image": places["file_id"]}]}),
        ("/v1/jobs", "POST", {"images": [image | {"image": f"{places['job_id']}/0"}]}),
        ("/v1/datasets", "POST", {"name": "mine", "jobs": [places["job_id"]]}),
        ("/v1/schedules", "POST", {"name": "mine", "cron": "0 1 * * *", "target": {"catalogue": f"{MARK}-shop"}}),
        ("/v1/catalogues/mine/file", "PUT", {"file_id": places["file_id"]}),
    ):
        answer = stranger.request(method, path, json=body)
        assert answer.status_code in (400, 404, 422), (path, answer.status_code, answer.text)
        assert f"a {MARK}" not in answer.text
    act = stranger.post("/v1/jobs/actions/preview", json={"action": "delete", "label": f"team:{MARK}"})
    assert act.status_code == 200 and act.json()["jobs"] == 0
    with api.database.begin_system() as connection:
        assert connection.execute(text(jobs)).scalar_one() == 0


def test_a_new_parameter_of_a_path_needs_a_value_here(api: Api, owner: Owner) -> None:
    named = {part.strip("{}") for _, path, _ in operations(api) for part in path.split("/") if part.startswith("{")}
    assert named <= set(owner.places), "give each a value of the owner's in `places`"
    assert set(itertools.chain(OWN, LISTED, PARTS)) <= {name for _, _, name in operations(api)}
