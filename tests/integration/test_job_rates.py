"""A job's throughput over time: each image counts once, in spans that grow with the job, at no cost to claims."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.jobs import job_rates, queries
from services.core.jobs.job_rates import JobPoint
from services.core.queue import counters, job_series
from tests import factories
from tests.factories import TENANT, claim, submit
from tests.web import Api

_FINISHED = text(
    "INSERT INTO counter_deltas (job_id, queued, done, failed, at) VALUES (:id, -CAST(:done AS integer) - :failed, "
    ":done, :failed, now() - make_interval(secs => :ago))"
)


def fold(database: Database) -> None:
    with database.begin_system() as connection:
        counters.fold(connection)


def finished(database: Database, job_id: int, ago: float, done: int = 0, failed: int = 0) -> None:
    """A delta of images that were finished so many seconds ago."""
    with database.begin_system() as connection:
        connection.execute(_FINISHED, {"id": job_id, "done": done, "failed": failed, "ago": ago})


def points(database: Database, job_id: int, tenant: int = TENANT) -> list[JobPoint]:
    with database.begin(tenant) as connection:
        return job_rates.of_job(connection, tenant, job_id)


@pytest.fixture
def ready(database: Database) -> Database:
    factories.register(database)
    return database


def test_it_begins_with_the_first_claim_and_has_nothing_until_images_are_finished(ready, settings):
    job_id = submit(ready, settings, 20)
    assert points(ready, job_id) == []
    taken = claim(ready)
    fold(ready)
    assert points(ready, job_id) == []
    factories.settle(ready, taken)
    fold(ready)
    found = points(ready, job_id)
    assert sum(point.done for point in found) == 16
    with ready.begin_system() as connection:
        [view] = queries.any_jobs(connection, [job_id])
        claimed = connection.execute(text("SELECT created_at FROM claims")).scalar_one()
    assert timedelta(0) <= claimed - found[0].at < timedelta(seconds=1)
    assert view.as_of >= found[-1].at


def test_images_count_in_the_span_in_which_they_were_finished_and_pauses_show(ready, settings):
    job_id = submit(ready, settings, 100)
    for ago, done in ((95, 3), (94, 4), (52, 10)):
        finished(ready, job_id, ago, done)
    fold(ready)
    finished(ready, job_id, 51, failed=2)
    finished(ready, job_id, 200, 1)  # of a worker whose transaction took longer: it counts in the first span
    fold(ready)
    found = points(ready, job_id)
    assert {point.seconds for point in found[:-1]} == {10.0}
    assert [(point.done, point.failed) for point in found[:6]] == [(8, 0), (0, 0), (0, 0), (0, 0), (10, 2), (0, 0)]
    assert found[4].rate == pytest.approx(1.2)
    assert len(found) in (10, 11)
    assert found[-1].seconds == 10


def test_however_long_it_runs_no_image_is_lost_and_there_are_no_more_points(ready, settings):
    job_id = submit(ready, settings, 1000)
    month = 30 * 24 * 3600
    moments = (month, month - 9, month - 11, month - 1_199, month - 1_201, month - 90_000, month // 2, 100)
    for counted, ago in enumerate(moments, 1):
        finished(ready, job_id, ago, 1, failed=1)
        fold(ready)
        with ready.begin_system() as connection:
            kept = connection.execute(text("SELECT * FROM counters WHERE job_id = :id"), {"id": job_id}).one()
        assert sum(kept.series_done) == sum(kept.series_failed) == counted
        assert len(kept.series_done) == len(kept.series_failed) <= job_series.MOST
        assert kept.series_seconds % job_series.FIRST_SECONDS == 0
        found = points(ready, job_id)
        assert sum(point.done for point in found) == counted
        assert len(found) <= job_series.MOST
    assert len(kept.series_done) > job_series.MOST // 2
    assert found[len(found) // 2].done + found[len(found) // 2 - 1].done + found[len(found) // 2 + 1].done == 1


def test_a_program_of_the_release_before_may_fold_too(ready, settings):
    """It leaves the columns as they are: what it folds is missing, and nothing else."""
    job_id = submit(ready, settings, 10)
    with ready.begin_system() as connection:
        connection.execute(text("UPDATE counters SET queued = 5, done = 5"))
    finished(ready, job_id, 1, 2)
    fold(ready)
    assert sum(point.done for point in points(ready, job_id)) == 2


def test_a_finished_job_ends_when_it_finished(ready, settings):
    job_id = submit(ready, settings, 10)
    finished(ready, job_id, 100, 4)
    fold(ready)
    with ready.begin_system() as connection:
        connection.execute(
            text("UPDATE jobs SET state = 'completed', finished_at = now() - interval '77 seconds', "
                 "started_at = now() - interval '100 seconds'")
        )  # fmt: skip
    found = points(ready, job_id)
    assert [point.done for point in found] == [4, 0, 0]
    assert found[-1].seconds == pytest.approx(3.0, abs=1.1)


def test_the_api_gives_the_points_and_not_those_of_others(api: Api):
    job = api.submit({"prompt": "a mug", "n": 16})
    assert api.http.get(f"/v1/jobs/{job['id']}/rates").json() == {"data": []}
    factories.settle(api.database, claim(api.database))
    fold(api.database)
    [point] = api.http.get(f"/v1/jobs/{job['id']}/rates").json()["data"]
    assert (point["done"], point["failed"]) == (16, 0)
    assert point["rate"] == pytest.approx(16 / point["seconds"], rel=0.01)
    _, key = api.new_tenant("other")
    answer = api.http.get(f"/v1/jobs/{job['id']}/rates", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 404
