"""Guarantees of the queue on a real Postgres: no race, late worker or lost reply may break them."""

import dataclasses
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from sqlalchemy import Engine, event, text

from services.core.db import partitions
from services.core.db.connectivity import Connectivity
from services.core.db.database import Database
from services.core.fleet import workers
from services.core.jobs import lifecycle, queries
from services.core.model import ids
from services.core.model.errors import Conflict, InvariantViolated
from services.core.model.specs import FailedImage
from services.core.model.states import ImageState
from services.core.queue import claims, counters, expiry, job_states, looks, segments, settlement
from services.core.queue.settlement import Verdict
from services.core.settings import Settings
from services.core.tenants import fair_share
from tests import factories
from tests.factories import TENANT, claim, places, settle, stored, submit
from tests.waiting import until


@pytest.fixture(autouse=True)
def _registered(database: Database) -> None:
    factories.register(database)


def view(database: Database, job_id: int) -> queries.JobView:
    with database.begin(TENANT) as connection:
        found = queries.job(connection, TENANT, job_id)
    assert found is not None
    return found


def by_state(database: Database, job_id: int) -> dict[str, int]:
    """Counted from the images themselves, not from the counters."""
    with database.begin_system() as connection:
        rows = connection.execute(
            text("SELECT state, count(*) AS n FROM images WHERE job_id = :id GROUP BY state"), {"id": job_id}
        )
        found = {ImageState(row.state).word: row.n for row in rows}
    return {state.word: found.get(state.word, 0) for state in ImageState}


def counts_match(database: Database, job_id: int) -> dict[str, int]:
    counts = view(database, job_id).counts
    assert counts == by_state(database, job_id)
    assert sum(counts.values()) == view(database, job_id).total
    return counts


def test_a_claim_takes_the_oldest_images_in_order_with_all_that_decides_their_pixels(database, settings):
    requests = [{"prompt": "first", "seed": 2**63 - 1, "n": 3}, {"prompt": "second", "negative_prompt": "blue"}]
    submit(database, settings, requests)
    taken = claim(database)
    assert [image.index for image in taken.images] == [0, 1, 2, 3]
    assert [image.spec.prompt for image in taken.images] == ["first"] * 3 + ["second"]
    assert [image.spec.seed for image in taken.images[:3]] == [2**63 - 1, 0, 1]
    assert taken.images[3].spec.negative_prompt == "blue"
    assert taken.shape.guided
    assert taken.shape.steps == 10


def test_two_claimers_never_share_an_image(database: Database, settings: Settings):
    submit(database, settings, 2_000)

    def drain(name: str) -> list[tuple[int, int]]:
        mine: list[tuple[int, int]] = []
        while taken := claim(database, worker=name):
            mine += places(taken)
        return mine

    with ThreadPoolExecutor(6) as pool:
        taken = [place for part in pool.map(drain, "abcdef") for place in part]
    assert len(taken) == 2_000
    assert len(set(taken)) == 2_000


def test_a_late_settle_moves_nothing(database: Database, settings: Settings):
    job_id = submit(database, settings, 8)
    late = claim(database, lease=0.0)
    with database.begin_system() as connection:
        assert expiry.expire(connection, 0.0) == 8
    again = claim(database)
    before = counts_match(database, job_id)
    assert settle(database, late).verdict is Verdict.FENCED
    assert counts_match(database, job_id) == before
    assert settle(database, again).verdict is Verdict.OK
    assert settle(database, late).verdict is Verdict.FENCED
    assert counts_match(database, job_id)["done"] == 8


def test_a_settle_repeated_after_a_lost_reply_gets_already_and_changes_nothing(database, settings):
    job_id = submit(database, settings, 4)
    taken = claim(database)
    assert settle(database, taken).verdict is Verdict.OK
    assert settle(database, taken).verdict is Verdict.ALREADY
    assert counts_match(database, job_id)["done"] == 4


def images(database: Database, job_id: int) -> list[queries.ImageView]:
    with database.begin(TENANT) as connection:
        found = queries.images(connection, TENANT, job_id, state=None, after=-1, limit=100)
    assert found is not None
    return found


