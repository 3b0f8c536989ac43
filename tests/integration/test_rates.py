"""The rates of images by minute and hour: each image counts once, in the minute in which it was finished."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.jobs import queries, rates
from services.core.model.specs import FailedImage
from services.core.queue import counters, settlement
from services.core.settings import Settings
from tests import factories, programs
from tests.factories import TENANT, claim, stored, submit
from tests.web import Api


def fold(database: Database) -> None:
    with database.begin_system() as connection:
        counters.fold(connection)


def finished(database: Database, job_id: int, done: int, *, minutes_ago: float = 0) -> None:
    """Adds deltas of images that were finished so long ago and that nobody has folded yet."""
    with database.begin_system() as connection:
        connection.execute(
            text(
                "INSERT INTO counter_deltas (job_id, queued, done, at) "
                "VALUES (:id, -CAST(:done AS integer), :done, now() - make_interval(secs => :seconds))"
            ),
            {"id": job_id, "done": done, "seconds": minutes_ago * 60},
        )


def kept(database: Database, grain: str) -> dict[datetime, int]:
    with database.begin_system() as connection:
        found = connection.execute(text("SELECT at, done FROM rates WHERE grain = :grain"), {"grain": grain})
        return {row.at.astimezone(UTC): row.done for row in found}


@pytest.fixture
def ready(database: Database) -> Database:
    factories.register(database)
    return database


def test_a_settle_counts_what_it_finished_and_what_it_took_by_minute_and_by_hour(ready, settings):
    ours, theirs = submit(ready, settings, 6), submit(ready, settings, 2)
    taken = claim(ready)
    done, failed = stored(taken)[1:], taken.images[0]
    with ready.begin_system() as connection:
        settlement.settle(
            connection, taken.id, device="d", stored=done, render_seconds=4.0, slots=16,
            failed=[FailedImage(failed.job_id, failed.index, "error", "It broke.")],
        )  # fmt: skip
        assert queries.job(connection, TENANT, ours).device_seconds == pytest.approx(3.0)  # also before the fold
    fold(ready)
    fold(ready)
    with ready.begin(TENANT) as connection:
        for grain in ("minute", "hour"):
            last = rates.series(connection, TENANT, grain, 1)[0]
            before = rates.series(connection, TENANT, grain, 2)[0]  # the minute may have ended meanwhile
            assert (last.done + before.done, last.failed + before.failed) == (7, 1)
            assert last.device_seconds + before.device_seconds == pytest.approx(4.0)
            assert last.slots + before.slots == pytest.approx(16.0)
            assert 0 < last.seconds <= before.seconds == {"minute": 60, "hour": 3600}[grain]
            assert last.rate == (last.done + last.failed) / max(last.seconds, rates.SOONEST)
        assert queries.job(connection, TENANT, theirs).device_seconds == pytest.approx(1.0)
        found = rates.rates(connection, TENANT)
        assert 8 / 120 <= found.now <= 8 / 60
        assert 8 / 3660 <= found.hour <= 8 / 3600


def test_a_job_whose_images_only_waited_in_a_claim_pays_nothing_for_it(ready, settings):
    ours, theirs = submit(ready, settings, 6), submit(ready, settings, 2)
    taken = claim(ready)
    done = stored(taken)[:6]
    with ready.begin_system() as connection:
        settlement.settle(
            connection, taken.id, device="d", stored=done, render_seconds=4.0, slots=16, rendered={ours: 16.0},
            released=[(theirs, 0), (theirs, 1)],
        )  # fmt: skip
        assert queries.job(connection, TENANT, ours).device_seconds == pytest.approx(4.0)
        assert queries.job(connection, TENANT, theirs).device_seconds == 0.0
    fold(ready)
    with ready.begin(TENANT) as connection:
        assert sum(point.slots for point in rates.series(connection, TENANT, "hour", 2)) == pytest.approx(16.0)


def test_what_is_folded_hours_later_counts_in_the_hour_in_which_it_happened(ready, settings):
    job_id = submit(ready, settings, 40)
    for hours, done in ((0, 5), (3, 7), (26, 11)):
        finished(ready, job_id, done, minutes_ago=60 * hours)
    fold(ready)
    now = datetime.now(UTC)
    hours = kept(ready, "hour")
    assert sorted(hours.values()) == [5, 7, 11]
    assert {at for at, done in hours.items() if done == 11} <= {
        (now - timedelta(hours=ago)).replace(minute=0, second=0, microsecond=0) for ago in (26, 27)
    }
    with ready.begin(TENANT) as connection:
        found = rates.rates(connection, TENANT)
        assert found.day == pytest.approx(12 / (24.5 * 3600), rel=0.03)
        assert found.week == pytest.approx(23 / (7 * 24 * 3600), rel=0.01)


def test_of_two_that_fold_at_once_one_counts(ready, settings):
    job_id = submit(ready, settings, 400)
    for _ in range(200):
        finished(ready, job_id, 2)
    scheduler = Database(programs.address("scheduler", settings.database_url), application="tests")
    worker = Database(programs.address("worker", settings.database_url), application="tests")
    threads = [threading.Thread(target=fold, args=(one,)) for one in (scheduler, worker) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fold(ready)
    for other in (scheduler, worker):
        other.close()
    assert sum(kept(ready, "minute").values()) == sum(kept(ready, "hour").values()) == 400


def test_a_fold_that_is_rolled_back_counts_nothing_and_the_next_one_counts_it(ready, settings):
    finished(ready, submit(ready, settings, 3), 3)
    with pytest.raises(ZeroDivisionError), ready.begin_system() as connection:
        counters.fold(connection)
        raise ZeroDivisionError
    assert kept(ready, "hour") == {}
    fold(ready)
    assert sum(kept(ready, "hour").values()) == 3


def test_minutes_are_kept_for_two_days_and_hours_for_two_years(ready, settings):
    job_id = submit(ready, settings, 20)
    for days, done in ((0, 1), (1.9, 2), (2.1, 4), (729, 5), (731, 8)):
        finished(ready, job_id, done, minutes_ago=days * 24 * 60)
    fold(ready)
    with ready.begin_system() as connection:
        assert counters.forget_rates(connection) == 4
    assert sorted(kept(ready, "minute").values()) == [1, 2]
    assert sorted(kept(ready, "hour").values()) == [1, 2, 4, 5]


def test_images_that_were_only_claimed_or_cancelled_make_no_row(ready, settings):
    submit(ready, settings, 3)
    claim(ready)
    fold(ready)
    assert kept(ready, "hour") == {}


def test_the_api_shows_a_tenant_its_own_rates_and_a_point_for_every_minute(api: Api, settings: Settings):
    other, key = api.new_tenant("other")
    finished(api.database, submit(api.database, settings, 9), 6, minutes_ago=5)
    finished(api.database, submit(api.database, settings, 9, tenant=other), 9, minutes_ago=5)
    fold(api.database)
    found = api.http.get("/v1/rates?points=30").json()
    assert len(found["data"]) == 30
    assert [point["done"] for point in found["data"] if point["done"]] == [6]
    assert found["data"] == sorted(found["data"], key=lambda point: point["at"])
    assert found["rates"]["hour"] == pytest.approx(6 / 3630, rel=0.02)
    assert found["rates"]["now"] == 0
    theirs = api.http.get("/v1/rates?by=hour&points=2", headers={"Authorization": f"Bearer {key}"}).json()
    assert sum(point["done"] for point in theirs["data"]) == 9
    refused = api.http.get("/v1/rates?by=week")
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "by")
