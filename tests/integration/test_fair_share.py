"""Fair shares, proven over the real queue in virtual time: nobody waits longer for others than its share asks."""

from collections import Counter

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.settings import Settings
from services.core.tenants import fair_share
from tests import factories
from tests.fair_fleet import BATCH, Fleet, Worker, jain
from tests.render_loops import RenderLoopMaker
from worker import claim_sizes

OURS, SMALL, OTHER = 1, 2, 3


@pytest.fixture
def shared(database: Database) -> Database:
    """Three tenants of the same weight."""
    factories.register(database)
    with database.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (2, 'small'), (3, 'other')"))
    return database


def submit(database: Database, settings: Settings, images: int, *, tenant: int = OURS, priority: str = "normal") -> int:
    requests = [{"prompt": "a", "n": min(1_000, images - first)} for first in range(0, images, 1_000)]
    return factories.submit(database, settings, requests, tenant=tenant, priority=priority)


def test_two_small_jobs_beside_one_of_100_000_images_end_within_their_share(
    shared: Database, settings: Settings
) -> None:
    fleet = Fleet(shared)
    job = submit(shared, settings, 500, tenant=SMALL)
    fleet.run(until=lambda: False)
    alone = fleet.finished(job)
    submit(shared, settings, 100_000)
    fleet = Fleet(shared)
    fleet.run(until=lambda: len(fleet.done) >= 100 * BATCH)  # it has had everything for long
    began = fleet.now
    jobs = [submit(shared, settings, 500, tenant=tenant) for tenant in (SMALL, OTHER)]
    left = Counter(dict.fromkeys(jobs, 500))
    seen = len(fleet.done)

    def both_done() -> bool:
        nonlocal seen
        left.subtract(found for _, _, found in fleet.done[seen:] if found in left)
        seen = len(fleet.done)
        return not any(left.values())

    fleet.run(until=both_done)
    for job in jobs:
        assert fleet.finished(job) - began <= 1.3 * 3 * alone
    assert fleet.served(began, fleet.now)[OURS] > 0.25 * len([1 for at, _, _ in fleet.done if at > began])


@pytest.mark.parametrize("most", [BATCH, 4 * BATCH])
def test_while_all_are_backlogged_jains_index_is_at_least_0_98(shared: Database, settings: Settings, most: int) -> None:
    """Also if a claim holds several batches, which are as fast then as one is otherwise."""
    for tenant in (OURS, SMALL, OTHER):
        submit(shared, settings, 2_000, tenant=tenant)
    fleet = Fleet(shared, workers=3, batch_seconds=BATCH / most, most=most)
    fleet.run(until=lambda: len(fleet.done) >= 5_000)
    assert max(fleet.claims) == most
    window = min(60.0, fleet.now - 1)
    for begins in range(0, int(fleet.now - window) + 1, 5):
        served = fleet.served(begins, begins + window)
        assert jain([served[tenant] for tenant in (OURS, SMALL, OTHER)]) >= 0.98, (begins, served)


def test_a_tenant_of_twice_the_weight_gets_twice_the_share(shared: Database, settings: Settings) -> None:
    with shared.begin_system() as connection:
        connection.execute(text("UPDATE tenants SET weight = 2 WHERE id = 2"))
    for tenant in (OURS, SMALL, OTHER):
        submit(shared, settings, 2_000, tenant=tenant)
    fleet = Fleet(shared)
    fleet.run(until=lambda: len(fleet.done) >= 2_000)
    served = fleet.served(0, fleet.now)
    assert jain([served[OURS], served[SMALL] / 2, served[OTHER]]) >= 0.98, served


def test_a_tenant_that_was_idle_saves_nothing_up(shared: Database, settings: Settings) -> None:
    submit(shared, settings, 5_000)
    fleet = Fleet(shared)
    fleet.run(until=lambda: len(fleet.done) >= 1_600)
    began = fleet.now
    submit(shared, settings, 2_000, tenant=SMALL)
    fleet.run(until=lambda: fleet.now >= began + 30)
    served = fleet.served(began + 1, fleet.now)
    assert jain([served[OURS], served[SMALL]]) >= 0.98, served