def test_what_the_pipeline_said_of_each_picture_comes_back_as_it_was_said(database, settings):
    job_id = submit(database, settings, 5)
    taken = claim(database, seats=4)
    odd = ('"quoted"', "a,b", "{c}", "d\\e", "NULL", "日本", "")
    said = [(True, True, odd), (False, False, ("qzx",)), (False, None, ()), (True, None, ("x", "y"))]
    settle(
        database, taken, stored=[
            dataclasses.replace(image, truncated=truncated, flagged=flagged, unknown_words=words)
            for image, (truncated, flagged, words) in zip(stored(taken), said, strict=True)
        ],
    )  # fmt: skip
    *done, waiting = images(database, job_id)
    assert [(image.truncated, image.flagged, image.unknown_words) for image in done] == said
    assert (waiting.truncated, waiting.flagged, waiting.unknown_words, waiting.versions) == (None,) * 4


def test_versions_are_kept_with_each_image_and_written_once(database, settings):
    job_id = submit(database, settings, 6)
    for versions in (["a 1", None], ["b 2", "a 1"], ["b 2", "c 3"]):
        taken = claim(database, seats=2)
        named = zip(stored(taken), versions, strict=True)
        settle(database, taken, stored=[dataclasses.replace(image, versions=name) for image, name in named])
    with database.begin_system() as connection:
        claims.forget(connection)
        connection.execute(text("DELETE FROM claims"))
        connection.execute(text("DELETE FROM workers"))
        assert connection.execute(text("SELECT count(*) FROM engines")).scalar_one() == 3
    assert [image.versions for image in images(database, job_id)] == ["a 1", None, "b 2", "a 1", "b 2", "c 3"]


def test_two_settles_that_bring_the_same_new_versions_at_once_both_record_them(database, settings):
    job_id = submit(database, settings, 2)
    first, second = (claim(database, seats=1) for _ in range(2))
    with database.begin_system() as connection:
        settlement.settle(connection, first.id, device="d", stored=stored(first))
        thread = threading.Thread(target=settle, args=(database, second))
        thread.start()
        until(lambda: waits_for_a_lock(database))  # its snapshot is older than our commit
    thread.join()
    assert [image.versions for image in images(database, job_id)] == ["presswork 0.1.0"] * 2


