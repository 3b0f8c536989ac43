"""Pointers of catalogues whose writer was stopped for longer than its lease, and goes on when another has done its
work. In each test, A holds the lease first and B takes it over."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import IO

import pytest
from sqlalchemy import text

from services.core.catalogues import manifests, task
from services.core.db.database import Database
from services.core.db.leases import Lease, LeaseLost
from services.core.model.errors import StoreUnavailable
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.other_bucket import OtherBucket
from services.core.storage.s3 import S3Store
from tests.integration.test_catalogue_copies import Copied, allowed

__all__ = ["allowed"]


class Hooked(S3Store):
    """A store that calls functions before and after the object of a key is put, each once."""

    def __init__(self, settings: Settings, key: str, before: Callable[[], None]) -> None:
        super().__init__(settings)
        self._key, self._before, self.after = key, [before], list[Callable[[], None]]()

    def put_file(self, key: str, file: IO[bytes], media_type: str) -> None:
        self._around(key, lambda: S3Store.put_file(self, key, file, media_type))

    def other(self, bucket: str) -> OtherBucket:
        made = super().other(bucket)
        put = made.put

        def hooked(key: str, file: IO[bytes], media_type: str, metadata: dict[str, str]) -> None:
            self._around(key, lambda: put(key, file, media_type, metadata))

        made.put = hooked  # type: ignore[method-assign]
        return made

    def _around(self, key: str, put: Callable[[], None]) -> None:
        is_meant = key == self._key
        while is_meant and self._before:
            self._before.pop()()
        put()
        while is_meant and self.after:
            self.after.pop()()


class Paused(S3Store):
    """A store whose next listing waits."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.has_come, self.may_go_on = threading.Event(), threading.Event()

    def under(self, folder: str, after: str = "") -> Iterator[str]:
        self.has_come.set()
        assert self.may_go_on.wait(30)
        return super().under(folder, after)


class Late(Copied):
    """A catalogue with two versions of which the second is published."""

    def __init__(self, database: Database, settings: Settings) -> None:
        super().__init__(database, settings)
        self.define(publish=self.to(), keep=5)
        self.show({"a": "red"})
        self.show({"a": "pink"})
        assert self.pointer()["version"] == self.shown()[0] == 2
        self.pointers = {
            "here": self.store.key(self.catalogue.folder + manifests.POINTER),
            "elsewhere": f"{self.folder}/current.json",
        }

    def lease(self, holder: str) -> Lease:
        return Lease(self.database, f"catalogue/{self.catalogue.id}", holder)

    def run(self, store: S3Store, holder: str) -> None:
        lease = self.lease(holder)
        assert lease.take()
        task.run(self.settings, store, Notifier(self.settings.redis_url), self.catalogue.id, lease)
        lease.release()

    def lose_lease(self) -> None:
        with self.database.begin_system() as connection:
            connection.execute(text("UPDATE leases SET expires_at = '-infinity'"))

    def publish_only_version(self, version: int) -> None:
        self.quick, tend = True, self.tend
        self.tend = lambda: None  # type: ignore[method-assign]
        self.publish(version)
        self.tend = tend  # type: ignore[method-assign]

    def overtake(self) -> None:
        """B publishes version 2 again, and does all the work."""
        self.lose_lease()
        self.publish_only_version(2)
        self.run(self.store, "scheduler-b")

    def read_pointer(self, where: str) -> bytes:
        return b"".join(self.bucket(where).blocks(self.pointers[where]))

    def write_pointer(self, where: str, data: bytes) -> None:
        """With the metadata that it has."""
        bucket, key = self.bucket(where), self.pointers[where]
        held = bucket.held(key)
        assert held is not None
        bucket.put(key, io.BytesIO(data), "application/json", held.metadata)

    def bucket(self, where: str) -> OtherBucket:
        return self.store.other({"here": self.store, "elsewhere": self.other}[where].bucket)

    def named(self, where: str) -> int:
        """The version that the pointer names."""
        version: int = json.loads(self.read_pointer(where))["version"]
        return version

    def wait(self, minutes: int) -> None:
        """As if so much time had passed."""
        earlier = text("UPDATE catalogues SET tidy_from = tidy_from - make_interval(mins => :minutes) WHERE id = :id")
        with self.database.begin_system() as connection:
            connection.execute(earlier, {"minutes": minutes, "id": self.catalogue.id})


@pytest.fixture
def late(database: Database, allowed: Settings) -> Late:
    return Late(database, allowed)


def answer_lost() -> None:
    raise StoreUnavailable("the answer was lost")


def test_a_pointer_that_moved_back_while_the_next_holder_tidied_is_moved_again(late: Late) -> None:
    slow = Paused(late.settings)
    work = threading.Thread(target=late.run, args=(slow, "scheduler-b"))

    def overtake() -> None:
        late.lose_lease()
        late.publish_only_version(2)
        work.start()
        assert slow.has_come.wait(30)
        assert late.named("here") == 2

    late.publish_only_version(1)
    with pytest.raises(LeaseLost):
        late.run(Hooked(late.settings, late.pointers["here"], overtake), "scheduler-a")
    assert late.named("here") == 1, "the fault is there"
    slow.may_go_on.set()
    work.join()
    assert late.is_pending()
    late.tend()
    assert (late.named("here"), late.is_pending()) == (2, False)


def test_a_reason_to_tidy_that_comes_during_the_tidying_is_not_lost(late: Late) -> None:
    slow = Paused(late.settings)
    work = threading.Thread(target=late.run, args=(slow, "scheduler-b"))
    work.start()
    assert slow.has_come.wait(30)
    late.define(publish=late.to(), keep=1)
    slow.may_go_on.set()
    work.join()
    assert late.is_pending()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_late_write_whose_answer_is_lost_is_doubted_too(late: Late, where: str) -> None:
    stopped = Hooked(late.settings, late.pointers[where], late.overtake)
    stopped.after.append(answer_lost)
    late.publish_only_version(1)
    with pytest.raises((StoreUnavailable, LeaseLost)):
        late.run(stopped, "scheduler-a")
    assert late.named(where) == 1, "the fault is there"
    assert late.is_pending()
    late.tend()
    assert (late.named("here"), late.shown()) == (2, (2, {"a": b"pink"}))
    assert not late.is_pending()


def test_what_a_late_scheduler_wrote_that_died_at_once_is_seen_a_quarter_of_an_hour_later(late: Late) -> None:
    late.publish(1)
    written = {where: late.read_pointer(where) for where in late.pointers}
    late.publish(2)
    for where, data in written.items():
        late.write_pointer(where, data)
    assert (late.named("here"), late.named("elsewhere"), late.is_pending()) == (1, 1, False)
    late.wait(minutes=16)
    assert late.is_pending()
    late.tend()
    assert (late.named("here"), late.shown()) == (2, (2, {"a": b"pink"}))
    late.wait(minutes=16)
    late.tend()
    late.wait(minutes=1_000)
    assert not late.is_pending(), "after the look that found nothing, there is no other"