@pytest.mark.parametrize(("before", "most"), [(n, BATCH) for n in (0, 1, 5, 6, 7, 12, 13, 14, 40)] + [(5, 64), (9, 64)])
def test_high_that_arrives_in_a_full_queue_of_low_starts_with_the_next_claim(
    shared: Database, settings: Settings, before: int, most: int
) -> None:
    for tenant in (OURS, SMALL, OTHER):
        submit(shared, settings, 1_000, tenant=tenant, priority="low")
    workers = [Worker(shared, name, most) for name in ("a", "b")]
    for number in range(before):
        workers[number % 2].claim()
    job = submit(shared, settings, 1, tenant=OTHER, priority="high")
    taken = workers[before % 2].claim()
    assert taken is not None and job in {image.job_id for image in taken.images}
    assert len(taken.images) == BATCH, "low fills its batch, and gets no further one"


def test_low_moves_under_endless_high_and_the_more_the_longer_it_waits(shared: Database, settings: Settings) -> None:
    low = submit(shared, settings, 1_000, priority="low")
    submit(shared, settings, 4_000, tenant=SMALL, priority="high")
    submit(shared, settings, 4_000, tenant=OTHER)
    worker = Worker(shared, "a")

    def share(claims: int) -> Counter[int]:
        """Of so many claims, how many each job had."""
        return Counter(taken.images[0].job_id for _ in range(claims) if (taken := worker.claim()) is not None)

    assert share(26)[low] == 2
    for hours, part in ((0.5, 7), (2, 4)):
        with shared.begin_system() as connection:
            moved = text("UPDATE segments SET created_at = now() - make_interval(secs => :seconds) WHERE job_id = :job")
            connection.execute(moved, {"seconds": hours * 3600, "job": low})
        share(part)
        assert share(4 * part)[low] == 4


def test_lifting_touches_only_idle_tenants_that_are_behind(shared: Database, settings: Settings) -> None:
    submit(shared, settings, 10)
    with shared.begin_system() as connection:
        connection.execute(
            text("UPDATE tenants SET virtual_time = CASE id WHEN 1 THEN 1000 WHEN 2 THEN 990 ELSE 5 END")
        )
        assert fair_share.lift_idle(connection) == 1
        found = connection.execute(text("SELECT id, virtual_time FROM tenants ORDER BY id")).all()
    assert [tuple(row) for row in found] == [(1, 1000.0), (2, 990.0), (3, 1000.0)]


def test_a_real_worker_takes_turns_among_tenants_before_it_has_charged_any(
    make_render_loop: RenderLoopMaker, shared: Database, fast: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its charges are written every two seconds: until then it knows of them itself."""
    monkeypatch.setattr(claim_sizes, "MOST_IMAGES", 16)  # as of a slow device: a claim is a batch
    render_loop = make_render_loop()
    small = {"size": "64x64", "num_inference_steps": 1}
    for tenant in (OURS, SMALL, OTHER):
        factories.submit(shared, fast, 64, tenant=tenant, **small)
    with shared.begin_system() as connection:
        connection.execute(text("INSERT INTO tenants (id, name) VALUES (4, 'fourth')"))
    low, high = (factories.submit(shared, fast, 64, tenant=4, priority=word, **small) for word in ("low", "high"))
    render_loop.run()
    with shared.begin_system() as connection:
        rows = connection.execute(text("SELECT tenant_ids, job_ids[1] AS job FROM claims ORDER BY id")).all()
    order = [(row.tenant_ids[0], row.job) for row in rows]
    assert len(order) == 5 * 4
    assert low in [job for _, job in order[:13]]
    assert [job for _, job in order[:2]].count(high) == 1
    normal = [tenant for tenant, job in order if job not in (low, high)]
    assert set(normal[-3:]) == {OURS, SMALL, OTHER} == set(normal[-6:-3])