def waits_for_a_lock(database: Database) -> bool:
    with database.begin_system() as connection:
        return connection.execute(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")).scalar_one()


def test_a_settle_asks_the_database_as_often_for_sixteen_images_as_for_one(database, settings):
    submit(database, settings, 17)
    sent: list[str] = []

    def note(_connection, _cursor, statement, _parameters, _context, _many):
        if "sessions.open" not in statement:  # BEGIN
            sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        for seats in (1, 16):
            taken = claim(database, seats=seats)
            sent.clear()
            settle(database, taken)
            assert len(sent) == 3, seats  # lock the claim, move its images, record their results
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_settle_that_does_not_account_for_every_image_is_refused_whole(database, settings):
    job_id = submit(database, settings, 4)
    taken = claim(database)
    with pytest.raises(InvariantViolated):
        settle(database, taken, stored=stored(taken)[:3])
    assert counts_match(database, job_id)["rendering"] == 4
    assert settle(database, taken).verdict is Verdict.OK


def test_a_settle_moves_no_image_that_another_claim_holds(database, settings):
    job_id = submit(database, settings, 4)
    ours, theirs = (claim(database, seats=2) for _ in range(2))
    for outcome in ({"stored": stored(theirs)}, {"released": places(theirs)}):
        with pytest.raises(InvariantViolated):
            settle(database, ours, **outcome)
        assert counts_match(database, job_id)["rendering"] == 4
    assert settle(database, theirs).verdict is Verdict.OK
    assert settle(database, ours).verdict is Verdict.OK


def test_an_expired_lease_queues_its_images_again_and_never_counts_against_them(database, settings):
    job_id = submit(database, settings, 5)
    claim(database, lease=0.0)
    with database.begin_system() as connection:
        assert expiry.expire(connection, 0.0) == 5
        rows = connection.execute(text("SELECT DISTINCT state, attempt, lost, crashes FROM images")).all()
    assert [tuple(row) for row in rows] == [(0, 0, 1, 0)]
    assert counts_match(database, job_id)["queued"] == 5


def test_no_lease_is_overdue_until_a_lease_after_the_database_started(database, settings):
    submit(database, settings, 5)
    claim(database, lease=0.0)
    with database.begin_system() as connection:
        assert expiry.expire(connection, lease=10 * 365 * 86400) == 0


@pytest.mark.parametrize(("ahead", "taken_back"), [(55, 0), (70, 5), (86400, 5)])
def test_a_claim_that_ends_later_than_any_given_now_could_is_over(database, settings, ahead, taken_back):
    """Then its clock was set back. A longer lease than that of whoever looks is no reason."""
    submit(database, settings, 5)
    claim(database, lease=30.0)
    with database.begin_system() as connection:
        moved = text("UPDATE claims SET expires_at = now() + make_interval(secs => :ahead)")
        connection.execute(moved, {"ahead": ahead})
    with database.begin_system() as connection:
        assert expiry.expire(connection, 3.0) == taken_back


def test_a_heartbeat_of_another_lease_is_measured_by_its_own(database, settings):
    submit(database, settings, 5)
    held = claim(database, lease=3.0)
    with database.begin_system() as connection:
        assert claims.extend(connection, {held.id: 1}, 600.0).held
    with database.begin_system() as connection:
        assert expiry.expire(connection, 3.0) == 0


def test_a_start_of_the_database_that_is_yet_to_come_keeps_no_lease_alive(database, settings, stack):
    """Its clock was set back after it. The function that tells the start is shadowed for one transaction."""
    submit(database, settings, 5)
    claim(database, lease=0.0)
    name = database._engine.url.database
    with psycopg.connect(f"{stack.superuser_url.rpartition('/')[0]}/{name}".replace("+psycopg", "")) as admin:
        admin.execute(
            "CREATE FUNCTION public.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql STABLE AS "
            "$$ SELECT now() + interval '1 hour' $$"
        )
    with database.begin_system() as connection:
        connection.execute(text("SET LOCAL search_path = public, pg_catalog"))
        assert expiry.expire(connection, 1.0) == 5


def test_a_worker_seen_in_the_future_is_not_there(database):
    with database.begin_system() as connection:
        workers.register(connection, "w", host="h", pid=1, device="d", model="m", revision="r", state="ready")
        assert workers.seen(connection, "h")
        assert queries.workers_by_revision(connection) == {"r": 1}
        connection.execute(text("UPDATE workers SET seen_at = now() + interval '1 hour'"))
        assert not workers.seen(connection, "h")
        assert queries.workers_by_revision(connection) == {}
        assert queries.fleet(connection) == []


def test_a_heartbeat_keeps_a_lease_and_hears_of_cancels_and_of_loss(database, settings):
    job_id = submit(database, settings, 2)
    other = submit(database, settings, 2)
    taken = claim(database, seats=4, lease=0.0)
    assert {job_id, other} == {image.job_id for image in taken.images}
    with database.begin_system() as connection:
        assert claims.extend(connection, {taken.id: 3}, 30.0).held == {taken.id: frozenset()}
        assert expiry.expire(connection, 0.0) == 0
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    with database.begin_system() as connection:
        assert claims.extend(connection, {taken.id: 4}, 0.0).held == {taken.id: frozenset({job_id})}
    with database.begin_system() as connection:
        expiry.expire(connection, 0.0)
    with database.begin_system() as connection:
        assert claims.extend(connection, {taken.id: 5}, 30.0).held == {}


def test_a_cancel_waits_for_a_crossing_claim_and_no_claim_comes_after_it(database, settings):
    job_id = submit(database, settings, 32)
    cancelled = threading.Event()

    def cancel() -> None:
        with database.begin(TENANT) as connection:
            lifecycle.cancel(connection, TENANT, job_id)
        cancelled.set()

    with database.begin_system() as connection:
        crossing = factories.claim_in(connection)
        thread = threading.Thread(target=cancel)
        thread.start()
        assert not cancelled.wait(0.3)
    thread.join()
    assert claim(database) is None
    assert settle(database, crossing).verdict is Verdict.OK
    counts = counts_match(database, job_id)
    assert counts["done"] == 0
    assert counts["cancelled"] == 16


def test_a_claim_that_waits_for_a_crossing_cancel_takes_nothing(database, settings):
    job_id = submit(database, settings, 4)
    taken: list[object] = []
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
        thread = threading.Thread(target=lambda: taken.append(claim(database)))
        thread.start()
        time.sleep(0.3)
        assert not taken
    thread.join()
    assert taken == [None]


def test_a_cancel_waits_for_a_crossing_settle_and_what_it_made_done_stays_done(database, settings):
    job_id = submit(database, settings, 4)
    taken = claim(database)
    cancelled = threading.Event()

    def cancel() -> None:
        with database.begin(TENANT) as connection:
            lifecycle.cancel(connection, TENANT, job_id)
        cancelled.set()

    with database.begin_system() as connection:
        settlement.settle(connection, taken.id, device="d", stored=stored(taken))
        thread = threading.Thread(target=cancel)
        thread.start()
        assert not cancelled.wait(0.3)
    thread.join()
    assert counts_match(database, job_id)["done"] == 4


def test_nothing_turns_done_once_cancel_has_answered(database, settings):
    job_id = submit(database, settings, 20)
    taken = claim(database)
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    settlement = settle(database, taken)
    assert len(settlement.dropped) == 16
    with database.begin_system() as connection:
        assert segments.sweep_cancelled(connection) == 4
        assert lifecycle.finish(connection) == [job_id]
        assert connection.execute(text("SELECT count(*) FROM results")).scalar_one() == 0
    assert counts_match(database, job_id)["cancelled"] == 20
    assert view(database, job_id).state == "cancelled"


def test_cancelling_again_is_no_error_and_cancelling_a_finished_job_is(database, settings):
    job_id = submit(database, settings, 1)
    for _ in range(2):
        with database.begin(TENANT) as connection:
            lifecycle.cancel(connection, TENANT, job_id)
    other = submit(database, settings, 1)
    settle(database, claim(database))
    with database.begin_system() as connection:
        lifecycle.finish(connection)
    assert view(database, other).state == "completed"
    with pytest.raises(Conflict), database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, other)


