"""How pages keep up to date: by asking every few seconds where there are no shared workers, never while they are paused
or nobody looks, without requests that pile up, and with one stream for all tabs."""

import gc
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, Request, Route, expect

from services.api.feed import Feed
from tests.pages import House, Tab
from tests.waiting import until
from tests.web import serving

ALONE = "delete window.SharedWorker;"


def small(count: int) -> list[dict[str, object]]:
    return [{"prompt": f"mug {nth}", "size": "64x64"} for nth in range(count)]


def asked(tab: Tab) -> list[str]:
    """What the page has asked for by itself. A picture that is scrolled to is asked for when it is shown."""
    return [address for address in tab.requests if "/thumbnail" not in address]


def hide(page: Page, hidden: bool) -> None:
    """As when another tab is looked at."""
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, "hidden", {get: () => hidden, configurable: true});
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


@pytest.fixture
def alone(house: House, open_tab: Callable[..., Tab]) -> Iterator[tuple[str, Tab]]:
    """A job of four images, and its page in a browser without shared workers, whose clock the test turns."""
    job = house.submit(*small(4))
    tab = open_tab()
    tab.page.add_init_script(ALONE)
    tab.page.clock.install()
    tab.open(f"/jobs/{job}")
    expect(tab.page.locator("#live")).to_be_visible()
    assert tab.page.evaluate("typeof SharedWorker") == "undefined"
    tab.requests.clear()
    yield job, tab
    tab.page.unroute_all(behavior="ignoreErrors")


def test_without_shared_workers_a_page_asks_every_few_seconds(house: House, alone: tuple[str, Tab]) -> None:
    _, tab = alone
    house.render(most=3)
    tab.page.clock.run_for(8_000)
    expect(tab.page.locator("#top [data-field=done]")).to_have_text("3")
    assert not any("/live" in address for address in tab.requests)
    assert tab.errors == []


def test_a_page_that_is_paused_or_not_looked_at_asks_for_nothing_and_then_catches_up(
    house: House, alone: tuple[str, Tab]
) -> None:
    _, tab = alone
    page, button = tab.page, tab.page.locator("#live")
    button.click()
    house.render(most=1)
    page.clock.run_for(60_000)
    assert asked(tab) == []
    button.click()
    page.clock.run_for(4_000)
    expect(page.locator("#top [data-field=done]")).to_have_text("1")
    hide(page, hidden=True)
    page.clock.run_for(1_000)
    tab.requests.clear()
    house.render(most=1)
    page.clock.run_for(60_000)
    assert asked(tab) == []
    hide(page, hidden=False)
    page.clock.run_for(4_000)
    expect(page.locator("#top [data-field=done]")).to_have_text("2")


def test_requests_that_are_not_answered_do_not_pile_up(alone: tuple[str, Tab]) -> None:
    job, tab = alone
    parts = tab.page.locator("[data-again], [data-every]").count()
    held: list[Request] = []
    tab.page.route(f"**/jobs/{job}", lambda route: held.append(route.request))  # and never answers
    tab.page.clock.run_for(40_000)
    until(lambda: bool(tab.page.evaluate("1")) and len(held) >= parts)
    assert len(held) == parts


def test_what_changes_while_a_part_is_loading_is_not_asked_for_once_the_page_is_paused(alone: tuple[str, Tab]) -> None:
    job, tab = alone
    page = tab.page
    parts = page.locator("[data-again], [data-every]").count()
    page.evaluate("window.ended = 0; document.addEventListener('htmx:finally:request', () => window.ended++)")
    held: list[Route] = []
    page.route(f"**/jobs/{job}", lambda route: held.append(route))  # noqa: PLW0108  playwright wraps it
    page.clock.run_for(20_000)
    until(lambda: bool(page.evaluate("1")) and len(held) >= parts)
    page.locator("#live").click()
    tab.requests.clear()
    for route in held:
        route.fulfill(status=204)
    until(lambda: page.evaluate("window.ended") >= parts)
    page.clock.run_for(20_000)
    assert asked(tab) == []


def test_without_shared_workers_a_banner_says_that_the_server_is_away(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    with serving(house.api.settings) as url:
        tab = open_tab(url=url)
        tab.page.add_init_script(ALONE)
        tab.page.clock.install()
        page = tab.open("/jobs")
        page.locator("#live").wait_for()
    with page.expect_event("requestfailed"):
        page.clock.run_for(8_000)
    page.clock.run_for(3_000)
    expect(page.locator("#banner")).to_contain_text("The server cannot be reached")
    with serving(house.api.settings, int(url.rpartition(":")[2])):
        page.clock.run_for(6_000)
        expect(page.locator("#banner")).to_be_hidden()


def test_seven_tabs_of_one_browser_have_one_stream(house: House, open_tab: Callable[..., Tab]) -> None:
    feeds = [one for one in gc.get_objects() if isinstance(one, Feed)]

    def streams() -> int:
        return sum(watcher.tenant == house.tenant for feed in feeds for watcher in list(feed._watchers))

    first = open_tab()
    tabs = [first.page, *(first.page.context.new_page() for _ in range(6))]
    for tab in tabs:
        tab.goto(f"{house.url}/jobs")
    job = house.submit(*small(3))
    house.tick()
    for tab in tabs:
        expect(tab.locator(f"tr[data-job={job}]")).to_be_visible(timeout=30_000)
    assert streams() == 1
