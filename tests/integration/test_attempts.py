"""The attempts at an image, kept as long as its job: who had it, since when, and what was wrong."""

from sqlalchemy import text

from services.core.db.database import Database
from services.core.fleet import workers
from services.core.jobs import attempts
from services.core.jobs.attempts import Attempt
from services.core.model.specs import FailedImage
from services.core.queue import claims, expiry, quarantine
from tests import factories
from tests.factories import TENANT, claim, places, settle, stored, submit


def looked_at(database: Database, job_id: int, index: int) -> list[Attempt]:
    with database.begin(TENANT) as connection:
        return attempts.of_image(connection, job_id, index)


def forget_claims(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("UPDATE claims SET ended_at = now() - interval '2 days' WHERE state <> 'open'"))
        claims.forget(connection)
        assert connection.execute(text("SELECT count(*) FROM claims")).scalar_one() == 0


def expire(database: Database) -> None:
    with database.begin_system() as connection:
        connection.execute(text("UPDATE claims SET expires_at = now() - interval '1 s' WHERE state = 'open'"))
        assert expiry.expire(connection, 0.0) > 0


def test_an_image_that_was_lost_and_then_failed_has_both_attempts_when_the_claims_are_forgotten(database, settings):
    factories.register(database)
    job_id = submit(database, settings, 3)
    with database.begin_system() as connection:
        workers.register(
            connection, "worker-a", host="host", pid=1, device="cuda:0", model="m", revision="r", state="ready"
        )
    first = claim(database)
    assert first is not None
    expire(database)
    second = claim(database, worker="worker-b")
    assert second is not None
    wrong = [FailedImage(job_id, 1, "render_error", "It broke.")]
    done = [image for image in stored(second) if image.index != 1]
    settle(database, second, stored=done, failed=wrong)
    forget_claims(database)
    lost, failed = looked_at(database, job_id, 1)
    assert (lost.code, lost.is_lost, lost.worker, lost.device) == ("lost", True, "worker-a", "host cuda:0")
    assert (failed.code, failed.message, failed.worker) == ("render_error", "It broke.", "worker-b")
    assert (failed.device, failed.batch_images, failed.is_lost) == ("host device", 3, False)
    assert lost.began is not None and failed.began is not None
    assert lost.began < lost.ended <= failed.began < failed.ended
    [only] = looked_at(database, job_id, 0)
    assert only.is_lost


def test_what_is_done_at_once_or_released_writes_no_attempt(database, settings):
    factories.register(database)
    job_id = submit(database, settings, 2)
    first = claim(database)
    assert first is not None
    settle(database, first, released=places(first))
    second = claim(database)
    assert second is not None
    settle(database, second)
    assert looked_at(database, job_id, 0) == []
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT count(*) FROM failures")).scalar_one() == 0


def test_images_of_a_cancelled_job_that_are_lost_keep_no_attempt(database, settings):
    factories.register(database)
    job_id = submit(database, settings, 2)
    assert claim(database) is not None
    with database.begin_system() as connection:
        connection.execute(text("UPDATE jobs SET state = 'cancelling', cancel_requested_at = now() WHERE id = :id"),
                           {"id": job_id})  # fmt: skip
    expire(database)
    assert looked_at(database, job_id, 0) == []


def test_a_crash_that_makes_an_image_poison_is_one_attempt(database, settings):
    factories.register(database)
    job_id = submit(database, settings, 1)
    for name in ("worker-a", "worker-b"):
        with database.begin_system() as connection:
            workers.register(
                connection, name, host=name, pid=1, device="d", model="m", revision=factories.REVISION, state="ready"
            )
        taken = claim(database, worker=name)
        assert taken is not None
        with database.begin_system() as connection:
            quarantine.child_died(connection, name, rendering={taken.id: factories.places(taken)}, device=f"{name} d")
    assert [(one.code, one.worker) for one in looked_at(database, job_id, 0)] == [
        ("crash", "worker-a"), ("poison", "worker-b"),
    ]  # fmt: skip
