"""What a claim counts before it takes images while it leaves the first ones to others, and whose payloads it reads."""

from typing import Any

import pytest
from sqlalchemy import text

from services.core.db.database import Database
from services.core.jobs import lifecycle
from services.core.model.specs import Claim
from services.core.queue import claims, looks, segments
from services.core.queue.tail import Pace
from tests import factories
from tests.factories import REVISION, TENANT, claim, places, submit


@pytest.fixture(autouse=True)
def _registered(database: Database) -> None:
    factories.register(database)


def look(database: Database) -> looks.Candidates:
    with database.begin_system() as connection:
        return looks.candidates(connection, REVISION, 1, "worker-a")


def take(
    database: Database, leave: int, seats: int = 1, *, found: looks.Candidates | None = None, paced: Pace | None = None
) -> Claim | None:
    """A claim of a worker that leaves the first `leave` images to others."""

    class Leaving(looks.Candidates):
        leaves: Any = leave
        pace: Any = paced

    chosen = Leaving((found or look(database)).rows)
    with database.begin_system() as connection:
        return claims.claim(connection, chosen, worker_id="worker-a", seats=seats, lease=30.0)


def test_it_takes_of_five_that_wait_if_it_leaves_four_and_not_if_it_leaves_five(database, settings):
    job_id = submit(database, settings, 8)
    assert len(claim(database, seats=3).images) == 3  # being rendered: they do not wait
    assert take(database, 5) is None
    assert places(take(database, 4)) == [(job_id, 3)]


def test_the_image_at_the_mark_of_its_segment_waits(database, settings):
    submit(database, settings, 8)
    claim(database, seats=3)
    with database.begin_system() as connection:
        segments.raise_low(connection)
    assert take(database, 4) is not None


def test_only_images_of_the_segments_that_share_a_batch_count(database, settings):
    """Neither those of the job's other shapes nor those of other jobs."""
    wide = {"prompt": "wide", "n": 9, "size": "256x256"}
    job_id = submit(database, settings, [{"prompt": "small", "n": 5}, wide])
    for _ in range(2):
        submit(database, settings, [wide])
    claim(database, seats=2)
    assert take(database, 3) is None
    assert places(take(database, 2)) == [(job_id, 2)]


@pytest.mark.parametrize("what", ["pause", "cancel"])
def test_images_of_a_job_that_was_stopped_since_the_look_do_not_wait(database, settings, what):
    stopped, other = submit(database, settings, 5), submit(database, settings, 3)
    found = look(database)
    with database.begin(TENANT) as connection:
        if what == "pause":
            lifecycle.pause(connection, TENANT, stopped, True)
        else:
            lifecycle.cancel(connection, TENANT, stopped)
    assert take(database, 3, found=found) is None
    assert places(take(database, 0, 9, found=found)) == [(other, index) for index in range(3)]


def test_a_claim_says_when_its_batches_will_be_rendered(database, settings):
    submit(database, settings, 40)
    taken = take(database, 0, 20, paced=Pace(3.0, 8.0, 16))
    assert taken is not None and taken.seconds == 16.0
    assert take(database, 0, 20).seconds == 0.0
    with database.begin_system() as connection:
        ahead = "extract(epoch FROM free_at - (expires_at - make_interval(secs => lease_seconds)))"
        said = list(connection.execute(text(f"SELECT {ahead} FROM claims ORDER BY id")).scalars())
    assert float(said[0]) == pytest.approx(19.0, abs=1.0) and said[1] is None


def test_a_claim_that_begins_within_a_request_reads_it_and_no_other(database, settings):
    first = submit(database, settings, [{"prompt": "a", "n": 4, "seed": 10}, {"prompt": "b", "n": 4, "seed": 20}])
    submit(database, settings, [{"prompt": f"other {index}", "seed": 30 + index} for index in range(8)])
    seen = []
    for seats in (2, 4, 1, 1):
        taken = claim(database, seats=seats)
        assert [index for _, index in places(taken)] == list(range(len(seen), len(seen) + seats))
        assert {image.job_id for image in taken.images} == {first}
        seen += [(image.spec.prompt, image.spec.seed) for image in taken.images]
    assert seen == [("a", 10 + index) for index in range(4)] + [("b", 20 + index) for index in range(4)]


def test_each_image_of_a_claim_has_the_tenant_and_the_options_of_its_own_job(database, settings):
    ours = submit(database, settings, 2, head={"dedupe": True})
    other = submit(database, settings, 2, head={"embed_prompt": True})
    taken = claim(database)
    assert [(image.job_id, image.dedupe, image.embed_prompt) for image in taken.images] == [
        (ours, True, False), (ours, True, False), (other, False, True), (other, False, True),
    ]  # fmt: skip
