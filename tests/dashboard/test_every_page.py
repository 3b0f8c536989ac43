"""What holds for every page, in a real browser."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from services.core.catalogues import catalogue_runs
from services.core.events.queries import Event
from services.core.model.ids import parse_job
from services.core.model.scopes import Principal, Scope
from services.core.model.specs import FailedImage
from services.core.storage.s3 import S3Store
from services.core.webhooks import deliveries, endpoints
from services.core.webhooks.deliveries import Try
from services.dashboard import words
from services.dashboard.access import Visitor
from tests import collecting, factories
from tests.cataloguing import DEFINITION
from tests.dashboard.hostile import HOSTILE
from tests.pages import House, Tab, picture

_SOME_RUNS = text("""
INSERT INTO schedule_runs (id, schedule_id, tenant_id, instant, state, job_id, reason, asked_by, deadline_at, missed_at,
                           submitted_at, finished_at)
SELECT :tenant * 1000 + nth, id, tenant_id, now() - nth * interval '1 day', state,
       CASE WHEN state NOT IN ('skipped', 'refused') THEN nth END,
       CASE WHEN state IN ('skipped', 'refused') THEN :reason END,
       CASE WHEN nth = 3 THEN 'key/Xk29dQ7a' END, now() - nth * interval '1 day' + interval '5 hours',
       CASE WHEN nth = 5 THEN now() END, now() - nth * interval '1 day',
       CASE WHEN nth > 0 THEN now() - nth * interval '1 day' + interval '2 hours' END
FROM schedules, generate_series(0, 34) AS nth, LATERAL (
  SELECT CASE WHEN nth = 0 THEN 'running' WHEN nth % 11 = 4 THEN 'failed' WHEN nth % 9 = 7 THEN 'skipped'
              WHEN nth = 14 THEN 'refused' WHEN nth = 20 THEN 'cancelled' ELSE 'completed' END AS state) s
WHERE schedules.tenant_id = :tenant AND schedules.name = 'nightly'
""")
_A_REVIEW = """
UPDATE catalogues SET version = 3, published = 2 WHERE id = :id;
INSERT INTO catalogue_runs (id, tenant_id, catalogue_id, state, plan_only, accept_removed, definition, base, version,
  job_id, source, counts, causes, planned_at, rendered_at, finished_at, deadline)
SELECT id - nth + 1, tenant_id, id, CASE WHEN nth = 0 THEN 'reviewing' ELSE 'published' END, false, false, definition,
  2 - nth, 3 - nth, CASE WHEN nth = 0 THEN :job END,
  jsonb_build_object('title', (CAST(:texts AS text[]))[1], 'bytes', 9),
  '{"changed": 8, "broken": 1, "to_review": 8}', '{"x": 1}', now(), now(), CASE WHEN nth > 0 THEN now() END,
  now() + interval '1 day'
FROM catalogues, generate_series(0, 2) AS nth WHERE id = :id;
INSERT INTO catalogue_versions (catalogue_id, version, run_id, images, bytes, manifests)
VALUES (:id, 1, :id - 1, 9, 9, '{}'), (:id, 2, :id, 9, 9, '{}');
INSERT INTO catalogue_changes (run_id, position, item, variant, kind, line, request, code, message)
SELECT :id + 1, p.index, p.prompt, 'front', CASE WHEN p.index = 1 THEN 'broken' ELSE 'changed' END, p.index + 2,
  jsonb_build_object('prompt', p.prompt, 'seed', 7), CASE WHEN p.index = 1 THEN p.prompt END, p.prompt
FROM payloads p WHERE p.job_id = :job;
INSERT INTO catalogue_entries (catalogue_id, item, variant, from_version, until_version, render_key, object_key, sha256,
  bytes, request, model_revision, reproducibility_class, rendered_at, job_id, index)
SELECT :id, p.prompt, 'front', began, CASE WHEN began = 1 THEN 2 END, 'k', r.object_key,
  sha256(decode(to_hex(began + 16), 'hex')), r.bytes, jsonb_build_object('prompt', p.prompt, 'seed', 6), 'r', 'c',
  now(), 1, 0
