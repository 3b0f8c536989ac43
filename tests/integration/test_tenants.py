"""Tenants over HTTP and by the command: made, changed and suspended, their keys, and what others see of them."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.cli import tenant_deletion
from services.cli.app import app
from services.core.events import numbering
from services.core.model.scopes import Scope
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from tests import factories
from tests.rendering import scheduling
from tests.web import Api


def ask(api: Api, key: str, method: str, path: str, **parts: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(method, api.url + path, headers=headers, trust_env=False, timeout=30, **parts)


def refused(answer: httpx.Response) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["message"]


@pytest.fixture
def command(api: Api, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    settings = api.settings
    for name, value in {
        "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "PRESSWORK_SECRET": settings.secret,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_a_tenant_is_made_changed_and_found_by_id_and_by_name(api: Api) -> None:
    asked = {"name": "acme", "weight": 2, "quotas": {"images_queued": 100, "bytes_stored": None}}
    made = api.http.post("/v1/tenants", json=asked)
    assert made.status_code == 201, made.text
    acme = made.json()
    assert (acme["name"], acme["weight"], acme["state"], acme["operator"]) == ("acme", 2, "active", False)
    assert {name: limit for name, limit in acme["quotas"].items() if limit is not None} == {"images_queued": 100}
    assert acme["usage"] == {
        "images_queued": 0, "images_in_flight": 0, "bytes_stored": 0, "bytes_spooled": 0, "device_seconds_today": 0,
    }  # fmt: skip
    for name in ("acme", acme["id"]):
        assert api.http.get(f"/v1/tenants/{name}").json() == acme
    changes = {"name": "acme-2", "weight": 0.5, "quotas": {"images_queued": None, "images_in_flight": 4}}
    changed = api.http.patch(f"/v1/tenants/{acme['id']}", json=changes).json()
    assert (changed["name"], changed["weight"]) == ("acme-2", 0.5)
    assert {name: limit for name, limit in changed["quotas"].items() if limit is not None} == {"images_in_flight": 4}
    assert [one["name"] for one in api.http.get("/v1/tenants").json()["data"]] == ["default", "acme-2"]
    assert api.http.get("/v1/tenants/acme").status_code == 404
    first = api.http.get("/v1/tenants", params={"limit": 1}).json()
    assert [one["operator"] for one in first["data"]] == [True]
    second = api.http.get("/v1/tenants", params={"limit": 1, "cursor": first["next_cursor"]}).json()
    assert ([one["name"] for one in second["data"]], second["next_cursor"]) == (["acme-2"], None)


def test_each_act_on_a_tenant_is_an_event_of_the_operators(api: Api) -> None:
    asked = {"name": "acme", "quotas": {"images_queued": 9}}
    tenant = api.http.post("/v1/tenants", json=asked).json()["id"]
    quotas = {"images_queued": None, "bytes_stored": 5}
    for changes in ({"weight": 3, "quotas": quotas}, {"state": "suspended"}, {"state": "active"}, {"state": "active"}):
        assert api.http.patch(f"/v1/tenants/{tenant}", json=changes).status_code == 200
    with api.database.begin_system() as connection:
        found = connection.execute(
            text("SELECT kind, actor, tenant_id, data FROM events WHERE subject LIKE 'tenant/%' ORDER BY id")
        ).all()
    actor = f"key/{api_keys.id_of(api.key)}"
    assert [tuple(row) for row in found] == [
        ("tenant.created", actor, factories.TENANT, {"name": "acme", "set": "images_queued=9"}),
        (
            "tenant.changed",
            actor,
            factories.TENANT,
            {"name": "acme", "set": "weight=3, images_queued=none, bytes_stored=5"},
        ),
        ("tenant.suspended", actor, factories.TENANT, {"name": "acme"}),
        ("tenant.activated", actor, factories.TENANT, {"name": "acme"}),
    ]
    with api.database.begin_system() as connection:
        numbering.number(connection)
    listed = api.http.get("/v1/actions", params={"limit": 4}).json()["data"]
    assert [(one["verb"], one["subject_type"], one["subject"]) for one in listed] == [
        (f"tenant.{verb}", "tenant", tenant) for verb in ("activated", "suspended", "changed", "created")
    ]


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({}, "name", "name is missing; it must be 1 to 63 lower-case letters"),
        ({"name": "Acme Inc"}, "name", 'name is "Acme Inc"; it must be 1 to 63 lower-case letters'),
        ({"name": "a", "weight": 0}, "weight", "weight is 0; it must be a number from 0.01 to 100"),
        ({"name": "a", "quotas": {"images_queued": -1}}, "quotas.images_queued", "a whole number from 0 to"),
        ({"name": "a", "quotas": {"images_queued": 1.5}}, "quotas.images_queued", "a whole number from 0 to"),
        ({"name": "a", "quotas": {"images_in_flight": 0}}, "quotas.images_in_flight", "a whole number from 1 to"),
        ({"name": "a", "quotas": {"requests_per_second": 0}}, "quotas.requests_per_second", "a number from 0.01 to"),
        ({"name": "a", "quotas": {"bytes_stored": 2**61}}, "quotas.bytes_stored", "or null for no limit"),
        ({"name": "a", "quotas": {"bytes": 1}}, "quotas.bytes", "bytes"),
    ],
)
def test_what_no_tenant_can_be_is_refused_with_what_would_do(api: Api, body: Any, param: str, said: str) -> None:
    answer = api.http.post("/v1/tenants", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, param), answer.text
    assert said in answer.json()["error"]["message"]


def test_a_name_that_is_taken_and_one_that_looks_like_an_id_are_refused(api: Api) -> None:
    assert api.http.post("/v1/tenants", json={"name": "acme"}).status_code == 201
    message = "There is a tenant acme already; give this one another name."
    assert refused(api.http.post("/v1/tenants", json={"name": "acme"})) == (409, "name_taken", message)
    assert refused(api.http.patch("/v1/tenants/default", json={"name": "acme"})) == (409, "name_taken", message)
    assert refused(api.http.post("/v1/tenants", json={"name": "tenant_1"}))[:2] == (409, "invalid_name")
    assert refused(api.http.patch("/v1/tenants/default", json={"state": "suspended"}))[:2] == (409, "operator")


def test_an_administrator_of_another_tenant_sees_its_own_and_changes_none(api: Api) -> None:
    api.http.post("/v1/tenants", json={"name": "acme"})
    _, key = api.new_tenant("other")
    assert [one["name"] for one in ask(api, key, "GET", "/v1/tenants").json()["data"]] == ["other"]
    assert ask(api, key, "GET", "/v1/tenants/other").json()["name"] == "other"
    for path in ("/v1/tenants/acme", "/v1/tenants/default", "/v1/tenants/acme/keys", "/v1/tenants/nobody"):
        assert ask(api, key, "GET", path).status_code == 404, path
    assert ask(api, key, "PATCH", "/v1/tenants/acme", json={"weight": 9}).status_code == 404
    assert ask(api, key, "POST", "/v1/tenants/acme/keys", json={"name": "mine"}).status_code == 404
    assert refused(ask(api, key, "PATCH", "/v1/tenants/other", json={"weight": 9}))[:2] == (403, "not_operator")
    assert refused(ask(api, key, "POST", "/v1/tenants", json={"name": "more"}))[:2] == (403, "not_operator")
    assert ask(api, key, "POST", "/v1/tenants/other/keys", json={"name": "mine"}).status_code == 201


def test_the_fleet_is_the_operators(api: Api) -> None:
    _, key = api.new_tenant("other")
    shown = ask(api, key, "GET", "/v1/workers").json()
    assert (shown["data"], [kind["idle"] for kind in shown["devices"]]) == ([], [1])
    for verb in ("drain", "resume"):
        assert ask(api, key, "POST", f"/v1/workers/worker-a/{verb}").status_code == 404
    assert api.http.get("/v1/workers").json()["data"][0]["drained"] is False


def test_two_keys_of_a_tenant_hold_while_one_takes_the_others_place(api: Api) -> None:
    api.http.post("/v1/tenants", json={"name": "acme"})
    old, new = (
        api.http.post("/v1/tenants/acme/keys", json={"name": name, "scopes": ["view"], "expires_in_seconds": 3600})
        for name in ("old", "new")
    )
    assert [old.status_code, new.status_code] == [201, 201]
    for made in (old, new):
        assert ask(api, made.json()["key"], "GET", "/v1/usage").json()["tenant"] == "acme"
    revoked = api.http.delete(f"/v1/tenants/acme/keys/{old.json()['id']}")
    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
    assert refused(ask(api, old.json()["key"], "GET", "/v1/usage"))[:2] == (401, "revoked_api_key")
    assert ask(api, new.json()["key"], "GET", "/v1/usage").status_code == 200
    listed = api.http.get("/v1/tenants/acme/keys").json()["data"]
    assert [(key["name"], key["status"]) for key in listed] == [("old", "revoked"), ("new", "active")]
    assert api.http.delete(f"/v1/tenants/default/keys/{old.json()['id']}").status_code == 404  # it is not the default's


def test_a_suspended_tenant_reads_cancels_and_deletes_and_has_nothing_new_rendered(api: Api) -> None:
    number, key = api.new_tenant("other")
    job = ask(api, key, "POST", "/v1/jobs", json={"images": [{"prompt": "a"}]}).json()["id"]
    assert api.http.patch("/v1/tenants/other", json={"state": "suspended"}).json()["state"] == "suspended"
    status, code, message = refused(ask(api, key, "POST", "/v1/jobs", json={"images": [{"prompt": "a"}]}))
    assert (status, code) == (403, "tenant_suspended")
    assert message == (
        "This tenant is suspended: it takes no new work until an administrator of the installation makes it active."
    )
    assert factories.claim(api.database) is None
    assert ask(api, key, "GET", f"/v1/jobs/{job}").json()["counts"]["queued"] == 1
    api.http.patch("/v1/tenants/other", json={"state": "active"})
    claim = factories.claim(api.database)
    assert claim is not None and {image.tenant_id for image in claim.images} == {number}
    api.http.patch("/v1/tenants/other", json={"state": "suspended"})
    assert ask(api, key, "POST", f"/v1/jobs/{job}/cancel").status_code == 200


def test_the_command_makes_lists_shows_and_changes_tenants(api: Api, command: Callable[..., Any]) -> None:
    made = command("tenants", "create", "acme", "--weight", "2", "--quota", "bytes_stored=500GiB", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["quotas"]["bytes_stored"] == 500 << 30
    assert command("tenants", "set", "acme", "--quota", "images_queued=1,000").exit_code == 0
    key = command("keys", "create", "theirs", "--tenant", "acme", "--scope", "view").stdout.strip()
    assert ask(api, key, "GET", "/v1/usage").json()["quotas"]["images_queued"] == 1_000
    assert key[:11] in command("keys", "list", "--tenant", "acme").stdout
    assert key[:11] not in command("keys", "list", "--tenant", "default").stdout
    shown = command("tenants", "show", "acme").stdout
    assert "images queued" in shown and "1,000" in shown and "500 GiB" in shown and "weight 2" in shown
    assert "500 GiB stored" in command("tenants", "list").stdout
    assert command("tenants", "set", "acme", "--quota", "bytes_stored=1.5 TB").exit_code == 0
    assert "1,500 GB" in command("tenants", "show", "acme").stdout
    assert command("tenants", "set", "acme", "--state", "suspended", "--quota", "images_queued=none").exit_code == 0
    found = json.loads(command("tenants", "show", "acme", "--json").stdout)
    assert (found["state"], found["quotas"]["images_queued"], found["usage"]["images_queued"]) == ("suspended", None, 0)
    for arguments, code, said in (
        (("create", "acme"), 5, "There is a tenant acme already"),
        (("create", "Acme"), 2, 'name is "Acme"; it must be'),
        (("set", "acme"), 2, "There is nothing to change"),
        (("set", "nobody", "--weight", "2"), 4, "There is no such tenant"),
        (("set", "acme", "--quota", "images=1"), 2, "it must be NAME=LIMIT"),
        (("set", "acme", "--quota", "images_queued=many"), 2, "it must be a whole number from 0"),
        (("set", "acme", "--quota", "images_in_flight=0"), 2, "it must be a whole number from 1"),
        (("set", "acme", "--quota", "images_queued=1,5"), 2, "it must be a whole number from 0"),
        (("set", "acme", "--quota", "device_seconds_per_day=1,5"), 2, "it must be a number from 0"),
        (("set", "acme", "--quota", "images_queued=null"), 2, "to 1000000000000, or none for no limit"),
        (("set", "acme", "--quota", "bytes_stored=5 GX"), 2, "such as 500GB or 500GiB, up to 1,048,576 TiB, or none"),
        (("set", "acme", "--quota", "bytes_stored=2000000TiB"), 2, "it must be bytes, such as 500GB"),
    ):
        result = command("tenants", *arguments)
        assert (result.exit_code, said in result.output.replace("\n", " ")) == (code, True), result.output


def test_the_command_deletes_a_tenant_that_is_named_twice_and_waits_for_it(
    api: Api, command: Callable[..., Any], store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRESSWORK_URL", api.url)
    monkeypatch.setenv("PRESSWORK_API_KEY", api.key)
    monkeypatch.setattr(tenant_deletion, "_LOOK_SECONDS", 0.05)
    _, key = api.new_tenant("agency")
    job = ask(api, key, "POST", "/v1/jobs", json={"images": [{"prompt": "a"}]}).json()["id"]
    wrong = CliRunner().invoke(app, ["tenants", "delete", "agency"], input="agnecy\n")
    assert wrong.exit_code == 2 and "nothing was deleted" in wrong.output
    assert ask(api, key, "GET", f"/v1/jobs/{job}").status_code == 200
    for arguments, code, said in (
        (("nobody", "--yes"), 4, "There is no tenant"),
        (("default", "--yes"), 5, "administers the others"),
    ):
        refusal = command("tenants", "delete", *arguments)
        assert (refusal.exit_code, said in refusal.output.replace("\n", " ")) == (code, True), refusal.output
    begun = command("tenants", "delete", "agency", "--yes", "--no-wait")
    assert begun.exit_code == 0 and "agency is being deleted" in begun.output, begun.output
    assert ask(api, key, "GET", f"/v1/jobs/{job}").status_code == 401
    again = command("tenants", "set", "agency", "--state", "active")
    assert again.exit_code == 5 and "being deleted" in again.output.replace("\n", " ")
    with scheduling(api.settings, store):
        done = command("tenants", "delete", "agency", "--yes", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["tenant"], found["images"], found["remains"]) == ("agency", 1, {})
    assert "agency" not in command("tenants", "list").stdout


def test_of_the_lanes_only_the_operators_administrators_see_every_tenants(api: Api) -> None:
    _, key = api.new_tenant("other")
    api.submit({"prompt": "a"})
    assert ask(api, key, "GET", "/v1/lanes").json()["data"] == []
    ask(api, key, "POST", "/v1/jobs", json={"images": [{"prompt": "a"}]})
    assert {lane["tenant"] for lane in api.http.get("/v1/lanes").json()["data"]} == {"default", "other"}
    assert {lane["tenant"] for lane in ask(api, key, "GET", "/v1/lanes").json()["data"]} == {"other"}
    limited = api.new_key(Scope.VIEW)
    assert {lane["tenant"] for lane in ask(api, limited, "GET", "/v1/lanes").json()["data"]} == {"default"}
