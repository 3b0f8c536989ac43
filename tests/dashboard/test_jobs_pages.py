"""The list of jobs, a job's page, and what can be done there."""

import html
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from PIL import Image

from services.core.bulk import bulk
from services.core.bulk import task as bulk_task
from services.core.db.leases import Lease
from services.core.fleet import workers
from services.core.model.scopes import Scope
from services.core.notify import Notifier
from services.core.tenants import api_keys
from tests.pages import House, Tab


def ids(page: httpx.Response) -> list[str]:
    """The jobs in the list, in order."""
    assert page.status_code == 200, page.text
    return re.findall(r'<tr data-job="(\w+)"', page.text)


def small(count: int = 1) -> list[dict[str, object]]:
    return [{"prompt": f"mug {nth}", "size": "64x64", "custom_id": f"m{nth}"} for nth in range(count)]


def test_jobs_are_found_by_status_label_and_text_in_each_order(signed: House) -> None:
    failed = signed.submit(*small(2), labels={"run": "nightly", "shop": "Berlin"})
    signed.render(failed=[0])
    done = signed.submit(*small(), labels={"run": "weekly"})
    signed.render()
    waits = signed.submit(*small(), labels={"shop": "berlin-2"})
    for address, wanted in {
        "/jobs": [waits, done, failed],
        "/jobs?sort=oldest": [failed, done, waits],
        "/jobs?sort=failed_first": [failed, waits, done],
        "/jobs?status=unfinished": [waits],
        "/jobs?status=completed&sort=oldest": [failed, done],
        "/jobs?label=run%3Aweekly": [done],
        "/jobs?q=BERLIN": [waits, failed],
        "/jobs?q=berlin&status=completed": [failed],
        "/jobs?q=run:w": [done],
        "/jobs?q=nowhere": [],
    }.items():
        assert ids(signed.browser.get(address)) == wanted, address
        assert [job["id"] for job in signed.http.get(f"/v1{address}").json()["data"]] == wanted, address
    answer = signed.browser.get(f"/jobs?q={done}")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/jobs/{done}")


def test_jobs_are_found_by_time_priority_model_and_who_submitted_them(signed: House) -> None:
    mine = signed.submit(*small(), priority="high")
    with signed.api.database.begin_system() as connection:
        other = api_keys.issue_key(connection, signed.api.settings.secret, signed.tenant, "night shift")
    headers = {"Authorization": f"Bearer {other}"}
    theirs = signed.http.post("/v1/jobs", json={"images": small()}, headers=headers).json()["id"]
    today, model = datetime.now(UTC).date(), signed.http.get("/v1/models").json()["data"][0]["id"]
    for query, wanted in {
        "priority=high": [mine],
        "who=night+shift": [theirs],
        f"who={other.split('_')[1]}": [theirs],
        "who=nobody": [],
        f"model={model}": [theirs, mine],
        "model=another": [],
        f"since={today}&sort=oldest": [mine, theirs],
        f"since={today - timedelta(days=1)}&until={today}&status=queued": [theirs, mine],
        f"until={today - timedelta(days=1)}": [],
        f"since={today + timedelta(days=1)}": [],
        "since=0001-01-01&until=9998-12-31&priority=high&sort=failed_first": [mine],
        "since=2h&sort=oldest": [mine, theirs],
        "since=999999w&until=9999-12-31": [theirs, mine],
        "since=2h&until=30m": [],
        f"since={today}T00:00:00Z": [theirs, mine],
        f"until={today}T00:00:00%2B00:00": [],
    }.items():
        assert ids(signed.browser.get(f"/jobs?{query}")) == wanted, query
        assert [job["id"] for job in signed.http.get(f"/v1/jobs?{query}").json()["data"]] == wanted, query
    for wrong in (
        "since=yesterday",
        "since=2026-02-30",
        "until=2x",
        "until=2026-11-26T10:00",
        "sort=best",
        "status=odd",
    ):
        assert signed.browser.get(f"/jobs?{wrong}").status_code == 400, wrong
        assert signed.http.get(f"/v1/jobs?{wrong}").status_code == 422, wrong
    page = signed.browser.get("/jobs?q=a%27b&label=run:a=b&who=night+shift&since=2h&sort=oldest").text
    said = "presswork ls --text 'a'\"'\"'b' --label run=a=b --submitted-by 'night shift' --since 2h --sort oldest"
    assert said in html.unescape(page)


