"""`/v1/webhooks` over HTTP: made, changed, rotated, tested, and the log of deliveries; refusals are one sentence."""

import httpx
import pytest
import standardwebhooks

from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from tests import factories, receiving
from tests.receiving import answer, derive, happen, hurry, runner
from tests.web import Api, open_api

PUBLIC = "https://93.184.216.34/hook"


@pytest.fixture
def api(settings, store):
    with open_api(receiving.to_this_machine(settings)) as running:
        yield running


@pytest.fixture
def receiver():
    with receiving.receiving() as found:
        yield found


def create(api: Api, url: str = PUBLIC, **fields):
    answered = api.http.post("/v1/webhooks", json={"url": url, **fields})
    assert answered.status_code == 201, answered.text
    return answered.json()


def test_a_webhook_is_made_changed_rotated_and_deleted(api):
    made = create(api, events=["job.*"], labels={"run": "nightly"}, description="the shop")
    secret = made.pop("secret")
    assert made["id"].startswith("whe_") and made["enabled"] and made["events"] == ["job.*"]
    assert api.http.get("/v1/webhooks").json()["data"] == [made]
    path = f"/v1/webhooks/{made['id']}"
    assert api.http.get(path).json() == made and '"secret"' not in api.http.get(path).text
    assert api.http.get(f"{path}/secret").json()["secret"] == secret
    changed = api.http.patch(path, json={"enabled": False, "events": ["*"]}).json()
    assert (changed["enabled"], changed["reason"], changed["events"]) == (False, "by_user", ["*"])
    assert api.http.post(f"{path}/test").status_code == 409
    assert api.http.patch(path, json={"enabled": True}).json()["reason"] is None
    rotated = api.http.post(f"{path}/rotate").json()
    assert rotated["secret"] != secret and rotated["old_secret_until"] is not None
    assert api.http.get(f"{path}/secret").json()["secret"] == rotated["secret"]
    assert api.http.delete(path).json()["deleted"] and api.http.get(path).status_code == 404
    assert create(api)["events"][0] == "job.completed", "what has ended, if nothing is chosen"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"), ({"url": "http://10.0.0.1/"}, "url"), ({"url": "https://169.254.169.254/latest"}, "url"),
        ({"url": "https://user:pw@hooks.example/"}, "url"), ({"url": PUBLIC, "events": ["job.complete"]}, "events"),
        ({"url": PUBLIC, "events": []}, "events"), ({"url": PUBLIC, "events": ["worker.drained"]}, "events"),
        ({"url": PUBLIC, "labels": {"a": 1}}, "labels.a"), ({"url": PUBLIC, "secret": "whsec_x"}, "secret"),
        ({"url": PUBLIC, "description": "a\u0000b"}, "description"),
    ],
)  # fmt: skip
def test_what_a_webhook_cannot_be_is_refused_with_the_field(api, body, param):
    answered = api.http.post("/v1/webhooks", json=body)
    assert answered.status_code == 422, answered.text
    assert answered.json()["error"]["param"] == param, answered.text
    assert api.http.get("/v1/webhooks").json()["data"] == []


def test_the_twenty_first_is_refused(api):
    for _ in range(20):
        create(api)
    answered = api.http.post("/v1/webhooks", json={"url": PUBLIC})
    assert (answered.status_code, answered.json()["error"]["code"]) == (409, "too_many_webhooks")