def test_released_images_of_a_cancelled_job_are_cancelled(database, settings):
    job_id = submit(database, settings, 4)
    taken = claim(database)
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)
    settle(database, taken, released=places(taken))
    assert counts_match(database, job_id)["cancelled"] == 4


def test_a_failed_image_keeps_its_code_and_its_neighbours_are_done(database, settings):
    job_id = submit(database, settings, 4)
    taken = claim(database)
    bad = taken.images[2]
    failed = [FailedImage(bad.job_id, bad.index, "render_error", "it broke")]
    settle(database, taken, stored=[image for image in stored(taken) if image.index != 2], failed=failed)
    with database.begin(TENANT) as connection:
        (found,) = queries.images(connection, TENANT, job_id, state=ImageState.FAILED, after=-1, limit=10)
    assert (found.index, found.error_code, found.error_message) == (2, "render_error", "it broke")
    assert counts_match(database, job_id) == {"queued": 0, "rendering": 0, "done": 3, "failed": 1, "cancelled": 0}


def test_an_image_requeued_while_its_low_mark_is_being_raised_is_not_stranded(database, settings):
    """A periodic task has locked the segment and seen no queued image; the release waits, then lowers the mark."""
    job_id = submit(database, settings, 16)
    taken = claim(database)
    released = threading.Event()

    def release() -> None:
        settle(database, taken, released=places(taken))
        released.set()

    with database.begin_system() as connection:
        assert segments.raise_low(connection) == 1
        thread = threading.Thread(target=release)
        thread.start()
        assert not released.wait(0.3)
    thread.join()
    assert counts_match(database, job_id)["queued"] == 16
    assert len(claim(database).images) == 16


def test_every_open_segment_has_its_turn_to_be_raised(database, settings):
    ids = [submit(database, settings, 4) for _ in range(5)]
    with database.begin_system() as connection:
        connection.execute(text("UPDATE images SET state = 2 WHERE index = 0"))
    rounds = segments.Rounds()
    raised = []
    for _ in range(4):
        with database.begin_system() as connection:
            raised.append(rounds.raise_low(connection, 2))
    assert raised == [2, 2, 1, 0]
    with database.begin_system() as connection:
        lows = connection.execute(text("SELECT low FROM segments WHERE job_id = ANY(:ids)"), {"ids": ids}).scalars()
        assert set(lows) == {1}


def test_a_drained_segment_is_not_looked_at_again_and_a_release_brings_it_back(database, settings):
    submit(database, settings, 16)
    taken = claim(database)
    with database.begin_system() as connection:
        segments.raise_low(connection)
    with database.begin_system() as connection:
        assert not looks.candidates(connection, factories.REVISION, 1, "worker-a").rows
    settle(database, taken, released=places(taken))
    assert len(claim(database).images) == 16