@pytest.mark.parametrize("sort", ["newest", "oldest", "failed_first"])
def test_pages_of_the_list_follow_one_another_and_miss_none(
    signed: House, monkeypatch: pytest.MonkeyPatch, sort: str
) -> None:
    monkeypatch.setattr("services.dashboard.pages.jobs._PER_PAGE", 2)
    jobs = [signed.submit(*small()) for _ in range(3)]
    signed.render(failed=[0])
    jobs += [signed.submit(*small()) for _ in range(4)]
    signed.render()
    found, address = [], f"/jobs?sort={sort}"
    while address:
        page = signed.browser.get(address)
        found += ids(page)
        following = re.search(r'class="button" href="([^"]+cursor[^"]+)"', page.text)
        address = following[1].replace("&amp;", "&") if following else ""
    wanted = {"newest": jobs[::-1], "oldest": jobs, "failed_first": jobs[2::-1] + jobs[:2:-1]}
    assert found == wanted[sort]


@pytest.mark.parametrize(
    "query",
    [
        "priority=none",
        "since=today",
        "status=none",
        "label=none",
        "sort=none",
        "cursor=none",
        "cursor=%00",
    ],
)
def test_an_address_that_makes_no_sense_says_so(signed: House, query: str) -> None:
    answer = signed.browser.get(f"/jobs?{query}")
    assert answer.status_code == 400
    assert "<h1>Refused</h1>" in answer.text


def test_a_jobs_page_has_its_counts_causes_events_and_images_failed_first(signed: House) -> None:
    job = signed.submit(*small(60), labels={"name": "spring"})
    signed.render(failed=[7, 59])
    page = signed.browser.get(f"/jobs/{job}").text
    assert '<span data-field="failed">2</span> failed' in page and '<span data-field="done">58</span> done' in page
    assert 'aria-valuetext="60 of 60 finished, 2 failed"' in page
    assert "<code>render_error</code>" in page and "it broke" in page
    assert "Created" in page and "Completed" in page
    assert re.findall(r'<li id="image-(\d+)"', page) == ["7", "59", *map(str, range(7)), *map(str, range(8, 23))]


def test_a_thumbnail_is_small_and_a_picture_is_the_stored_one(signed: House) -> None:
    job = signed.submit(*small())
    assert signed.browser.get(f"/jobs/{job}/images/0/thumbnail").status_code == 404
    signed.render()
    thumbnail = signed.browser.get(f"/jobs/{job}/images/0/thumbnail")
    assert (thumbnail.status_code, thumbnail.headers["Content-Type"]) == (200, "image/webp")
    assert Image.open(io.BytesIO(thumbnail.content)).size == (256, 171)
    picture = signed.browser.get(f"/jobs/{job}/images/0/picture")
    assert Image.open(io.BytesIO(picture.content)).size == (600, 400)
    again = signed.browser.get(f"/jobs/{job}/images/0/picture", headers={"If-None-Match": picture.headers["ETag"]})
    assert again.status_code == 304


def act(house: House, job: str, name: str, **fields: str) -> httpx.Response:
    return house.post(f"/jobs/{job}/actions/{name}", page=f"/jobs/{job}/actions/{name}", **fields)


def status(house: House, job: str) -> dict[str, object]:
    found: dict[str, object] = house.http.get(f"/v1/jobs/{job}").json()
    return found


def test_an_action_asks_with_the_number_of_images_and_then_happens(signed: House) -> None:
    job = signed.submit(*small(5))
    signed.render(most=2)
    for name in ("pause", "cancel"):
        assert "3 images" in signed.browser.get(f"/jobs/{job}/actions/{name}").text
    assert act(signed, job, "pause").headers["Location"] == f"/jobs/{job}"
    assert status(signed, job)["paused"] is True
    act(signed, job, "resume")
    act(signed, job, "priority", priority="high")
    assert (status(signed, job)["paused"], status(signed, job)["priority"]) == (False, "high")
    act(signed, job, "cancel")
    signed.tick()
    assert status(signed, job)["status"] == "cancelled"


