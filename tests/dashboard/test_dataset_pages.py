"""The pages of datasets: versions are written, stopped, compared and deleted by button."""

import re
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import text

from services.core.model.scopes import Scope
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from tests import collecting
from tests.pages import House, Tab


def rendered(house: House, count: int, first: int = 0, **head: object) -> str:
    """A job of which all images are done."""
    images = ({"prompt": f"mug {first + nth}", "size": "64x64", "seed": first + nth} for nth in range(count))
    job = house.submit(*images, **head)
    house.render()
    return job


def made(house: House, *jobs: str, name: str = "mugs", **fields: object) -> None:
    asked = {"name": name, "jobs": list(jobs), "images_per_shard": 3, **fields}
    answer = house.http.post("/v1/datasets", json=asked)
    assert answer.status_code == 201, answer.text


def written(house: House) -> None:
    """What the scheduler does."""
    collecting.run(house.api.database, house.api.settings, S3Store(house.api.settings))
    house.tick()


def test_a_dataset_is_written_compared_and_its_versions_deleted_by_button(
    house: House, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab()
    tab.open("/datasets").get_by_text("presswork dataset create mugs").wait_for()
    first = rendered(house, 7, labels={"run": "mugs"})
    made(house, labels=["run:mugs"], split={"train": 0.5, "val": 0.5}, filters={"metadata": ["lang!=de"]})
    page = tab.open("/datasets")
    assert "no version yet" in page.get_by_role("row", name="mugs").inner_text()
    page.get_by_role("link", name="mugs", exact=True).click()
    page.get_by_text("It can be fetched once a version is complete").wait_for()
    assert "lang!=de" in page.locator(".facts").first.inner_text()
    page.get_by_role("button", name="Write a version", exact=True).click()
    page.get_by_text("Version 1 is being written").wait_for()
    written(house)
    page.locator(".figures", has_text="version 1").wait_for()  # the page hears of it
    page.reload()
    assert page.locator("#way-1").inner_text() == "presswork dataset pull mugs -o mugs"
    assert 'client.dataset("mugs")' in page.locator("#way-2").inner_text().replace("'", '"')
    rendered(house, 2, first=50, labels={"run": "mugs"})
    house.http.put(f"/v1/jobs/{first}/marks", json={"mark": "rejected", "indexes": [4]})
    page.get_by_role("button", name="Write a version", exact=True).click()
    page.get_by_text("Version 2 is being written").wait_for()
    written(house)
    page.locator(".figures", has_text="version 2").wait_for()
    assert re.search(r"Pictures\s+8", page.locator(".figures").inner_text())
    page.get_by_role("link", name="Compare version 2 with version 1").click()
    page.get_by_role("heading", name="Added: 2 pictures").wait_for()
    assert (
        page.locator(".gallery li", has_text="rejected")
        .locator("img")
        .evaluate("one => one.decode().then(() => one.naturalWidth)")
    )
    page = tab.open("/datasets/mugs/versions/2")
    assert "# mugs, version 2" in page.locator("section pre[aria-label='README.md']").inner_text()
    row = page.get_by_role("row", name="manifest.json")
    told = httpx.get(str(row.get_by_role("link").get_attribute("href")), trust_env=False).json()
    assert (told["number"], told["images"], len(told["removed"])) == (2, 8, 1)
    page = tab.open("/datasets/mugs")
    page.get_by_role("link", name="Delete version 1").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    page.locator("#versions tbody tr").first.wait_for()
    assert _listed(house) == [2]
    page.get_by_role("link", name="Delete the dataset").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    page.get_by_text("No datasets yet").wait_for()
    assert tab.errors == []


def _listed(house: House) -> list[int]:
    return [one["version"] for one in house.http.get("/v1/datasets/mugs/versions").json()["data"]]


def test_the_progress_of_a_version_is_shown_and_it_can_be_stopped(house: House, open_tab: Callable[..., Tab]) -> None:
    made(house, rendered(house, 8))
    house.http.post("/v1/datasets/mugs/versions")
    with house.api.database.begin_system() as connection:
        connection.execute(
            text(
                "UPDATE dataset_versions SET state = 'running', images = 8, images_to_write = 8, images_written = 2, "
                "error = 'The bucket is full.' WHERE finished_at IS NULL"
            )
        )
    tab = open_tab()
    page = tab.open("/datasets")
    bar = page.get_by_role("progressbar", name="Progress of version 1")
    assert bar.get_attribute("aria-valuetext") == "2 of 8 pictures written"
    page = tab.open("/datasets/mugs")
    page.get_by_text("The bucket is full.").first.wait_for()
    assert page.get_by_role("button", name="Write a version").count() == 0
    with house.api.database.begin_system() as connection:
        connection.execute(text("UPDATE dataset_versions SET images_written = 5 WHERE finished_at IS NULL"))
    page.locator("#top [aria-valuenow='5']").wait_for(timeout=15_000)
    page.locator("#top").get_by_role("link", name="Stop version 1").click()
    page.locator("dialog").get_by_role("button", name="Stop").click()
    page.locator("#versions .state", has_text="cancelled").wait_for()
    written(house)
    so_far = page.get_by_role("button", name="Write a version of what is done so far")
    page.get_by_role("button", name="Write a version", exact=True).wait_for()
    assert so_far.count() == 0
    more = house.submit({"prompt": "a hat", "size": "64x64"})
    house.http.post("/v1/datasets/mugs/sources", json={"jobs": [more]})
    page.reload()
    so_far.click()
    page.get_by_text("Version 2 is being written").wait_for()
    assert _listed(house) == [2, 1]
    assert tab.errors == []


def test_what_cannot_be_done_now_is_a_sentence(signed: House) -> None:
    made(signed, name="empty")
    answer = signed.post("/datasets/empty/actions/export", page="/datasets/empty")
    assert (answer.status_code, "The dataset has no source: add jobs or labels." in answer.text) == (409, True)
    made(signed, rendered(signed, 2))
    signed.http.post("/v1/datasets/mugs/versions")
    answer = signed.post("/datasets/mugs/versions/1/actions/delete", page="/datasets/mugs")
    assert (answer.status_code, "is being written; cancel it" in answer.text) == (409, True)
    for path in ("/datasets/nothing", "/datasets/mugs/versions/7", "/datasets/mugs/versions/x", "/datasets/empty/diff"):
        assert signed.browser.get(path).status_code == 404, path
    assert signed.browser.get("/datasets/mugs/diff?from=x").status_code == 400
    assert signed.browser.post("/datasets/mugs/actions/delete", data={"csrf": "x"}).status_code == 403


@pytest.mark.parametrize("scopes", [{Scope.VIEW}, {Scope.VIEW, Scope.SUBMIT}])
def test_buttons_are_for_those_who_may(house: House, scopes: set[Scope]) -> None:
    made(house, rendered(house, 2))
    house.http.post("/v1/datasets/mugs/versions")
    written(house)
    with house.api.database.begin_system() as connection:
        secret = house.api.settings.secret
        house.key = api_keys.issue_key(connection, secret, house.tenant, "some", given=list(scopes))
    house.sign_in()
    page = house.browser.get("/datasets/mugs").text
    assert ("Write a version" in page) == (Scope.SUBMIT in scopes)
    assert "actions/delete" not in page
    for path in ("/datasets/mugs/actions/delete", "/datasets/mugs/versions/1/actions/delete"):
        assert house.browser.get(path).status_code == 403


def test_others_datasets_are_not_there(signed: House) -> None:
    answer = signed.api.http.post("/v1/datasets", json={"name": "of-others", "labels": ["a:b"]})
    assert answer.status_code == 201
    assert "of-others" not in signed.browser.get("/datasets").text
    for path in ("", "/versions/1", "/diff", "/actions/delete"):
        assert signed.browser.get(f"/datasets/of-others{path}").status_code == 404, path
    signed.api.http.delete("/v1/datasets/of-others")
