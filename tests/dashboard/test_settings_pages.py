"""The pages of settings: API keys and the action log."""

import html
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from services.api import feed
from services.core.db import tables
from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from services.dashboard import sentences
from tests.pages import House, Tab
from tests.waiting import until


def as_key(house: House, *given: Scope) -> House:
    """The house, with its pages' client signed in by a key with these scopes alone."""
    with house.api.database.begin_system() as connection:
        house.key = api_keys.issue_key(connection, house.api.settings.secret, house.tenant, "limited", given=given)
    house.sign_in()
    return house


def shown_key(page: str) -> str:
    [key] = re.findall(r'id="secret"[^>]*>(pw_[^<]+)<', page)
    return str(key)


def test_a_key_is_made_shown_once_used_and_revoked(signed: House) -> None:
    made = signed.post(
        "/settings/keys",
        page="/settings/keys",
        **{"name": "nightly", "scope-view": "on", "scope-submit": "on", "days": "7"},
    )
    key = shown_key(made.text)
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{signed.url}/v1/jobs", headers=headers).status_code == 200
    assert httpx.get(f"{signed.url}/v1/keys", headers=headers).status_code == 403
    [listed] = [one for one in signed.http.get("/v1/keys").json()["data"] if one["name"] == "nightly"]
    assert listed["created_by"] == f"key/{api_keys.id_of(signed.key)}" and listed["created_by_name"] == "test"
    assert listed["expires_at"] is not None
    page = signed.browser.get("/settings/keys").text
    assert key.split("_")[2] not in page and f"pw_{listed['id']}" in page and "by test" in page
    assert "you use it now" in page
    address = f"/settings/keys/{listed['id']}/revoke"
    assert "is refused" in signed.browser.get(address).text
    assert signed.post(address, page=address).headers["Location"] == "/settings/keys"
    assert httpx.get(f"{signed.url}/v1/jobs", headers=headers).status_code == 401
    assert signed.browser.get(address).status_code == 404


def test_what_cannot_be_a_key_is_refused_and_what_was_filled_in_stays(signed: House) -> None:
    answer = signed.post("/settings/keys", page="/settings/keys", name="nightly")
    assert answer.status_code == 422
    assert "scopes" in answer.text and 'value="nightly"' in answer.text


def test_a_key_does_not_revoke_itself_here_either(signed: House) -> None:
    own = api_keys.id_of(signed.key)
    answer = signed.post(f"/settings/keys/{own}/revoke", page="/settings/keys")
    assert answer.status_code == 409
    assert signed.browser.get("/").status_code == 200


def test_others_keys_are_not_there(signed: House) -> None:
    other = api_keys.id_of(signed.api.key)
    assert other not in signed.browser.get("/settings/keys").text
    assert signed.browser.get(f"/settings/keys/{other}/revoke").status_code == 404
    assert signed.post(f"/settings/keys/{other}/revoke", page="/settings/keys").status_code == 404
    assert signed.api.http.get("/v1/jobs").status_code == 200


def test_keys_are_for_those_who_may_administer_them(house: House) -> None:
    limited = as_key(house, Scope.VIEW, Scope.SUBMIT, Scope.OPERATE)
    assert limited.browser.get("/settings/keys").status_code == 403
    assert limited.post("/settings/keys", page="/", name="more").status_code == 403
    assert limited.post(f"/settings/keys/{api_keys.id_of(house.key)}/revoke", page="/").status_code == 403


def test_nobody_gives_a_scope_here_that_they_lack(house: House) -> None:
    limited = as_key(house, Scope.VIEW, Scope.ADMIN)
    page = limited.browser.get("/settings/keys").text
    assert 'name="scope-view"' in page and 'name="scope-operate"' not in page
    refused = limited.post("/settings/keys", page="/settings/keys", **{"name": "more", "scope-operate": "on"})
    assert refused.status_code == 403


@pytest.mark.parametrize("ends", ["key", "session"])
def test_a_stream_ends_with_the_key_or_the_session_that_opened_it(
    signed: House, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.05)
    text = ""
    with signed.browser.stream("GET", "/live", timeout=20) as stream:
        pieces = stream.iter_text()
        assert "retry" in next(pieces)
        if ends == "session":
            cookies = {"presswork_session": signed.browser.cookies["presswork_session"]}
            with httpx.Client(base_url=signed.url, cookies=cookies) as another:
                [token] = set(re.findall(r'name="csrf" value="(\w+)"', another.get("/").text))
                assert another.post("/sign-out", data={"csrf": token}).status_code == 303
        else:
            with signed.api.database.begin_system() as connection:
                api_keys.revoke_key(connection, api_keys.id_of(signed.key))
        for piece in pieces:
            text += piece
    assert "event: signed_out" in text


