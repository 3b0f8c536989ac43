"""The background task that validates a file, and what happens concurrently while it reads."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from services.core.batches import batch_jobs, validation
from services.core.db import leases
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.files import files
from services.core.jobs import lifecycle
from services.core.model import ids
from services.core.model.errors import NoModels, Unavailable
from services.core.model.specs import FailedImage
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import factories

ENDPOINT = "/v1/images/generations"


class During:
    """The real store, with something that happens while a file is read from it."""

    def __init__(self, store: S3Store, happens: Any) -> None:
        self._store, self._happens = store, happens

    def stream(self, key: str) -> Iterator[bytes]:
        yield from self._store.stream(key)
        self._happens()


def submit(database: Database, store: S3Store, lines: int, n: int = 1, *, registered: bool = True) -> int:
    """A job of a file with so many lines of n images each; it is validating."""
    if registered:
        factories.register(database)
    body = {"method": "POST", "url": ENDPOINT, "body": {"prompt": "a mug", "n": n}}
    data = b"".join(json.dumps({"custom_id": f"line-{number}", **body}).encode() + b"\n" for number in range(lines))
    file_id, job_id = ids.new(), ids.new()
    key = files.object_name(factories.TENANT, file_id)
    store.put_file(key, io.BytesIO(data), "application/jsonl")
    with database.begin_system() as connection:
        files.record(
            connection, file_id, tenant_id=factories.TENANT, purpose="batch", filename="f", size=len(data),
            sha256=b"0" * 32, key=key,
        )  # fmt: skip
        batch_jobs.create(
            connection, factories.TENANT, job_id=job_id, input_file_id=file_id, priority=1, labels={}, dedupe=False,
            embed_prompt=False, completion_window="24h", window_seconds=86400, output_expires_seconds=None,
            base_url="http://here",
        )  # fmt: skip
    return job_id


def taken(database: Database, job_id: int, holder: str = "here") -> Lease:
    lease = Lease(database, f"validate/{job_id}", holder)
    assert lease.take()
    return lease


def view(database: Database, job_id: int) -> batch_jobs.BatchJob:
    with database.begin_system() as connection:
        found = batch_jobs.find(connection, factories.TENANT, job_id)
    assert found is not None
    return found


@pytest.fixture
def notifier(settings: Settings) -> Notifier:
    return Notifier(settings.redis_url)


def test_a_job_that_is_cancelled_while_its_file_is_read_stays_cancelled(database, settings, store, notifier):
    job_id = submit(database, store, 3)

    def cancel() -> None:
        with database.begin(factories.TENANT) as connection:
            lifecycle.cancel(connection, factories.TENANT, job_id)

    validation.run(settings, During(store, cancel), notifier, job_id, taken(database, job_id))
    found = view(database, job_id)
    assert (found.state, found.requests) == ("cancelling", 0)
    assert factories.claim(database) is None


def test_who_was_thought_dead_while_it_read_a_file_records_nothing(database, settings, store, notifier):
    job_id = submit(database, store, 3)
    slow = taken(database, job_id, "slow")

    def overtake() -> None:
        with database.begin_system() as connection:
            leases.end(connection, slow.name, "slow", 1)
        validation.run(settings, store, notifier, job_id, taken(database, job_id, "next"))

    with pytest.raises(leases.LeaseLost):
        validation.run(settings, During(store, overtake), notifier, job_id, slow)
    found = view(database, job_id)
    assert (found.state, found.requests) == ("queued", 3)
    claim = factories.claim(database)
    assert claim is not None
    assert [image.index for image in claim.images] == [0, 1, 2]


def test_requests_of_several_images_are_counted_while_they_are_rendered(database, settings, store, notifier):
    job_id = submit(database, store, 3, n=2)
    validation.run(settings, store, notifier, job_id, taken(database, job_id))
    first = factories.claim(database, seats=3)
    assert first is not None
    factories.settle(database, first)  # all of the first request, and half of the second
    found = view(database, job_id)
    assert (found.requests, found.done, found.failed) == (3, 1, 0)
    second = factories.claim(database)
    assert second is not None
    broken = [FailedImage(job_id, 3, "invalid_output", "It came out as NaN.")]
    stored = [image for image in factories.stored(second) if image.index != 3]
    factories.settle(database, second, stored=stored, failed=broken)
    found = view(database, job_id)
    assert (found.requests, found.done, found.failed) == (3, 2, 1)


def test_a_file_that_came_before_any_worker_was_up_waits_for_its_model(database, settings, store, notifier):
    job_id = submit(database, store, 3, registered=False)
    lease = taken(database, job_id)
    with pytest.raises(NoModels):  # an outage, which the runner of tasks postpones
        validation.run(settings, store, notifier, job_id, lease)
    assert issubclass(NoModels, Unavailable)
    assert view(database, job_id).state == "validating"
    factories.register(database)
    validation.run(settings, store, notifier, job_id, lease)
    assert (view(database, job_id).state, view(database, job_id).requests) == ("queued", 3)


@pytest.mark.parametrize(("most", "state"), [(3, "queued"), (2, "failed")])
def test_a_file_has_so_many_lines_and_no_more(database, settings, store, notifier, most, state):
    job_id = submit(database, store, 3)
    limited = replace(settings, max_lines_per_file=most)
    validation.run(limited, store, notifier, job_id, taken(database, job_id))
    found = view(database, job_id)
    assert found.state == state
    if state == "failed":
        assert found.problems is not None
        assert [(problem["code"], problem["line"]) for problem in found.problems] == [("too_many_lines", 3)]
