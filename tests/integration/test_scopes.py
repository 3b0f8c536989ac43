"""API keys over HTTP and by the command: what each scope allows, and how a key is made, seen, and ended."""

import json
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from services.api import scopes
from services.api.app import create_app
from services.cli.app import app
from services.core.model.scopes import ALL, Scope
from services.core.tenants import api_keys
from tests import factories
from tests.web import Api

PLACES = dict.fromkeys(
    (
        "job_id",
        "tenant_id",
        "file_id",
        "upload_id",
        "batch_id",
        "export_id",
        "key_id",
        "worker_id",
        "action_id",
        "view_id",
        "term_id",
        "schedule",
        "webhook_id",
        "delivery_id",
        "name",
        "catalogue",
        "dataset",
        "dataset_id",
        "run_id",
        "variant",
        "tenant",
        "version",
    ),
    "nothing",
)


def key_with(api: Api, *given: Scope, **more: Any) -> str:
    with api.database.begin_system() as connection:
        return api_keys.issue_key(connection, api.settings.secret, factories.TENANT, "some", given=given, **more)


def ask(api: Api, key: str, method: str, path: str, **parts: Any) -> httpx.Response:
    """The answer; of a stream only its head."""
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.stream(method, api.url + path, headers=headers, trust_env=False, timeout=30, **parts) as answer:
        if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
            answer.read()
    return answer


def test_without_its_scope_every_operation_is_refused_and_with_it_alone_none_is(served: Api) -> None:
    without = {scope: key_with(served, *(other for other in ALL if other is not scope)) for scope in ALL}
    alone = {scope: key_with(served, scope) for scope in ALL}
    tried = set()
    for path, methods in create_app(served.settings).openapi()["paths"].items():
        for method, operation in methods.items():
            if "security" not in operation:
                continue
            name = operation["operationId"]
            [scope] = map(Scope, operation["security"][0]["HTTPBearer"])
            address = path.format(index=0, number=0, path="nothing", **PLACES)
            refused = ask(served, without[scope], method, address)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope"), name
            others = ", ".join(other.value for other in ALL if other is not scope)
            message = f"{name} needs a key with the scope {scope.value!r}; this one has {others}."
            assert refused.json()["error"]["message"] == message
            assert ask(served, alone[scope], method, address).status_code not in (401, 403), name
            tried.add(name)
    assert tried == set(scopes.NEEDED)


def test_the_stock_client_raises_its_class_for_a_scope_that_is_missing(served: Api) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=key_with(served, Scope.VIEW), max_retries=0) as client:
        assert client.models.list().data
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.images.generate(prompt="a mug")
    assert caught.value.code == "missing_scope"
    assert "'submit'" in caught.value.message


def test_a_key_is_shown_when_it_is_made_and_never_again(served: Api) -> None:
    asked = {"name": "the wall display", "scopes": ["view", "submit"], "expires_in_seconds": 3600}
    made = served.http.post("/v1/keys", json=asked)
    assert made.status_code == 201
    key = made.json().pop("key")
    assert (made.json()["name"], made.json()["scopes"], made.json()["prefix"]) == (
        "the wall display", ["view", "submit"], key[:11],
    )  # fmt: skip
    assert (made.json()["status"], made.json()["last_used_at"], made.json()["revoked_at"]) == ("active", None, None)
    assert made.json()["expires_at"] > made.json()["created_at"]
    assert ask(served, key, "GET", "/v1/jobs").status_code == 200
    [shown] = [one for one in served.http.get("/v1/keys").json()["data"] if one["id"] == made.json()["id"]]
    assert shown["last_used_at"] is not None
    assert {**shown, "last_used_at": None} == {name: value for name, value in made.json().items() if name != "key"}
    revoked = served.http.delete(f"/v1/keys/{shown['id']}")
    assert (revoked.status_code, revoked.json()["status"]) == (200, "revoked")
    assert served.http.delete(f"/v1/keys/{shown['id']}").json() == revoked.json()
    secret = key.split("_")[2]
    with served.database.begin_system() as connection:
        told = connection.execute(text("SELECT coalesce(string_agg(data::text, ' '), '') FROM events")).scalar_one()
        kept = connection.execute(text("SELECT string_agg(k::text, ' ') FROM api_keys k")).scalar_one()
    for answer in (served.http.get("/v1/keys").text, revoked.text, told, kept):
        for part in (secret[:8], secret[-8:]):
            assert part not in answer and part.encode().hex() not in answer


