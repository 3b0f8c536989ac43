"""The overview: what needs a person, figures, causes, and a chart that is drawn, read by keyboard and told in words."""

import re
from collections.abc import Callable

import httpx
from playwright.sync_api import Page, expect
from sqlalchemy import text

from services.core.fleet import workers
from services.core.queue import counters
from services.dashboard import files
from tests import factories
from tests.pages import House, Tab
from tests.waiting import until


def small(count: int = 1) -> list[dict[str, object]]:
    return [{"prompt": f"mug {nth}", "size": "64x64"} for nth in range(count)]


def fold(house: House) -> None:
    with house.api.database.begin_system() as connection:
        counters.fold(connection)


def finished(house: House, *minutes: int) -> None:
    """As many images as minutes ago, in each of these minutes."""
    statement = text(
        "INSERT INTO rates (tenant_id, grain, at, done, failed, reused, device_seconds, slots) "
        "VALUES (:tenant, 'minute', date_trunc('minute', now()) - make_interval(mins => :done), :done, 0, 0, 0, 0)"
    )
    with house.api.database.begin_system() as connection:
        connection.execute(statement, [{"tenant": house.tenant, "done": done} for done in minutes])


def test_it_says_what_needs_a_person_and_what_failed_with_a_way_to_the_images(signed: House) -> None:
    job = signed.submit(*small(3))
    signed.render(failed=[1], message="a lamp broke")
    fold(signed)
    with signed.api.database.begin_system() as connection:
        workers.register(
            connection, "sick", host="h", pid=9, device="gpu7", model="m", revision=factories.REVISION, state="sick"
        )
    page = signed.browser.get("/").text
    assert "h gpu7 is sick" in page and "All is well" not in page
    assert "a lamp broke" in page
    for address in (f"/jobs/{job}/images/1", f"/jobs/{job}?show=failed"):
        assert f'href="{address}' in page
        assert signed.browser.get(address).status_code == 200
    assert len(re.findall(rf"/jobs/{job}/images/\d+/thumbnail", page)) == 2
    with signed.api.database.begin_system() as connection:
        connection.execute(text("DELETE FROM workers WHERE id = 'sick'"))
    assert "h gpu7 is sick" not in signed.browser.get("/").text


def test_a_span_stands_in_the_address(signed: House) -> None:
    signed.submit(*small())
    for span in ("hour", "day", "week"):
        page = signed.browser.get(f"/?span={span}").text
        assert re.search(rf'aria-current="true">{span}</a>', page)
    answer = signed.browser.get("/?span=year")
    assert (answer.status_code, "hour, day, week" in answer.text) == (400, True)


def chart(page: Page) -> str:
    """The chart's pixels."""
    return str(page.evaluate("document.querySelector('.chart canvas').toDataURL()"))


def test_the_throughput_is_drawn_in_both_themes_followed_and_read_by_keyboard(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    house.submit(*small())
    finished(house, 4, 9, 21)
    tab = open_tab()
    page = tab.open("/")
    page.locator(".chart canvas").wait_for()
    light = chart(page)
    page.get_by_role("button", name="Use the dark theme").click()
    until(lambda: chart(page) != light)
    page.locator(".chart").focus()
    read = page.locator(".chart .reading")
    page.keyboard.press("End")
    expect(read).to_contain_text("a second, 0 done")
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    expect(read).to_contain_text("0.15 a second, 9 done, 0 failed")
    page.keyboard.press("Home")
    for _ in range(100):
        page.keyboard.press("ArrowRight")
    expect(read).to_contain_text("0 done")
    page.get_by_text("The numbers").click()
    rows = page.locator(".throughput tbody tr")
    expect(rows).to_have_count(3)
    before = page.evaluate("document.querySelector('.chart canvas').drawnOnce = true") and chart(page)
    finished(house, 2)
    expect(rows).to_have_count(4, timeout=30_000)
    expect(rows.first).to_be_visible()  # what was unfolded stays so
    assert chart(page) != before
    assert page.evaluate("document.querySelector('.chart canvas').drawnOnce"), "it was drawn anew"
    expect(page.get_by_text("The numbers")).to_be_focused()
    assert tab.errors == []


def test_files_are_sent_small_to_who_takes_them_so(house: House) -> None:
    address = house.url + files.address("vendor/uPlot.iife.min.js")
    small, plain = httpx.get(address), httpx.get(address, headers={"Accept-Encoding": "identity"})
    assert small.headers["Content-Encoding"] == "gzip" and "Content-Encoding" not in plain.headers
    assert small.content == plain.content
    assert int(small.headers["Content-Length"]) < int(plain.headers["Content-Length"]) / 2


def test_a_jobs_page_draws_its_own_throughput_once_there_is_some(house: House, open_tab: Callable[..., Tab]) -> None:
    job = house.submit(*small(40))
    tab = open_tab()
    page = tab.open(f"/jobs/{job}")
    expect(page.locator("#throughput")).to_be_hidden()
    house.render(most=16, failed=[3])
    with house.api.database.begin_system() as connection:
        connection.execute(text("UPDATE counter_deltas SET at = at - interval '2 minutes'"))
    fold(house)
    house.render(most=16)
    fold(house)
    expect(page.locator("#throughput canvas")).to_be_visible(timeout=30_000)
    expect(page.locator("#throughput figcaption")).to_contain_text("31 images done, 1 failed; at most 1.6 a second")
    page.locator("#throughput .chart").press("Home")
    expect(page.locator("#throughput .reading")).to_contain_text("1.6 a second, 15 done, 1 failed")
    drawn = page.locator("#throughput .u-over").bounding_box()
    assert drawn is not None and drawn["width"] > 500
    assert tab.errors == []
