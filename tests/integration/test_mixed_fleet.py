"""A fast and slow workers on the same lanes: who takes what at the end of the work, from live rows."""

import multiprocessing
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.fleet import throughput, workers
from services.core.fleet.abilities import Abilities
from services.core.model.specs import Shape
from services.core.queue import claims, expiry, looks, peers, segments
from tests import factories, loop_process, programs
from tests.factories import submit
from tests.render_loops import counts, images, mugs
from tests.waiting import until

SMALL = Shape(factories.REVISION, 64, 64, 10, True)
FAST, SLOW = "fast", "slow"
SIZES = ("64x64", "256x256", "512x512")


@pytest.fixture
def ready(database):
    factories.register(database)
    return database


def up(database: Database, name: str, seconds: float | None, batches: Sequence[int] = (1,), **able: object) -> None:
    """A live worker on a host of its name, measured at so many seconds an image."""
    classes = {size: f"{factories.REVISION}/simulated/uint8/{name}/{size}" for size in batches}
    said = Abilities(**{"sizes": SIZES, "classes": classes, **able}).as_report()
    with database.begin_system() as connection:
        workers.register(
            connection, name, host=name, pid=1, device="simulated", model="simulated", revision=factories.REVISION,
            state="ready", report=said,
        )  # fmt: skip
        workers.beat(connection, name, "busy")
        if seconds is not None:
            throughput.record(connection, SMALL, f"{name} simulated", images=16, seconds_per_image=seconds)


# Whoever was not made older was heard of just now, however slow the machine is.
HEARD = text("""
UPDATE workers SET seen_at = now(), busy_at = CASE
  WHEN busy_at BETWEEN now() - interval '1 hour' AND now() + interval '1 hour' THEN now() ELSE busy_at END
WHERE seen_at > now() - interval '1 hour'
""")


def look(database: Database, name: str, free: float = 0.0) -> looks.Candidates:
    with database.begin_system() as connection:
        connection.execute(HEARD)
        return looks.candidates(connection, factories.REVISION, 1, name, free=free)


def take(database: Database, name: str, seats: int = 1, free: float = 0.0) -> int:
    """How many images it claims."""
    with database.begin_system() as connection:
        connection.execute(HEARD)
        chosen = looks.candidates(connection, factories.REVISION, 1, name, free=free)
        taken = claims.claim(connection, chosen, worker_id=name, seats=seats, lease=30.0)
    return 0 if taken is None else len(taken.images)


def free(database: Database, name: str, seconds: int) -> None:
    """When that worker expects to have rendered what it holds."""
    change(database, f"UPDATE claims SET free_at = now() + interval '{seconds} s' WHERE worker_id = '{name}'")


def change(database: Database, sql: str) -> None:
    with database.begin_system() as connection:
        connection.execute(text(sql))


def test_a_slow_worker_leaves_the_tail_and_takes_what_is_beyond_it(ready, settings):
    up(ready, FAST, 50.0, (16, 1))  # 800 s a batch
    up(ready, SLOW, 4_000.0)
    submit(ready, settings, 100, size="64x64")
    assert take(ready, FAST, 16) == 16
    assert look(ready, FAST).leaves == 0
    free(ready, FAST, 1_200)
    assert look(ready, SLOW).leaves == 48  # three more batches within 4,000 s
    assert take(ready, SLOW) == 1
    assert [take(ready, FAST, 16) for _ in range(3)] == [16] * 3
    assert look(ready, SLOW).max_waiting == 100  # the low-water mark is behind
    free(ready, FAST, 1_200)
    assert take(ready, SLOW) == 0  # 35 are left: they are counted as they are taken
    free(ready, FAST, 2_000)
    assert take(ready, SLOW) == 1  # the fast one ends only two batches