def test_failed_images_are_retried_as_a_new_job_and_a_job_is_deleted(signed: House) -> None:
    job = signed.submit(*small(3))
    signed.render(failed=[1])
    assert "1 failed image become" in signed.browser.get(f"/jobs/{job}/actions/retry").text
    child = act(signed, job, "retry").headers["Location"].removeprefix("/jobs/")
    assert status(signed, child)["retry_of"] == job
    assert "2 stored images" in signed.browser.get(f"/jobs/{job}/actions/delete").text
    assert act(signed, job, "delete").headers["Location"] == "/jobs"
    assert signed.browser.get(f"/jobs/{job}").status_code == 404


def test_an_action_that_came_too_late_says_what_happened_instead(signed: House) -> None:
    job = signed.submit(*small())
    token = re.findall(r'name="csrf" value="(\w+)"', signed.browser.get(f"/jobs/{job}/actions/cancel").text)[0]
    signed.render()
    answer = signed.browser.post(f"/jobs/{job}/actions/cancel", data={"csrf": token})
    assert answer.status_code == 409
    assert "The job is completed; only a job that has not finished can be cancelled." in answer.text
    assert signed.browser.post(f"/jobs/{job}/actions/delete", data={"csrf": ""}).status_code == 403
    assert act(signed, job, "priority", priority="none").status_code == 422
    assert signed.browser.get(f"/jobs/{job}/actions/none").status_code == 404


def test_an_export_is_ordered_from_the_page(signed: House) -> None:
    job = signed.submit(*small(2))
    signed.render()
    answer = signed.post(f"/jobs/{job}/actions/export", page=f"/jobs/{job}", format="zip")
    assert answer.status_code == 303
    [export] = signed.http.get(f"/v1/jobs/{job}/exports").json()["data"]
    assert export["format"] == "zip"
    assert "queued" in signed.browser.get(f"/jobs/{job}").text
    assert signed.browser.get(f"/jobs/{job}/exports/{export['id']}").status_code == 200
    for wrong in ({"format": "rar"}, {"format": "zip", "mark": "none"}):
        assert signed.post(f"/jobs/{job}/actions/export", page=f"/jobs/{job}", **wrong).status_code == 422


def test_the_fleet_shows_what_each_worker_does(signed: House) -> None:
    with signed.api.database.begin_system() as connection:
        workers.beat(connection, "worker-a", "ready")
    page = signed.browser.get("/fleet").text
    assert "1 worker<" in page and "process 1<" in page


def test_cancelling_by_keyboard_in_a_dialog(house: House, open_tab: Callable[..., Tab]) -> None:
    job = house.submit(*small(3))
    page = open_tab().open(f"/jobs/{job}")
    page.get_by_role("link", name="Cancel", exact=True).press("Enter")
    page.locator("dialog[open]").get_by_text("3 images that wait will not be rendered").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.get_by_role("link", name="Cancel", exact=True).press("Enter")
    page.locator("dialog[open]").get_by_role("button", name="Cancel").press("Enter")
    page.wait_for_url(f"{house.url}/jobs/{job}")
    page.locator(".state[data-state^='cancel']").first.wait_for()


def test_a_filter_goes_into_the_address_and_the_list_follows(house: House, open_tab: Callable[..., Tab]) -> None:
    house.submit(*small(), labels={"run": "nightly"})
    page = open_tab().open("/jobs")
    page.locator("tr[data-job]").wait_for()
    page.get_by_label("Status").select_option("failed")
    page.get_by_text("No job matches").wait_for()
    assert "status=failed" in page.url


def test_a_key_that_may_only_look_sees_no_button_and_is_refused(signed: House) -> None:
    job = signed.submit(*small())
    with signed.api.database.begin_system() as connection:
        given = (Scope.VIEW,)
        signed.key = api_keys.issue_key(connection, signed.api.settings.secret, signed.tenant, "guest", given=given)
    signed.browser.cookies.clear()
    signed.sign_in()
    page = signed.browser.get(f"/jobs/{job}")
    assert page.status_code == 200 and "/actions/" not in page.text
    for name in ("cancel", "pause", "priority", "retry", "delete"):
        assert signed.browser.get(f"/jobs/{job}/actions/{name}").status_code == 403
        answer = signed.post(f"/jobs/{job}/actions/{name}", page="/jobs")
        assert answer.status_code == 403 and "Not allowed" in answer.text
    assert signed.post(f"/jobs/{job}/actions/export", page="/jobs", format="zip").status_code == 403
    assert status(signed, job)["status"] == "queued"


