"""Which images are quarantined or poison after the process that rendered them died, and which are not."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.fleet import workers
from services.core.jobs import lifecycle
from services.core.model.specs import Claim, FailedImage
from services.core.queue import quarantine, segments, settlement
from services.core.queue.settlement import Verdict
from services.core.settings import Settings
from tests import factories
from tests.factories import REVISION, TENANT, claim, settle, submit
from tests.waiting import until

A, B = "host-a device", "host-b device"


@pytest.fixture(autouse=True)
def _registered(database: Database) -> None:
    factories.register(database)
    started(database, "worker-a", "host-a")


def started(database: Database, worker: str, host: str) -> None:
    with database.begin_system() as connection:
        workers.register(
            connection, worker, host=host, pid=1, device="device", model="simulated", revision=REVISION, state="ready"
        )


def all_of(*claims: Claim) -> quarantine.Rendering:
    return {claim.id: factories.places(claim) for claim in claims}


def died(database: Database, claim: Claim | None = None, *, worker: str = "worker-a", device: str = A) -> bool:
    """The process dies while it renders that claim, or between two."""
    with database.begin_system() as connection:
        return quarantine.child_died(connection, worker, rendering=all_of(claim) if claim else {}, device=device)


def crashed(database: Database, seats: int = 16, *, worker: str = "worker-a", device: str = A) -> Claim:
    """Takes a claim and dies of it; nothing is held against the device."""
    taken = claim(database, seats=seats, worker=worker)
    assert not died(database, taken, worker=worker, device=device)
    return taken


def rows(database: Database, statement: str, **values: object) -> list[tuple[object, ...]]:
    with database.begin_system() as connection:
        return [tuple(row) for row in connection.execute(text(statement), values)]


def images(database: Database, job_id: int) -> dict[int, tuple[object, ...]]:
    """State, attempt, crashes and lost of each image, by its index."""
    found = rows(database, "SELECT index, state, attempt, crashes, lost FROM images WHERE job_id = :id", id=job_id)
    return {row[0]: row[1:] for row in found}


def caps(database: Database, job_id: int) -> list[tuple[object, ...]]:
    """Cap, first and last index of the job's quarantine segments."""
    statement = "SELECT cap, low, high FROM segments WHERE job_id = :id AND cap IS NOT NULL ORDER BY id"
    return rows(database, statement, id=job_id)