def test_a_paused_job_is_not_claimed(database, settings):
    job_id = submit(database, settings, 4)
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, job_id, True)
    assert claim(database) is None
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, job_id, False)
    assert len(claim(database).images) == 4


def test_a_job_that_is_paused_between_the_look_and_the_claim_is_not_claimed(database, settings):
    """A claim chooses its segments before it holds the jobs' locks: what happened in between it must see."""
    paused, other = submit(database, settings, 4), submit(database, settings, 4)
    with database.begin_system() as connection:
        chosen = looks.candidates(connection, factories.REVISION, 1, "worker-a")
    assert [row.job_id for row in chosen.rows] == [paused, other]
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, True)
    with database.begin_system() as connection:
        taken = claims.claim(connection, chosen, worker_id="worker-a", seats=16, lease=30.0)
    assert {image.job_id for image in taken.images} == {other}
    assert counts_match(database, paused)["queued"] == 4


def test_free_seats_are_filled_from_other_jobs_of_the_same_shape_alone(database, settings):
    first = submit(database, settings, 3)
    other_shape = submit(database, settings, 3, size="256x256")
    third = submit(database, settings, 3)
    taken = claim(database)
    assert Counter(image.job_id for image in taken.images) == {first: 3, third: 3}
    assert {image.job_id for image in claim(database).images} == {other_shape}


def test_the_class_whose_turn_it_is_goes_first_and_the_rest_by_priority(database, settings):
    low = submit(database, settings, 16, priority="low")
    normal = submit(database, settings, 16, priority="normal")
    high = submit(database, settings, 16, priority="high")
    assert {image.job_id for image in claim(database, turn=2).images} == {low}
    assert {image.job_id for image in claim(database, turn=2).images} == {high}
    assert {image.job_id for image in claim(database, turn=0).images} == {normal}


def test_the_tenant_that_used_least_for_its_weight_goes_first(database, settings):
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name, weight) VALUES (2, 'other', 2)"))
    ours, theirs = submit(database, settings, 64), submit(database, settings, 64, tenant=2)
    turns: Counter[int] = Counter()
    for _ in range(6):
        taken = claim(database, seats=8)
        turns[taken.images[0].job_id] += 1
        with database.begin_system() as connection:
            fair_share.charge(connection, taken.images[0].tenant_id, 8.0)
    assert turns == {ours: 2, theirs: 4}


def test_counts_add_up_in_every_read_while_eight_workers_claim_settle_and_fold(database, settings):
    job_id = submit(database, settings, 1_000)
    working = threading.Event()
    working.set()
    bad: list[dict[str, int]] = []
    reads = 0

    def watch() -> None:
        nonlocal reads
        while working.is_set():
            with database.begin_system() as connection:  # both in one snapshot
                row = connection.execute(text("""
                  SELECT c.queued + coalesce(sum(d.queued), 0) AS queued, c.done + coalesce(sum(d.done), 0) AS done,
                         c.rendering + coalesce(sum(d.rendering), 0) AS rendering,
                         (SELECT count(*) FROM images WHERE state = 0) AS images_queued,
                         (SELECT count(*) FROM images WHERE state = 1) AS images_rendering,
                         (SELECT count(*) FROM images WHERE state = 2) AS images_done
                  FROM counters c LEFT JOIN counter_deltas d USING (job_id) WHERE job_id = :id GROUP BY c.job_id
                """), {"id": job_id}).one()  # fmt: skip
            reads += 1
            if (row.queued, row.rendering, row.done) != (row.images_queued, row.images_rendering, row.images_done):
                bad.append(dict(row._mapping))
            if min(row.queued, row.rendering, row.done) < 0 or row.queued + row.rendering + row.done != 1_000:
                bad.append(dict(row._mapping))

    def work(name: str) -> None:
        rounds = 0
        while taken := claim(database, seats=7, worker=name):
            rounds += 1
            if rounds % 3 == 0:
                settle(database, taken, released=places(taken))
            else:
                settle(database, taken)
            with database.begin_system() as connection:
                counters.fold(connection)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    working.clear()
    watcher.join()
    assert not bad
    assert reads > 10
    assert counts_match(database, job_id)["done"] == 1_000