def test_an_act_is_logged_with_the_key_that_did_it(signed: House) -> None:
    job = signed.submit(*small())
    act(signed, job, "pause")
    signed.tick()
    events = signed.http.get(f"/v1/jobs/{job}/events").json()["data"]
    assert events[-1]["actor"] == f"key/{signed.key.split('_')[1]}"


def chosen(house: House, name: str, query: str, **fields: str) -> httpx.Response:
    """What the question's form sends, with the fields that a person fills in."""
    page = f"/bulk/new/{name}{query}"
    hidden = re.findall(r'name="(of-[a-z]+)" value="([^"]*)"', house.browser.get(page).text)
    return house.post(f"/bulk/new/{name}", page=page, **dict(hidden), **fields)


def carry_out(house: House) -> None:
    """What a scheduler does about acts on many jobs."""
    with house.api.database.begin_system() as connection:
        pending = bulk.pending(connection)
    for item in pending:
        lease = Lease(house.api.database, f"bulk/{item.id}", "tests")
        assert lease.take()
        bulk_task.run(house.api.settings, Notifier(house.api.settings.redis_url), item.id, lease)
        lease.release()


def test_all_that_match_are_counted_acted_on_and_reported(signed: House) -> None:
    nightly = [signed.submit(*small(3), labels={"run": "nightly"}) for _ in range(3)]
    other = signed.submit(*small(3))
    query = "?status=unfinished&label=run%3Anightly"
    assert f'href="/bulk/new/cancel{query.replace("&", "&amp;")}"' in signed.browser.get(f"/jobs{query}").text
    asked = signed.browser.get(f"/bulk/new/cancel{query}").text
    assert "Cancel 3 jobs?" in asked and "9 images that wait or are being rendered" in asked
    assert signed.post("/bulk/new/cancel", page=f"/bulk/new/cancel{query}").status_code == 422  # without its filter
    answer = chosen(signed, "cancel", query)
    place = answer.headers["Location"]
    assert place.startswith("/bulk/bulk_")
    before = signed.browser.get(place).text
    assert "A scheduler begins within seconds" in before and "Stop here" in before
    signed.http.post(f"/v1/jobs/{nightly[2]}/cancel")
    carry_out(signed)
    after = signed.browser.get(place).text
    assert "Done to <strong>2</strong> of 3 jobs" in after and "1 job had changed before its turn" in after
    assert "with the label run:nightly" in after
    assert [status(signed, job)["status"] for job in [*nightly, other]] == ["cancelling"] * 3 + ["queued"]
    chosen(signed, "priority", "", priority="high")
    carry_out(signed)
    assert status(signed, other)["priority"] == "high"
    stopping = chosen(signed, "pause", "").headers["Location"]
    signed.post(f"{stopping}/stop", page=stopping)
    carry_out(signed)
    assert status(signed, other)["paused"] is False and "It was stopped" in signed.browser.get(stopping).text


def test_an_act_on_many_needs_its_scope_and_a_filter_that_makes_sense(house: House) -> None:
    with house.api.database.begin_system() as connection:
        given = [Scope.VIEW, Scope.SUBMIT]
        house.key = api_keys.issue_key(connection, house.api.settings.secret, house.tenant, "some", given=given)
    house.sign_in()
    house.submit(*small())
    page = house.browser.get("/jobs").text
    assert "/bulk/new/retry" in page and "/bulk/new/cancel" not in page
    assert house.browser.get("/bulk/new/cancel").status_code == 403
    assert house.post("/bulk/new/cancel", page="/").status_code == 403
    for path in ("/bulk/new/nothing", "/bulk/bulk_0000000000000", "/bulk/x"):
        assert house.browser.get(path).status_code == 404, path
    assert house.browser.get("/bulk/new/retry?status=none").status_code == 400
    assert house.browser.get("/bulk/new/retry?label=none").status_code == 400


def test_all_that_match_are_paused_from_the_list_by_keyboard(house: House, open_tab: Callable[..., Tab]) -> None:
    job = house.submit(*small(2), labels={"run": "nightly"})
    tab = open_tab()
    page = tab.open("/jobs?label=run%3Anightly")
    page.get_by_text("All that match").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Pause"
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("heading", name="Pause 1 job?").wait_for()
    dialog.get_by_role("button", name="Pause").press("Enter")
    page.get_by_text("A scheduler begins within seconds").wait_for()
    carry_out(house)
    page.locator(".state", has_text="completed").wait_for(timeout=30_000)
    assert status(house, job)["paused"] is True
    assert tab.errors == []