def evidence(database: Database) -> list[tuple[object, ...]]:
    return rows(
        database,
        "SELECT code, device, batch_images, count(*) FROM failures WHERE code <> 'lost' "
        "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    )


def queued_and_failed(database: Database, job_id: int) -> tuple[object, ...]:
    """By the counters; by the images it is the same."""
    statement = """
    SELECT c.queued + coalesce(sum(d.queued), 0), c.failed + coalesce(sum(d.failed), 0)
    FROM counters c LEFT JOIN counter_deltas d USING (job_id) WHERE job_id = :id GROUP BY c.job_id
    """
    (counted,) = rows(database, statement, id=job_id)
    states = [row[0] for row in images(database, job_id).values()]
    assert counted == (states.count(0), states.count(3))
    return counted


def age(database: Database, table: str, column: str, minutes: int) -> None:
    rows(database, f"UPDATE {table} SET {column} = {column} - interval '{minutes} minutes' RETURNING 1")


def waits_for_a_lock(database: Database) -> bool:
    return bool(rows(database, "SELECT FROM pg_locks WHERE NOT granted"))


def test_what_it_held_is_queued_again_and_only_what_it_rendered_is_quarantined(database, settings):
    job_id = submit(database, settings, 12)
    rendering, waiting = claim(database, seats=4), claim(database, seats=4)
    others = claim(database, seats=2, worker="worker-b")
    assert not died(database, rendering)
    found = images(database, job_id)
    assert [found[index] for index in range(12)] == [(0, 0, 1, 0)] * 4 + [(0, 0, 0, 1)] * 4 + [(1, 0, 0, 0)] * 2 + [
        (0, 0, 0, 0)
    ] * 2
    assert rows(database, "SELECT id, state FROM claims ORDER BY id") == [
        (rendering.id, "crashed"), (waiting.id, "expired"), (others.id, "open"),
    ]  # fmt: skip
    assert evidence(database) == [("crash", A, 4, 4)]
    assert queued_and_failed(database, job_id) == (10, 0)
    assert settle(database, others).verdict is Verdict.OK


def test_of_a_claim_of_several_batches_only_the_one_at_hand_is_held_against_its_images(database, settings):
    """What waits in the claim is given back as if it had never been claimed."""
    job_id = submit(database, settings, 48)
    held = claim(database, seats=48)
    with database.begin_system() as connection:
        rendering = {held.id: factories.places(held)[16:32]}
        assert not quarantine.child_died(connection, "worker-a", rendering=rendering, device=A)
    found = images(database, job_id)
    assert [found[index] for index in range(48)] == [(0, 0, 0, 0)] * 16 + [(0, 0, 1, 0)] * 16 + [(0, 0, 0, 0)] * 16
    assert evidence(database) == [("crash", A, 16, 16)] and caps(database, job_id) == [(8, 0, 47)]
    assert queued_and_failed(database, job_id) == (48, 0)
    others = [claim(database, seats=48, worker="worker-b") for _ in range(2)]
    assert [(len(taken.images), taken.suspect) for taken in others] == [(32, False), (8, True)]


def test_a_death_between_two_batches_quarantines_nothing(database, settings):
    job_id = submit(database, settings, 4)
    held = claim(database)
    started(database, "worker-b", "host-b")
    assert not died(database)
    assert set(images(database, job_id).values()) == {(0, 0, 0, 1)}
    assert evidence(database) == []
    assert settle(database, held).verdict is Verdict.FENCED
    assert rows(database, "SELECT id, state FROM workers ORDER BY id") == [
        ("worker-a", "crashed"), ("worker-b", "ready"),
    ]  # fmt: skip


def test_of_two_batches_in_flight_either_may_be_at_fault_and_none_has_crashed_alone(database, settings):
    """The last stage of one ran beside the other: each image is one of a batch of all of them."""
    job_id = submit(database, settings, 3)
    before, after, other = (claim(database, seats=1, worker=f"worker-{name}") for name in "aab")
    for times in range(3):
        with database.begin_system() as connection:
            pair = all_of(before, after)
            assert not quarantine.child_died(connection, "worker-a", rendering=pair, device=A), "one crash a death"
        assert evidence(database) == [("crash", A, 2, 2 * (times + 1))]
        before, after = (claim(database, seats=1, worker="worker-a") for _ in range(2))
    found = images(database, job_id)
    assert sorted(crashes for _, _, crashes, _ in found.values()) == [0, 3, 3], "another process rendered the third"
    assert not any(state == 3 for state, *_ in found.values()), "nobody is poison"
    assert before.suspect and after.suspect and not other.suspect
    with database.begin_system() as connection:
        assert not quarantine.child_died(connection, "worker-a", rendering=all_of(before), device=A)
    assert ("crash", A, 1, 1) in evidence(database), "alone at last"


def test_a_worker_that_died_has_just_been_seen(database):
    age(database, "workers", "seen_at", 60)
    died(database)
    assert rows(database, "SELECT seen_at > now() - interval '1 minute' FROM workers") == [(True,)]


def test_quarantined_images_are_claimed_apart_in_ever_smaller_batches(database, settings):
    job_id, other = submit(database, settings, 16), submit(database, settings, 16)
    crashed(database)
    with database.begin_system() as connection:
        segments.raise_low(connection)
    for size in (8, 4, 2, 1):
        taken = claim(database)
        assert {image.job_id for image in taken.images} == {job_id}
        assert len(taken.images) == size
        assert not died(database, taken, device=f"{A} {size}")
        settle(database, claim(database, seats=size))  # the rest of those that were together
    assert [row[0] for row in caps(database, job_id)] == [8, 4, 2, 1]
    assert {row[0] for row in images(database, other).values()} == {0}


def test_other_images_are_done_and_the_one_that_crashes_alone_fails(database, settings):
    job_id = submit(database, settings, 16)
    claims = 0
    while (taken := claim(database)) is not None:
        claims += 1
        if any(image.index == 6 for image in taken.images):
            died(database, taken)
        else:
            settle(database, taken)
    found = images(database, job_id)
    assert found.pop(6)[:2] == (3, 1)
    assert {row[0] for row in found.values()} == {2}
    assert claims < 20
    assert queued_and_failed(database, job_id) == (0, 1)
    assert rows(database, "SELECT index, device, batch_images FROM failures WHERE code = 'poison'") == [(6, A, 1)]


def test_an_image_is_poison_after_crashes_on_two_devices_or_three_on_the_only_one(database, settings):
    bystander = submit(database, settings, 1, priority="low", size="256x256")
    job_id = submit(database, settings, 1)
    crashed(database)
    assert images(database, job_id)[0] == (0, 0, 1, 0)
    crashed(database)
    assert images(database, job_id)[0] == (0, 0, 2, 0)
    crashed(database)
    assert images(database, job_id)[0] == (3, 1, 2, 0)
    other = submit(database, settings, 1)
    crashed(database)
    crashed(database, device=B)
    assert images(database, other)[0] == (3, 1, 1, 0)
    assert queued_and_failed(database, other) == (0, 1)
    assert images(database, bystander)[0] == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("what", "is_poison"),
    [("the same", True), ("another index", False), ("another job", False), ("together", False), ("pardoned", False)],
)
def test_only_crashes_of_an_image_rendered_alone_make_it_poison(database, settings, what, is_poison):
    job_id = submit(database, settings, 1)
    before = FailedImage(
        job_id + (what == "another job"), int(what == "another index"), "device" if what == "pardoned" else "crash", ""
    )
    for device in (A, B, B):
        with database.begin_system() as connection:
            settlement.record_failures(connection, 0, [before], device=device, batch_images=1 + (what == "together"))
    crashed(database)
    assert images(database, job_id)[0][0] == (3 if is_poison else 0)


