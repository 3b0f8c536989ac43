"""When a job ends: from the rates that workers measured, then from its own, as its rows grow older second by second."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.fleet import throughput, workers
from services.core.jobs import lifecycle, queries, remaining
from services.core.jobs.queries import JobView
from services.core.model.specs import Shape
from services.core.queue import counters
from services.core.settings import Settings
from tests import factories
from tests.factories import TENANT, submit

SHAPE = Shape(factories.REVISION, 512, 512, 10, True)
BATCH = 16


@pytest.fixture
def served(database: Database) -> Database:
    """A database with one live worker."""
    factories.register(database)
    worker(database, "worker-a")
    return database


def worker(database: Database, name: str) -> None:
    with database.begin_system() as connection:
        workers.register(connection, name, host="h", pid=1, device="d", model="simulated", revision=factories.REVISION,
                         state="ready")  # fmt: skip


def measured(database: Database, seconds: float) -> None:
    with database.begin_system() as connection:
        throughput.record(connection, SHAPE, "h d", images=160, seconds_per_image=seconds)


def shown(database: Database, job_id: int) -> JobView:
    """The job as the API shows it."""
    with database.begin_system() as connection:
        view = queries.job(connection, TENANT, job_id)
        assert view is not None
        return remaining.estimated(connection, [view])[0]


def passes(database: Database, job_id: int, seconds: float, *, claimed: int = 0, done: int = 0) -> None:
    """That much time passes, these images move, and the counters are folded."""
    with database.begin_system() as connection:
        connection.execute(
            text("UPDATE counters SET folded_at = folded_at - make_interval(secs => :seconds)"), {"seconds": seconds}
        )
        if claimed or done:
            connection.execute(
                text("INSERT INTO counter_deltas (job_id, queued, rendering, done) VALUES (:id, :q, :r, :d)"),
                {"id": job_id, "q": -claimed, "r": claimed - done, "d": done},
            )
        counters.fold(connection)


class Fleet:
    """Workers that render one job at a steady pace: each holds a claim and the next one, as the render loop does."""

    def __init__(self, database: Database, job_id: int, batch_seconds: float, count: int = 1) -> None:
        self.database, self.job_id, self.seconds = database, job_id, batch_seconds
        self.due = [batch_seconds * (1 + number / (5 * count)) for number in range(count)]
        self.rate = BATCH * count / batch_seconds
        passes(database, job_id, 0, claimed=2 * BATCH * count)

    def run(self, since: int, until: int) -> Iterator[int]:
        """Yields after each second, with its number."""
        for second in range(since + 1, until + 1):
            finished = 0
            for number in range(len(self.due)):
                while self.due[number] <= second:
                    self.due[number] += self.seconds
                    finished += BATCH
            passes(self.database, self.job_id, 1.0, claimed=finished, done=finished)
            yield second


def job_in_work(database: Database, images: int = 50_000) -> int:
    """A job whose counters say that much, without the images themselves."""
    job_id = submit(database, Settings.read({"DATABASE_URL": "postgresql://", "REDIS_URL": "redis://"}), 1)
    with database.begin_system() as connection:
        connection.execute(text("UPDATE counters SET queued = :n WHERE job_id = :id"), {"n": images, "id": job_id})
        connection.execute(text("UPDATE jobs SET total = :n, state = 'in_progress' WHERE id = :id"),
                           {"n": images, "id": job_id})  # fmt: skip
    return job_id


@pytest.mark.parametrize(("batch_seconds", "count"), [(0.1, 1), (2.0, 8), (7.5, 1), (50.0, 2)])
def test_after_a_minute_the_time_that_is_left_is_never_off_by_more_than_half(served, batch_seconds, count):
    for number in range(1, count):
        worker(served, f"worker-{number}")
    measured(served, batch_seconds / BATCH)
    job_id = job_in_work(served)
    fleet = Fleet(served, job_id, batch_seconds, count)
    ratios = {}
    for second in fleet.run(0, 150):
        if second % 5 and second > 10:
            continue
        view = shown(served, job_id)
        left = view.counts["queued"] + view.counts["rendering"]
        assert view.eta_seconds is not None, second
        ratios[second] = view.eta_seconds / (left / fleet.rate)
    wrong = {second: ratio for second, ratio in ratios.items() if not 0.5 < ratio < 2}
    assert not {second: ratio for second, ratio in wrong.items() if second > 60}
    assert not wrong, "with a measured rate it is right from the start, too"


def test_without_a_measured_rate_it_is_right_within_a_minute_of_rendering(served):
    job_id = job_in_work(served)
    fleet = Fleet(served, job_id, 2.0)
    for second in fleet.run(0, 60):
        view = shown(served, job_id)
        if second < 10:
            assert (view.rate, view.eta_seconds) == (0, None)
    left = view.counts["queued"] + view.counts["rendering"]
    assert view.eta_seconds == pytest.approx(left / fleet.rate, rel=0.2)


def test_a_batch_that_ends_just_after_a_fold_makes_no_rate(served):
    measured(served, 0.125)
    job_id = job_in_work(served, 1000)
    passes(served, job_id, 0.0, claimed=2 * BATCH)
    passes(served, job_id, 2.0, claimed=BATCH)  # the next claim, 50 ms before the first batch is done
    passes(served, job_id, 0.05, done=BATCH)
    view = shown(served, job_id)
    assert view.rate == 0
    assert view.eta_seconds == pytest.approx((1000 - BATCH) * 0.125)
    assert 0.8 * view.eta_seconds < view.eta_low <= view.eta_seconds <= view.eta_high < 1.25 * view.eta_seconds


def test_its_own_rate_is_shown_once_enough_is_behind_it_and_wins(served):
    measured(served, 1.0)  # measured eight times slower than it renders now
    job_id = job_in_work(served)
    fleet = Fleet(served, job_id, 2.0)
    list(fleet.run(0, 30))
    view = shown(served, job_id)
    assert view.rate == pytest.approx(8.0, rel=0.2)
    left = view.counts["queued"] + view.counts["rendering"]
    assert view.eta_low < left / 8.0 < view.eta_high < 3 * view.eta_low
    assert view.eta_seconds == pytest.approx((view.counts["queued"] + view.counts["rendering"]) / view.rate)


def test_a_rate_is_forgotten_after_a_minute_or_after_the_time_of_two_claims_of_each_worker(served):
    measured(served, 1.0)
    quick, slow = job_in_work(served), job_in_work(served)
    list(Fleet(served, quick, 2.0).run(0, 30))
    for job_id, seconds, batch_seconds in ((quick, 50, 2.0), (slow, 150, 50.0)):
        if job_id == slow:
            list(Fleet(served, slow, 50.0).run(0, 200))
        rate = pytest.approx(BATCH / batch_seconds, rel=0.2)
        passes(served, job_id, seconds)
        assert shown(served, job_id).rate == rate
        passes(served, job_id, seconds)
        assert shown(served, job_id).rate == 0


def test_the_time_that_a_job_was_paused_does_not_count(served):
    measured(served, 0.125)
    job_id = job_in_work(served)
    list(Fleet(served, job_id, 2.0).run(0, 30))
    with served.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET state = 'queued'"))
        lifecycle.pause(connection, TENANT, job_id, paused=True)
    assert shown(served, job_id).eta_seconds is None
    passes(served, job_id, 2.0, done=2 * BATCH)
    passes(served, job_id, 3600.0)
    with served.begin_system() as connection:
        lifecycle.pause(connection, TENANT, job_id, paused=False)
    fleet = Fleet(served, job_id, 2.0)
    for _ in fleet.run(0, 30):
        view = shown(served, job_id)
        left = view.counts["queued"] + view.counts["rendering"]
        assert 0.5 < view.eta_seconds / (left / 8.0) < 2


def test_a_job_that_waits_is_estimated_from_what_is_ahead_of_it(served, settings):
    measured(served, 2.0)
    worker(served, "worker-b")
    first, paused, second = (submit(served, settings, images) for images in (10, 100, 5))
    urgent = submit(served, settings, 3, priority="high")
    with served.begin_system() as connection:
        lifecycle.pause(connection, TENANT, paused, paused=True)
    found = {job_id: shown(served, job_id).eta_seconds for job_id in (urgent, first, second, paused)}
    assert found == {urgent: 3.0, first: 13.0, second: 18.0, paused: None}
    with served.begin_system() as connection:
        views = queries.jobs(connection, TENANT, before=2**62, limit=10)
        assert {view.id: view.eta_seconds for view in remaining.estimated(connection, views)} == found
        connection.execute(text("UPDATE workers SET state = 'stopped'"))
    assert shown(served, first).eta_seconds is None


def test_a_job_of_several_shapes_is_divided_among_them(served, settings):
    measured(served, 2.0)
    with served.begin_system() as connection:
        throughput.record(connection, Shape(factories.REVISION, 64, 64, 10, True), "h d", images=16,
                          seconds_per_image=0.5)  # fmt: skip
    rows = [{"prompt": "a", "n": 4}, {"prompt": "a", "n": 6, "size": "64x64"}]
    assert shown(served, submit(served, settings, rows)).eta_seconds == 4 * 2.0 + 6 * 0.5
