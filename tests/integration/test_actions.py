"""The action log: every act is an event with its actor, and nobody can change one."""

import dataclasses
import getpass
import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.api.app import create_app
from services.api.scopes import NEEDED
from services.cli.app import app
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, versions
from services.core.db import tables
from services.core.events import numbering
from services.core.jobs import lifecycle
from services.core.model import licenses
from services.core.model.scopes import Scope
from services.core.model.specs import FailedImage
from services.core.storage import installation
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from services.local.stack import Stack
from tests import cataloguing, exporting, factories
from tests.web import Api

RECORD_NOTHING = {"preview_job", "estimate_job", "preview_jobs_action", "create_sign_in_link", "check_policy"}
PARTS = {"append_chunk", "add_part"}  # of an act that other events begin and end: one a megabyte would bury the rest
# What takes the scope to operate, and is no administration: reviewing, many times a minute.
DAILY = {"mark_images"}
UPLOAD = {"filename": "a.jsonl", "purpose": "batch", "bytes": 2, "mime_type": "application/jsonl"}
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a"}}\n'


class Acts:
    """Does one operation after the other, and checks that each is an event of the key that asked."""

    def __init__(self, api: Api) -> None:
        self._api, self.done, self.trailed = api, set[str](), set[str]()
        self._actor = f"key/{api_keys.id_of(api.key)}"

    def do(self, operation: str, method: str, path: str, **parts: Any) -> Any:
        before = self._last()
        answer = self._api.http.request(method, path, **parts)
        assert answer.status_code < 300, (operation, answer.text)
        if operation not in PARTS:
            told = self._since(before)
            assert told and {actor for actor, _ in told} == {self._actor}, (operation, told)
            if {kind for _, kind in told}.difference(tables.PROGRESS, tables.WORK):
                self.trailed.add(operation)
        self.done.add(operation)
        return answer.json() if answer.content else None

    def _last(self) -> int:
        with self._api.database.begin_system() as connection:
            return int(connection.execute(text("SELECT coalesce(max(id), 0) FROM events")).scalar_one())

    def _since(self, before: int) -> list[tuple[str, str]]:
        with self._api.database.begin_system() as connection:
            rows = connection.execute(text("SELECT actor, kind FROM events WHERE id > :id"), {"id": before})
            return [(row.actor, row.kind) for row in rows]


def ended_job(api: Api, store: S3Store, acts: Acts) -> str:
    """One that has ended, with an image done and one that failed."""
    job = acts.do("submit_job", "POST", "/v1/jobs", json={"images": [{"prompt": "a", "n": 2}]})["id"]
    claim = factories.claim(api.database)
    assert claim is not None
    stored = factories.stored(claim, exporting.picture(0))[:1]
    store.put(stored[0].object_key, exporting.picture(0), "image/png", {}, claim_id=claim.id)
    failed = FailedImage(claim.images[1].job_id, claim.images[1].index, "error", "It broke.")
    factories.settle(api.database, claim, stored=stored, failed=[failed])
    with api.database.begin_system() as connection:
        lifecycle.finish(connection)
    return str(job)


