"""What holds for every page, in a real browser."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.pages import House, Tab

HOSTILE = (
    "<script>window.hurt = 1</script>",
    "\"><img src=x onerror='window.hurt = 1'>",
    "'-window.hurt=1-'",
    "{{ 7 * 7 }}${window.hurt = 1}",
    "</textarea></title></style><svg onload=window.hurt=1>",
    "javascript:window.hurt=1",
    "<b hx-get=/jobs hx-trigger=load>x</b>",
    "&lt;i&gt; \u202e\u0301 <a href=//evil.example>x</a>",
    "]]><!--<iframe src=//evil.example>",
)
PAGES = {  # by what they show; {job} is a job with failed images, {live} one that has not finished
    "overview": "/",
    "jobs": "/jobs",
    "a search": "/jobs?q=run&status=completed&sort=failed_first",
    "nothing found": "/jobs?q=nothing-like-it",
    "job": "/jobs/{job}",
    "live job": "/jobs/{live}",
    "image": "/jobs/{job}/images/0",
    "failed image": "/jobs/{job}/images/1",
    "confirmation": "/jobs/{live}/actions/cancel",
    "retry": "/jobs/{job}/actions/retry",
    "deletion": "/jobs/{job}/actions/delete",
    "fleet": "/fleet",
    "a prompt": "/submit",
    "a template": "/submit?kind=template",
    "a file": "/submit?kind=file",
    "act on all that match": "/bulk/new/cancel?label=a%3Ax",
    "keys": "/settings/keys",
    "action log": "/settings/log",
    "nobody's acts": "/settings/log?who=nobody&what=job.paused&first=2026-01-01",
    "unknown": "/jobs/job_0000000000000",
}

SOME = {
    name: PAGES[name] for name in ("overview", "jobs", "job", "failed image", "confirmation", "fleet", "a template")
}


@pytest.fixture
def shown(house: House) -> dict[str, str]:
    """A job with hostile texts in all places, of which one image failed, and one that waits."""
    images = [{"prompt": text, "size": "64x64", "custom_id": f"item-{nth}"} for nth, text in enumerate(HOSTILE)]
    labels = {"name": HOSTILE[0], HOSTILE[1][:60]: HOSTILE[4], "run": "nightly"}
    job = house.submit(*images, labels=labels)
    house.render(failed=[1], message=HOSTILE[1])
    return {"job": job, "live": house.submit({"prompt": HOSTILE[2], "n": 3, "size": "64x64"}, labels={"a": HOSTILE[5]})}


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
    assert [error for error in tab.errors if "404" not in error] == []
    assert {httpx.URL(address).host for address in tab.requests} == {"127.0.0.1"}


def test_hostile_texts_are_shown_as_text(shown: dict[str, str], open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    for index, text in enumerate(HOSTILE):
        page = tab.open(f"/jobs/{shown['job']}/images/{index}")
        assert page.locator(".prompt").first.inner_text() == text
    assert HOSTILE[0] in tab.open("/jobs").locator("main").inner_text()
    assert HOSTILE[1] in tab.open(f"/jobs/{shown['job']}").locator("#causes").inner_text()


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
