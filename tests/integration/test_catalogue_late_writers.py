"""What a catalogue's scheduler writes that was stopped for longer than its lease, and goes on when another has done its
work. In each test, A holds the lease first and B takes it over."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

import pytest
from sqlalchemy import text

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import lists, manifests, task
from services.core.db.database import Database
from services.core.db.leases import Lease, LeaseLost
from services.core.files import files
from services.core.model.errors import StoreUnavailable
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.other_bucket import OtherBucket
from services.core.storage.s3 import S3Store
from tests import cataloguing, factories
from tests.integration.test_catalogue_copies import Copied, allowed
from tests.integration.test_catalogue_runs import Shop

__all__ = ["allowed"]


class Hooked(S3Store):
    """A store that calls functions before and after an object is put whose key contains `part`, each once."""

    def __init__(self, settings: Settings, part: str, before: Callable[[], None]) -> None:
        super().__init__(settings)
        self._part, self._before, self.after = part, [before], list[Callable[[], None]]()

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
        is_meant = self._part in key
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


class Dropping(S3Store):
    """A store that calls a function at its first deletion of a picture, and counts those deletions."""

    def __init__(self, settings: Settings, at_first: Callable[[], None]) -> None:
        super().__init__(settings)
        self._at_first, self._guard = at_first, threading.Lock()
        self.dropped = 0

    def drop(self, key: str) -> None:
        if "/objects/" in key:
            with self._guard:
                if not self.dropped:
                    self._at_first()
                self.dropped += 1
        super().drop(key)


class Counted(Lease):
    """A lease that counts how often it was to be kept."""

    kept = 0

    def keep(self) -> None:
        super().keep()
        self.kept += 1


class Watched(S3Store):
    """A store that counts how often a lease is kept while lists are moved."""

    def __init__(self, settings: Settings, lease: Counted) -> None:
        super().__init__(settings)
        self._lease, self.put_kept, self.read_kept = lease, list[int](), list[int]()

    def put_file(self, key: str, file: IO[bytes], media_type: str) -> None:
        before = self._lease.kept
        super().put_file(key, file, media_type)
        if lists.FOLDER in key:
            self.put_kept.append(self._lease.kept - before)

    def stream(self, key: str, part: tuple[int, int] | None = None) -> Iterator[bytes]:
        before = self._lease.kept
        yield from super().stream(key, part)
        if key.endswith(".sqlite"):
            self.read_kept.append(self._lease.kept - before)


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


def test_what_lies_where_a_pointer_was_may_be_anything_or_be_forbidden(late: Late) -> None:
    late.write_pointer("elsewhere", b"[" * 200_000)
    allowed, late.settings = late.settings, replace(late.settings, publish_buckets=frozenset())
    late.tend()
    assert late.destination().state == "done"
    late.settings = allowed
    late.tend()
    assert late.shown() == (2, {"a": b"pink"})


def test_a_late_plan_does_not_replace_the_list_of_the_one_that_counts(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop = Shop(database, settings, store)
    shop.night({"a": "red"})
    file_id = cataloguing.upload(database, store, shop.catalogue, {"a": "blue"})
    source = store.key(files.object_name(factories.TENANT, file_id))
    run_id = cataloguing.begin(database, shop.catalogue)

    def overtake() -> None:
        """The source has changed by the time at which B reads it."""
        with database.begin_system() as connection:
            connection.execute(text("UPDATE leases SET expires_at = '-infinity'"))
        store.put_file(source, io.BytesIO(b"sku,title\na,green\n"), "text/csv")
        lease = Lease(database, f"catalogue/{shop.catalogue.id}", "scheduler-b")
        assert lease.take()
        task.run(settings, store, Notifier(settings.redis_url), shop.catalogue.id, lease)
        lease.release()

    lease = Lease(database, f"catalogue/{shop.catalogue.id}", "scheduler-a")
    assert lease.take()
    stopped = Hooked(settings, lists.FOLDER, overtake)
    with pytest.raises(LeaseLost):
        task.run(settings, stopped, Notifier(settings.redis_url), shop.catalogue.id, lease)
    assert len(shop.objects(lists.FOLDER)) == 2, "both wrote one"
    cataloguing.render(database, store)
    shop.tend()
    assert (shop.read(run_id).state, shop.pictures()) == ("published", {"a": b"green"})
    assert not shop.objects(lists.FOLDER)
    assert shop.night({"a": "blue"}).counts["changed"] == 1
    assert shop.pictures() == {"a": b"blue"}


def test_moving_a_list_keeps_the_lease(database: Database, settings: Settings, store: S3Store) -> None:
    shop = Shop(database, settings, store)
    shop.night({"a": "red"})
    lease = Counted(database, f"catalogue/{shop.catalogue.id}", "scheduler-a")
    watched = Watched(settings, lease)
    cataloguing.upload(database, store, shop.catalogue, {"a": "blue"})
    cataloguing.begin(database, shop.catalogue)
    for _ in range(2):
        assert lease.take()
        task.run(settings, watched, Notifier(settings.redis_url), shop.catalogue.id, lease)
        cataloguing.render(database, store)
    assert (shop.published(), len(watched.put_kept), len(watched.read_kept)) == (2, 1, 2)
    assert all(watched.put_kept + watched.read_kept)


def test_a_run_that_an_earlier_release_planned_ends(database: Database, settings: Settings, store: S3Store) -> None:
    shop = Shop(database, settings, store)
    run = shop.read(shop.begin({"a": "red"}))
    assert run.list_key is not None
    former = store.key(f"{shop.catalogue.folder}{lists.FORMER}{runs.public_id(run.id)}.sqlite")
    store.copy(run.list_key, former)
    store.drop(run.list_key)
    with database.begin_system() as connection:
        connection.execute(text("UPDATE catalogue_runs SET list_key = NULL"))
    cataloguing.render(database, store)
    shop.tend()
    assert (shop.published(), shop.objects(lists.FORMER)) == (1, set())


def test_files_of_a_version_that_is_being_made_are_nobodys_to_drop(
    database: Database, settings: Settings, store: S3Store
) -> None:
    """A late deletion would hit what the run writes to the same keys by then."""
    shop = Shop(database, settings, store)
    run = shop.read(shop.begin({"a": "red"}))
    assert (run.state, run.version) == ("rendering", 1)
    for version in (1, 9):
        store.put_file(store.key(manifests.folder(shop.catalogue, version) + "x"), io.BytesIO(b"x"), "text/plain")
    lease = Lease(database, f"catalogue/{shop.catalogue.id}", "scheduler-a")
    assert lease.take()
    task.run(settings, store, Notifier(settings.redis_url), shop.catalogue.id, lease)
    assert shop.objects(manifests.FOLDER) == {store.key(manifests.folder(shop.catalogue, 1) + "x")}


def test_a_late_tidier_deletes_no_more_than_the_lot_that_it_had_begun(late: Late) -> None:
    items = [f"i{number}" for number in range(70)]
    late.show({item: f"red {item}" for item in items})
    late.define(publish=late.to(), keep=1)

    def overtake() -> None:
        late.lose_lease()
        assert late.lease("scheduler-b").take()

    late.publish_only({item: f"pink {item}" for item in items})
    store = Dropping(late.settings, overtake)
    with pytest.raises(LeaseLost):
        late.run(store, "scheduler-a")
    assert 0 < store.dropped < 40
    late.lose_lease()
    late.tend()
    assert len(late.objects()) == len(items), "the rest goes later"
