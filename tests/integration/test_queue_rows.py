"""What claims, heartbeats, settles and expiries write and read, row by row, and what of others they leave alone."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text

from services.core.db.database import Database
from services.core.fleet import models
from services.core.jobs import lifecycle
from services.core.model.errors import InvariantViolated
from services.core.model.specs import Claim, FailedImage
from services.core.queue import claims, expiry, job_states, looks, segments, settlement
from services.core.queue.settlement import Verdict
from services.core.settings import Settings
from tests import factories
from tests.factories import REVISION, TENANT, claim, claim_in, places, settle, stored, submit
from tests.waiting import until


@pytest.fixture(autouse=True)
def _registered(database: Database) -> None:
    factories.register(database)


def rows(database: Database, statement: str, **values: object) -> list[tuple[Any, ...]]:
    with database.begin_system() as connection:
        return [tuple(row) for row in connection.execute(text(statement), values)]


def images(database: Database, job_id: int) -> list[tuple[Any, ...]]:
    """State, attempt, lost and claim of each, in order."""
    return rows(
        database, "SELECT state, attempt, lost, claim_id FROM images WHERE job_id = :id ORDER BY index", id=job_id
    )


def counted(database: Database, job_id: int) -> Counter[str]:
    """What the counters and their deltas say; the images themselves say the same."""
    names = ("queued", "rendering", "done", "failed", "cancelled")
    sums = ", ".join(f"c.{name} + coalesce(sum(d.{name}), 0)" for name in (*names, "reused"))
    statement = (
        f"SELECT {sums} FROM counters c LEFT JOIN counter_deltas d USING (job_id) WHERE job_id = :id GROUP BY c.job_id"
    )
    (found,) = rows(database, statement, id=job_id)
    states = Counter(row[0] for row in images(database, job_id))
    assert list(found[:5]) == [states[number] for number in range(5)]
    return Counter({name: int(count) for name, count in zip((*names, "reused"), found, strict=True) if count})


def candidates(database: Database, turn: int = 1, revision: str = REVISION) -> looks.Candidates:
    with database.begin_system() as connection:
        return looks.candidates(connection, revision, turn, "worker-a")


def waits_for_a_lock(database: Database) -> bool:
    return bool(rows(database, "SELECT FROM pg_locks WHERE NOT granted"))


def shapes(count: int) -> list[dict[str, object]]:
    return [{"prompt": f"{steps}", "num_inference_steps": steps} for steps in range(1, count + 1)]


def test_the_candidates_are_the_sixteen_oldest_segments_of_each_tenant_in_order(database, settings):
    first, second = submit(database, settings, shapes(10)), submit(database, settings, shapes(10))
    expected = [(first, number) for number in range(10)] + [(second, number) for number in range(6)]
    assert [(row.job_id, row.id) for row in candidates(database).rows] == expected


def test_segments_of_another_model_or_that_are_not_open_are_no_candidates(database, settings):
    other = dataclasses.replace(factories.CARD, name="other", revision="other-1")
    with database.begin_system() as connection:
        models.register(connection, other)
    ours, theirs, paused = (
        submit(database, settings, [{"prompt": "a", "model": name}]) for name in ("simulated", "other", "simulated")
    )
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, True)
    assert [row.job_id for row in candidates(database).rows] == [ours]
    assert [row.job_id for row in candidates(database, revision="other-1").rows] == [theirs]
    assert claim(database, revision="other-1").shape.model_revision == "other-1"


def test_candidates_say_how_old_and_how_large_a_batch_of_them_may_be(database, settings):
    first = submit(database, settings, 3)
    wide = submit(database, settings, 4, size="256x256")
    third = submit(database, settings, 5)
    rows(
        database, "UPDATE segments SET created_at = now() - interval '1 hour' WHERE job_id = :id RETURNING 1", id=first
    )
    rows(
        database,
        "UPDATE segments SET created_at = now() - interval '2 hours' WHERE job_id <> :id RETURNING 1",
        id=first,
    )
    found = candidates(database)
    assert 3600 <= found.age < 3700
    assert found.max_waiting == 3 + 5
    assert found.job_ids == [first, third]
    assert [row.job_id for row in found.others.rows] == [wide]
    assert found.others.max_waiting == 4
    assert found.others.others.rows == ()


def test_what_lies_below_the_mark_of_its_segment_does_not_wait(database, settings):
    submit(database, settings, 5)
    claim(database, seats=2)
    with database.begin_system() as connection:
        segments.raise_low(connection)
    assert candidates(database).max_waiting == 3


def test_those_under_suspicion_ride_alone_and_as_many_as_their_cap_says(database, settings):
    quarantined, other = submit(database, settings, 6), submit(database, settings, 6)
    rows(database, "UPDATE segments SET cap = 4 WHERE job_id = :id RETURNING 1", id=quarantined)
    found = candidates(database)
    assert (found.max_waiting, found.job_ids) == (6, [quarantined])
    assert [row.job_id for row in found.others.rows] == [other]
    assert Counter(image.job_id for image in claim(database).images) == {quarantined: 4}
    assert Counter(image.job_id for image in claim(database, seats=1).images) == {quarantined: 1}
    rows(database, "UPDATE segments SET cap = CASE WHEN job_id = :id THEN 4 END RETURNING 1", id=other)
    assert Counter(image.job_id for image in claim(database).images) == {quarantined: 1}, (
        "no quarantined images are claimed with others"
    )


def lows(database: Database) -> dict[int, int]:
    """The low-water mark of each job's first segment."""
    return dict(rows(database, "SELECT job_id, low FROM segments WHERE id = 0"))


