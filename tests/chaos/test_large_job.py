"""What people look at, of a job of a million images: `tests/integration/test_overview.py` tests the same with fewer."""

import httpx
import pytest

from services.core.jobs import failures, lanes, overview, queries
from services.core.marks import marks
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from tests import factories
from tests.dashboard.test_large_job_page import PAGES, assert_cheap, large_job
from tests.factories import TENANT
from tests.integration.test_overview import MOST_ROWS, fill, lead, rows_read, worker
from tests.pages import House
from tests.web import open_api

IMAGES = 1_000_000


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_no_statement_of_the_overview_and_of_a_jobs_lists_reads_more_than_a_page(database, settings):
    factories.register(database)
    lead(database)
    worker(database, "a", "busy")
    job_id = fill(database, settings, IMAGES)
    with database.begin(TENANT) as connection:
        marks.put(connection, TENANT, job_id, range(0, 500_000, 250), "accepted")
    with database.begin_system() as connection, rows_read(connection) as of_lanes:
        [lane] = lanes.waiting(connection, TENANT, all_tenants=True).lanes
    assert (lane.images, lane.exact, max(of_lanes.values()) < 20) == (IMAGES // 4, True, True), of_lanes
    with database.begin(TENANT) as connection, rows_read(connection) as read:
        found = overview.overview(connection, TENANT)
        [error, rare] = failures.of_job(connection, TENANT, job_id)
        after = IMAGES // 2 + 100_000
        of_cause = queries.images_of_cause(connection, TENANT, job_id, "rare", after=after, limit=100)
        marked = queries.images_marked(connection, TENANT, job_id, "accepted", after=200_000, limit=100)
        counts, _ = marks.listed(connection, TENANT, job_id, mark="accepted", after=-1, limit=100)
    assert (found.waiting.queued, len(found.pictures)) == (IMAGES // 4, overview.PICTURES_SHOWN)
    assert (error.images + rare.images, rare.images) == (IMAGES // 4, IMAGES // 400)
    assert [image.index for image in of_cause or ()][:2] == [after + 7, after + 107]
    assert [image.index for image in marked or ()][:2] == [200_250, 200_500]
    assert counts["accepted"] == 2_000
    assert {name: rows for name, rows in read.items() if rows > MOST_ROWS} == {}


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_the_page_of_a_job_of_a_million_images_costs_no_more_than_one_of_ten(settings, store: S3Store):
    with open_api(settings) as api, httpx.Client(base_url=api.url, timeout=60, trust_env=False) as browser:
        with api.database.begin_system() as connection:
            key = api_keys.issue_key(connection, settings.secret, TENANT, "visitor")
        http = httpx.Client(base_url=api.url, headers={"Authorization": f"Bearer {key}"}, timeout=60, trust_env=False)
        house = House(api, TENANT, key, http, browser)
        house.sign_in()
        job = large_job(house, IMAGES)
        for path in PAGES:
            assert_cheap(house, f"/jobs/{job}{path}")
        assert_cheap(house, f"/jobs/{job}/images/999999")