def test_a_key_is_made_copied_and_revoked_in_the_browser(open_tab: Callable[..., Tab], house: House) -> None:
    tab = open_tab()
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = tab.open("/settings/keys")
    page.get_by_label("What it is for").fill("the wall display")
    page.get_by_label("It ends").select_option("after 30 days")
    page.get_by_role("button", name="Make the key").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    key = page.evaluate("navigator.clipboard.readText()")
    assert httpx.get(f"{house.url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    page.reload()
    assert page.get_by_text("the wall display").count() == 1
    page.get_by_role("link", name="Revoke the wall display").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    page.get_by_role("heading", name="Keys that have ended").wait_for()
    until(lambda: httpx.get(f"{house.url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 401)
    assert tab.errors == []


def acts(page: str) -> list[str]:
    """The sentences of the log, newest first."""
    found = re.findall(r"<li><time.*?</time><span>(.*?)</span></li>", page, re.DOTALL)
    return [" ".join(html.unescape(re.sub("<[^>]+>", "", one)).split()) for one in found]


def test_the_log_says_in_sentences_who_did_what_and_links_to_it(signed: House) -> None:
    job = signed.submit({"prompt": "a"}, labels={"a": "b"})
    for verb in ("pause", "resume"):
        signed.http.post(f"/v1/jobs/{job}/{verb}")
    signed.http.patch(f"/v1/jobs/{job}", json={"priority": "high", "labels": {"c": "d"}})
    signed.http.post(f"/v1/jobs/{job}/cancel")
    signed.tick()
    page = signed.browser.get("/settings/log").text
    assert acts(page) == [
        f"test cancelled {job}",
        f"test changed the labels of {job}",
        f"test gave {job} the priority high",
        f"test resumed {job}",
        f"test paused {job}",
        f"test submitted {job}",
        f"tests made the key test, pw_{api_keys.id_of(signed.key)}… which may view, submit, operate, admin",
    ]
    assert f'href="/jobs/{job}"' in page


def test_the_log_is_narrowed_by_who_what_job_and_time_and_goes_on(
    signed: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.dashboard.pages.action_log._PER_PAGE", 2)
    jobs = [signed.submit({"prompt": "a"}) for _ in range(3)]
    signed.http.post(f"/v1/jobs/{jobs[0]}/pause")
    signed.tick()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    paused = [f"test paused {jobs[0]}"]
    for query, wanted in {
        "what=job.paused": paused,
        f"job={jobs[0]}": [*paused, f"test submitted {jobs[0]}"],
        f"who=key/{api_keys.id_of(signed.key)}&what=job.paused": paused,
        "who=TEST&what=job.paused": paused,
        "who=nobody": [],
        f"what=job.paused&first={today}&last={today}": paused,
        "last=2026-01-01": [],
    }.items():
        assert acts(signed.browser.get(f"/settings/log?{query}").text) == wanted, query
    found, address = [], "/settings/log?who=test"
    while address:
        page = signed.browser.get(address).text
        found += acts(page)
        following = re.search(r'class="button" href="([^"]+cursor[^"]+)"', page)
        address = html.unescape(following[1]) if following else ""
    assert found == [*paused, *(f"test submitted {job}" for job in jobs[::-1])]
    for query in ("what=nothing", "job=1", "first=monday", "cursor=x", "who=%00"):
        assert signed.browser.get(f"/settings/log?{query}").status_code == 400, query


def test_every_kind_of_act_has_a_sentence() -> None:
    """The kinds are those that the core's statements log, and that the list of progress leaves."""
    core = Path(api_keys.__file__).parents[1]
    texts = "".join(path.read_text() for path in core.rglob("*.py"))
    logged = set(re.findall(r"""["']((?:job|bulk|export|file|upload|key|worker)\.[a-z_]+)["']""", texts))
    logged |= {f"upload.{state}" for state in re.findall(r'_ends\("(\w+)"', texts)}
    statements = {found for found in logged if found.endswith((".py", ".txt"))}
    assert logged - statements - set(tables.PROGRESS) == set(sentences.KINDS)