FROM payloads p JOIN results r USING (job_id, index), generate_series(1, 2) AS began WHERE p.job_id = :job;
"""
PAGES = {  # by what they show; {job} is a job with failed images, {live} one that has not finished
    "overview": "/",
    "jobs": "/jobs",
    "a search": "/jobs?q=run&status=completed&sort=failed_first",
    "nothing found": "/jobs?q=nothing-like-it",
    "job": "/jobs/{job}",
    "live job": "/jobs/{live}",
    "image": "/jobs/{job}/images/0",
    "failed image": "/jobs/{job}/images/1",
    "gallery": "/jobs/{job}/images",
    "pictures of one mark": "/jobs/{job}/images?mark=accepted",
    "a search in a job": "/jobs/{job}/images?q=script",
    "nothing found in a job": "/jobs/{job}/images?q=nothing-like-it",
    "pictures by a score": "/jobs/{job}/images?sort=-sharpness",
    "near-duplicates": "/jobs/{job}/duplicates",
    "near-duplicates over a label": "/duplicates?label=run%3Anightly",
    "no label yet": "/duplicates",
    "marking": "/jobs/{job}/marks/rejected",
    "images of a custom_id": "/images?custom_id=item-0",
    "no image of a custom_id": "/images?custom_id=nothing-like-it",
    "confirmation": "/jobs/{live}/actions/cancel",
    "retry": "/jobs/{job}/actions/retry",
    "deletion": "/jobs/{job}/actions/delete",
    "lanes": "/lanes",
    "schedules": "/schedules",
    "schedule": "/schedules/nightly",
    "schedule that has not run": "/schedules/often",
    "deleting a schedule": "/schedules/nightly/actions/delete",
    "unknown schedule": "/schedules/nothing",
    "catalogues": "/catalogues",
    "catalogue": "/catalogues/shop",
    "a run of a catalogue": "/catalogues/shop/runs/{run}",
    "a change": "/catalogues/shop/runs/{run}/changes/0",
    "a review": "/catalogues/shop/runs/{run}/review",
    "versions compared": "/catalogues/shop/diff",
    "publishing": "/catalogues/shop/actions/publish?version=1",
    "datasets": "/datasets",
    "dataset": "/datasets/mugs",
    "a dataset that has nothing": "/datasets/nothing-yet",
    "a version of a dataset": "/datasets/mugs/versions/1",
    "versions of a dataset compared": "/datasets/mugs/diff",
    "deleting a version": "/datasets/mugs/versions/1/actions/delete",
    "unknown dataset": "/datasets/unknown",
    "fleet": "/fleet",
    "drain": "/fleet/worker-a/drain",
    "models": "/settings/models",
    "a model": "/settings/models/simulated",
    "an unknown model": "/settings/models/nothing",
    "a prompt": "/submit",
    "a template": "/submit?kind=template",
    "a file": "/submit?kind=file",
    "act on all that match": "/bulk/new/cancel?label=a%3Ax",
    "keys": "/settings/keys",
    "views": "/settings/views",
    "usage": "/settings/usage",
    "storage": "/settings/storage",
    "webhooks": "/settings/webhooks",
    "webhook": "/settings/webhooks/{hook}",
    "a delivery": "/settings/webhooks/{hook}/deliveries/{delivery}",
    "deleting a webhook": "/settings/webhooks/{hook}/actions/delete",
    "an unknown webhook": "/settings/webhooks/nothing",
    "action log": "/settings/log",
    "nobody's acts": "/settings/log?who=nobody&what=job.paused&first=2026-01-01",
    "unknown": "/jobs/job_0000000000000",
}

_SHOWN = (
    "overview",
    "jobs",
    "job",
    "failed image",
    "gallery",
    "near-duplicates",
    "confirmation",
    "lanes",
    "schedules",
    "schedule",
    "catalogue",
    "a run of a catalogue",
    "a review",
    "datasets",
    "dataset",
    "a version of a dataset",
    "versions of a dataset compared",
    "fleet",
    "a template",
    "webhooks",
    "webhook",
    "a delivery",
)
SOME = {name: PAGES[name] for name in _SHOWN}


def make_schedules(house: House) -> None:
    """One with runs of all kinds, and one that fires often and has none."""
    target = {"job": {"images": [{"prompt": HOSTILE[0], "size": "64x64"}], "labels": {"a": HOSTILE[1]}}}
    nightly = {"cron": "0 1 * * *", "timezone": "Europe/Berlin", "deadline": "06:00", "target": target}
    assert house.http.put("/v1/schedules/nightly", json=nightly).status_code == 200
    house.http.put("/v1/schedules/often", json={"cron": "*/5 * * * *", "target": target})
    with house.api.database.begin_system() as connection:
        connection.execute(_SOME_RUNS, {"tenant": house.tenant, "reason": HOSTILE[0]})


def make_webhook(house: House) -> tuple[str, str]:
    """One that answers with hostile texts, and a delivery to it."""
    asked = {"url": "https://93.184.216.34/<script>window.hurt=1</script>", "description": HOSTILE[0][:200]}
    hook = house.http.post("/v1/webhooks", json=asked | {"labels": {"a": HOSTILE[1]}}).json()["id"]
    sent = house.http.post(f"/v1/webhooks/{hook}/test").json()["id"]
    tried = Try(1, datetime.now(UTC), 12, 500, HOSTILE[1], None)
    with house.api.database.begin_system() as connection:
        deliveries.record(
            connection, endpoints.parse_id(hook), deliveries.due(connection, endpoints.parse_id(hook)), tried
        )
    return hook, sent


def make_catalogue(house: House, job: str) -> str:
    """One whose last run, which the job has drawn, is reviewed, with hostile ids and errors: the run's id."""
    house.http.put("/v1/catalogues/shop", json=DEFINITION | {"schedule": {"cron": "0 1 * * *"}})
    with house.api.database.begin_system() as connection:
        found = connection.execute(
            text("SELECT id FROM catalogues WHERE tenant_id = :tenant"), {"tenant": house.tenant}
        ).scalar_one()
        values = {"id": found, "job": parse_job(job), "texts": list(HOSTILE[:9])}
        for statement in _A_REVIEW.strip().split(";\n"):
            connection.execute(text(statement), values)
    return catalogue_runs.public_id(found + 1)