def test_every_operation_that_changes_something_is_an_event_with_the_key_as_actor(api: Api, store: S3Store) -> None:  # noqa: PLR0915  one act after the other
    acts = Acts(api)
    ended = ended_job(api, store, acts)
    acts.do("mark_images", "PUT", f"/v1/jobs/{ended}/marks", json={"mark": "accepted", "indexes": [0]})
    retried = acts.do("retry_job", "POST", f"/v1/jobs/{ended}/retry")["id"]
    acts.do("change_job", "PATCH", f"/v1/jobs/{retried}", json={"labels": {"a": "b"}})
    acts.do("change_job", "PATCH", f"/v1/jobs/{retried}", json={"priority": "low"})
    for verb in ("pause", "resume", "cancel"):
        acts.do(f"{verb}_job", "POST", f"/v1/jobs/{retried}/{verb}")
    draft = acts.do("submit_job", "POST", "/v1/jobs", json={"draft": True})["id"]
    acts.do("append_chunk", "PUT", f"/v1/jobs/{draft}/chunks/0", json={"images": [{"prompt": "a"}]})
    acts.do("finalize_draft", "POST", f"/v1/jobs/{draft}/finalize", json={"chunks": 1})
    export = acts.do("create_export", "POST", f"/v1/jobs/{ended}/exports", json={"format": "zip"})["id"]
    acts.do("cancel_export", "POST", f"/v1/exports/{export}/cancel")
    acts.do("delete_export", "DELETE", f"/v1/exports/{export}")
    acts.do(
        "generate_images", "POST", "/v1/images/generations", json={"prompt": "a"}, headers={"Prefer": "respond-async"}
    )
    acts.do(
        "edit_image", "POST", "/v1/images/edits", data={"prompt": "a"}, headers={"Prefer": "respond-async"},
        files={"image": ("a.png", exporting.picture(0))},
    )  # fmt: skip
    _do_datasets(acts, ended)
    file = acts.do("create_file", "POST", "/v1/files", files={"file": ("a", LINE)}, data={"purpose": "batch"})["id"]
    order = {"input_file_id": file, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    batch = acts.do("create_batch", "POST", "/v1/batches", json=order)["id"]
    acts.do("cancel_batch", "POST", f"/v1/batches/{batch}/cancel")
    acts.do("delete_file", "DELETE", f"/v1/files/{file}")
    upload = acts.do("create_upload", "POST", "/v1/uploads", json=UPLOAD)["id"]
    part = acts.do("add_part", "POST", f"/v1/uploads/{upload}/parts", files={"data": ("a", b"{}")})["id"]
    acts.do("complete_upload", "POST", f"/v1/uploads/{upload}/complete", json={"part_ids": [part]})
    upload = acts.do("create_upload", "POST", "/v1/uploads", json=UPLOAD)["id"]
    acts.do("cancel_upload", "POST", f"/v1/uploads/{upload}/cancel")
    acts.do("delete_job", "DELETE", f"/v1/jobs/{ended}")
    many = acts.do("act_on_jobs", "POST", "/v1/jobs/actions", json={"action": "cancel"})["id"]
    acts.do("stop_jobs_action", "POST", f"/v1/jobs/actions/{many}/stop")
    _do_webhooks(acts)
    view = acts.do("save_view", "POST", "/v1/views", json={"page": "jobs", "name": "a", "query": ""})["id"]
    acts.do("change_view", "PATCH", f"/v1/views/{view}", json={"name": "b"})
    acts.do("delete_view", "DELETE", f"/v1/views/{view}")
    _do_policy(api, acts)
    nightly = {"cron": "0 1 * * *", "target": {"job": {"images": [{"prompt": "a"}]}}}
    acts.do("create_schedule", "POST", "/v1/schedules", json={"name": "nightly", **nightly})
    acts.do("put_schedule", "PUT", "/v1/schedules/nightly", json={**nightly, "timezone": "Europe/Berlin"})
    acts.do("change_schedule", "PATCH", "/v1/schedules/nightly", json={"paused": True})
    acts.do("run_schedule", "POST", "/v1/schedules/nightly/run")
    acts.do("delete_schedule", "DELETE", "/v1/schedules/nightly")
    key = acts.do("create_key", "POST", "/v1/keys", json={"name": "another"})["id"]
    with api.database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (77, 'agency')"))
    acts.do("delete_tenant", "DELETE", "/v1/tenants/agency?confirm=agency")
    acts.do("change_retention", "PATCH", "/v1/retention", json={"objects": 30})
    acts.do("revoke_key", "DELETE", f"/v1/keys/{key}")
    acts.do("create_tenant", "POST", "/v1/tenants", json={"name": "acme"})
    acts.do("change_tenant", "PATCH", "/v1/tenants/acme", json={"weight": 2})
    key = acts.do("create_tenant_key", "POST", "/v1/tenants/acme/keys", json={"name": "theirs"})["id"]
    acts.do("revoke_tenant_key", "DELETE", f"/v1/tenants/acme/keys/{key}")
    _do_catalogues(api, acts)
    for verb in ("drain", "resume"):
        acts.do(f"{verb}_worker", "POST", f"/v1/workers/worker-a/{verb}")
    document = create_app(api.settings).openapi()
    changing = {
        operation["operationId"]
        for methods in document["paths"].values()
        for method, operation in methods.items()
        if method != "get"
    }
    assert acts.done == changing - RECORD_NOTHING | {"show_webhook_secret"}
    administrative = {name for name, scope in NEEDED.items() if scope in (Scope.OPERATE, Scope.ADMIN)}
    assert administrative & acts.done - acts.trailed == DAILY


def _do_policy(api: Api, acts: Acts) -> None:
    term = acts.do("add_policy_term", "POST", "/v1/policy/terms", json={"term": "gore"})["id"]
    acts.do("remove_policy_term", "DELETE", f"/v1/policy/terms/{term}")
    card = dataclasses.replace(factories.CARD, license=licenses.named("creativeml-openrail-m"))
    factories.register(api.database, card)
    acts.do("accept_license", "POST", "/v1/models/simulated/license/accept")
    factories.register(api.database)


def _do_webhooks(acts: Acts) -> None:
    hook = acts.do("create_webhook", "POST", "/v1/webhooks", json={"url": "https://93.184.216.34/"})["id"]
    place = f"/v1/webhooks/{hook}"
    for enabled in (False, True):
        acts.do("change_webhook", "PATCH", place, json={"enabled": enabled})
    sent = acts.do("test_webhook", "POST", f"{place}/test")["id"]
    acts.do("redeliver", "POST", f"{place}/deliveries/{sent}/redeliver")
    acts.do("show_webhook_secret", "GET", f"{place}/secret")
    acts.do("rotate_webhook_secret", "POST", f"{place}/rotate")
    acts.do("delete_webhook", "DELETE", place)


def _do_datasets(acts: Acts, job: str) -> None:
    place = "/v1/datasets/mugs"
    acts.do("create_dataset", "POST", "/v1/datasets", json={"name": "mugs", "jobs": [job]})
    acts.do("change_dataset", "PATCH", place, json={"filters": {"marks": ["accepted"]}})
    for operation, path in (("add_sources", "sources"), ("remove_sources", "sources/remove")):
        acts.do(operation, "POST", f"{place}/{path}", json={"labels": ["run:a"]})
    version = acts.do("export_dataset", "POST", f"{place}/versions", json={"while_running": True})["version"]
    acts.do("cancel_dataset_version", "POST", f"{place}/versions/{version}/cancel")
    acts.do("delete_dataset_version", "DELETE", f"{place}/versions/{version}")
    acts.do("delete_dataset", "DELETE", place)


def _do_review(api: Api, acts: Acts, place: str) -> None:
    factories.register(api.database)
    store = S3Store(api.settings)
    api.http.put(place, json=cataloguing.DEFINITION | {"publish": {"review": "changed"}})
    for title in ("red", "pink"):
        cataloguing.tend(api.database, api.settings, store)
        feed = {"file": ("shop.csv", f"sku,title\na,{title}".encode())}
        file = api.http.post("/v1/files", files=feed, data={"purpose": "batch"}).json()["id"]
        api.http.put(f"{place}/file", json={"file_id": file})
        run = api.http.post(f"{place}/runs").json()["id"]
        cataloguing.tend(api.database, api.settings, store)
        cataloguing.render(api.database, store)
        cataloguing.tend(api.database, api.settings, store)
    acts.do("redraw_changes", "POST", f"{place}/runs/{run}/redraw", json={"indexes": [0]})


def _do_catalogues(api: Api, acts: Acts) -> None:
    place, form = "/v1/catalogues/shop", {"files": {"file": ("shop.csv", b"sku")}, "data": {"purpose": "batch"}}
    acts.do("put_catalogue", "PUT", place, json=cataloguing.DEFINITION)
    file = acts.do("create_file", "POST", "/v1/files", **form)["id"]
    acts.do("set_catalogue_file", "PUT", f"{place}/file", json={"file_id": file})
    run = acts.do("run_catalogue", "POST", f"{place}/runs")["id"]
    with api.database.begin_system() as connection:
        catalogue = catalogues.find(connection, factories.TENANT, "shop")
        catalogues.begin_version(connection, catalogue.id)
        versions.add(connection, catalogue.id, 1, runs.parse_id(run), images=0, size=0, manifests={})
    acts.do("publish_version", "POST", f"{place}/publish", json={"version": 1})
    acts.do("cancel_run", "POST", f"{place}/runs/{run}/cancel")
    _do_review(api, acts, "/v1/catalogues/reviewed")
    acts.do("delete_catalogue", "DELETE", place)


@pytest.fixture
def two(api: Api) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Two keys of the tenant: the night shift's and the day shift's."""
    with api.database.begin_system() as connection:
        secret = api.settings.secret
        made = [api_keys.issue_key(connection, secret, factories.TENANT, name) for name in ("night", "day")]
    night, day = (
        httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False) for key in made
    )
    with night, day:
        yield night, day


def listed(api: Api, **asked: Any) -> list[dict[str, Any]]:
    with api.database.begin_system() as connection:
        numbering.number(connection)
    answer = api.http.get("/v1/actions", params=asked)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def test_the_log_says_who_did_what_newest_first(api: Api, two: tuple[httpx.Client, httpx.Client]) -> None:
    night, day = two
    job = night.post("/v1/jobs", json={"images": [{"prompt": "a"}]}).json()["id"]
    day.post(f"/v1/jobs/{job}/pause")
    night.post(f"/v1/jobs/{job}/resume")
    day.post(f"/v1/jobs/{job}/cancel")
    found = listed(api, job=job)
    assert [(one["actor_name"], one["verb"], one["subject_type"], one["subject"]) for one in found] == [
        ("day", "job.cancel_requested", "job", job),
        ("night", "job.resumed", "job", job),
        ("day", "job.paused", "job", job),
        ("night", "job.created", "job", job),
    ]
    assert listed(api, actor=found[0]["actor"], job=job) == [found[0], found[2]]
    assert listed(api, verb="job.paused") == [found[2]]
    assert listed(api, job="job_0000000000000") == []
    issued = listed(api, verb="key.issued")
    assert [one["data"]["name"] for one in issued] == ["day", "night", "test"]
    assert {one["actor"] for one in issued} == {"tests"}  # the program that the tests are
    pages, cursor = [], None
    while True:
        asked = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = api.http.get("/v1/actions", params=asked).json()
        pages += page["data"]
        if (cursor := page["next_cursor"]) is None:
            break
    assert pages == listed(api) and len(pages) == 7
    _, stranger = api.new_tenant("other")
    theirs = httpx.get(f"{api.url}/v1/actions?verb=job.paused", headers={"Authorization": f"Bearer {stranger}"})
    assert theirs.json()["data"] == []


def test_acts_are_found_by_their_time(api: Api, stack: Stack) -> None:
    """Numbers follow the time but for long transactions: one of half an hour stands among later ones."""
    ages = [50, 40, 30, 20.5, 20, 10, 0]  # hours ago, in the order of their numbers
    ages.insert(3, 21)
    owner = f"{stack.superuser_url.rpartition('/')[0]}/{api.settings.database_url.rpartition('/')[2]}"
    with psycopg.connect(owner.replace("+psycopg", "")) as connection:
        for nth, age in enumerate(ages):
            connection.execute(
                "INSERT INTO events (tenant_id, actor, kind, subject, data, at) VALUES "
                "(%s, 'cli/me', 'job.paused', %s, '{}', now() - make_interval(mins => %s))",
                (factories.TENANT, f"job/{nth}", int(age * 60)),
            )
    now = datetime.now(UTC)

    def ages_of(**asked: timedelta) -> list[float]:
        given = {name: (now - age).isoformat() for name, age in asked.items()}
        found = listed(api, verb="job.paused", **given)
        return [round((now - datetime.fromisoformat(one["at"])).total_seconds() / 1800) / 2 for one in found]

    hours = lambda count: timedelta(hours=count)  # noqa: E731
    assert sorted(ages_of()) == sorted(ages)
    assert ages_of(since=hours(20.25)) == [0, 10, 20]
    assert ages_of(until=hours(20.75)) == [21, 30, 40, 50]
    assert ages_of(since=hours(35), until=hours(20.75)) == [21, 30]
    assert ages_of(since=hours(5), until=hours(1)) == [] == ages_of(since=-hours(1)) == ages_of(until=hours(99))


def test_what_cannot_be_looked_for_is_refused(api: Api) -> None:
    for asked in (
        {"job": "job_1"},
        {"job": "nothing"},
        {"limit": 0},
        {"actor": "x" * 201},
        {"since": "2026-11-26"},
        {"until": "now"},
    ):
        answer = api.http.get("/v1/actions", params=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_parameter"), asked


def test_a_key_made_by_the_command_names_the_user_who_ran_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = api.settings
    for name, value in {
        "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "PRESSWORK_SECRET": settings.secret,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "PRESSWORK_URL": api.url, "PRESSWORK_API_KEY": api.key,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    made = CliRunner().invoke(app, ["keys", "create", "by hand"])
    assert made.exit_code == 0, made.output
    [newest] = listed(api, limit=1)
    assert (newest["actor"], newest["verb"], newest["data"]["name"]) == (
        f"cli/{getpass.getuser()}", "key.issued", "by hand",
    )  # fmt: skip
    shown = CliRunner().invoke(app, ["actions", "--verb", "key.issued"])
    assert shown.exit_code == 0 and "by hand" in shown.output and newest["actor"] in shown.output
    assert "by hand" in CliRunner().invoke(app, ["actions", "--since", "12h"]).output
    assert CliRunner().invoke(app, ["actions", "--actor", "nobody"]).exit_code == 0


# Commands that act in the database itself, and the events that they leave. Every other one asks the server, whose
# operations the test above goes through, or touches this machine alone.
IN_THE_DATABASE = {
    "keys create": (["keys", "create", "by hand"], "key.issued"),
    "keys revoke": (["keys", "revoke", "KEY"], "key.revoked"),
    "tenants create": (["tenants", "create", "acme"], "tenant.created"),
    "tenants set": (["tenants", "set", "acme", "--weight", "2"], "tenant.changed"),
    "backup check": (["backup", "check"], "storage.audited"),
    "storage audit": (["storage", "audit", "--no-wait"], "storage.audit_requested"),
}
READ_THERE = {"keys list", "tenants list", "tenants show", "storage show", "doctor"}
OF_THE_OWNER = {"migrate"}  # alembic_version says what it did
TRIED_ALONE = {"model move"}  # test_model_moves.py


def _commands_in_the_database() -> set[str]:
    """Those whose own code, or what it calls in its module, opens a database."""
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    found = set()
    for name, one in [("", app), *groups.items()]:
        for command in one.registered_commands if one else ():
            function = inspect.unwrap(command.callback) if command.callback else None
            words = f"{name} {command.name or getattr(function, '__name__', '')}".strip()
            source = inspect.getsource(function) if function else ""
            if re.search(r"\bdatabase\b|\bDatabase\b|doctor as", source.partition('"""')[2].partition('"""')[2]):
                found.add(words)
    return found


def test_every_command_that_acts_in_the_database_is_an_event_of_the_user_who_ran_it(
    api: Api, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _commands_in_the_database() == {*IN_THE_DATABASE, *READ_THERE, *OF_THE_OWNER, *TRIED_ALONE}
    settings = api.settings
    for name, value in {
        "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "PRESSWORK_SECRET": settings.secret,
        "AWS_ENDPOINT_URL": settings.s3_endpoint_url, "AWS_ACCESS_KEY_ID": settings.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": settings.s3_secret_key, "PRESSWORK_BUCKET": settings.bucket,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    installation.claim_prefix(api.database, store)  # as a worker does
    runs = [
        *IN_THE_DATABASE.values(),
        (["storage", "audit", "--no-wait", "--accept-restore"], "storage.restore_accepted"),
    ]
    key = ""
    for words, kind in runs:
        made = CliRunner().invoke(app, [key if word == "KEY" else word for word in words])
        assert made.exit_code in (0, 3), (words, made.output)  # 3: objects of other tests are in the bucket
        key = api_keys.id_of(made.output.strip()) if words[:2] == ["keys", "create"] else key
        with api.database.begin_system() as connection:
            newest = connection.execute(text("SELECT actor, kind FROM events ORDER BY id DESC LIMIT 1")).one()
        assert (newest.actor, newest.kind) == (f"cli/{getpass.getuser()}", kind), words


def test_no_program_may_change_or_delete_an_event(api: Api) -> None:
    roles = ("presswork_app", "presswork_tenant", "presswork_web", "presswork_scheduler", "presswork_worker")
    with api.database.begin_system() as connection:
        for role in roles:
            for right in ("UPDATE", "DELETE", "TRUNCATE"):
                values = {"role": role, "right": right}
                asked = text("SELECT has_table_privilege(:role, 'events', :right)")
                assert connection.execute(asked, values).scalar_one() is False, values
            columns = text("SELECT has_any_column_privilege(:role, 'events', 'UPDATE')")
            assert connection.execute(columns, {"role": role}).scalar_one() is False, role
