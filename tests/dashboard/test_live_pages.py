"""Pages follow what happens, and say when they cannot."""

from collections.abc import Callable

from playwright.sync_api import expect

from services.core.tenants import sessions
from tests.pages import House, Tab
from tests.web import serving


def small(count: int) -> list[dict[str, object]]:
    return [{"prompt": f"mug {nth}", "size": "64x64"} for nth in range(count)]


def test_a_bar_follows_its_job_and_never_goes_back(house: House, open_tab: Callable[..., Tab]) -> None:
    job = house.submit(*small(20))
    tab = open_tab()
    page = tab.open(f"/jobs/{job}")
    bar = page.locator("#top .bar")
    page.evaluate(
        """() => {
          window.seen = [];
          const bar = document.querySelector("#top .bar");
          new MutationObserver(() => window.seen.push(Number(bar.getAttribute("aria-valuenow"))))
            .observe(bar, {attributes: true, attributeFilter: ["aria-valuenow"]});
        }"""
    )
    for done in (5, 12):
        house.render(most=done - sum(house.http.get(f"/v1/jobs/{job}").json()["counts"][name] for name in ("done",)))
        expect(bar).to_have_attribute("aria-valuenow", str(done))
        expect(page.locator("#top [data-field=done]")).to_have_text(str(done))
    seen = page.evaluate("window.seen")
    assert seen == sorted(seen)
    house.render()
    expect(page.locator("#top .state")).to_have_text("completed")
    expect(page.locator("#images img").first).to_be_visible()
    expect(page.get_by_role("link", name="Cancel", exact=True)).to_have_count(0)
    assert tab.errors == []


def test_the_overview_shows_a_job_that_comes_and_follows_it(house: House, open_tab: Callable[..., Tab]) -> None:
    page = open_tab().page
    page.get_by_text("No jobs yet").wait_for()
    job = house.submit(*small(7))
    house.tick()
    expect(page.locator(f"#progress [data-job={job}]")).to_be_visible(timeout=30_000)
    expect(page.locator("[data-figure=waiting]")).to_have_text("7")
    house.render(most=3)
    expect(page.locator("[data-figure=waiting]")).to_have_text("4")


def test_a_page_that_is_paused_stays_as_it_is(house: House, open_tab: Callable[..., Tab]) -> None:
    job = house.submit(*small(4))
    page = open_tab().open(f"/jobs/{job}")
    button = page.locator("#live")
    button.click()
    expect(button).to_have_text("Paused")
    house.render(most=2)
    expect(page.locator("#top [data-field=done]")).to_have_text("0")
    button.click()
    expect(page.locator("#top [data-field=done]")).to_have_text("2")


def test_whoever_is_signed_out_meanwhile_is_told_and_comes_back(house: House, open_tab: Callable[..., Tab]) -> None:
    job = house.submit(*small(4))
    tab = open_tab()
    page = tab.open(f"/jobs/{job}")
    [cookie] = [one["value"] for one in page.context.cookies() if one["name"] == "presswork_session"]
    with house.api.database.begin_system() as connection:
        sessions.end(connection, cookie)
    page.locator("#live").click()
    page.locator("#live").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible(timeout=30_000)
    page.get_by_label("API key").fill(house.key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{house.url}/jobs/{job}")


def test_a_banner_says_that_the_server_is_away_and_goes_when_it_is_back(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    with serving(house.api.settings) as url:
        page = open_tab(url=url).open("/jobs")
        expect(page.get_by_text("No jobs yet")).to_be_visible()
        page.locator("#live").wait_for()
    expect(page.locator("#banner")).to_contain_text("The server cannot be reached", timeout=30_000)
    house.submit(*small(1))
    with serving(house.api.settings, int(url.rpartition(":")[2])):
        expect(page.locator("#banner")).to_be_hidden(timeout=30_000)
        expect(page.locator("tr[data-job]")).to_be_visible(timeout=30_000)