def test_nobody_gives_a_scope_that_they_lack(served: Api) -> None:
    limited = key_with(served, Scope.VIEW, Scope.ADMIN)
    for asked in (["operate"], ["view", "submit"]):
        refused = ask(served, limited, "POST", "/v1/keys", json={"name": "more", "scopes": asked})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "missing_scope"), asked
    made = ask(served, limited, "POST", "/v1/keys", json={"name": "the same"})
    assert made.json()["scopes"] == ["view", "admin"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes.0"),
        ({"name": "a", "expires_in_seconds": 1}, "expires_in_seconds"),
    ],
)
def test_a_key_that_cannot_be_made_is_refused_with_what_would_do(served: Api, body: Any, param: str) -> None:
    refused = served.http.post("/v1/keys", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)
    assert " must be " in refused.json()["error"]["message"]


def test_a_key_does_not_revoke_itself(served: Api) -> None:
    refused = served.http.delete(f"/v1/keys/{api_keys.id_of(served.key)}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert served.http.get("/v1/keys").status_code == 200


def test_a_key_that_has_ended_is_told_how_and_only_to_its_holder(served: Api) -> None:
    revoked, expired = key_with(served, *ALL), key_with(served, *ALL, expires_seconds=-60)
    with served.database.begin_system() as connection:
        assert api_keys.revoke_key(connection, api_keys.id_of(revoked))
    for key, code, word in (
        (revoked, "revoked_api_key", "was revoked at 20"),
        (expired, "expired_api_key", "expired at 20"),
    ):
        answer = ask(served, key, "GET", "/v1/jobs")
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
        assert word in answer.json()["error"]["message"]
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="presswork"'
        stranger = ask(served, key[:-1] + ("a" if key[-1] != "a" else "b"), "GET", "/v1/jobs")
        assert (stranger.status_code, stranger.json()["error"]["code"]) == (401, "invalid_api_key")


def test_when_a_key_was_used_is_written_once_a_minute_at_most(served: Api) -> None:
    key = key_with(served, *ALL)
    written = text("SELECT xmin::text FROM api_keys WHERE id = :id")
    set_back = text("UPDATE api_keys SET last_used_at = now() + :age * interval '1 second' WHERE id = :id")

    def is_written(age: float | None) -> bool:
        values = {"id": api_keys.id_of(key), "age": age}
        with served.database.begin_system() as connection:
            connection.execute(set_back, values)
        with served.database.begin_system() as connection:
            before = connection.execute(written, values).scalar_one()
        assert ask(served, key, "GET", "/v1/jobs").status_code == 200
        with served.database.begin_system() as connection:
            return bool(connection.execute(written, values).scalar_one() != before)

    # The last one: the clock was set back.
    assert [is_written(age) for age in (None, -50, -70, 3600)] == [True, False, True, True]


def test_the_command_makes_lists_and_ends_keys(served: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = served.settings
    for name, value in {
        "DATABASE_URL": settings.database_url, "REDIS_URL": settings.redis_url, "PRESSWORK_SECRET": settings.secret,
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def keys(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["keys", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout.strip()

    key = keys("create", "nightly", "--scope", "submit", "--scope", "view", "--expires", "90d")
    assert ask(served, key, "GET", "/v1/jobs").status_code == 200
    assert ask(served, key, "GET", "/v1/keys").status_code == 403
    [one] = [row for row in map(json.loads, keys("list", "--json").splitlines()) if row["id"] == api_keys.id_of(key)]
    assert (one["name"], one["scopes"], one["prefix"], one["status"]) == (
        "nightly", ["view", "submit"], key[:11], "active",
    )  # fmt: skip
    assert one["last_used_at"] and one["expires_at"] and key.split("_")[2] not in json.dumps(one)
    assert f"{key[:11]}" in keys("list") and "view submit" in keys("list")
    assert keys("revoke", api_keys.id_of(key)) == "revoked"
    assert ask(served, key, "GET", "/v1/jobs").status_code == 401
    refused = CliRunner().invoke(app, ["keys", "create", "--expires", "soon"])
    assert refused.exit_code == 2 and "--expires is 'soon'; it must be a number of minutes" in refused.output