def test_quarantined_images_of_one_shape_and_size_share_a_segment_and_others_do_not(database, settings):
    other = submit(database, settings, [{"prompt": "a", "num_inference_steps": steps} for steps in range(1, 9)])
    rows(database, "UPDATE segments SET open = false RETURNING 1")
    job_id = submit(database, settings, [{"prompt": f"{size}", "size": size, "n": 8} for size in ("64x64", "256x256")])
    for seats in (2, 2, 2):
        taken = claim(database, seats=seats)
        assert not died(database, taken, device=f"{A} {taken.images[0].index}")
        rows(database, "UPDATE segments SET open = false WHERE cap IS NOT NULL RETURNING 1")
    assert caps(database, job_id) == [(1, 0, 7)]
    rows(database, "UPDATE segments SET open = (width = 256) WHERE job_id = :id RETURNING 1", id=job_id)
    crashed(database, seats=2, device=B)
    assert caps(database, job_id) == [(1, 0, 7), (1, 8, 15)]
    crashed(database, seats=4, device=f"{B} 2")
    assert caps(database, job_id) == [(1, 0, 7), (1, 8, 15), (2, 8, 15)]
    segments = rows(
        database,
        "SELECT id, width, height, guided, priority, tenant_id FROM segments WHERE job_id = :id ORDER BY id", id=job_id,
    )  # fmt: skip
    assert segments == [
        (0, 64, 64, True, 1, 1), (1, 256, 256, True, 1, 1), (2, 64, 64, True, 1, 1), (3, 256, 256, True, 1, 1),
        (4, 256, 256, True, 1, 1),
    ]  # fmt: skip
    assert caps(database, other) == []


