"""The pages of settings: API keys and the action log."""

import html
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect
from sqlalchemy import text

from services.api import feed
from services.cli import audit_checking
from services.core.auditing import audits
from services.core.catalogues import catalogue_runs
from services.core.catalogues.definition import Definition
from services.core.db import tables
from services.core.model import ids
from services.core.model.scopes import Scope
from services.core.retention import rules
from services.core.tenants import api_keys, tenants
from services.core.trail import sealing
from services.core.webhooks import types as webhook_types
from services.dashboard import sentences
from services.dashboard.pages import audit_trail
from tests.pages import House, Tab
from tests.waiting import until


def as_key(house: House, *given: Scope) -> House:
    """The house, with its pages' client signed in by a key with these scopes alone."""
    with house.api.database.begin_system() as connection:
        house.key = api_keys.issue_key(connection, house.api.settings.secret, house.tenant, "limited", given=given)
    house.browser.cookies.clear()
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


@pytest.mark.parametrize("is_http", [False, True])
def test_a_key_is_made_copied_and_revoked_in_the_browser(
    open_tab: Callable[..., Tab], house: House, is_http: bool
) -> None:
    tab = open_tab()
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    if is_http:  # pages of another machine have no clipboard then
        tab.page.add_init_script(
            "window.read = () => Clipboard.prototype.readText.call(held); const held = navigator.clipboard;"
            "Object.defineProperty(navigator, 'clipboard', {value: undefined})"
        )
    page = tab.open("/settings/keys")
    page.get_by_label("What it is for").fill("the wall display")
    page.get_by_label("It ends").select_option("after 30 days")
    page.get_by_role("button", name="Make the key").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    key = page.evaluate("window.read ? window.read() : navigator.clipboard.readText()")
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


def test_an_administrator_downloads_the_audit_trail_as_the_command_writes_it(
    signed: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "_AT_ONCE", 1)
    for _ in range(3):
        signed.submit({"prompt": "a"})
        signed.http.post("/v1/keys", json={"name": "another", "scopes": ["view"]})
        signed.tick()
        with signed.api.database.begin_system() as connection:
            while sealing.seal(connection):
                pass
    assert 'href="/settings/log/trail.jsonl"' in signed.browser.get("/settings/log").text
    file = signed.browser.get("/settings/log/trail.jsonl")
    assert file.headers["Content-Disposition"] == 'attachment; filename="audit-trail.jsonl"'
    path = tmp_path / "trail.jsonl"
    path.write_bytes(file.content)
    found = audit_checking.check(path, audit_checking.Known(), lambda _: None)
    assert (found.trouble, found.records) == (None, 4)
    other = as_key(signed, Scope.VIEW, Scope.OPERATE).browser
    assert "trail.jsonl" not in other.get("/settings/log").text
    assert other.get("/settings/log/trail.jsonl").status_code == 403


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


FAMILIES = (
    "job", "bulk", "export", "file", "upload", "key", "view", "worker", "schedule", "catalogue", "dataset", "tenant",
    "policy", "license", "webhook", "retention", "storage",
)  # fmt: skip


def test_every_kind_of_act_has_a_sentence() -> None:
    """The kinds are those that the core's statements log, and that the list of progress leaves."""
    core = Path(api_keys.__file__).parents[1]
    texts = "".join(path.read_text() for path in core.rglob("*.py") if path.name != "crash_points.py")
    texts = re.sub(r'(?:statement|crash_point)\("[^"]+"\)', "", texts)
    logged = set(re.findall(rf"""["']((?:{"|".join(FAMILIES)})\.[a-z_]+)["']""", texts))
    logged |= {f"upload.{state}" for state in re.findall(r'_ends\("(\w+)"', texts)}
    logged |= {f"catalogue.run_{state}" for state in catalogue_runs.FINAL}
    logged |= {"webhook.enabled", "webhook.disabled"}
    logged -= {webhook_types.TEST}
    statements = {found for found in logged if found.endswith((".py", ".txt", ".run_", ".yaml"))}
    fields = set(Definition.ALLOWED)
    assert logged - statements - fields - set(tables.PROGRESS) == set(sentences.KINDS)


def test_an_act_names_nothing_by_its_number_in_the_database(signed: House) -> None:
    made = signed.http.post("/v1/policy/terms", json={"term": "nude"}).json()["id"]
    with signed.api.database.begin(signed.tenant) as connection:
        rules.change(connection, signed.tenant, {"objects": 40})
    job = signed.submit({"prompt": "a mug"}, retention={"records": None, "objects": 30, "payloads": 7})
    signed.tick()
    page = signed.browser.get("/settings/log").text
    assert f'added a term to the content policy, <span class="id">{made}</span>' in page
    assert f'<a class="id" href="/settings/storage">{tenants.public_id(signed.tenant)}</a>' in page
    keeps = re.findall(r"<dd>(\w+) for (?:ever|\d+ days)</dd>", signed.browser.get(f"/jobs/{job}").text)
    assert keeps == ["prompts", "images", "everything"]


