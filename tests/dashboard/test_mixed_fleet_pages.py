"""What the pages say of a mixed fleet: measured seconds, and jobs whose class nobody serves."""

import os
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text

from services.core.fleet import models, throughput, workers
from services.core.fleet.abilities import Abilities
from services.core.model.specs import Shape
from tests import factories
from tests.pages import House, Tab

GPU = f"{factories.REVISION}/torch/fp16/NVIDIA H200/16"
KINDS = {
    "rack-1": ("cuda:0 NVIDIA H200", "fp16/NVIDIA H200", (16, 8, 4, 1), 0.031),
    "rack-2": ("Cloud AI 100 Standard", "fp16/AI 100 Standard 14c", (1,), 0.971),
    "rack-3": ("cpu", "fp32/x86_64 AMD EPYC x16", (1,), 11.4),
}


@pytest.fixture
def mixed(house: House) -> Iterator[House]:
    """A GPU, an AI 100 and a CPU that serve one revision; the page's client is signed in."""
    house.sign_in()
    with house.api.database.begin_system() as connection:
        for host, (device, kind, batches, seconds) in KINDS.items():
            served = {size: f"{factories.REVISION}/torch/{kind}/{size}" for size in batches}
            able = Abilities(sizes=("512x512", "768x768"), classes=served)
            workers.register(
                connection, host, host=host, pid=9, device=device, model="simulated", revision=factories.REVISION,
                state="ready", report={"class": served[batches[0]], "device_kind": kind, **able.as_report()},
            )  # fmt: skip
            models.register(connection, factories.CARD, served.values())
            for size in (512, 768):
                shape = Shape(factories.REVISION, size, size, 10, True)
                each = seconds * size * size / 512 / 512
                throughput.record(connection, shape, f"{host} {device}", images=16, seconds_per_image=each)
    yield house
    with house.api.database.begin_system() as connection:
        connection.execute(text("DELETE FROM workers WHERE host LIKE 'rack-%'"))
        connection.execute(text("DELETE FROM render_rates"))


def test_the_fleet_shows_kinds_batches_classes_and_measured_seconds(mixed: House) -> None:
    page = mixed.browser.get("/fleet").text
    for part in (
        "in batches of 16, 8, 4, 1",
        "Cloud AI 100 Standard",
        GPU,
        "0.031 s to 0.07 s an image",
        "11 s to 26 s",
    ):
        assert part in page, part
    [card] = [one for one in mixed.http.get("/v1/workers").json()["data"] if one["id"] == "rack-2"]
    assert (card["device_kind"], card["batch_sizes"]) == ("fp16/AI 100 Standard 14c", [1])
    assert card["rates"][0] == {"size": "512x512", "num_inference_steps": 10, "guided": True, "seconds": 0.971}


def test_pages_say_that_nobody_serves_a_class_and_the_form_offers_those_that_are_known(
    mixed: House, open_tab: Callable[..., Tab]
) -> None:
    job = mixed.submit(
        {"prompt": "a", "n": 3}, {"prompt": "b", "reproducibility_class": GPU}, reproducibility_class=GPU
    )
    assert "no worker that is up" not in mixed.browser.get(f"/jobs/{job}").text
    with mixed.api.database.begin_system() as connection:
        workers.beat(connection, "rack-1", "stopped")
    for path in ("/", f"/jobs/{job}"):
        assert "no worker that is up renders in the class" in mixed.browser.get(path).text, path
    assert mixed.http.get(f"/v1/jobs/{job}").json()["eta_seconds"] is None
    assert "nobody that is up is of this class" in mixed.browser.get("/lanes").text
    assert f'<option value="{GPU}">' in mixed.browser.get("/submit").text
    assert GPU in mixed.browser.get("/settings/models/simulated").text
    narrow, folder = open_tab(width=360, theme="dark"), os.environ.get("PRESSWORK_TEST_PICTURES")
    for name, path in {"fleet": "/fleet", "job": f"/jobs/{job}"}.items():
        page = narrow.open(path)
        for one in page.locator("details.measured summary").all():
            one.press("Enter")
        assert narrow.violations() == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        if folder:
            page.screenshot(path=f"{folder}/{name}-dark-360.png", full_page=True)
    if folder:
        wide = open_tab()
        for name, path in {"fleet": "/fleet", "job": f"/jobs/{job}", "lanes": "/lanes", "submit": "/submit"}.items():
            page = wide.open(path)
            for one in page.locator("details summary").all():
                one.press("Enter")
            page.screenshot(path=f"{folder}/{name}-light.png", full_page=True)