def test_a_slow_worker_holds_no_batches_at_the_end_that_a_faster_one_would_have_rendered(ready, settings):
    """Its claims are cut to half of an equal share, then it leaves what the other ends sooner."""
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 1.0, (16, 1))
    submit(ready, settings, 512, size="64x64")
    sizes, most = {FAST: [], SLOW: []}, 256
    for nth in range(40):
        for name in (SLOW, FAST):
            if nth % 2 == 0 or name == FAST:  # half as often
                waiting = look(ready, name)
                if waiting.rows and (taken := take(ready, name, waiting.seats(16, most), free=0.0)):
                    sizes[name].append((waiting.max_waiting, taken))
                    free(ready, name, 1)
            with ready.begin_system() as connection:
                segments.raise_low(connection)
    assert sum(taken for found in sizes.values() for _, taken in found) == 512
    assert sizes[SLOW][0] == (512, 128), "several batches while much waits"
    for waited, taken in (one for found in sizes.values() for one in found):
        assert taken <= max(waited // 4, 16), "no more than half of an equal share, or a batch"
    assert sizes[SLOW][-1][1] <= 16


def test_while_much_waits_the_fleet_is_not_read(ready, settings):
    up(ready, FAST, 0.001, (16, 1))
    up(ready, SLOW, 4_000.0)
    submit(ready, settings, [{"prompt": "a", "n": 1000}] * 5, size="64x64")
    assert look(ready, SLOW).fleet == {} and take(ready, SLOW) == 1
    change(ready, "UPDATE segments SET high = 3999")
    assert set(look(ready, SLOW).fleet) == {FAST, SLOW}


def test_nothing_is_left_while_a_lane_may_hold_more_than_was_read(ready, settings):
    """Of many small jobs a look reads only the first ones."""
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 40.0)
    for _ in range(looks.LANE - 1):
        submit(ready, settings, 1, size="64x64")
    assert look(ready, SLOW).leaves > looks.LANE and take(ready, SLOW) == 0
    for _ in range(3):
        submit(ready, settings, 1, size="64x64")
    assert look(ready, SLOW).max_waiting == looks.LANE
    assert take(ready, SLOW) == 1


def test_equal_workers_claim_ahead_while_many_small_jobs_wait(ready, settings):
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 0.5, (16, 1))
    for _ in range(2 * looks.LANE):
        submit(ready, settings, 1, size="64x64")
    assert take(ready, FAST, 16) == 16
    with ready.begin_system() as connection:
        segments.raise_low(connection)
    free(ready, FAST, 4)  # it is in the midst of its batch, and the other one begins its own
    assert take(ready, SLOW, 16, free=8.0) == 16


def test_nothing_is_left_in_a_large_fleet(ready, settings):
    """Every claim near the end would read all of it."""
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 40.0)
    submit(ready, settings, 3, size="64x64")
    for nth in range(peers.MOST_PEERS - 2):
        up(ready, f"another-{nth}", 40.0)
    assert len(look(ready, SLOW).fleet) == peers.MOST_PEERS and take(ready, SLOW) == 0
    up(ready, "one more", 40.0)
    assert look(ready, SLOW).fleet == {} and take(ready, SLOW) == 1


def test_images_of_a_paused_job_are_no_reason_to_take_the_tail(ready, settings):
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 40.0)
    change(ready, f"UPDATE jobs SET paused = true WHERE id = {submit(ready, settings, 500, size='64x64')}")
    submit(ready, settings, 3, size="64x64")
    assert look(ready, SLOW).max_waiting == 503
    assert take(ready, SLOW) == 0


def test_the_last_images_are_left_before_they_are_locked(ready, settings):
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 40.0)
    submit(ready, settings, 3, size="64x64")
    assert take(ready, SLOW) == 0
    with ready.begin_system() as connection:
        segments.raise_low(connection)
    assert take(ready, SLOW) == 0
    assert take(ready, FAST, 16) == 3