def csrf(house: House) -> str:
    [token] = set(re.findall(r'name="csrf" value="(\w+)"', house.browser.get("/").text))
    return str(token)


def test_a_view_is_saved_for_colleagues_who_may_not_change_it(signed: House) -> None:
    query = "status=failed&label=run%3Anightly"
    fields = {"csrf": csrf(signed), "page": "jobs", "name": " failures ", "query": query}
    saved = signed.browser.post("/settings/views", data=fields)
    assert (saved.status_code, saved.headers["Location"]) == (303, f"/jobs?{query}")
    [view] = signed.http.get("/v1/views").json()["data"]
    assert (view["name"], view["query"], view["created_by_name"]) == ("failures", query, "test")
    colleague = as_key(signed, Scope.VIEW)
    shown = html.unescape(colleague.browser.get("/jobs").text)
    assert f'href="/jobs?{query}">failures</a>' in shown and "Save this one as" not in shown
    for path in ("", f"/{view['id']}/rename", f"/{view['id']}/delete"):
        fields["csrf"] = csrf(colleague)
        assert colleague.browser.post(f"/settings/views{path}", data=fields).status_code == 403, path
    assert "by test" in colleague.browser.get("/settings/views").text


def test_a_view_of_images_leads_to_the_gallery_or_to_all_jobs(signed: House) -> None:
    job, other = signed.submit({"prompt": "a mug", "size": "64x64"}), signed.submit()
    fields = {"csrf": csrf(signed), "page": "images"}
    for name, query in (("bad", f"job={job}&state=failed"), ("theirs", f"job={other}"), ("cup", "custom_id=cup")):
        signed.browser.post("/settings/views", data=fields | {"name": name, "query": query})
    gallery = html.unescape(signed.browser.get(f"/jobs/{job}/images?state=failed").text)
    assert f'href="/images?job={job}&state=failed" aria-current="true">bad</a>' in gallery
    assert f'name="query" value="job={job}&state=failed"' in gallery
    assert ">theirs</a>" not in gallery and ">cup</a>" not in gallery
    opened = signed.browser.get(f"/images?job={job}&state=failed")
    assert (opened.status_code, opened.headers["Location"]) == (303, f"/jobs/{job}/images?state=failed")
    found = signed.browser.get("/images?custom_id=cup").text
    assert 'aria-current="true">cup</a>' in found and ">theirs</a>" in found
    assert signed.browser.get("/images?job=job_x").status_code == 404


def test_views_have_names_of_their_own_and_events(signed: House, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        signed.http.post("/v1/views", json={"page": page, "name": name, "query": "status=failed"})
        for page, name in (("jobs", "a"), ("jobs", "b"), ("log", "a"))
    ]
    assert [answer.status_code for answer in made] == [201, 201, 201]
    again = signed.http.post("/v1/views", json={"page": "jobs", "name": "a", "query": ""})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "name_taken")
    view = f"/v1/views/{made[1].json()['id']}"
    assert signed.http.patch(view, json={"name": "a"}).json()["error"]["code"] == "name_taken"
    assert signed.http.patch(view, json={"name": "b"}).json() == made[1].json()
    changed = signed.http.patch(view, json={"name": "c", "query": ""}).json()
    assert (changed["name"], changed["query"]) == ("c", "")
    assert signed.http.delete(view).status_code == 200
    assert signed.http.delete(view).status_code == 404
    monkeypatch.setattr("services.core.tenants.views.MOST", 2)
    refused = signed.http.post("/v1/views", json={"page": "jobs", "name": "d", "query": ""})
    assert refused.json()["error"]["code"] == "too_many_views"
    for page, name, query in (("jobs", "", ""), ("x", "a", ""), ("jobs", "e", "a b")):
        body = {"page": page, "name": name, "query": query}
        assert signed.http.post("/v1/views", json=body).status_code == 422, body
    signed.tick()
    found = acts(signed.browser.get("/settings/log").text)[:2]
    assert found == [f"test {verb} the view c, {changed['id']}" for verb in ("deleted", "changed")]