def test_deliveries_are_listed_with_every_try_and_sent_again(api, receiver):
    derive(api.database)  # what happened before
    made = create(api, receiver.url, events=["view.*", "key.issued"])
    path = f"/v1/webhooks/{made['id']}"
    receiver.reply = lambda handler: answer(handler, 500, b"down")
    for name in ("a", "b"):
        api.http.post("/v1/views", json={"page": "jobs", "name": name, "query": ""})
    api.http.post("/v1/keys", json={"name": "new", "scopes": ["view"]})
    derive(api.database)
    runner(api.database, api.settings).run_once()
    receiver.reply = answer
    hurry(api.database)
    runner(api.database, api.settings).run_once()
    found = api.http.get(f"{path}/deliveries").json()["data"]
    assert [one["type"] for one in found] == ["key.issued", "view.saved", "view.saved"]
    assert {one["status"] for one in found} == {"delivered"} and [one["tries"] for one in found] == [1, 1, 2]
    assert len(api.http.get(f"{path}/deliveries?type=view.saved").json()["data"]) == 2
    assert api.http.get(f"{path}/deliveries?status=failed").json()["data"] == []
    assert api.http.get(f"{path}/deliveries?status=lost").status_code == 422
    first = api.http.get(f"{path}/deliveries?limit=2").json()
    rest = api.http.get(f"{path}/deliveries", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [*first["data"], *rest["data"]] == found and rest["next_cursor"] is None
    oldest = api.http.get(f"{path}/deliveries/{found[-1]['id']}").json()
    assert [one["response_status"] for one in oldest["log"]] == [500, 200]
    assert oldest["message"] == receiver.messages[0] and oldest["message_id"] == oldest["message"]["id"]
    again = api.http.post(f"{path}/deliveries/{found[0]['id']}/redeliver")
    assert (again.status_code, again.json()["status"]) == (202, "pending")
    runner(api.database, api.settings).run_once()
    headers, body = receiver.came[-1]
    assert headers["webhook-id"] == found[0]["message_id"]
    standardwebhooks.Webhook(made["secret"]).verify(body.decode(), headers)


def test_a_test_message_arrives(api, receiver):
    made = create(api, receiver.url, events=["job.failed"])
    sent = api.http.post(f"/v1/webhooks/{made['id']}/test").json()
    runner(api.database, api.settings).run_once()
    assert receiver.messages[0]["data"] == {"id": made["id"], "object": "webhook"}
    shown = api.http.get(f"/v1/webhooks/{made['id']}/deliveries/{sent['id']}").json()
    assert (shown["status"], shown["response_status"], len(shown["log"])) == ("delivered", 200, 1)


def test_another_tenant_sees_no_webhook_and_no_message(api, receiver):
    made = create(api, receiver.url, events=["*"])
    tenant, key = api.new_tenant("other")
    with httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}) as stranger:
        assert stranger.get("/v1/webhooks").json()["data"] == []
        assert stranger.get(f"/v1/webhooks/{made['id']}/secret").status_code == 404
        place = stranger.get("/v1/webhook-messages").json()["after"]
        happen(api.database, "view.saved", "view/1")
        happen(api.database, "view.changed", "view/2", tenant=tenant)
        derive(api.database)
        theirs = stranger.get(f"/v1/webhook-messages?after={place}").json()
    runner(api.database, api.settings).run_once()
    assert "view.changed" not in receiver.types and "view.saved" in receiver.types
    assert "view.saved" not in [one["type"] for one in theirs["data"]]
    assert [one["type"] for one in theirs["data"]].count("view.changed") == 1


def test_messages_are_the_same_as_those_that_are_sent(api, receiver):
    create(api, receiver.url, events=["*"])
    place = api.http.get("/v1/webhook-messages").json()
    assert place["data"] == []
    for number in range(5):
        happen(api.database, "view.saved", f"view/{number}")
    derive(api.database)
    runner(api.database, api.settings).run_once()
    read = []
    while (found := api.http.get(f"/v1/webhook-messages?after={place['after']}&limit=2").json())["after"] > place[
        "after"
    ]:
        read += found["data"]
        place = found
    assert [one["body"].encode() for one in read] == [body for _, body in receiver.came]


def test_the_secret_takes_the_scope_admin(api):
    made = create(api)
    with api.database.begin_system() as connection:
        given = (Scope.VIEW, Scope.SUBMIT, Scope.OPERATE)
        key = api_keys.issue_key(connection, api.settings.secret, factories.TENANT, "some", given=given)
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{api.url}/v1/webhooks/{made['id']}", headers=headers).status_code == 200
    assert httpx.get(f"{api.url}/v1/webhooks/{made['id']}/secret", headers=headers).status_code == 403