def drained(database: Database, settings: Any, count: int, *, images: int = 1) -> list[int]:
    """Jobs all of whose images are claimed, with marks that nobody has raised yet."""
    found = [submit(database, settings, images) for _ in range(count)]
    while claim_of_all(database):
        pass
    return found


def claim_of_all(database: Database) -> bool:
    with database.begin_system() as connection:
        return claim_in(connection) is not None


def test_marks_are_raised_of_the_jobs_asked_for_and_the_oldest_first(database, settings):
    first, second, third = drained(database, settings, 3)
    with database.begin_system() as connection:
        assert segments.raise_low(connection, [third]) == 1
    assert lows(database) == {first: 0, second: 0, third: 1}
    with database.begin_system() as connection:
        assert segments.raise_low(connection, limit=1) == 1
    assert lows(database) == {first: 1, second: 0, third: 1}
    with database.begin_system() as connection:
        assert segments.raise_low(connection) == 1
        assert segments.raise_low(connection, [first, second, third]) == 0


@pytest.fixture(
    params=[segments.raise_low, lambda connection, **limit: segments.Rounds().raise_low(connection, **limit)]
)
def raise_low(request: pytest.FixtureRequest) -> Callable[..., int]:
    """Both ways to raise the marks of some segments."""
    return request.param


def test_the_segments_of_a_job_are_raised_in_order(database, settings, raise_low):
    job_id = submit(database, settings, shapes(2))
    while claim_of_all(database):
        pass
    with database.begin_system() as connection:
        assert raise_low(connection, limit=1) == 1
    assert rows(database, "SELECT id FROM segments WHERE job_id = :id AND low > high", id=job_id) == [(0,)]


def test_closed_and_drained_segments_are_not_looked_at(database, settings, raise_low):
    closed, first, second = drained(database, settings, 3)
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, closed, True)
    raised = []
    for _ in range(3):
        with database.begin_system() as connection:
            raised.append(raise_low(connection, limit=1))
    assert raised == [1, 1, 0]
    assert lows(database) == {closed: 0, first: 1, second: 1}


def test_a_mark_that_need_not_rise_is_not_written(database, settings):
    submit(database, settings, 2)
    with database.begin_system() as connection:
        assert segments.raise_low(connection) == 0


def test_segments_that_another_is_raising_are_passed_over(database, settings, raise_low):
    first, second = drained(database, settings, 2)
    with database.begin_system() as connection:
        assert segments.raise_low(connection, [first]) == 1
        with database.begin_system() as other:
            assert raise_low(other) == 1
    assert lows(database) == {first: 1, second: 1}
    third = drained(database, settings, 1)[0]
    with database.begin_system() as connection, database.begin_system() as other:
        connection.execute(text("SELECT FROM segments WHERE job_id = :id FOR UPDATE"), {"id": third})
        assert raise_low(other) == 0