def test_a_view_is_saved_and_opened_in_the_browser(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    page = tab.open("/jobs")
    page.get_by_label("Status").select_option("failed")
    page.wait_for_url("**/jobs?*status=failed*")
    page.locator("input[name=query][value*='status=failed']").wait_for(state="attached")
    assert "status=failed" in str(page.locator("a[href*='/bulk/new/cancel?']").first.get_attribute("href"))
    page.get_by_text("Views", exact=True).click()
    page.get_by_label("Save this one as").fill("what failed")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs?status=failed")
    page.goto(f"{tab.url}/jobs")
    menu = page.get_by_text("Views", exact=True)
    link = page.get_by_role("link", name="what failed")
    menu.press("Enter")
    link.focus()
    page.keyboard.press("Escape")
    expect(link).to_be_hidden()
    expect(menu).to_be_focused()
    menu.click()
    page.get_by_role("heading", name="Jobs", exact=True).click()
    expect(link).to_be_hidden()
    menu.click()
    link.click()
    page.wait_for_url("**/jobs?status=failed")
    page.goto(f"{tab.url}/settings/views")
    page.get_by_label("Name of what failed").fill("failures")
    page.get_by_role("button", name="Rename").click()
    page.get_by_role("link", name="failures").wait_for()
    page.get_by_role("button", name="Delete failures").click()
    page.get_by_role("heading", name="No view is saved").wait_for()
    assert tab.errors == []


def test_usage_stands_beside_its_quotas(signed: House) -> None:
    with signed.api.database.begin_system() as connection:
        limits = text("UPDATE tenants SET max_images_queued = 8, max_bytes_stored = 2000000 WHERE id = :id")
        connection.execute(limits, {"id": signed.tenant})
    job = signed.submit({"prompt": "a mug", "size": "64x64", "n": 3})
    assert "Images of this job wait" not in signed.browser.get(f"/jobs/{job}").text
    page = signed.browser.get("/settings/usage").text
    assert 'aria-label="images queued">3 of 8</progress>' in page
    assert "2 MB<" in page and page.count('<span class="soft">none</span>') == 4
    assert "is suspended" not in page
    with signed.api.database.begin_system() as connection:
        connection.execute(text("UPDATE tenants SET state = 'suspended' WHERE id = :id"), {"id": signed.tenant})
    assert "is suspended" in signed.browser.get("/settings/usage").text
    assert re.search("Images of this job wait: the tenant .* is suspended", signed.browser.get(f"/jobs/{job}").text)
    refused = signed.api.http.post(
        "/v1/jobs", json={"images": [{"prompt": "a"}]}, headers={"Authorization": f"Bearer {signed.key}"}
    )
    assert refused.json()["error"]["code"] == "tenant_suspended"


def test_what_goes_within_thirty_days_and_the_last_audit_are_shown(signed: House) -> None:
    page = signed.browser.get("/settings/storage").text
    assert page.count("for ever") == 3 and "Nothing goes within 30 days" in page and "was not audited yet" in page
    job = signed.submit({"prompt": "a mug", "size": "64x64", "n": 3})
    signed.http.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    signed.tick()
    with signed.api.database.begin(signed.tenant) as connection:
        rules.change(connection, signed.tenant, {"objects": 40})
    with signed.api.database.begin_system() as connection:
        connection.execute(
            text("UPDATE jobs SET finished_at = now() - interval '20 days' WHERE id = :id"),
            {"id": ids.parse_job(job)},
        )
        audits.request(connection, 0.5)
        connection.execute(text("UPDATE storage_audits SET missing = 7, finished_at = now(), step = 'done'"))
        connection.execute(text("UPDATE storage_mark SET refusal = 'the marks differ'"))
    page = signed.browser.get("/settings/storage").text
    assert "40 days" in page and f'href="/jobs/{job}"' in page and "the marks differ. <code>" in page
    assert "<dt>Missing</dt><dd>7</dd>" in page and "PRESSWORK_AUDIT_DAYS is not set" in page
    with signed.api.database.begin_system() as connection:
        connection.execute(text("UPDATE tenants SET operator = false WHERE id = :id"), {"id": signed.tenant})
    assert "Audit of the object store" not in signed.browser.get("/settings/storage").text


def test_a_form_that_goes_over_a_quota_keeps_what_was_typed_and_says_why(signed: House) -> None:
    with signed.api.database.begin_system() as connection:
        limits = text("UPDATE tenants SET max_images_queued = 2 WHERE id = :id")
        connection.execute(limits, {"id": signed.tenant})
    fields = {"csrf": csrf(signed), "kind": "prompt", "prompt": "a zebra mug", "n": "3", "size": "64x64"}
    page = html.unescape(signed.browser.post("/submit", data=fields).text)
    assert "may have 2 images queued, and this asks for 3" in page and "a zebra mug" in page