def make_dataset(house: House, job: str) -> None:
    """One of a job whose label is hostile, with two versions and one that failed."""
    settings, store = house.api.settings, S3Store(house.api.settings)
    labels = [f"name:{HOSTILE[0]}", "run:nightly"]
    filters = {"metadata": [f"note!={HOSTILE[1][:90].replace('=', '')}"]}
    asked = {"name": "mugs", "jobs": [job], "labels": labels, "images_per_shard": 3, "filters": filters}
    assert house.http.post("/v1/datasets", json=asked).status_code == 201
    house.http.post("/v1/datasets", json={"name": "nothing-yet", "format": "zip"})
    for _ in range(2):
        assert house.http.post("/v1/datasets/mugs/versions", json={"while_running": True}).status_code == 202
        collecting.run(house.api.database, settings, store)
        house.http.put(f"/v1/jobs/{job}/marks", json={"mark": "rejected", "indexes": [3]})
    with house.api.database.begin_system() as connection:
        connection.execute(text("""
          INSERT INTO dataset_versions (dataset_id, number, tenant_id, state, definition, base, error, finished_at)
          SELECT id, 3, tenant_id, 'failed', definition, 2, :error, now() FROM datasets
          WHERE tenant_id = :tenant AND name = 'mugs'
        """), {"error": HOSTILE[4], "tenant": house.tenant})  # fmt: skip


@pytest.fixture
def shown(house: House) -> dict[str, str]:
    """A job with hostile texts in all places, of which one image failed, and one that waits."""
    images = [{"prompt": text, "size": "64x64", "custom_id": f"item-{nth}"} for nth, text in enumerate(HOSTILE[:9])]
    labels = {"name": HOSTILE[0], HOSTILE[1][:60]: HOSTILE[4], "run": "nightly"}
    job = house.submit(*images, labels=labels)
    house.render(failed=[1], message=HOSTILE[1])
    house.http.put(f"/v1/jobs/{job}/marks", json={"mark": "accepted", "indexes": [0, 2]})
    make_schedules(house)
    run = make_catalogue(house, job)
    hook, delivery = make_webhook(house)
    house.tick()
    make_dataset(house, job)
    live = house.submit({"prompt": HOSTILE[2], "n": 3, "size": "64x64"}, labels={"a": HOSTILE[5]})
    return {"job": job, "live": live, "run": run, "hook": hook, "delivery": delivery}


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (1280, "dark"), (360, "light")])
def test_every_page_is_accessible_fits_and_runs_nothing_that_others_wrote(
    shown: dict[str, str], open_tab: Callable[..., Tab], width: int, theme: str
) -> None:
    tab = open_tab(width, theme)
    for name, path in PAGES.items() if (width, theme) == (1280, "light") else SOME.items():
        page = tab.open(path.format(**shown))
        assert tab.violations() == [], name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate("window.hurt") is None, name
        assert page.evaluate("document.querySelectorAll('h1').length") == 1, name
        assert page.locator("h1").inner_text() != "This failed", name
    assert [error for error in tab.errors if "404" not in error] == []
    assert {httpx.URL(address).host for address in tab.requests} == {"127.0.0.1"}