def test_a_job_that_is_not_being_cancelled_is_not_swept(database, settings):
    live, stopped = submit(database, settings, 2), submit(database, settings, 2)
    with database.begin_system() as connection:
        assert segments.sweepable(connection) == []
        job_states.cancel(connection, TENANT, stopped)
        assert [job.id for job in segments.sweepable(connection)] == [stopped]
        assert segments.sweep(connection, live) == 0


def test_a_sweep_passes_over_images_that_are_locked_and_takes_the_others_in_order(database, settings):
    job_id = submit(database, settings, 4)
    with database.begin_system() as connection:
        job_states.cancel(connection, TENANT, job_id)
    with database.begin_system() as connection, database.begin_system() as other:
        connection.execute(text("SELECT FROM images WHERE job_id = :id AND index = 0 FOR UPDATE"), {"id": job_id})
        assert segments.sweep(other, job_id, limit=2) == 2
    assert [row[0] for row in images(database, job_id)] == [0, 4, 4, 0]
    with database.begin_system() as connection:
        assert segments.sweep(connection, job_id) == 2


@pytest.fixture
def stopped(database: Database, settings: Settings) -> int:
    """A job that is being cancelled, of three segments with the images 0 and 2, 1 and 3, and 4. Image 0 is done. Beside
    it there is a job of the same kind that is not being cancelled."""
    images = [{"prompt": "a", "num_inference_steps": steps} for steps in (1, 2, 1, 2, 3)]
    job_id = submit(database, settings, images)
    submit(database, settings, images)
    settle(database, claim(database, seats=1))
    with database.begin_system() as connection:
        job_states.cancel(connection, TENANT, job_id)
    return job_id


def swept(connection: Connection, database: Database, job_id: int, limit: int = 9) -> tuple[int, list[int], list[int]]:
    """Sweeps: how many images, which states they all have then, and the marks of their segments."""
    found = segments.sweep(connection, job_id, limit)
    connection.commit()
    marks = rows(database, "SELECT low FROM segments WHERE job_id = :id ORDER BY id", id=job_id)
    return found, [row[0] for row in images(database, job_id)], [low for (low,) in marks]


def test_a_sweep_goes_through_the_segments_in_order_and_raises_their_marks(database, stopped):
    before = rows(database, "SELECT id, low, xmin FROM segments WHERE job_id <> :id", id=stopped)
    outcomes = []
    for limit in (2, 1, 9):
        with database.begin_system() as connection:
            outcomes.append(swept(connection, database, stopped, limit))
    assert outcomes == [
        (2, [2, 4, 4, 0, 0], [3, 2, 4]), (1, [2, 4, 4, 4, 0], [3, 4, 4]), (1, [2, 4, 4, 4, 4], [3, 4, 5]),
    ]  # fmt: skip
    assert rows(database, "SELECT id, low, xmin FROM segments WHERE job_id <> :id", id=stopped) == before


def test_a_sweep_writes_no_segment_in_which_nothing_is_left(database, stopped):
    written = "SELECT id, xmin FROM segments ORDER BY job_id, id"
    with database.begin_system() as connection:
        assert swept(connection, database, stopped) == (4, [2, 4, 4, 4, 4], [3, 4, 5])
    before = rows(database, written)
    with database.begin_system() as connection:
        assert segments.sweep(connection, stopped) == 0
    assert rows(database, written) == before


def test_no_mark_is_raised_above_an_image_that_a_sweep_passed_over(database, stopped):
    with database.begin_system() as connection, database.begin_system() as other:
        lock = text("SELECT FROM images WHERE job_id = :id AND index IN (1, 4) FOR UPDATE")
        connection.execute(lock, {"id": stopped})
        assert swept(other, database, stopped) == (2, [2, 0, 4, 4, 0], [3, 1, 4])
    with database.begin_system() as connection:
        assert swept(connection, database, stopped) == (2, [2, 4, 4, 4, 4], [3, 4, 5])