TROUBLE = {
    "is gone": "UPDATE workers SET seen_at = now() - interval '1 day' WHERE id = 'fast'",
    "has crashed": "UPDATE workers SET state = 'crashed' WHERE id = 'fast'",
    "is sick": "UPDATE workers SET state = 'sick' WHERE id = 'fast'",
    "is drained": "INSERT INTO drains (host, device) VALUES ('fast', 'simulated')",
    "serves another revision": "UPDATE workers SET model_revision = 'other' WHERE id = 'fast'",
    "was never measured": "DELETE FROM render_rates WHERE device LIKE 'fast%'",
    "does not say what it serves": "UPDATE workers SET report = '{}' WHERE id = 'fast'",
    "does not take what has waited": "UPDATE workers SET busy_at = now() - interval '1 day'; "
    "UPDATE segments SET created_at = now() - interval '1 day'",
    "was busy before the clock was set back": "UPDATE workers SET busy_at = now() + interval '1 day'; "
    "UPDATE segments SET created_at = now() - interval '1 day'",
}


@pytest.mark.parametrize("why", TROUBLE)
def test_a_slow_worker_leaves_nothing_to_one_that(ready, settings, why):
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 40.0)
    submit(ready, settings, 3, size="64x64")
    assert take(ready, SLOW) == 0
    for sql in TROUBLE[why].split("; "):
        change(ready, sql)
    assert take(ready, SLOW) == 1


def test_it_leaves_nothing_to_one_that_is_busy_for_longer_or_late(ready, settings):
    up(ready, FAST, 50.0, (16, 1))
    up(ready, SLOW, 4_000.0)
    submit(ready, settings, 17, size="64x64")
    assert take(ready, FAST, 16) == 16
    for seconds, taken in ((4_000, 1), (2_000, 0), (-500, 0), (-1_500, 1)):
        free(ready, FAST, seconds)
        assert take(ready, SLOW) == taken, seconds
        change(ready, "UPDATE images SET state = 0, claim_id = NULL WHERE index = 16")
        change(ready, "UPDATE segments SET low = 0")
        change(ready, "DELETE FROM claims WHERE worker_id = 'slow'")
    change(ready, "UPDATE claims SET free_at = NULL WHERE worker_id = 'fast'")  # of the release before
    assert take(ready, SLOW) == 1


def test_it_leaves_nothing_that_the_fast_one_cannot_render(ready, settings):
    up(ready, FAST, 0.5, (16, 1), sizes=("512x512",))
    up(ready, SLOW, 40.0)
    submit(ready, settings, 3, size="64x64")
    assert take(ready, FAST, 16) == 3 and take(ready, SLOW) == 0  # a claim that says nothing of its worker takes all


def test_what_was_left_in_one_lane_takes_time_from_the_next(ready, settings):
    """Else a slow worker would be idle while others have more to do than they can."""
    up(ready, FAST, 1.0, (1,))
    up(ready, SLOW, 10.0)
    submit(ready, settings, 6, size="64x64")
    submit(ready, settings, 6, size="64x64", num_inference_steps=11)
    found = look(ready, SLOW)
    assert found.leaves == 7  # of ten seconds, two until the fast one looks
    assert 0 < found.others.leaves <= 1
    with ready.begin_system() as connection:
        assert claims.claim(connection, found.others, worker_id=SLOW, seats=1, lease=30.0) is not None


def test_it_takes_images_of_a_later_job_and_leaves_the_end_of_the_first(ready, settings):
    up(ready, FAST, 1.0, (1,))
    up(ready, SLOW, 10.0)
    first, second = (submit(ready, settings, 5, size="64x64") for _ in range(2))
    with ready.begin_system() as connection:
        chosen = looks.candidates(connection, factories.REVISION, 1, SLOW)
        taken = claims.claim(connection, chosen, worker_id=SLOW, seats=1, lease=30.0)
    assert taken is not None and {image.job_id for image in taken.images} == {second}
    assert first != second


