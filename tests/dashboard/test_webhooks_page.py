"""The pages of webhooks: made, tested, rotated, disabled and deleted by who may, and the log of deliveries."""

import html
import re
from datetime import UTC, datetime
from typing import Any

from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from services.core.webhooks import deliveries, endpoints
from services.core.webhooks.deliveries import Try
from tests.pages import House

PUBLIC = "https://93.184.216.34/hook"


def record(house: House, hook: str, status: int) -> None:
    """A try of what is due, as a scheduler records it."""
    number = endpoints.parse_id(hook)
    with house.api.database.begin_system() as connection:
        due: Any = deliveries.due(connection, number)
        found = Try(due.tries + 1, datetime.now(UTC), 34, status, "it is <b>down</b>", None)
        deliveries.record(connection, number, due, found)


def make(house: House, **fields: str) -> str:
    made = house.post("/settings/webhooks", page="/settings/webhooks", **{"url": PUBLIC, **fields})
    assert made.status_code == 200, made.text
    [hook] = {one["id"] for one in house.http.get("/v1/webhooks").json()["data"]}
    assert house.http.get(f"/v1/webhooks/{hook}/secret").json()["secret"] in html.unescape(made.text)
    return str(hook)


def test_a_webhook_is_made_tested_sent_again_and_deleted(signed: House) -> None:
    assert "No webhook yet" in signed.browser.get("/settings/webhooks").text
    hook = make(signed, description="the shop", events="job.completed, batch.*", labels="run=a, for=shop")
    [made] = signed.http.get("/v1/webhooks").json()["data"]
    assert (made["events"], made["labels"]) == (["job.completed", "batch.*"], {"run": "a", "for": "shop"})
    place = f"/settings/webhooks/{hook}"
    assert "whsec_" not in signed.browser.get(place).text, "the secret is shown where it is asked for alone"
    signed.post(f"{place}/actions/test", page=place)
    record(signed, hook, 500)
    page = signed.browser.get(place).text
    assert "webhook.test" in page and "failing" in page and "pending" in page
    [sent] = signed.http.get(f"/v1/webhooks/{hook}/deliveries").json()["data"]
    log = f"{place}/deliveries/{sent['id']}"
    shown = signed.browser.get(log).text
    assert "it is &lt;b&gt;down&lt;/b&gt;" in shown and "34 ms" in shown and sent["message_id"] in shown
    again = signed.post(f"{place}/actions/redeliver", page=log, delivery=sent["id"])
    assert again.headers["Location"] == log
    record(signed, hook, 200)
    assert "delivered" in signed.browser.get(f"{place}?state=delivered").text
    assert "Nothing was sent that is failed" in signed.browser.get(f"{place}?state=failed").text
    assert "Nothing more is sent" in signed.browser.get(f"{place}/actions/delete").text
    gone = signed.post(f"{place}/actions/delete", page=place)
    assert gone.headers["Location"] == "/settings/webhooks" and signed.browser.get(place).status_code == 404


def test_a_secret_is_shown_and_rotated_and_a_disabled_webhook_takes_no_test(signed: House) -> None:
    hook = make(signed)
    place = f"/settings/webhooks/{hook}"

    def secret(verb: str) -> str:
        [found] = re.findall(r"whsec_[^<]+", html.unescape(signed.post(f"{place}/actions/{verb}", page=place).text))
        return str(found)

    first = secret("secret")
    assert secret("rotate") != first and "signs too until" in signed.browser.get(place).text
    signed.post(f"{place}/actions/disable", page=place)
    refused = signed.post(f"{place}/actions/test", page=place)
    assert refused.status_code == 409 and "enable it first" in refused.text
    signed.post(f"{place}/actions/enable", page=place)
    assert signed.http.get(f"/v1/webhooks/{hook}").json()["enabled"]
    assert signed.post(f"{place}/actions/explode", page=place).status_code == 404


def test_what_a_webhook_cannot_be_is_said_beside_what_was_given(signed: House) -> None:
    asked = {"url": "https://10.0.0.1/hook", "events": "job.*", "description": "mine"}
    refused = signed.post("/settings/webhooks", page="/settings/webhooks", **asked)
    assert refused.status_code == 422 and "is not public" in refused.text
    assert 'value="https://10.0.0.1/hook"' in refused.text and 'value="mine"' in refused.text
    refused = signed.post("/settings/webhooks", page="/settings/webhooks", url=PUBLIC, events="job.done")
    assert refused.status_code == 422 and "job.done" in html.unescape(refused.text)
    assert signed.http.get("/v1/webhooks").json()["data"] == []


def test_who_may_only_look_finds_no_buttons_and_is_refused(signed: House) -> None:
    hook = make(signed)
    place = f"/settings/webhooks/{hook}"
    with signed.api.database.begin_system() as connection:
        secret = signed.api.settings.secret
        signed.key = api_keys.issue_key(connection, secret, signed.tenant, "looks", given=[Scope.VIEW])
    signed.browser.cookies.clear()
    signed.sign_in()
    page = signed.browser.get(place).text
    assert "Send a test" not in page and "Rotate" not in page
    assert "Make a webhook" not in signed.browser.get("/settings/webhooks").text
    [token] = set(re.findall(r'name="csrf" value="(\w+)"', signed.browser.get("/").text))
    for verb in ("test", "disable", "delete", "secret", "rotate", "redeliver"):
        assert signed.browser.post(f"{place}/actions/{verb}", data={"csrf": token}).status_code == 403, verb
    assert signed.browser.post("/settings/webhooks", data={"csrf": token, "url": PUBLIC}).status_code == 403
    assert signed.browser.post(f"{place}/actions/test", data={"csrf": "x"}).status_code == 403