def test_a_sweep_passes_over_a_segment_that_another_holds(database, stopped):
    with database.begin_system() as connection, database.begin_system() as other:
        connection.execute(text("SELECT FROM segments WHERE job_id = :id AND id = 1 FOR UPDATE"), {"id": stopped})
        assert swept(other, database, stopped) == (2, [2, 0, 4, 0, 4], [3, 1, 5])


@pytest.mark.parametrize(
    ("limit", "waiting", "left"),
    [
        (2, [[5], [5], [5]], [4, 4, 5]),  # fewer than there are tenants
        (5, [[9], [9], [9]], [7, 7, 8]),  # fewer are left in the second round
        (10, [[3, 50]], [0, 43]),  # the older job first
        (10, [[50], [1]], [0, 41]),  # one gets what the other leaves of its share
        (99, [[5], [5, 5]], [0, 0, 0]),
    ],
)
def test_a_sweep_cancels_as_many_images_as_it_may_and_no_more(database, settings, limit, waiting, left):
    rows(database, "INSERT INTO tenants (id, name) VALUES (2, 'second'), (3, 'third') RETURNING 1")
    jobs = []
    for tenant, sizes in enumerate(waiting, TENANT):
        for size in sizes:
            jobs.append(submit(database, settings, size, tenant=tenant))
            with database.begin_system() as connection:
                job_states.cancel(connection, tenant, jobs[-1])
    with database.begin_system() as connection:
        assert segments.sweep_cancelled(connection, limit) == sum(map(sum, waiting)) - sum(left)
    assert sorted(counted(database, job_id)["queued"] for job_id in jobs) == left


def test_claims_that_ended_over_a_day_ago_are_forgotten_and_no_others(database, settings):
    submit(database, settings, 5)
    held = {name: claim(database, seats=1) for name in ("open", "fresh", "old", "older")}
    for name in ("fresh", "old", "older"):
        settle(database, held[name])
    age = "UPDATE claims SET created_at = now() - :age, ended_at = CASE WHEN state <> 'open' THEN now() - :age END"
    for name, hours in (("open", 48), ("fresh", 23), ("old", 25), ("older", 48)):
        rows(database, f"{age} WHERE id = :id RETURNING 1", age=timedelta(hours=hours), id=held[name].id)
    with database.begin_system() as connection:
        claims.forget(connection)
    kept = rows(database, "SELECT id FROM claims ORDER BY id")
    assert kept == [(held["open"].id,), (held["fresh"].id,)]


def test_nothing_can_be_claimed_of_no_segments(database):
    with database.begin_system() as connection:
        none = looks.Candidates(())
        assert claims.claim(connection, none, worker_id="w", seats=4, lease=1.0) is None


def test_a_lease_begins_when_it_is_claimed_and_not_when_its_transaction_began(database, settings):
    submit(database, settings, 1)
    with database.begin_system() as connection:
        began = connection.execute(text("SELECT clock_timestamp() FROM pg_sleep(0.1)")).scalar_one()
        assert claim_in(connection, lease=30) is not None
    assert rows(database, "SELECT expires_at >= :began + interval '30 s' FROM claims", began=began) == [(True,)]


def test_a_claim_takes_the_images_of_its_segments_alone(database, settings):
    small, wide = {"prompt": "small", "n": 2}, {"prompt": "wide", "n": 2, "size": "256x256"}
    job_id = submit(database, settings, [small, wide, small, wide])
    assert places(claim(database)) == [(job_id, index) for index in (0, 1, 4, 5)]
    assert places(claim(database)) == [(job_id, index) for index in (2, 3, 6, 7)]


def test_a_claim_writes_who_holds_which_jobs_and_for_how_long(database, settings):
    first, second = submit(database, settings, 3), submit(database, settings, 3)
    taken = claim(database, seats=5, worker="worker-x", lease=45.0)
    assert places(taken) == [(first, index) for index in range(3)] + [(second, index) for index in range(2)]
    assert [image.spec.prompt for image in taken.images[3:]] == ["a mug, number 0", "a mug, number 1"]
    assert (taken.lease_seconds, taken.fresh_jobs) == (45.0, (first, second))
    ((claim_id, worker, state, count, job_ids, left),) = rows(
        database,
        """SELECT id, worker_id, state, images, job_ids, expires_at - interval '45 s' BETWEEN created_at AND now()
           FROM claims""",
    )
    assert (claim_id, worker, state, count, sorted(job_ids), left) == (
        taken.id, "worker-x", "open", 5, [first, second], True,
    )  # fmt: skip
    assert [row[3] for row in images(database, second)] == [taken.id, taken.id, None]
    assert counted(database, first) == {"rendering": 3}
    assert counted(database, second) == {"queued": 1, "rendering": 2}


