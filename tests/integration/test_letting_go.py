"""Of a claim of several jobs, what is cancelled is final at once, and the rest goes on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.jobs import lifecycle
from services.core.model.errors import InvariantViolated
from services.core.model.specs import Claim, FailedImage
from services.core.queue import claims, expiry, settlement
from services.core.queue.settlement import Verdict
from tests import factories
from tests.factories import TENANT, claim, places, settle, stored, submit

CANCELLED, QUEUED, RENDERING, DONE = 4, 0, 1, 2


@pytest.fixture(autouse=True)
def _registered(database: Database) -> None:
    factories.register(database)


def rows(database: Database, statement: str, **values: object) -> list[tuple[Any, ...]]:
    with database.begin_system() as connection:
        return [tuple(row) for row in connection.execute(text(statement), values)]


def states(database: Database, job_id: int) -> list[int]:
    """Of each image; the counters say the same."""
    found = [state for (state,) in rows(database, "SELECT state FROM images WHERE job_id = :id ORDER BY 1", id=job_id)]
    names = ("queued", "rendering", "done", "failed", "cancelled")
    sums = ", ".join(f"(c.{name} + coalesce(sum(d.{name}), 0))::integer" for name in names)
    (counted,) = rows(
        database,
        f"SELECT {sums} FROM counters c LEFT JOIN counter_deltas d USING (job_id) WHERE job_id = :id GROUP BY c.job_id",
        id=job_id,
    )
    assert list(counted) == [found.count(number) for number in range(5)]
    return found


def cancel(database: Database, job_id: int) -> None:
    with database.begin(TENANT) as connection:
        lifecycle.cancel(connection, TENANT, job_id)


def let_go(database: Database, taken: Claim, job_ids: Sequence[int]) -> None:
    with database.begin_system() as connection:
        settlement.let_go(connection, taken.id, job_ids)


def held(database: Database) -> list[tuple[Any, ...]]:
    return rows(database, "SELECT state, images, job_ids, tenant_ids, tenant_images FROM claims ORDER BY id")


@pytest.fixture
def mixed(database: Database, settings) -> tuple[Claim, int, int]:
    """A claim of two batches: 20 images of a job that is cancelled then, and 12 of another."""
    doomed, other = submit(database, settings, 20), submit(database, settings, 12)
    taken = claim(database, seats=32)
    cancel(database, doomed)
    return taken, doomed, other


def test_what_is_cancelled_is_final_while_the_rest_is_rendered(database, mixed):
    taken, doomed, other = mixed
    let_go(database, taken, [doomed])
    assert states(database, doomed) == [CANCELLED] * 20 and states(database, other) == [RENDERING] * 12
    assert held(database) == [("open", 12, [other], [TENANT], [12])]
    with database.begin_system() as connection:
        assert claims.extend(connection, {taken.id: 1}, 30.0).held == {taken.id: frozenset()}


def test_a_settle_that_still_names_what_was_let_go_makes_the_rest_visible_alone(database, mixed):
    taken, doomed, other = mixed
    let_go(database, taken, [doomed])
    broken = FailedImage(doomed, 19, "render_error", "broke")
    pictures = [image for image in stored(taken) if (image.job_id, image.index) != (doomed, 19)]
    settled = settle(
        database, taken, stored=pictures, failed=[broken], render_seconds=8.0, slots=32,
        rendered={doomed: 24.0, other: 8.0},
    )  # fmt: skip
    assert settled.verdict is Verdict.OK
    assert [(image.job_id, image.index) for image in settled.dropped] == [(doomed, index) for index in range(19)]
    assert states(database, doomed) == [CANCELLED] * 20 and states(database, other) == [DONE] * 12
    assert rows(database, "SELECT DISTINCT job_id FROM results") == [(other,)]
    assert rows(database, "SELECT batch_images FROM failures") == [(32,)]
    assert rows(database, "SELECT count(*) FROM failure_deltas") == [(0,)], "it failed no image"
    paid = "SELECT job_id, sum(device_seconds), sum(slots) FROM counter_deltas GROUP BY 1 ORDER BY 1"
    assert rows(database, paid) == [(doomed, 6.0, 24.0), (other, 2.0, 8.0)]
    assert settle(database, taken).verdict is Verdict.ALREADY


def test_what_was_let_go_costs_nothing_if_nothing_was_rendered(database, mixed):
    taken, doomed, other = mixed
    let_go(database, taken, [doomed])
    settle(database, taken, released=[(image.job_id, image.index) for image in taken.images])
    paid = "SELECT sum(device_seconds), sum(slots) FROM counter_deltas"
    assert rows(database, paid) == [(0, 0)] and states(database, other) == [QUEUED] * 12


def test_only_cancelled_jobs_are_let_go_and_once(database, mixed):
    taken, doomed, other = mixed
    for _ in range(2):
        let_go(database, taken, [doomed, other])
        assert held(database) == [("open", 12, [other], [TENANT], [12])]
    assert states(database, doomed) == [CANCELLED] * 20 and states(database, other) == [RENDERING] * 12


def test_what_another_claim_holds_is_not_let_go(database, settings):
    doomed, other = submit(database, settings, 4), submit(database, settings, 2)
    first, second = claim(database, seats=3), claim(database, seats=3, worker="worker-b")
    cancel(database, doomed)
    let_go(database, second, [doomed])
    assert states(database, doomed) == [RENDERING] * 3 + [CANCELLED] and states(database, other) == [RENDERING] * 2
    assert [row[1:3] for row in held(database)] == [(3, [doomed]), (2, [other])]
    assert settle(database, first).dropped and settle(database, second, stored=stored(second)).dropped


@pytest.mark.parametrize("how", ["settled", "expired"])
def test_of_a_claim_that_has_ended_nothing_is_let_go(database, settings, how):
    first, second = submit(database, settings, 2), submit(database, settings, 2)
    taken = claim(database, lease=-1.0)
    if how == "settled":
        settle(database, taken)
    else:
        with database.begin_system() as connection:
            assert expiry.expire(connection, 0.0) == 4
    before = held(database), states(database, first), states(database, second)
    cancel(database, first)
    let_go(database, taken, [first])
    assert (held(database), states(database, first), states(database, second)) == before


def test_a_claim_of_the_release_before_says_nothing_of_tenants(database, mixed):
    taken, doomed, other = mixed
    rows(database, "UPDATE claims SET tenant_ids = NULL, tenant_images = NULL RETURNING 1")
    let_go(database, taken, [doomed])
    assert held(database) == [("open", 12, [other], None, None)]


def test_the_images_of_other_tenants_still_count(database, settings):
    rows(database, "INSERT INTO tenants (id, name) VALUES (2, 'second') RETURNING 1")
    doomed, other = submit(database, settings, 3), submit(database, settings, 2, tenant=2)
    taken = claim(database)
    cancel(database, doomed)
    let_go(database, taken, [doomed])
    assert held(database) == [("open", 2, [other], [1, 2], [0, 2])]


def test_when_its_lease_runs_out_only_what_it_still_holds_goes_back(database, mixed):
    taken, doomed, other = mixed
    let_go(database, taken, [doomed])
    rows(database, "UPDATE claims SET expires_at = now() - interval '1 s' RETURNING 1")
    with database.begin_system() as connection:
        assert expiry.expire(connection, 0.0) == 12
    assert states(database, doomed) == [CANCELLED] * 20 and states(database, other) == [QUEUED] * 12
    assert rows(database, "SELECT DISTINCT job_id, lost, attempt FROM images ORDER BY 1") == [
        (doomed, 0, 0), (other, 1, 0),
    ]  # fmt: skip
    assert settle(database, taken).verdict is Verdict.FENCED


def test_an_outcome_of_a_job_that_the_claim_never_held_is_refused(database, settings):
    submit(database, settings, 2)
    taken = claim(database, seats=2)
    foreign = submit(database, settings, 1)
    strange = dataclasses.replace(stored(taken)[0], job_id=foreign)
    with pytest.raises(InvariantViolated):
        settle(database, taken, stored=[*stored(taken), strange])
    assert rows(database, "SELECT count(*) FROM results") == [(0,)]


def test_of_two_claims_of_three_batches_only_the_overdue_one_goes_back(database, settings):
    first, second = submit(database, settings, 60), submit(database, settings, 36)
    done, late = claim(database, seats=48), claim(database, seats=48, lease=-1.0)
    settle(database, done)
    with database.begin_system() as connection:
        assert expiry.expire(connection, 0.0) == 48
    assert states(database, first) == [QUEUED] * 12 + [DONE] * 48 and states(database, second) == [QUEUED] * 36
    spent = "SELECT state, lost, attempt, count(*) FROM images GROUP BY 1, 2, 3 ORDER BY 1"
    assert rows(database, spent) == [(QUEUED, 1, 0, 48), (DONE, 0, 0, 48)], "no attempt is used"
    assert settle(database, late).verdict is Verdict.FENCED
    assert len(places(claim(database, seats=48))) == 48