def test_quarantined_images_below_the_mark_of_their_segment_lower_it(database, settings):
    job_id = submit(database, settings, 8)
    lower, upper = claim(database, seats=2), claim(database, seats=2, worker="worker-b")
    assert not died(database, upper, worker="worker-b", device=B)
    with database.begin_system() as connection:
        assert segments.raise_low(connection) == 2
    other = submit(database, settings, [{"prompt": "a"}, {"prompt": "b", "size": "64x64"}])
    rows(database, "UPDATE segments SET low = 9, open = false WHERE job_id = :id RETURNING 1", id=other)
    assert caps(database, job_id) == [(1, 2, 7)]
    assert not died(database, lower)
    assert caps(database, job_id) == [(1, 0, 7)]
    assert rows(database, "SELECT low FROM segments WHERE job_id = :id", id=other) == [(9,), (9,)]
    assert [claim(database).images[0].index for _ in range(3)] == [4, 0, 1]


def test_the_quarantined_images_of_a_paused_job_wait_like_the_rest_of_it(database, settings):
    job_id = submit(database, settings, 4, priority="high")
    taken = claim(database)
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, job_id, True)
    assert not died(database, taken)
    assert claim(database) is None
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, job_id, False)
    assert len(claim(database).images) == 2
    assert rows(database, "SELECT DISTINCT priority FROM segments") == [(0,)]


def test_what_was_cancelled_meanwhile_is_cancelled_and_not_quarantined(database, settings):
    doomed, other = submit(database, settings, 2), submit(database, settings, 2)
    taken = claim(database)
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, doomed)
    assert not died(database, taken)
    assert set(images(database, doomed).values()) == {(4, 0, 0, 0)}
    assert set(images(database, other).values()) == {(0, 0, 1, 0)}
    assert caps(database, doomed) == []


def test_the_images_of_two_jobs_are_quarantined_in_their_own_jobs(database, settings):
    first, second = submit(database, settings, 3), submit(database, settings, 2)
    crashed(database, seats=5)
    assert caps(database, first) == [(2, 0, 2)]
    assert caps(database, second) == [(2, 0, 1)]
    assert set(images(database, second).values()) == {(0, 0, 1, 0)}


def test_a_claim_that_is_being_settled_is_waited_for_and_not_quarantined(database, settings):
    job_id = submit(database, settings, 2)
    taken = claim(database)
    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        settlement.settle(connection, taken.id, device=A, stored=factories.stored(taken))
        verdict = pool.submit(died, database, taken)
        until(lambda: waits_for_a_lock(database))
        connection.commit()
        assert verdict.result() is False
    assert {row[0] for row in images(database, job_id).values()} == {2}
    assert evidence(database) == []