def test_each_image_has_the_prompt_and_the_seed_of_its_own_request(database, settings):
    """The look for the nearest payload below must not stray into another job's."""
    submit(database, settings, [{"prompt": "first", "n": 2, "seed": 10}])
    submit(database, settings, [{"prompt": "second", "n": 2, "seed": 20}, {"prompt": "third", "n": 2, "seed": 30}])
    assert [(image.spec.prompt, image.spec.seed) for image in claim(database).images] == [
        ("first", 10), ("first", 11), ("second", 20), ("second", 21), ("third", 30), ("third", 31),
    ]  # fmt: skip


def test_a_claim_passes_by_what_another_is_just_taking(database, settings):
    job_id = submit(database, settings, 6)
    with database.begin_system() as connection:
        assert places(claim_in(connection, 2)) == [(job_id, 0), (job_id, 1)]
        assert places(claim(database, seats=2)) == [(job_id, 2), (job_id, 3)]
    assert places(claim(database, seats=2)) == [(job_id, 4), (job_id, 5)]


def test_the_first_claim_starts_its_job_and_no_other(database, settings):
    first, _, ended = (submit(database, settings, 2) for _ in range(3))
    rows(database, "UPDATE jobs SET state = 'finalizing', finalizing_at = now() WHERE id = :id RETURNING 1", id=ended)
    with database.begin_system() as connection:
        job_states.start(connection, [first, ended])
    assert rows(database, "SELECT state, started_at IS NULL FROM jobs ORDER BY id") == [
        ("in_progress", False), ("queued", True), ("finalizing", True),
    ]  # fmt: skip


def test_a_heartbeat_extends_the_claims_that_it_names_and_notes_their_steps(database, settings):
    first, second = submit(database, settings, 2), submit(database, settings, 2)
    ours, also, theirs = (claim(database, seats=n, lease=1.0) for n in (1, 1, 2))
    assert {image.job_id for image in theirs.images} == {second}
    for job_id in (first, second):
        with database.begin(TENANT) as connection:
            lifecycle.cancel(connection, TENANT, job_id)
    with database.begin_system() as connection:
        beat = claims.extend(connection, {ours.id: 7, also.id: 9}, 60.0)
    assert beat.held == {ours.id: frozenset({first}), also.id: frozenset({first})}
    found = rows(database, "SELECT step, round(extract(epoch FROM expires_at - now())) > 30 FROM claims ORDER BY id")
    assert found == [(7, True), (9, True), (0, False)]


def test_a_settle_waits_for_another_of_the_same_claim_and_changes_nothing(database, settings):
    job_id = submit(database, settings, 2)
    taken = claim(database)
    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        settlement.settle(connection, taken.id, device="d", stored=stored(taken))
        again = pool.submit(settle, database, taken)
        until(lambda: waits_for_a_lock(database))
        connection.commit()
        assert again.result().verdict is Verdict.ALREADY
    assert counted(database, job_id) == {"done": 2}


def test_every_image_of_a_claim_gets_its_own_outcome_and_every_job_its_own_counts(database, settings):
    first, second = submit(database, settings, 4), submit(database, settings, 3)
    taken = claim(database, seats=7)
    by_place = {(image.job_id, image.index): image for image in stored(taken)}
    failed = [(first, 1), (second, 0), (second, 1)]
    released = [(first, 2), (first, 3)]
    done = [
        dataclasses.replace(image, reused=place[0] == second, flagged=True)
        for place, image in by_place.items()
        if place not in (*failed, *released)
    ]
    settlement = settle(
        database, taken, stored=done, released=released,
        failed=[FailedImage(*place, "render_error", f"broke at {place[1]}") for place in failed],
    )  # fmt: skip
    assert (settlement.verdict, settlement.dropped) == (Verdict.OK, ())
    assert images(database, first) == [(2, 0, 0, None), (3, 1, 0, None), (0, 0, 0, None), (0, 0, 0, None)]
    assert images(database, second) == [(3, 1, 0, None), (3, 1, 0, None), (2, 0, 0, None)]
    assert counted(database, first) == {"done": 1, "failed": 1, "queued": 2}
    assert counted(database, second) == {"done": 1, "failed": 2, "reused": 1}
    assert sorted(
        rows(database, "SELECT job_id, index, code, message, claim_id, device, batch_images FROM failures")
    ) == [(*place, "render_error", f"broke at {place[1]}", taken.id, "host device", 7) for place in failed]


