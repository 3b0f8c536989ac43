"""What a page of a large job costs: `tests/chaos/test_large_job.py` tests the same with a million images."""

from collections.abc import Iterator

import httpx
import pytest

from services.core.fleet import throughput, workers
from services.core.model.specs import Shape
from services.core.queue import counters
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from tests import factories
from tests.integration.test_overview import MOST_ROWS, fill, rows_read
from tests.pages import House
from tests.web import open_api

MOST_STATEMENTS = 10
PAGES = ("", "/images", *(f"/images?state={state}" for state in ("failed", "done", "queued", "rendering")))


def large_job(house: House, images: int) -> str:
    """A job in progress, too young to have a rate of its own, with images in all states."""
    fill(house.api.database, house.api.settings, images, tenant=house.tenant)
    with house.api.database.begin_system() as connection:
        workers.register(
            connection, "a", host="h", pid=1, device="d", model="m", revision=factories.REVISION, state="busy"
        )
        shape = Shape(factories.REVISION, 64, 64, 10, True)
        throughput.record(connection, shape, "h d", images=100, seconds_per_image=3.0)
    factories.settle(house.api.database, factories.claim(house.api.database))
    factories.claim(house.api.database)
    with house.api.database.begin_system() as connection:
        counters.fold(connection)
    [job] = house.http.get("/v1/jobs").json()["data"]
    assert job["eta_seconds"] is not None
    return str(job["id"])


def assert_cheap(house: House, path: str) -> None:
    assert house.browser.get(path).status_code == 200
    with rows_read() as read:
        assert house.browser.get(path).status_code == 200
    assert len(read) <= MOST_STATEMENTS, read
    assert {name: rows for name, rows in read.items() if rows > MOST_ROWS} == {}


@pytest.fixture
def alone(settings: Settings, store: S3Store) -> Iterator[House]:
    """With a database of its own: the planner would rather read the few dozen jobs of other tests whole, once for the
    policy of each row, than look them up, and that is not what is counted."""
    with open_api(settings) as api, httpx.Client(base_url=api.url, timeout=60, trust_env=False) as browser:
        with api.database.begin_system() as connection:
            key = api_keys.issue_key(connection, settings.secret, factories.TENANT, "visitor")
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=api.url, headers=headers, timeout=60, trust_env=False) as http:
            house = House(api, factories.TENANT, key, http, browser)
            house.sign_in()
            yield house


def test_the_page_of_a_large_job_sends_ten_statements_none_of_which_reads_many_rows(alone: House) -> None:
    job = large_job(alone, 20_000)
    for path in PAGES:
        assert_cheap(alone, f"/jobs/{job}{path}")
    page = alone.browser.get(f"/jobs/{job}").text
    assert ">15,016<" in page and "data-numbers" in page