def test_a_job_finishes_once_all_its_images_are_final(database, settings):
    job_id = submit(database, settings, 20)
    with database.begin_system() as connection:
        assert lifecycle.finish(connection) == []
    settle(database, claim(database))
    with database.begin_system() as connection:
        assert lifecycle.finish(connection) == []
    settle(database, claim(database))
    with database.begin_system() as connection:
        assert lifecycle.finish(connection) == [job_id]
        assert lifecycle.finish(connection) == []
    finished = view(database, job_id)
    assert finished.state == "completed"
    assert finished.finished_at is not None


def test_a_job_of_which_nothing_was_done_has_failed(database, settings):
    job_id = submit(database, settings, 1)
    taken = claim(database)
    settle(database, taken, failed=[FailedImage(job_id, 0, "render_error", "it broke")])
    with database.begin_system() as connection:
        lifecycle.finish(connection)
    assert view(database, job_id).state == "failed"


def test_a_first_claim_reports_its_jobs_as_fresh_and_start_marks_them(database, settings):
    job_id = submit(database, settings, 32)
    taken = claim(database)
    assert taken.fresh_jobs == (job_id,)
    with database.begin_system() as connection:
        job_states.start(connection, taken.fresh_jobs)
    assert view(database, job_id).state == "in_progress"
    assert claim(database).fresh_jobs == ()


def test_the_claim_never_plans_a_scan_of_a_whole_table(settings, database_url):
    database = Database(database_url, application="plans", nested_loops=True)
    factories.register(database)
    submit(database, settings, 5_000)
    with database.begin_system() as connection:
        connection.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        chosen = looks.candidates(connection, factories.REVISION, 1, "worker-a")
        row = chosen.rows[0]
        values = {"job_ids": [row.job_id], "segment_ids": [row.id], "lows": [row.low], "seats": 16,
                  "worker_id": "w", "lease": 30.0, "claimable": ["queued", "in_progress"], "leave": 5, "free": None,
                  "all_jobs": [row.job_id], "all_segments": [row.id], "all_lows": [row.low],
                  "limited": [], "rooms": [], "claim_id": 1}  # fmt: skip
        plan = "\n".join(connection.execute(text("EXPLAIN " + claims._TAKE.text), values).scalars())
    database.close()
    assert "Seq Scan on images" not in plan
    assert "Seq Scan on payloads" not in plan
    assert "images_" in plan


def test_partitions_are_made_ahead_and_only_once(database):
    with database.begin_system() as connection:
        assert partitions.make_partitions(connection, 8) == 9
        assert partitions.make_partitions(connection, 8) == 0


def test_a_cancel_is_not_overtaken_for_ever_by_claims_and_settles_of_its_job(database, settings):
    job_id = submit(database, settings, 20_000)
    working = threading.Event()
    working.set()
    settled = Counter[str]()

    def work(name: str) -> None:
        while working.is_set() and (taken := claim(database, seats=4, worker=name)):
            settle(database, taken, released=places(taken))
            settled[name] += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    until(lambda: sum(settled.values()) > 50)
    with database.begin(TENANT) as connection:  # a lock that is not had in ten seconds is an error
        lifecycle.cancel(connection, TENANT, job_id)
    working.clear()
    for thread in threads:
        thread.join()
    while sweep(database):
        pass
    assert counts_match(database, job_id)["cancelled"] == 20_000


def sweep(database: Database) -> int:
    with database.begin_system() as connection:
        return segments.sweep_cancelled(connection, 900)


def test_a_sweep_leaves_every_job_alone_that_is_not_being_cancelled(database, settings):
    submit(database, settings, 2)
    held = claim(database, seats=1)
    with database.begin_system() as connection:
        job_states.start(connection, held.fresh_jobs)
    submit(database, settings, 3)
    paused = submit(database, settings, 4)
    with database.begin(TENANT) as connection:
        lifecycle.pause(connection, TENANT, paused, True)
    doomed = submit(database, settings, 5)
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, doomed)
    assert (sweep(database), sweep(database)) == (5, 0)
    assert counts_match(database, doomed)["cancelled"] == 5


def test_crossing_sweeps_cancel_every_image_once(database, settings):
    """Two sweeps meet rows that the other has just changed. With partitions pruned as the statement runs this ended
    the server."""
    ids = [submit(database, settings, 400) for _ in range(4)]
    for job_id in ids:
        with database.begin(TENANT) as connection:
            lifecycle.cancel(connection, TENANT, job_id)
    with ThreadPoolExecutor(6) as pool:
        swept = sum(pool.map(lambda _: sweep(database), range(36)))
    assert swept == 1_600
    for job_id in ids:
        assert counts_match(database, job_id)["cancelled"] == 400