def test_the_bytes_of_all_that_is_done_are_counted_once_and_nothing_costs_what_was_not_told(database, settings):
    job = submit(database, settings, 6)
    taken = claim(database, seats=6)
    sizes = [1, 2, 4, 16, 32]  # of two runs, with a failed image between them
    pictures = [image for image in stored(taken) if image.index != 3]
    done = [dataclasses.replace(image, bytes=size) for image, size in zip(pictures, sizes, strict=True)]
    settle(database, taken, stored=done, failed=[FailedImage(job, 3, "render_error", "broke")])
    costs = "SELECT sum(bytes), sum(slots), sum(device_seconds) FROM counter_deltas WHERE job_id = :id"
    assert rows(database, costs, id=job) == [(55, 0, 0)]


def test_the_result_of_an_image_is_recorded_as_the_worker_reports_it(database, settings):
    submit(database, settings, 2)
    taken = claim(database)
    one, two = stored(taken)
    two = dataclasses.replace(
        two, object_key="k2", sha256=bytes(32), bytes=77, device="other", reproducibility_class="c2", truncated=True,
        flagged=False, unknown_words=("x",), render_seconds=0.5, render_key=bytes(range(32)), reused=True,
    )  # fmt: skip
    settle(database, taken, stored=[one, two])
    found = rows(
        database,
        """SELECT index, object_key, sha256, bytes, device, reproducibility_class, truncated, flagged, unknown_words,
                  render_seconds, render_key, reused, claim_id FROM results ORDER BY index""",
    )
    assert [tuple(bytes(value) if isinstance(value, memoryview) else value for value in row) for row in found] == [
        (0, one.object_key, one.sha256, 7, "host device", "test/16", False, None, [], pytest.approx(0.1), None, False,
         taken.id),
        (1, "k2", bytes(32), 77, "other", "c2", True, False, ["x"], 0.5, bytes(range(32)), True, taken.id),
    ]  # fmt: skip


def test_versions_that_are_known_are_looked_up_and_not_written_again(database, settings):
    submit(database, settings, 4)
    settle(database, claim(database, seats=2))
    before = rows(database, "SELECT id, versions, xmin FROM engines")
    taken = claim(database, seats=2)
    new = dataclasses.replace(stored(taken)[1], versions="presswork 0.2.0")
    settle(database, taken, stored=[stored(taken)[0], new])
    assert rows(database, "SELECT id, versions, xmin FROM engines ORDER BY id")[:1] == before
    assert rows(database, "SELECT versions FROM results JOIN engines ON engines.id = engine_id ORDER BY index") == [
        ("presswork 0.1.0",)] * 3 + [("presswork 0.2.0",)
    ]  # fmt: skip


def test_a_settled_claim_says_when_and_how_long_and_others_stay_open(database, settings):
    submit(database, settings, 4)
    ours, theirs = claim(database, seats=2), claim(database, seats=2)
    with database.begin_system() as connection:
        settlement.settle(connection, ours.id, device="d", stored=stored(ours), render_seconds=1.5)
    assert rows(database, "SELECT id, state, ended_at IS NULL, render_seconds FROM claims ORDER BY id") == [
        (ours.id, "settled", False, 1.5), (theirs.id, "open", True, None),
    ]  # fmt: skip