FAILED = 45  # of a job with all hostile texts


def _late() -> list[tuple[int, str]]:
    """The last 16, as many as a job has labels, with a number to sort by."""
    return list(enumerate(HOSTILE[44:], 10))


def submit_hostile(house: House) -> str:
    """A job that has each of the texts as a prompt, in a label and as a custom_id, and most of them as an error."""
    some = {f"{nth}{one[:40]}": one for nth, one in _late()}
    store = S3Store(house.api.settings)
    job = house.submit(*({"prompt": text, "size": "64x64"} for text in HOSTILE), labels=some)
    with house.api.database.begin_system() as connection:  # no door takes such custom_ids
        for index, custom_id in enumerate(HOSTILE):
            values = {"index": index, "custom_id": custom_id, "job": parse_job(job)}
            connection.execute(
                text("UPDATE payloads SET custom_id = :custom_id WHERE job_id = :job AND index = :index"), values
            )
    while (claim := factories.claim(house.api.database)) is not None:
        wrong = [FailedImage(one.job_id, one.index, f"c{one.index}", HOSTILE[one.index]) for one in claim.images]
        done = [image for image in factories.stored(claim) if image.index >= FAILED]
        for image in done:
            store.put(image.object_key, picture(), "image/png", {}, claim_id=claim.id)
        factories.settle(house.api.database, claim, stored=done, failed=wrong[: len(wrong) - len(done)])
    house.tick()
    return job


def test_hostile_texts_are_shown_as_text(house: House, open_tab: Callable[..., Tab]) -> None:
    job, tab = submit_hostile(house), open_tab()
    assert len(set(HOSTILE)) == 60
    page = tab.open(f"/jobs/{job}")
    causes = page.locator("#causes td[data-name=Newest]").all_text_contents()
    assert sorted(causes) == sorted(HOSTILE[:FAILED])
    labels = page.locator("#top .label").all_text_contents()
    assert [one[:50] for one in sorted(labels)] == [f"{nth}{one[:40]}: {one}"[:50] for nth, one in _late()]
    prompts: list[str] = []
    custom_ids: list[str] = []
    address = f"/jobs/{job}/images"
    while address:
        page = tab.open(address)
        prompts += page.locator(".picture .visually-hidden").all_text_contents()
        prompts += [f": {one.get_attribute('alt')}" for one in page.locator(".picture img").all()]
        custom_ids += page.locator(".gallery .caption").all_text_contents()
        more = page.locator("[data-more]")
        address = str(more.get_attribute("href")) if more.count() else ""
    assert custom_ids == list(HOSTILE)
    assert prompts == [f": {one}" for one in HOSTILE]
    for path in ("/jobs", f"/jobs/{job}/images/1", f"/jobs/{job}/images/59"):
        page = tab.open(path)
        assert page.evaluate("window.hurt") is None
    assert page.locator(".prompt").first.inner_text() == HOSTILE[59]
    assert [error for error in tab.errors if "404" not in error] == []
    assert {httpx.URL(address).host for address in tab.requests} == {"127.0.0.1"}