def test_what_was_left_for_too_long_is_taken_whoever_should_have(ready, settings):
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 40.0)
    jobs = [submit(ready, settings, 3, size="64x64") for _ in range(2)]
    found = look(ready, SLOW)
    assert found.left(None) == [(job, 0) for job in jobs] and found.patience == pytest.approx(46.0)
    with ready.begin_system() as connection:
        late = replace(found, overdue={(jobs[1], 0)})
        assert claims.claim(connection, found, worker_id=SLOW, seats=1, lease=30.0) is None
        taken = claims.claim(connection, late, worker_id=SLOW, seats=1, lease=30.0)
    assert taken is not None and late.left(taken) == []


def test_segments_in_front_of_what_is_claimed_are_left(ready, settings):
    up(ready, FAST, 1.0, (1,))
    up(ready, SLOW, 10.0)
    jobs = [submit(ready, settings, 5, size="64x64") for _ in range(2)]
    found = look(ready, SLOW)
    with ready.begin_system() as connection:
        taken = claims.claim(connection, found, worker_id=SLOW, seats=1, lease=30.0)
    assert taken is not None and found.left(taken) == [(jobs[0], 0)]


def test_suspects_are_left_to_nobody(ready, settings):
    up(ready, FAST, 0.5, (16, 1))
    up(ready, SLOW, 40.0)
    submit(ready, settings, 3, size="64x64")
    change(ready, "UPDATE segments SET cap = 1")
    assert take(ready, SLOW) == 1


def test_a_claim_says_when_its_worker_will_be_free(ready, settings):
    up(ready, FAST, 0.5, (16, 1))
    submit(ready, settings, 100, size="64x64")
    assert take(ready, FAST, 16, free=3.0) == 16
    assert take(ready, "unknown", 16) == 16
    with ready.begin_system() as connection:
        lease = "expires_at - make_interval(secs => lease_seconds)"
        rows = connection.execute(text(f"SELECT extract(epoch FROM free_at - ({lease})) FROM claims ORDER BY id"))
        said = list(rows.scalars())
    assert float(said[0]) == pytest.approx(11.0, abs=1.0) and said[1] is None


def test_a_worker_claims_only_what_it_can_render(ready, settings):
    """Workers of one revision may be compiled for different sizes."""
    submit(ready, settings, 2, size="64x64")
    able = Abilities(sizes=("256x256",))
    with ready.begin_system() as connection:
        for cannot in (able, Abilities(max_steps=9)):
            assert not looks.candidates(connection, factories.REVISION, 1, "w", cannot).rows
        can = replace(able, sizes=("256x256", "64x64"), max_steps=10, redraws=False, long_prompts=False)
        assert looks.candidates(connection, factories.REVISION, 1, "w", can).rows


SPEEDS = {"gpu": (1.0, (16, 1)), "card": (5.0, (1,)), "cpu": (40.0, (1,))}  # milliseconds an image, batches


def mixed(make_render_loop, database: Database, fast) -> dict[str, object]:
    """Render loops of three speeds, registered as their processes would be."""
    loops = {}
    for name, (milliseconds, sizes) in SPEEDS.items():
        loops[name] = make_render_loop(replace(fast, simulated_image_ms=milliseconds, batch_sizes=sizes), worker=name)
        loop_process.register(database, loops[name], name)
    return loops