@pytest.mark.parametrize(("sizes", "found"), [(["64x64"], [(1, 0, 3)]), (["64x64", "256x256"], [(1, 0, 1), (1, 2, 3)])])
def test_two_deaths_at_once_put_quarantined_images_of_one_shape_together(database, settings, sizes, found):
    job_id = submit(database, settings, [{"prompt": "a", "size": size, "n": 4 // len(sizes)} for size in sizes])
    first, second = claim(database, seats=2), claim(database, seats=2, worker="worker-b")
    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        assert not quarantine.child_died(connection, "worker-a", rendering=all_of(first), device=A)
        verdict = pool.submit(died, database, second, worker="worker-b", device=B)
        until(lambda: waits_for_a_lock(database))
        connection.commit()
        assert verdict.result() is False
    assert caps(database, job_id) == found
    assert set(images(database, job_id).values()) == {(0, 0, 1, 0)}


def test_two_deaths_at_once_wait_for_each_other_in_one_order(database, settings, monkeypatch):
    """One died of images that were quarantined before, the other of images that are to join those."""
    job_id = submit(database, settings, 8)
    crashed(database, 4)
    second = claim(database, seats=4, worker="worker-b")
    first = claim(database, seats=4)
    assert first.suspect and not second.suspect and caps(database, job_id)[0][0] == 2
    judged, looks_sick = threading.Event(), quarantine._device_looks_sick

    def late(connection, device):
        if device == A:
            judged.set()
            until(lambda: waits_for_a_lock(database))
        return looks_sick(connection, device)

    monkeypatch.setattr(quarantine, "_device_looks_sick", late)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(died, database, first)
        assert judged.wait(30)
        other = pool.submit(died, database, second, worker="worker-b", device=B)
        assert one.result() is other.result() is False
    assert [row[2] for _, row in sorted(images(database, job_id).items())] == [2, 2, 1, 1, 1, 1, 1, 1]


def fresh_crashes(database: Database, settings: object, count: int, *, device: str = A) -> list[bool]:
    """Crashes on images that never crashed before, one job each; the verdicts."""
    verdicts = []
    for _ in range(count):
        job_id = submit(database, settings, 2, priority="high")
        taken = claim(database, turn=0)
        assert {image.job_id for image in taken.images} == {job_id}
        verdicts.append(died(database, taken, device=device))
        rows(database, "UPDATE segments SET open = false RETURNING 1")  # nothing of it is tried again
    return verdicts


def test_a_device_that_crashes_on_ever_other_images_is_sick_and_they_are_pardoned(database, settings):
    assert fresh_crashes(database, settings, 3) == [False, False, True]
    assert rows(database, "SELECT DISTINCT state, attempt, crashes FROM images") == [(0, 0, 0)]
    assert evidence(database) == [("device", A, 2, 6)]
    assert fresh_crashes(database, settings, 1) == [False], "its account is settled"


def test_crashes_on_other_images_of_one_job_are_fresh_and_so_are_those_that_were_pardoned(database, settings):
    job_id = submit(database, settings, 6)
    with database.begin_system() as connection:
        pardoned = [FailedImage(job_id, index, "device", "") for index in range(6)]
        settlement.record_failures(connection, 0, pardoned, device=A, batch_images=6)
    workers_of = {name: claim(database, seats=2, worker=name) for name in ("w1", "w2", "w3")}
    assert [died(database, taken, worker=name) for name, taken in workers_of.items()] == [False, False, True]


def test_a_poison_prompt_makes_no_device_sick(database, settings):
    submit(database, settings, 2)
    for number in range(4):  # together, and each alone
        assert not died(database, claim(database)), number


@pytest.mark.parametrize("old", ["failures", "claims"])
def test_only_crashes_of_the_last_ten_minutes_and_since_its_last_batch_speak_against_a_device(database, settings, old):
    assert fresh_crashes(database, settings, 2) == [False, False]
    if old == "failures":
        age(database, "failures", "failed_at", 11)
    else:
        submit(database, settings, 1, priority="high")
        taken = claim(database, turn=0)
        with database.begin_system() as connection:
            settlement.settle(connection, taken.id, device=A, stored=factories.stored(taken), render_seconds=0.5)
    assert fresh_crashes(database, settings, 2) == [False, False]
    assert fresh_crashes(database, settings, 1) == [True]


@pytest.mark.parametrize(
    ("worker", "seconds", "state"),
    [
        ("worker-b", 0.5, "settled"),
        ("worker-a", 0.0, "settled"),
        ("worker-a", 0.5, "expired"),
        ("worker-a", 0.5, "old"),
    ],
)
def test_what_is_no_batch_that_this_device_rendered_since_does_not_speak_for_it(
    database, settings, worker, seconds, state
):
    """Another device's, one of which all was reused, one that was taken back, one of long ago."""
    started(database, "worker-b", "host-b")
    assert fresh_crashes(database, settings, 2) == [False, False]
    submit(database, settings, 1, priority="high")
    taken = claim(database, turn=0, worker=worker)
    with database.begin_system() as connection:
        settlement.settle(connection, taken.id, device=A, stored=factories.stored(taken), render_seconds=seconds)
    if state == "old":
        age(database, "claims", "ended_at", 1)
    elif state != "settled":
        rows(database, "UPDATE claims SET state = :state WHERE id = :id RETURNING 1", state=state, id=taken.id)
    assert fresh_crashes(database, settings, 1) == [True]


def test_a_second_crash_of_an_image_leaves_its_first_one_fresh(database, settings):
    assert fresh_crashes(database, settings, 1) == [False]
    rows(database, "UPDATE segments SET open = true WHERE cap IS NOT NULL RETURNING 1")
    again = {name: claim(database, worker=name) for name in ("w1", "w2")}  # the same images, quarantined, one by one
    assert [died(database, taken, worker=name) for name, taken in again.items()] == [False, False]
    rows(database, "UPDATE segments SET open = false RETURNING 1")
    assert fresh_crashes(database, settings, 2) == [False, True]


def test_the_latest_batch_of_a_device_counts_and_not_its_first(database, settings):
    rendered_one(database, settings)
    assert fresh_crashes(database, settings, 2) == [False, False]
    rendered_one(database, settings)
    assert fresh_crashes(database, settings, 2) == [False, False], "the two before are forgiven"


def rendered_one(database: Database, settings: Settings) -> None:
    submit(database, settings, 1, priority="high")
    taken = claim(database, turn=0)
    with database.begin_system() as connection:
        settlement.settle(connection, taken.id, device=A, stored=factories.stored(taken), render_seconds=0.5)


def test_crashes_of_other_devices_are_their_own(database, settings):
    started(database, "worker-b", "host-b")
    started(database, "worker-c", "host-c")
    assert fresh_crashes(database, settings, 2) == [False, False]
    assert fresh_crashes(database, settings, 3, device=B) == [False, False, True]
    assert evidence(database) == [("crash", A, 2, 4), ("device", B, 2, 6)]
    assert fresh_crashes(database, settings, 1) == [True]


def test_when_most_devices_crash_no_image_is_quarantined(database, settings):
    """A bad deploy: two of three crash, and the third, too, is asked for its canary at its first crash."""
    started(database, "worker-b", "host-b")
    started(database, "worker-c", "host-c")
    for device in (A, B):
        fresh = [FailedImage(number, 0, "crash", "") for number in range(3 if device == A else 6)]
        for claim_number, image in enumerate(fresh[-3:]):
            with database.begin_system() as connection:
                settlement.record_failures(connection, 100 + claim_number, [image], device=device, batch_images=1)
    assert fresh_crashes(database, settings, 1, device="host-c device") == [True]
    assert rows(database, "SELECT DISTINCT crashes FROM images") == [(0,)]


@pytest.mark.parametrize("live", [4, 5])
def test_half_of_the_devices_are_not_most_of_them(database, settings, live):
    """Workers that nobody has seen for long do not count, and no more does one that starts: it has no device yet."""
    for number in range(2, 6):
        started(database, f"worker-{number}", f"host-{number}")
    started(database, "worker-2-again", "host-2")
    started(database, "worker-9", "host-9")
    rows(database, "UPDATE workers SET seen_at = now() - interval '11 minutes' WHERE id = 'worker-9' RETURNING 1")
    with database.begin_system() as connection:
        workers.starts(connection, "worker-10", host="host-10", pid=1, doing="loading the model")
    if live == 4:
        rows(database, "UPDATE workers SET seen_at = now() - interval '11 minutes' WHERE id = 'worker-5' RETURNING 1")
    for device in range(2 if live == 4 else 3):
        for number in range(3):
            image = FailedImage(10 * device + number, 0, "crash", "")
            with database.begin_system() as connection:
                settlement.record_failures(connection, number, [image], device=f"d{device}", batch_images=1)
    assert fresh_crashes(database, settings, 1) == [live == 5]


def test_a_single_device_is_no_majority_and_both_of_two_are_one(database, settings):
    for number in range(6):
        with database.begin_system() as connection:
            image = FailedImage(number, 0, "crash", "")
            device = "gone" if number < 3 else "gone too"
            settlement.record_failures(connection, number, [image], device=device, batch_images=1)
    assert fresh_crashes(database, settings, 1) == [False]
    started(database, "worker-b", "host-b")
    assert fresh_crashes(database, settings, 1) == [True]


def test_a_sick_device_is_held_to_account_for_its_own_crashes_of_late_alone(database, settings):
    job_id = submit(database, settings, 4)
    old, theirs, ours, held = (
        FailedImage(job_id, index, "crash", "") for index in range(4)
    )  # fmt: skip
    with database.begin_system() as connection:
        connection.execute(text("UPDATE images SET crashes = 2"))
        settlement.record_failures(connection, 1, [old], device=A, batch_images=1)
        connection.execute(text("UPDATE failures SET failed_at = now() - interval '11 minutes'"))
        settlement.record_failures(connection, 2, [theirs], device=B, batch_images=1)
        settlement.record_failures(connection, 3, [ours, held], device=A, batch_images=1)
        connection.execute(text("UPDATE images SET state = 1, claim_id = 9 WHERE index = 3"))
        quarantine.device_sick(connection, A)
    assert [row[2] for _, row in sorted(images(database, job_id).items())] == [2, 2, 1, 1]
    assert rows(database, "SELECT index, code FROM failures ORDER BY index") == [
        (0, "crash"), (1, "crash"), (2, "device"), (3, "device"),
    ]  # fmt: skip


def test_neither_pardon_touches_what_is_final_or_no_crash(database, settings):
    job_id = submit(database, settings, 3)
    with database.begin_system() as connection:
        connection.execute(text("UPDATE images SET crashes = 2"))
        connection.execute(text("UPDATE images SET state = 3 WHERE index = 0"))
        for index, code in enumerate(("crash", "render_error", "crash")):
            settlement.record_failures(connection, 1, [FailedImage(job_id, index, code, "")], device=A, batch_images=1)
        connection.execute(text("UPDATE images SET crashes = 0 WHERE index = 2"))
        quarantine.device_sick(connection, A)
        connection.execute(text("UPDATE failures SET code = 'crash' WHERE code = 'device'"))
        quarantine.retract_crash(connection, 1)
    assert [row[2] for _, row in sorted(images(database, job_id).items())] == [2, 2, 0]
    assert rows(database, "SELECT index, code FROM failures ORDER BY index") == [
        (0, "device"), (1, "render_error"), (2, "device"),
    ]  # fmt: skip


def test_a_process_that_lives_after_all_takes_back_that_crash_and_no_other(database, settings):
    first = submit(database, settings, 3)
    one, two = claim(database, seats=2), claim(database, seats=1, worker="worker-b")
    assert not died(database, one)
    assert not died(database, two, worker="worker-b", device=B)
    assert [row[2] for _, row in sorted(images(database, first).items())] == [1, 1, 1]
    again = claim(database, seats=1)  # of the two that were pardoned one is being rendered, one waits
    assert len(again.images) == 1
    other = submit(database, settings, 2)
    rows(database, "UPDATE images SET crashes = 2 RETURNING 1")
    with database.begin_system() as connection:
        quarantine.retract_crash(connection, one.id)
    assert [row[2] for row in images(database, other).values()] == [2, 2]
    assert [row[2] for _, row in sorted(images(database, first).items())] == [1, 1, 2]
    assert rows(database, "SELECT claim_id, code FROM failures ORDER BY claim_id, index") == [
        (one.id, "device"), (one.id, "device"), (two.id, "crash"),
    ]  # fmt: skip


def test_a_cancelled_image_is_not_failed_as_poison(database, settings):
    job_id = submit(database, settings, 1)
    crashed(database)
    crashed(database)
    taken = claim(database)
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    assert not died(database, taken, device=B)
    assert images(database, job_id)[0][:2] == (4, 0)
    assert queued_and_failed(database, job_id) == (0, 0)


def test_how_often_an_image_crashed_has_an_end(database, settings):
    job_id = submit(database, settings, 2)
    rows(database, "UPDATE images SET crashes = 32767 WHERE index = 0 RETURNING 1")
    crashed(database)
    assert [images(database, job_id)[index][2] for index in (0, 1)] == [32767, 1]