def test_the_first_page_is_small_and_asks_this_server_alone(house: House, open_tab: Callable[..., Tab]) -> None:
    house.submit(*({"prompt": f"mug {nth}", "size": "64x64"} for nth in range(20)))
    house.render()
    tab = open_tab(sign_in=False)
    finished: list[Any] = []
    tab.page.on("requestfinished", lambda one: finished.append(one))  # noqa: PLW0108  playwright wraps it
    tab.open("/sign-in")
    tab.page.get_by_label("API key").fill(house.key)
    finished.clear()
    tab.requests.clear()
    tab.page.get_by_role("button", name="Sign in").click()
    tab.page.locator(".live .dot").wait_for()
    tab.page.wait_for_load_state("load")
    asked = [address for address in tab.requests if "/thumbnail" not in address]
    assert len(asked) <= 12, asked
    sizes = {one.url: one.sizes()["responseBodySize"] for one in finished if "/thumbnail" not in one.url}
    assert 20_000 < sum(sizes.values()) <= 150_000, sizes


def test_no_page_may_be_framed_or_kept_and_each_has_the_policy(signed: House) -> None:
    for path in ("/", "/jobs", "/fleet", "/jobs/job_0000000000000", "/sign-in"):
        answer = signed.browser.get(path, headers={"Accept": "text/html"})
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"] or answer.status_code == 303
        assert answer.headers["Cache-Control"] == "no-store"


def test_what_goes_wrong_is_a_page_for_people_and_json_for_programs(
    signed: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    people, programs = {"Accept": "text/html,*/*"}, {"Accept": "application/json"}
    found = signed.browser.get("/nothing", headers=people)
    assert (found.status_code, "<h1>Not here</h1>" in found.text) == (404, True)
    assert 'aria-label="Pages"' in found.text
    stranger = httpx.get(f"{signed.url}/nothing", headers=people, trust_env=False)
    assert (stranger.status_code, 'aria-label="Pages"' in stranger.text) == (404, False)
    assert signed.browser.get("/nothing", headers=programs).json()["error"]["code"] == "unknown_route"
    assert 'aria-label="Pages"' in signed.browser.get("/jobs/job_0000000000000", headers=people).text
    assert signed.browser.get("/v1/nothing", headers=people).json()["error"]["code"] == "unknown_route"

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr("services.core.jobs.lanes.waiting", broken)
    failed = signed.browser.get("/lanes", headers=people)
    assert (failed.status_code, "<h1>This failed</h1>" in failed.text, "secret" in failed.text) == (500, True, False)
    assert failed.headers["X-Request-Id"] in failed.text


def test_a_job_says_who_did_what_by_name(signed: House) -> None:
    job = signed.submit({"prompt": "a mug", "size": "64x64"})
    signed.tick()
    page = signed.browser.get(f"/jobs/{job}").text
    assert 'Created <span class="soft small">by test</span>' in page and "state queued" not in page


def test_the_name_of_a_worker_is_for_those_who_may_operate() -> None:
    """It has the name of its host."""
    event = Event(1, 1, datetime.now(UTC), "worker rack-3-1", "job.started", "job/1", {})
    for scopes, said in (({Scope.VIEW}, "a worker"), ({Scope.VIEW, Scope.OPERATE}, "worker rack-3-1")):
        visitor = Visitor(Principal(1, "key", "k", frozenset(scopes), operator=True), "")
        assert words.whose(event, visitor) == said


def test_an_act_on_nothing_is_not_asked_for(signed: House) -> None:
    page = signed.browser.get("/bulk/new/cancel?status=failed").text
    assert "There is no such job" in page and "Go back" in page and "<button" not in page.partition('id="confirm"')[2]


def test_others_jobs_and_pictures_are_not_there(signed: House) -> None:
    """The first tenant has a job too."""
    answer = signed.api.http.post("/v1/jobs", json={"images": [{"prompt": "of others", "size": "64x64"}]})
    job = answer.json()["id"]
    signed.render()
    assert job not in signed.browser.get("/jobs").text + signed.browser.get("/").text
    for path in ("", "/images/0", "/images/0/thumbnail", "/images/0/picture", "/actions/cancel", "/actions/delete"):
        assert signed.browser.get(f"/jobs/{job}{path}").status_code == 404, path


def test_the_theme_can_be_chosen_and_is_remembered(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(theme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    before = tab.page.evaluate(paper)
    tab.page.get_by_role("button", name="Use the dark theme").click()
    after = tab.page.evaluate(paper)
    assert after != before
    assert tab.open("/jobs").evaluate(paper) == after


def test_the_keyboard_reaches_the_content_first(open_tab: Callable[..., Tab]) -> None:
    page = open_tab().open("/jobs")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