@pytest.mark.parametrize("outcomes", ["none", "too few", "twice", "of nobody"])
def test_outcomes_that_are_not_the_claims_images_are_refused_whole(database, settings, outcomes):
    job_id = submit(database, settings, 3)
    taken = claim(database, seats=2)
    ours = stored(taken)
    given = {
        "none": {"released": []},
        "too few": {"stored": ours[:1]},
        "twice": {"stored": ours, "released": places(taken)},
        "of nobody": {"stored": ours, "released": [(job_id, 2)]},
    }[outcomes]
    with (
        pytest.raises(InvariantViolated, match=f"Claim {taken.id} holds 2 images"),
        database.begin_system() as connection,
    ):
        settlement.settle(connection, taken.id, device="d", **given)
    assert counted(database, job_id) == {"queued": 1, "rendering": 2}
    assert settle(database, taken).verdict is Verdict.OK


def test_a_claim_that_nobody_knows_is_fenced(database, settings):
    submit(database, settings, 1)
    taken = claim(database)
    late = dataclasses.replace(taken, id=taken.id + 1000)
    assert settle(database, late) == settlement.Settlement(Verdict.FENCED, tuple(stored(late)))
    assert settle(database, taken).verdict is Verdict.OK
    assert settle(database, taken) == settlement.Settlement(Verdict.ALREADY, tuple(stored(taken)))


def test_of_a_cancelled_job_in_a_mixed_claim_nothing_becomes_visible_and_of_the_other_all(database, settings):
    doomed, other = submit(database, settings, 3), submit(database, settings, 3)
    taken = claim(database)
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, doomed)
    images_of = [dataclasses.replace(image, reused=True) for image in stored(taken)]
    settlement = settle(database, taken, stored=images_of)
    assert [image.job_id for image in settlement.dropped] == [doomed] * 3
    assert rows(database, "SELECT job_id, index FROM results ORDER BY index") == [(other, n) for n in range(3)]
    assert counted(database, doomed) == {"cancelled": 3}
    assert counted(database, other) == {"done": 3, "reused": 3}


def test_a_release_lowers_the_mark_of_its_own_segment_to_its_first_image(database, settings):
    small, wide = {"prompt": "small", "n": 4}, {"prompt": "wide", "n": 4, "size": "256x256"}
    job_id = submit(database, settings, [small, wide])
    other = submit(database, settings, [small])
    ours, theirs, drained = claim(database, seats=4), claim(database, seats=4), claim(database, seats=4)
    assert {image.job_id for image in (*theirs.images, *drained.images)} == {job_id, other}
    with database.begin_system() as connection:
        segments.raise_low(connection)
    before = rows(database, "SELECT job_id, id, low FROM segments ORDER BY job_id, id")
    assert before == [(job_id, 0, 4), (job_id, 1, 8), (other, 0, 4)]
    settle(database, ours, stored=[stored(ours)[0], stored(ours)[3]], released=places(ours)[1:3])
    assert rows(database, "SELECT job_id, id, low FROM segments ORDER BY job_id, id") == [(job_id, 0, 1), *before[1:]]
    assert [place[1] for place in places(claim(database))] == [1, 2]


def expire(database: Database, lease: float = 0.0) -> int:
    with database.begin_system() as connection:
        return expiry.expire(connection, lease)


def test_only_overdue_claims_expire_and_each_once(database, settings):
    job_id = submit(database, settings, 6)
    overdue, alive, settled = claim(database, 2, lease=-1.0), claim(database, 2), claim(database, 2, lease=-1.0)
    settle(database, settled, released=places(settled)[:1], stored=stored(settled)[1:])
    assert expire(database) == 2
    assert expire(database) == 0
    assert rows(database, "SELECT id, state, ended_at IS NULL, render_seconds FROM claims ORDER BY id") == [
        (overdue.id, "expired", False, None), (alive.id, "open", True, None), (settled.id, "settled", False, None),
    ]  # fmt: skip
    assert images(database, job_id) == [(0, 0, 1, None)] * 2 + [(1, 0, 0, alive.id)] * 2 + [
        (0, 0, 0, None),
        (2, 0, 0, None),
    ]
    assert counted(database, job_id) == {"queued": 3, "rendering": 2, "done": 1}