def render(database: Database, loops, job: int, total: int) -> None:
    """Runs the loops as their timers would until the job's images are done."""

    def work(name: str) -> None:
        while counts(database, job).get("done", 0) < total:
            with database.begin_system() as connection:
                workers.beat(connection, name, "busy")
            loops[name].run()

    threads = [threading.Thread(target=work, args=(name,)) for name in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_three_speeds_share_a_job_and_each_image_says_its_class(make_render_loop, database, fast):
    loops = mixed(make_render_loop, database, fast)
    for name, loop in loops.items():  # each is measured
        alone = submit(database, fast, mugs(1), num_inference_steps=2)
        loop.run()
        [image] = images(database, alone)
        assert image.device == f"{name} simulated"
    job = submit(database, fast, mugs(40), num_inference_steps=2)
    render(database, loops, job, 40)
    assert counts(database, job) == {"done": 40}
    for image in images(database, job):
        assert image.device is not None and image.reproducibility_class is not None
        assert image.reproducibility_class.endswith("/16" if image.device.startswith("gpu") else "/1")


def test_kill_9_of_the_fast_one_at_the_tail_and_the_slow_one_ends_the_job(
    make_render_loop, database, database_url, fast
):
    slow = make_render_loop(replace(fast, batch_sizes=(1,)), worker="cpu")
    loop_process.register(database, slow, "cpu")
    measured = submit(database, fast, mugs(1), num_inference_steps=2)
    slow.run()
    change(database, "UPDATE render_rates SET seconds_per_image = 1000")
    with database.begin_system() as connection:
        shape = Shape(slow.pipeline.card.revision, 64, 64, 2, True)
        throughput.record(connection, shape, f"{FAST} simulated", images=16, seconds_per_image=0.1)
    settings = replace(fast, database_url=database_url, simulated_image_ms=100.0, batch_sizes=(16, 1))
    process = multiprocessing.get_context("spawn").Process(
        target=loop_process.run, args=(programs.settings("worker", settings), FAST), daemon=True
    )
    process.start()
    job = submit(database, fast, mugs(60), num_inference_steps=2)
    until(lambda: counts(database, job).get("done", 0) > 0, seconds=60)
    with database.begin_system() as connection:
        workers.beat(connection, "cpu", "busy")
    slow.run()  # leaves the rest, which the fast one will end within seconds
    process.kill()
    process.join()
    assert counts(database, measured) == {"done": 1} and counts(database, job)["rendering"] > 0
    assert "cpu simulated" not in {image.device for image in images(database, job)}

    def ended() -> bool:
        slow.run()
        with database.begin_system() as connection:
            expiry.expire(connection, fast.lease_seconds)
        return counts(database, job) == {"done": 60}

    until(ended, seconds=120)


def test_when_the_fast_one_is_gone_at_the_tail_the_slow_one_ends_the_job(make_render_loop, database, fast):
    """Its row still says busy, and the slow one has left it the end of the job."""
    slow = make_render_loop(replace(fast, simulated_image_ms=5.0, batch_sizes=(1,)), worker="cpu")
    loop_process.register(database, slow, "cpu")
    job = submit(database, fast, mugs(4), num_inference_steps=2)
    slow.run()
    assert counts(database, job) == {"done": 4}
    change(database, "UPDATE render_rates SET seconds_per_image = 100")
    up(database, FAST, None, (16, 1))
    change(database, f"UPDATE workers SET model_revision = '{slow.pipeline.card.revision}' WHERE id = 'fast'")
    shape = Shape(slow.pipeline.card.revision, 64, 64, 2, True)
    with database.begin_system() as connection:
        throughput.record(connection, shape, "fast simulated", images=16, seconds_per_image=0.001)
    alive = threading.Event()
    alive.set()

    def beat() -> None:
        while alive.is_set():
            change(database, "UPDATE workers SET seen_at = now(), busy_at = now()")

    beating = threading.Thread(target=beat)
    beating.start()
    job = submit(database, fast, mugs(3), num_inference_steps=2)
    slow.run()
    assert counts(database, job) == {"queued": 3}
    assert slow.leaving.overdue(time.monotonic() + 300.0) == {(job, 0)}
    other = submit(database, fast, mugs(3), num_inference_steps=2)
    slow.leaving.note([(other, 0)], [(other, 0)], now=0.0, until=0.0)  # long ago
    until(lambda: slow.run() and counts(database, job) == counts(database, other) == {"done": 3})
    change(database, "UPDATE render_rates SET seconds_per_image = 100 WHERE device NOT LIKE 'fast%'")
    job = submit(database, fast, mugs(3), num_inference_steps=2)
    slow.run()
    assert counts(database, job) == {"queued": 3}
    alive.clear()  # kill -9
    beating.join()
    change(database, "UPDATE workers SET seen_at = now() - interval '7 seconds' WHERE id = 'fast'")
    until(lambda: slow.run() and counts(database, job) == {"done": 3})
