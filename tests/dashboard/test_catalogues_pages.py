"""The pages of catalogues: what runs did and why, changed pictures by keyboard, publishing and rolling back by button,
and by whom."""

import re
from collections.abc import Callable
from dataclasses import replace

import httpx
from sqlalchemy import text

from services.core.catalogues import catalogues, destinations
from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from tests.dashboard.shops import Shop, tomorrow
from tests.dashboard.test_input_pictures import photograph
from tests.pages import House, Tab

FEED = {f"sku-{nth}": f"a red mug {nth}" for nth in range(6)}
REVIEWED = {"require": 0.5, "review": "changed"}


def test_a_catalogue_is_run_and_rolled_back_by_button(house: House, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    tab.open("/catalogues").get_by_text("presswork catalogue apply shop.toml").wait_for()
    shop = Shop(house, schedule={"cron": "0 1 * * *", "timezone": "Europe/Berlin"})
    shop.night(FEED)
    shop.night(FEED | {"sku-1": "a teal mug 1"})
    page = tab.open("/catalogues")
    row = page.get_by_role("row", name="shop")
    assert re.search(r"published.*version 2.*6 pictures.*\b6\b", row.inner_text(), re.DOTALL)
    page.get_by_role("link", name="shop", exact=True).click()
    assert page.locator(".times li").count() == 10
    page.get_by_role("link", name="Roll back").click()
    dialog = page.locator("dialog")
    dialog.get_by_text("1 picture differs, and readers will see 6 pictures instead of 6").wait_for()
    dialog.get_by_role("button", name="Roll back").click()
    page.locator(".figures", has_text="version 1").wait_for()
    assert shop.published() == 1
    page.get_by_role("button", name="Plan shop").click()
    page.get_by_text("The source is read").wait_for()
    shop.tend()
    house.tick()
    page.get_by_text("would draw 1 picture.").wait_for()
    page.get_by_role("button", name="Run now").click()
    page.get_by_text("The source is read").wait_for()
    tab.open("/catalogues/shop").get_by_role("button", name="Run now").click()
    assert "has not ended" in page.locator("main").inner_text()
    assert [error for error in tab.errors if "409" not in error] == []


def test_a_report_says_why_a_run_ended_and_what_failed_on_which_line(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    shop = Shop(house, publish={"require": 0.9})
    shop.night(FEED)
    changed = {sku: title.replace("red", "teal") for sku, title in FEED.items() if sku != "sku-0"}
    run = shop.night(changed | {"new": "a gold hat"}, failing=["mug 3", "mug 4"])
    assert run["state"] == "kept"
    tab = open_tab()
    page = tab.open(f"/catalogues/shop/runs/{run['id']}")
    page.get_by_text("4 of 6 pictures are good, 66.7%; publish.require asks for 90.0%. Version 1 stays.").wait_for()
    for name, value in {"New": 1, "Changed": 5, "Removed": 1, "Failed": 2, "Unchanged": 0}.items():
        assert page.locator(".figures > div", has_text=name).first.locator("dd").inner_text() == str(value), name
    cause = page.locator("#causes tbody tr")
    assert "line 4, sku-3 front: It cannot be drawn." in re.sub(r"\s+", " ", cause.inner_text())
    assert cause.locator(".failing").inner_text() == "2"
    page.locator("#causes a").click()
    assert page.locator(".pairs li").count() == 2
    page.get_by_role("link", name="changed 5").click()
    first = page.locator(".pairs li", has_text="sku-1")
    for picture in first.locator("img").all():
        assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") == 64
    first.locator("a").click()
    large = page.locator("#lightbox figure")
    assert "a red mug 1" in large.first.inner_text() and "a teal mug 1" in large.last.inner_text()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Publish version 2").click()
    page.locator("dialog").get_by_role("button", name="Publish").click()
    page.locator(".figures", has_text="version 2").wait_for()
    assert shop.published() == 2
    page = tab.open("/catalogues/shop/diff?from=1&to=2")
    assert page.locator(".pairs li").count() == 5
    assert tab.errors == []


def test_changed_pictures_are_reviewed_by_keyboard_and_all_that_are_left(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    shop = Shop(house, publish=REVIEWED)
    shop.night(FEED)
    run = shop.night({sku: title.replace("red", "teal") for sku, title in FEED.items()}, deadline=tomorrow())
    assert run["state"] == "reviewing"
    tab = open_tab()
    page = tab.open("/")
    page.get_by_role("link", name="Catalogue shop").click()
    page.get_by_text("0 of 6 marked").wait_for()
    page.locator(".pairs a").first.focus()
    page.keyboard.press("a")
    page.locator(".told", has_text="sku-0, front: accepted").wait_for()
    house.tick()
    page.get_by_text("1 of 6 marked").wait_for()
    page.locator(".pairs li:focus-within", has_text="sku-1").wait_for()
    page.keyboard.press("Enter")
    page.locator("#lightbox h1", has_text="sku-1").wait_for()
    page.keyboard.press("r")
    page.locator("#lightbox h1", has_text="sku-2").wait_for()
    page.keyboard.press("Escape")
    house.tick()
    page.get_by_text("2 of 6 marked").wait_for()
    page.get_by_role("link", name="Accept", exact=True).click()
    page.locator("dialog").get_by_role("button", name="Accept all").click()
    page.get_by_text("Nothing is left to look at.").wait_for()
    shop.tend()
    report = shop.report(run["id"])
    assert (report["state"], report["counts"]["done"], report["counts"]["rejected"]) == ("published", 5, 1)
    tab.open(f"/catalogues/shop/runs/{run['id']}").get_by_role("button", name="Redraw the rejected").click()
    page.get_by_text("The source is read").wait_for()
    shop.tend()
    shop.render()
    page.get_by_text("1 changed picture waits for a person.").wait_for()
    page.locator(".pairs a").click()
    page.locator("#lightbox figure").first.wait_for()
    seeds = page.locator("#lightbox figure code").all_inner_texts()
    assert len(seeds) == 2 and seeds[0] != seeds[1]
    assert tab.errors == []


def test_pictures_of_a_review_are_drawn_again_by_keyboard_and_all_that_are_rejected(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    shop = Shop(house, publish=REVIEWED)
    feed = dict(list(FEED.items())[:3])
    shop.night(feed)
    run = shop.night({sku: title.replace("red", "teal") for sku, title in feed.items()})
    place = f"/catalogues/shop/runs/{run['id']}"
    tab = open_tab()
    page = tab.open(f"{place}/review")
    page.get_by_text("0 of 3 marked").wait_for()
    first = page.locator(".pairs li", has_text="sku-0")
    old = first.locator("img").last.get_attribute("src")
    first.locator("a").focus()
    page.keyboard.press("d")
    page.locator(".told", has_text="sku-0, front: is drawn again").wait_for()
    page.locator(".pairs li:focus-within", has_text="sku-1").wait_for()
    house.tick()
    first.get_by_text("being drawn again").wait_for()
    page.keyboard.press("r")
    page.locator(".told", has_text="sku-1, front: rejected").wait_for()
    shop.render()
    page.locator(f".pairs li:has-text('sku-0') img[src*='/jobs/']:not([src='{old}'])").wait_for()
    first.get_by_text("changed, line 2, drawn again").wait_for()
    page.get_by_role("link", name="rejected 1").click()
    page.get_by_role("link", name="Redraw the rejected").click()
    page.locator("dialog").get_by_role("button", name="Redraw them").click()
    page.get_by_text("0 of 3 marked").wait_for()
    page.locator(".pairs li", has_text="sku-1").get_by_text("being drawn again").wait_for()
    page.locator(".pairs li", has_text="sku-1").locator("a").click()
    page.locator("#lightbox").get_by_text("It is being drawn again with another seed").wait_for()
    page.keyboard.press("a")
    page.locator(".told", has_text="There is no picture to mark").wait_for()
    page.keyboard.press("d")
    page.locator(".told", has_text="is being drawn again already").wait_for()
    shop.render()
    page = tab.open(f"{place}/review")
    page.get_by_role("link", name="Accept", exact=True).click()
    page.locator("dialog").get_by_role("button", name="Accept all").click()
    page.get_by_text("Nothing is left to look at.").wait_for()
    shop.tend()
    assert shop.report(run["id"])["state"] == "published"
    page = tab.open(f"{place}/changes/1")
    assert "drawn again once" in page.locator("main").inner_text()
    assert [error for error in tab.errors if "409" not in error] == []


def test_whoever_may_only_look_has_no_button_and_a_mark_that_comes_too_late_says_so(signed: House) -> None:
    shop = Shop(signed, publish=REVIEWED)
    shop.night({"a": "a red mug"})
    run = shop.night({"a": "a teal mug"})
    place = f"/catalogues/shop/runs/{run['id']}"
    acts = ("actions/run", "actions/plan", "actions/publish", f"runs/{run['id']}/actions/cancel",
            f"runs/{run['id']}/review/marks", f"runs/{run['id']}/review/accepted",
            f"runs/{run['id']}/review/redraw")  # fmt: skip
    with signed.api.database.begin_system() as connection:
        secret = signed.api.settings.secret
        wall = api_keys.issue_key(connection, secret, signed.tenant, "wall", given=[Scope.VIEW])
    with httpx.Client(base_url=signed.url, timeout=60, trust_env=False) as browser:
        looking = replace(signed, key=wall, browser=browser)
        looking.sign_in()
        for path in ("/catalogues", "/catalogues/shop", place, f"{place}/review", f"{place}/changes/0"):
            answer = browser.get(path)
            buttons = re.findall(r'<form[^>]*action="/catalogues|/actions/|/review/', answer.text)
            assert (answer.status_code, buttons) == (200, []), path
        for path in acts:
            answer = looking.post(
                f"/catalogues/shop/{path}", page="/catalogues", version="1", index="0", mark="accepted"
            )
            assert answer.status_code == 403, path
    signed.post(f"{place}/review/accepted", page=f"{place}/review")
    shop.tend()
    assert shop.report(run["id"])["state"] == "published"
    late = signed.post(f"{place}/review/marks", page=f"{place}/review", index="0", mark="rejected")
    assert late.status_code == 409 and "The review has ended, and nothing was marked" in late.text
    assert signed.post(f"{place}/review/rejected", page=f"{place}/review").status_code == 409
    assert signed.post(f"{place}/actions/cancel", page=f"{place}/review").status_code == 409


def test_a_review_counts_what_replaces_others_and_outlives_its_job(signed: House) -> None:
    shop = Shop(signed, publish=REVIEWED)
    shop.night({"a": "a red mug"})
    run = shop.night({"a": "a teal mug", "b": "a new mug"})
    place = f"/catalogues/shop/runs/{run['id']}"
    [new] = [one["index"] for one in signed.http.get(f"/v1{place}/changes?kind=new").json()["data"]]
    signed.http.put(f"/v1/jobs/{run['job_id']}/marks", json={"mark": "accepted", "indexes": [new]})
    assert "0 of 1 marked" in signed.browser.get(f"{place}/review").text
    assert "0 marked" in signed.browser.get(place).text
    assert signed.http.delete(f"/v1/jobs/{run['job_id']}").status_code == 202
    assert signed.browser.get(f"{place}/review").status_code == 200
    shop.tend()
    assert shop.report(run["id"])["state"] in ("published", "kept")
    assert "The review has ended" in signed.browser.get(f"{place}/review").text


def test_a_failed_copy_is_told_and_others_catalogues_and_unknown_ones_are_not_there(signed: House) -> None:
    shop = Shop(signed)
    run = shop.night({"a": "a red mug"})
    place = f"/catalogues/shop/runs/{run['id']}"
    unknown = ("/catalogues/none", "/catalogues/shop/runs/run_0000000000000", f"{place}x", f"{place}/changes/7",
               f"{place}/changes/{2**31 - 1}", f"{place}/changes/{2**31}", f"{place}/changes/9999999999",
               "/catalogues/shop/versions/9/front/thumbnail?id=a", "/catalogues/shop/versions/1/front/picture?id=b",
               "/catalogues/shop/diff?from=9", "/catalogues/shop/actions/publish?version=9")  # fmt: skip
    for path in unknown:
        assert signed.browser.get(path).status_code == 404, path
    with signed.api.database.begin_system() as connection:
        catalogue = catalogues.find(connection, signed.tenant, "shop")
        destinations.want(connection, catalogue, "feeds/shop", "{{ item }}", 1)
        destinations.fail(connection, catalogue.id, "no_such_bucket", "There is no bucket feeds.", again=False)
    said = signed.browser.get("/catalogues/shop").text
    assert "Version 1 could not be copied to feeds/shop" in said and "There is no bucket feeds." in said
    said = signed.browser.get("/").text
    assert "Version 1 could not be copied to feeds/shop: There is no bucket feeds." in said
    assert "tried again" not in said
    with signed.api.database.begin_system() as connection:
        destinations.fail(connection, catalogue.id, "away", "The store is away.", again=True)
    assert "It is tried again" in signed.browser.get("/").text
    with signed.api.database.begin_system() as connection:
        connection.execute(text("UPDATE catalogue_destinations SET error = NULL, step = 'done', version = 7"))
    assert "version 7 copied to feeds/shop" in signed.browser.get("/catalogues/shop").text
    assert "could not be copied" not in signed.browser.get("/").text
    own = ("/catalogues/shop", place, "/catalogues/shop/versions/1/front/picture?id=a")
    assert [signed.browser.get(path).status_code for path in own] == [200] * 3
    _, signed.key = signed.api.new_tenant("another house")
    signed.browser.cookies.clear()
    signed.sign_in()
    for path in own:
        assert signed.browser.get(path).status_code == 404, path
    assert "No catalogues yet" in signed.browser.get("/catalogues").text


def test_a_change_shows_the_photograph_that_it_redraws(signed: House) -> None:
    data = {"purpose": "vision"}
    file = signed.http.post("/v1/files", files={"file": ("a.png", photograph())}, data=data).json()["id"]
    front = {"prompt": "{{ title }}", "size": "64x64", "image": file, "strength": 0.5}
    run = Shop(signed, variants={"front": front}).night({"a": "a red mug"})
    assert run["state"] == "published"
    page = signed.browser.get(f"/catalogues/shop/runs/{run['id']}/changes/0").text
    shown = f"/jobs/{run['job_id']}/images/0/input"
    assert f'src="{shown}"' in page and "at strength 0.5" in page
    assert signed.browser.get(shown).status_code == 200
