"""The fleet's page: what a worker says of itself, draining it, and who sees hosts."""

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect
from sqlalchemy import text

from services.core.fleet import workers
from services.core.model.scopes import Scope
from services.core.tenants import api_keys
from tests import factories
from tests.pages import House, Tab

REPORT = {"class": "rev/torch/fp16/NVIDIA H200/16", "sizes": ["512x512", "768x768"]}
SAYS = {
    "batch": {"images": 12, "of": 16, "size": "768x768", "step": 7, "steps": 30},
    "fill": 0.754,
    "memory": [31_000_000_000, 141_000_000_000],
}


@pytest.fixture
def gpu(house: House) -> Iterator[str]:
    """A worker that renders, on a host of its own."""
    with house.api.database.begin_system() as connection:
        workers.register(
            connection, "gpu-7", host="rack-3", pid=9, device="cuda:1 NVIDIA H200", model="simulated",
            revision=factories.REVISION, state="ready", report=REPORT,
        )  # fmt: skip
        workers.beat(connection, "gpu-7", "busy", report=SAYS)
        workers.beat(connection, "worker-a", "ready")
    yield "gpu-7"
    with house.api.database.begin_system() as connection:
        connection.execute(text("DELETE FROM drains"))
        connection.execute(text("DELETE FROM workers WHERE id = 'gpu-7'"))


def guest(house: House, *given: Scope) -> dict[str, str]:
    """Signs in with a key that has these scopes; the key as a header."""
    with house.api.database.begin_system() as connection:
        house.key = api_keys.issue_key(connection, house.api.settings.secret, house.tenant, "guest", given=given)
    house.browser.cookies.clear()
    house.sign_in()
    return {"Authorization": f"Bearer {house.key}"}


def test_a_worker_shows_what_it_says_of_itself(signed: House, gpu: str) -> None:
    page = signed.browser.get("/fleet").text
    for part in (
        "rack-3", "cuda:1 NVIDIA H200", "512x512, 768x768", REPORT["class"], "12 of 16 slots, 768x768",
        "step 7 of 30", "75 %", "31.0 GB", "141 GB", "1 busy, 1 waiting for work",
    ):  # fmt: skip
        assert str(part) in page, part
    [worker] = [one for one in signed.http.get("/v1/workers").json()["data"] if one["id"] == gpu]
    assert (worker["batch"], worker["batch_fill"]) == (SAYS["batch"], 0.754)
    assert worker["memory"] == {"used": 31_000_000_000, "total": 141_000_000_000}
    assert (worker["reproducibility_class"], worker["sizes"]) == (REPORT["class"], REPORT["sizes"])
    assert worker["busy_at"] is not None


def test_a_worker_of_another_release_that_says_nothing_or_other_things_is_shown(signed: House, gpu: str) -> None:
    with signed.api.database.begin_system() as connection:
        connection.execute(
            text("""UPDATE workers SET report = '{"batch": {"slots": 3}, "memory": []}' WHERE id = 'gpu-7'""")
        )
    assert "rack-3" in signed.browser.get("/fleet").text
    assert all(one["batch"] is None for one in signed.http.get("/v1/workers").json()["data"])


def test_a_device_is_drained_and_resumed_by_button_after_saying_what_happens(
    house: House, gpu: str, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab()
    page = tab.open("/fleet")
    page.get_by_role("link", name="Drain cuda:1 NVIDIA H200 on rack-3").press("Enter")
    expect(page.locator("#dialog")).to_contain_text("1 other worker of simulated goes on.")
    page.locator("#dialog").get_by_role("button", name="Drain", exact=True).press("Enter")
    expect(page.get_by_role("link", name="Resume cuda:1")).to_be_visible()
    page.get_by_role("link", name="Drain cpu on host").click()
    expect(page.locator("#dialog")).to_contain_text("No other worker serves simulated: its images wait")
    page.get_by_role("link", name="Go back").click()
    page.get_by_role("link", name="Resume cuda:1").click()
    page.locator("#dialog").get_by_role("button", name="Resume", exact=True).click()
    expect(page.get_by_role("link", name="Drain cuda:1")).to_be_visible()
    house.tick()
    verbs = [one["verb"] for one in house.http.get("/v1/actions").json()["data"]]
    assert [verb for verb in verbs if verb.startswith("worker.")][:2] == ["worker.resumed", "worker.drained"]
    assert tab.errors == []


def test_a_worker_that_has_ended_meanwhile_is_said_to_be_gone(signed: House, gpu: str) -> None:
    with signed.api.database.begin_system() as connection:
        workers.beat(connection, gpu, "stopped")
    answer = signed.browser.get(f"/fleet/{gpu}/drain")
    assert answer.status_code == 404 and "it may have ended meanwhile" in answer.text
    assert signed.browser.get("/fleet/nobody/drain").status_code == 404
    assert signed.browser.get(f"/fleet/{gpu}/nothing").status_code == 404
    assert signed.post("/fleet/nobody/drain", page="/fleet").status_code == 404


def test_hosts_are_shown_to_operators_alone(signed: House, gpu: str) -> None:
    with signed.api.database.begin_system() as connection:
        workers.beat(connection, gpu, "sick")
    assert "rack-3" in signed.browser.get("/").text + signed.http.get("/v1/overview").text
    job = signed.submit({"prompt": "a", "size": "64x64"})
    signed.render()
    paths = [f"/v1/jobs/{job}/images", f"/v1/jobs/{job}/requests", f"/v1/jobs/{job}/search?text=a"]
    assert all("host device" in signed.http.get(path).text for path in (*paths, f"{paths[0]}?order=failed_first"))
    assert "host device" in signed.browser.get(f"/jobs/{job}/images/0").text
    key = guest(signed, Scope.VIEW, Scope.SUBMIT)
    for path in (*paths, f"{paths[0]}?order=failed_first"):
        found = signed.http.get(path, headers=key).text
        assert "host device" not in found and '"device":"device"' in found, path
    assert "host device" not in signed.browser.get(f"/jobs/{job}/images/0").text
    answer = signed.http.get("/v1/workers", headers=key).json()
    assert answer["data"] == []
    assert {one["device"]: (one["idle"], one["sick"]) for one in answer["devices"]} == {
        "cpu": (1, 0),
        "NVIDIA H200": (0, 1),
    }
    for text_ in (signed.browser.get(path).text for path in ("/", "/fleet")):
        assert "rack-3" not in text_ and "NVIDIA H200" in text_ and "/drain" not in text_
    assert "rack-3" not in signed.http.get("/v1/overview", headers=key).text
    assert signed.browser.get(f"/fleet/{gpu}/drain").status_code == 403
    assert signed.post(f"/fleet/{gpu}/drain", page="/fleet").status_code == 403
    assert signed.http.post(f"/v1/workers/{gpu}/drain", headers=key).status_code == 403