def cancelled(database: Database, tenant: int, job_id: int) -> int:
    with database.begin(tenant) as connection:
        lifecycle.cancel(connection, tenant, job_id)
    return job_id


def queued(database: Database, job_id: int) -> int:
    with database.begin_system() as connection:
        waiting = text("SELECT count(*) FROM images WHERE job_id = :id AND state = 0")
        return connection.execute(waiting, {"id": job_id}).scalar_one()


def test_a_sweep_of_a_job_touches_no_other_and_none_that_is_not_being_cancelled(database, settings):
    others, ours = (cancelled(database, TENANT, submit(database, settings, 30)) for _ in range(2))
    living = submit(database, settings, 5)
    with database.begin_system() as connection:
        assert segments.sweep(connection, ours, 20) == 20
        assert segments.sweep(connection, ours) == 10
        assert segments.sweep(connection, ours) == 0
        assert segments.sweep(connection, living) == 0
    assert [queued(database, job_id) for job_id in (others, ours, living)] == [30, 0, 5]


def test_a_tenant_that_cancels_much_keeps_no_other_from_being_swept(database, settings):
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'other')"))
    huge, second = (cancelled(database, TENANT, submit(database, settings, 90)) for _ in range(2))
    small = cancelled(database, 2, submit(database, settings, 5, tenant=2))
    held = submit(database, settings, 1)
    assert claim(database) is not None
    cancelled(database, TENANT, held)
    with database.begin_system() as connection:
        found = [item.id for item in segments.sweepable(connection)]
        assert (set(found[:2]), found[2]) == ({huge, small}, second)  # one of each tenant, then the next
        assert segments.sweep_cancelled(connection, 45) == 45
    assert queued(database, small) == 0
    assert (queued(database, huge), queued(database, second)) == (90 - 40, 90)
    with database.begin_system() as connection:
        assert segments.sweep_cancelled(connection) == 140
        assert segments.sweepable(connection) == []


def test_the_sweep_of_a_job_plans_no_scan_of_a_whole_table(settings, database, database_url):
    submit(database, settings, 5_000)
    job_id = cancelled(database, TENANT, submit(database, settings, 5_000))
    values = {"job_id": job_id, "limit": 10_000, "sources": ["cancelling"]}
    with database.begin_system() as connection:
        plan = "\n".join(connection.execute(text("EXPLAIN (ANALYZE) " + segments._SWEEP.text), values).scalars())
    assert "Seq Scan on images" not in plan
    assert max(int(rows) for rows in re.findall(r"actual time=[0-9.]+ rows=(\d+)", plan)) == 5_000


def test_rows_that_came_before_their_partition_do_not_stop_the_making_of_others(database):
    with database.begin_system() as connection:
        partitions.make_partitions(connection, 5)
    ahead = ids.floor(datetime.now(UTC) + timedelta(weeks=6))
    with database.begin_system() as connection:
        connection.execute(
            text("INSERT INTO images_default (job_id, index, segment_id) VALUES (:id, 0, 0)"), {"id": ahead}
        )
    with database.begin_system() as connection:
        assert partitions.make_partitions(connection, 9) == 4 * 3 - 1


def test_an_outage_longer_than_a_lease_expires_nothing_until_a_lease_after_it():
    connectivity = Connectivity()
    assert connectivity.steady(1000.0)
    connectivity.lost()
    assert not connectivity.steady(1000.0)
    assert connectivity.steady(0.0)


def test_a_sweep_begins_at_the_low_water_mark_and_raises_it(database, settings):
    """So it does not walk over what earlier ones left in the index."""
    first, second = (cancelled(database, TENANT, submit(database, settings, images)) for images in (10, 5))
    marks = []
    for _ in range(3):
        with database.begin_system() as connection:
            swept = segments.sweep(connection, first, 4)
            low = connection.execute(text("SELECT low FROM segments WHERE job_id = :id"), {"id": first}).scalar_one()
            marks.append((swept, low))
    assert marks == [(4, 4), (4, 8), (2, 10)]
    with database.begin_system() as connection:
        assert [job.id for job in segments.sweepable(connection)] == [second]  # no image of the first is looked at
        connection.execute(text("UPDATE segments SET low = 3 WHERE job_id = :id"), {"id": second})
        assert segments.sweep(connection, second) == 2