@pytest.mark.parametrize(("seconds", "overdue"), [(7_200, 0), (7_201, 1)])
def test_a_claim_of_which_no_lease_is_known_ends_within_two_hours_or_is_overdue(database, settings, seconds, overdue):
    submit(database, settings, 1)
    claim(database)
    with database.begin_system() as connection:  # in which now() is one instant
        late = "UPDATE claims SET lease_seconds = NULL, expires_at = now() + make_interval(secs => :seconds)"
        connection.execute(text(late), {"seconds": seconds})
        assert expiry.expire(connection, 0.0) == overdue


def test_expiry_cancels_what_was_cancelled_and_queues_the_rest(database, settings):
    doomed, other = submit(database, settings, 2), submit(database, settings, 2)
    claim(database, lease=-1.0)
    with database.begin_system() as connection:
        segments.raise_low(connection)
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, doomed)
    assert expire(database) == 4
    assert counted(database, doomed) == {"cancelled": 2}
    assert counted(database, other) == {"queued": 2}
    assert rows(database, "SELECT low FROM segments ORDER BY job_id") == [(2,), (0,)]


def test_how_often_an_image_was_lost_has_an_end(database, settings):
    job_id = submit(database, settings, 2)
    rows(database, "UPDATE images SET lost = 32767 WHERE index = 0 RETURNING 1")
    claim(database, lease=-1.0)
    assert expire(database) == 2
    assert [row[2] for row in images(database, job_id)] == [32767, 1]


def test_an_expiry_passes_by_a_claim_that_is_just_being_settled(database, settings):
    job_id = submit(database, settings, 4)
    settling, overdue = claim(database, 2, lease=-1.0), claim(database, 2, lease=-1.0)
    with database.begin_system() as connection:
        settlement.settle(connection, settling.id, device="d", stored=stored(settling))
        assert expire(database) == 2
    assert expire(database) == 0
    assert rows(database, "SELECT id, state FROM claims ORDER BY id") == [
        (settling.id, "settled"), (overdue.id, "expired"),
    ]  # fmt: skip
    assert counted(database, job_id) == {"done": 2, "queued": 2}


def test_a_database_that_has_just_started_expires_nothing_until_a_lease_later(database, settings):
    submit(database, settings, 1)
    claim(database, lease=-1.0)
    ((up,),) = rows(database, "SELECT extract(epoch FROM now() - pg_postmaster_start_time())")
    assert expire(database, float(up) + 30) == 0
    assert expire(database, float(up) / 2) == 1


def held(database: Database, taken: Claim) -> bool:
    return rows(database, "SELECT state FROM claims WHERE id = :id", id=taken.id) == [("open",)]


def test_a_cancel_of_the_second_job_waits_for_a_crossing_claim_too(database, settings):
    """The claim shares the locks of all jobs that it may take from, not of the first alone."""
    submit(database, settings, 2)
    second = submit(database, settings, 2)

    def cancel() -> None:
        with database.begin(TENANT) as connection:
            lifecycle.cancel(connection, TENANT, second)

    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        taken = claim_in(connection)
        cancelled = pool.submit(cancel)
        until(lambda: waits_for_a_lock(database))
        connection.commit()
        cancelled.result()
    assert held(database, taken)
    settle(database, taken)
    assert counted(database, second) == {"cancelled": 2}


def test_a_cancel_waits_for_a_crossing_expiry(database, settings):
    job_id = submit(database, settings, 2)
    claim(database, lease=-1.0)

    def cancel() -> None:
        with database.begin(TENANT) as connection:
            lifecycle.cancel(connection, TENANT, job_id)

    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        assert expiry.expire(connection, 0.0) == 2
        cancelled = pool.submit(cancel)
        until(lambda: waits_for_a_lock(database))
        connection.commit()
        cancelled.result()
    with database.begin_system() as connection:
        assert segments.sweep_cancelled(connection) == 2
    assert counted(database, job_id) == {"cancelled": 2}


def test_an_expiry_waits_for_a_crossing_cancel_and_then_sees_it(database, settings):
    job_id = submit(database, settings, 2)
    claim(database, lease=-1.0)
    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        job_states.cancel(connection, TENANT, job_id)
        expired = pool.submit(expire, database)
        until(lambda: waits_for_a_lock(database))
        connection.commit()
        assert expired.result() == 2
    assert counted(database, job_id) == {"cancelled": 2}
