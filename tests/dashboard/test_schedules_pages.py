"""The pages of schedules: paused, resumed and run by button, and by whom they may be."""

import re
from collections.abc import Callable
from typing import Any

import httpx

from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from tests.pages import House, Tab

TARGET = {"job": {"images": [{"prompt": "a mug", "size": "64x64"}]}}
NIGHTLY: dict[str, Any] = {"cron": "0 1 * * *", "timezone": "Europe/Berlin", "target": TARGET}


def test_a_schedule_is_paused_resumed_run_and_deleted_by_button(house: House, open_tab: Callable[..., Tab]) -> None:
    house.http.put("/v1/schedules/nightly", json=NIGHTLY)
    tab = open_tab()
    page = tab.open("/schedules")
    page.get_by_role("button", name="Pause nightly").click()
    page.get_by_role("button", name="Resume nightly").wait_for()
    assert house.http.get("/v1/schedules/nightly").json()["paused"] is True
    page.get_by_role("button", name="Resume nightly").press("Enter")
    page.get_by_role("button", name="Pause nightly").wait_for()
    page.get_by_role("link", name="nightly", exact=True).click()
    page.get_by_role("button", name="Run now").click()
    page.locator("#runs .state", has_text="submitting").wait_for()
    page.get_by_role("button", name="Run now").click()  # while the first one goes on: it says so
    assert "has not ended" in page.locator("main").inner_text()
    assert len(house.http.get("/v1/schedules/nightly/runs").json()["data"]) == 1
    page = tab.open("/schedules/nightly")
    page.get_by_role("link", name="Delete").click()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    page.get_by_role("heading", name="No schedules yet").wait_for()
    assert house.http.get("/v1/schedules/nightly").status_code == 404


def test_whoever_may_only_look_has_no_button_and_is_refused(house: House) -> None:
    house.http.put("/v1/schedules/nightly", json=NIGHTLY)
    with house.api.database.begin_system() as connection:
        key = api_keys.issue_key(connection, house.api.settings.secret, house.tenant, "wall", given=[Scope.VIEW])
    house.key = key
    house.sign_in()
    for path in ("/schedules", "/schedules/nightly"):
        assert not re.search(r"Run now|Pause|Resume|actions/delete", house.browser.get(path).text)
    for verb in ("run", "pause", "resume", "delete"):
        answer = house.post(f"/schedules/nightly/actions/{verb}", page="/schedules")
        assert answer.status_code == 403, verb


def test_others_schedules_and_unknown_ones_are_not_there(signed: House) -> None:
    with httpx.Client(base_url=signed.url, headers={"Authorization": f"Bearer {signed.api.key}"}) as other:
        other.put("/v1/schedules/of-others", json=NIGHTLY)
    assert "of-others" not in signed.browser.get("/schedules").text
    for path in ("", "/actions/delete"):
        assert signed.browser.get(f"/schedules/of-others{path}").status_code == 404
    assert signed.post("/schedules/of-others/actions/pause", page="/schedules").status_code == 404
    assert signed.post("/schedules/of-others/actions/explode", page="/schedules").status_code == 404
