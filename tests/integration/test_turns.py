"""One tenant's slow requests do not keep another tenant waiting."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import text

from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.model.specs import FailedImage
from tests import factories
from tests.waiting import until
from tests.web import Api

AT_ONCE = 60  # more than there are threads and connections
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a mug"}}\n'

FLOODS: dict[str, Callable[[httpx.Client, str], httpx.Response]] = {
    "submit": lambda http, _: http.post("/v1/jobs", json={"images": [{"prompt": "a"}]}),
    "retry": lambda http, job: http.post(f"/v1/jobs/{job}/retry"),
    "priority": lambda http, job: http.patch(f"/v1/jobs/{job}", json={"priority": "low"}),
    "upload": lambda http, _: http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", LINE)}),
}


@pytest.fixture
def job(emptied: Api) -> str:
    """A finished job of the first tenant, whose only image failed."""
    made = str(emptied.submit()["id"])
    claim = factories.claim(emptied.database)
    assert claim is not None
    failed = [FailedImage(job, index, "broken", "It broke.") for job, index in factories.places(claim)]
    factories.settle(emptied.database, claim, failed=failed)
    with emptied.database.begin_system() as connection:
        lifecycle.finish(connection)
    return made


@contextmanager
def stuck(api: Api, job: str) -> Iterator[None]:
    """While this lasts, whatever records something for the first tenant, or changes its job, waits for a lock."""
    with api.database.begin_system() as connection:
        connection.execute(text("SELECT FROM tenants WHERE id = :id FOR UPDATE"), {"id": factories.TENANT})
        connection.execute(text("SELECT pg_advisory_xact_lock(:id)"), {"id": ids.parse_job(job)})
        yield


def held_up(api: Api) -> int:
    """How many connections of the web server wait for a lock."""
    with api.database.begin_system() as connection:
        query = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted"
        ours = " AND application_name = 'presswork web' AND datname = current_database()"
        return int(connection.execute(text(query + ours)).scalar_one())


@pytest.mark.parametrize("flood", FLOODS)
def test_a_tenant_whose_requests_are_stuck_keeps_no_other_waiting(emptied: Api, job: str, flood: str) -> None:
    _, key = emptied.new_tenant(flood)
    headers = {"Authorization": f"Bearer {key}"}
    with (
        ThreadPoolExecutor(AT_ONCE) as pool,
        httpx.Client(base_url=emptied.url, headers=headers, timeout=60, trust_env=False) as other,
    ):
        with stuck(emptied, job):
            floods = [pool.submit(FLOODS[flood], emptied.http, job) for _ in range(AT_ONCE)]
            until(lambda: held_up(emptied) >= 3)
            answers = [
                other.get("/v1/models"),
                other.post("/v1/jobs", json={"images": [{"prompt": "a"}]}),
                other.post("/v1/jobs/estimate", json={"images": [{"prompt": "a"}]}),
                other.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", LINE)}),
                other.get("/v1/jobs"),
            ]
            assert not any(one.done() for one in floods), "the other was served after them, not meanwhile"
        assert [answer.status_code for answer in answers] == [200, 202, 200, 200, 200]
        assert {one.result().status_code for one in floods} <= {200, 202, 409}


def test_a_file_is_read_in_turns_whole(emptied: Api) -> None:
    content = LINE * 30_000
    made = emptied.http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a.jsonl", content)}).json()
    assert emptied.http.get(f"/v1/files/{made['id']}/content").content == content
