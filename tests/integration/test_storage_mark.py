"""The mark of database and store: no restore is taken for a renewal, and no renewal for a restore."""

import dataclasses
import json
from collections.abc import Callable

import pytest
from sqlalchemy import text

from services.core.auditing import mark
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.model.errors import StoreUnavailable
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests.integration.test_storage_audit import audit, orphans, own, put

__all__ = ["own"]


def kept(database: Database, store: S3Store) -> str | None:
    """As the scheduler does every ten minutes; returns why no orphan may be deleted."""
    with database.begin_system() as connection:
        [waiting] = mark.pending(connection)
    lease = Lease(database, f"storage-mark/{waiting.id}", "scheduler-1")
    assert lease.take()
    mark.keep(store, lease)
    with database.begin_system() as connection:
        assert mark.pending(connection) == []
        connection.execute(text("UPDATE storage_mark SET looked_at = now() - interval '11 minutes'"))
        return mark.last_refusal(connection)


class Hooked(S3Store):
    """A store in which something happens once: before the next object is stored or read, or after it was stored."""

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None
    reading: Callable[[], object] | None = None

    def put_file(self, key, file, media_type):
        self._happens("before")
        super().put_file(key, file, media_type)
        self._happens("after")

    def read(self, key):
        self._happens("reading")
        return super().read(key)

    def _happens(self, name: str) -> None:
        hook = getattr(self, name)
        setattr(self, name, None)
        if hook is not None:
            hook()


@pytest.fixture
def hooked(settings: Settings, own: S3Store) -> Hooked:
    return Hooked(dataclasses.replace(settings, prefix=own.prefix))


class Address:
    """Of a database: behind it another one may take over."""

    def __init__(self, at: Database) -> None:
        self.at = at

    def __getattr__(self, name):
        return getattr(self.at, name)


def fail() -> None:
    raise StoreUnavailable("the disk is full")


def copied(database: Database) -> dict[str, object]:
    with database.begin_system() as connection:
        return dict(connection.execute(text("SELECT epoch, is_pending FROM storage_mark")).one()._mapping)


def restore(database: Database, copy: dict[str, object]) -> None:
    with database.begin_system() as connection:
        connection.execute(text("UPDATE storage_mark SET epoch = :epoch, is_pending = :is_pending"), copy)


def test_a_mark_that_comes_after_a_newer_one_refuses_nothing(database, own, hooked):
    mark.renew(database, own)

    def others() -> None:
        for _ in range(2):
            assert mark.renew(database, own) is None

    hooked.before = others
    assert mark.renew(database, hooked) is None
    assert mark.refusal(database, own) is None


def test_a_database_that_is_restored_while_a_mark_is_stored_stays_refused(database, own, hooked):
    mark.renew(database, own)
    copy = copied(database)
    for _ in range(3):
        mark.renew(database, own)
    hooked.before = lambda: restore(database, copy)
    for store in (hooked, own, own):
        assert "was one of them restored" in str(mark.renew(database, store))
        assert "was one of them restored" in str(mark.refusal(database, own))
        assert "was one of them restored" in str(kept(database, own))


@pytest.mark.parametrize("ahead", [0, 5])
def test_a_server_that_takes_over_while_a_mark_is_stored_stays_refused(
    database, own, hooked, fresh_database, template, ahead
):
    mark.renew(database, own)
    with fresh_database(template) as url:
        address, other = Address(database), Database(url, application="tests")

        def take_over() -> None:
            restore(other, {"epoch": copied(database)["epoch"] + ahead, "is_pending": True})
            address.at = other

        hooked.before = take_over
        assert "the database is another one" in str(mark.renew(address, hooked))
        assert "the database is another one" in str(mark.refusal(other, own))
        assert copied(other)["is_pending"] is True
        other.close()


def test_a_database_that_is_restored_after_the_comparison_stays_refused(database, own, hooked):
    mark.renew(database, own)
    copy = copied(database)
    mark.renew(database, own)

    def after_the_mark() -> None:  # the marker is read next, and nothing else before the mark is raised
        hooked.reading = lambda: restore(database, copy)

    hooked.reading = after_the_mark
    assert "was one of them restored" in str(mark.renew(database, hooked))
    assert copied(database) == copy


def test_a_database_that_is_restored_while_a_late_mark_is_stored_stays_refused(database, own, hooked):
    mark.renew(database, own)
    copy = copied(database)
    mark.renew(database, own)
    hooked.before = fail
    with pytest.raises(StoreUnavailable):
        mark.renew(database, hooked)
    hooked.after = lambda: restore(database, copy)
    assert "was one of them restored" in str(mark.renew(database, hooked))


@pytest.mark.parametrize("renewed", [0, 1], ids=["the first mark", "a later mark"])
def test_marks_that_cannot_be_stored_are_no_restore(database, own, hooked, renewed):
    for _ in range(renewed):
        mark.renew(database, own)
    for _ in range(3):
        hooked.before = fail
        with pytest.raises(StoreUnavailable):
            mark.renew(database, hooked)
        assert mark.refusal(database, own) is None
    copy = copied(database)  # the database of the outage
    assert kept(database, own) is None
    restore(database, copy)
    assert "was one of them restored" in str(mark.refusal(database, own))


def test_an_older_mark_that_comes_late_refuses_nothing_though_its_process_has_died(database, own, hooked):
    mark.renew(database, own)
    hooked.before, hooked.after = (lambda: mark.renew(database, own)), fail
    with pytest.raises(StoreUnavailable):
        mark.renew(database, hooked)
    assert json.loads(own.read(own.key(mark.NAME)))["epoch"] == copied(database)["epoch"] - 1
    for _ in range(2):
        assert mark.refusal(database, own) is None
        assert kept(database, own) is None
    assert copied(database)["is_pending"] is False
    assert mark.refusal(database, own) is None


def test_a_mark_that_is_renewed_while_it_is_compared_is_no_restore(database, own, hooked):
    mark.renew(database, own)
    hooked.reading = lambda: mark.renew(database, own)
    assert mark.refusal(database, hooked) is None


def test_a_mark_that_others_renew_all_the_time_is_left_to_them(database, own, hooked, monkeypatch):
    mark.renew(database, own)
    tries = 0

    def raise_again() -> None:
        nonlocal tries
        tries += 1
        with database.begin_system() as connection:
            connection.execute(text("UPDATE storage_mark SET epoch = epoch + 1, is_pending = true"))

    monkeypatch.setattr(hooked, "put_file", lambda *given: (raise_again(), own.put_file(*given)))
    assert mark.renew(database, hooked) is None
    assert 1 < tries < 10


def test_a_copy_of_the_disk_from_between_two_audits_is_seen(database, own):
    """Also if the store was never audited: the mark is there from the first start on."""
    assert kept(database, own) is None
    with database.begin_system() as connection:
        copied = connection.execute(text("SELECT epoch FROM storage_mark")).scalar_one()
    assert kept(database, own) is None
    with database.begin_system() as connection:
        connection.execute(text("UPDATE storage_mark SET epoch = :epoch"), {"epoch": copied})
    stray = orphans(own, 1).pop()
    put(own, stray)
    assert "was one of them restored" in str(kept(database, own))
    for _ in range(2):
        assert audit(database, own, days=0).counts["deleted"] == 0
    assert mark.renew(database, own, accepts_restore=True) is None
    with database.begin_system() as connection:
        assert mark.last_refusal(connection) is None
    assert kept(database, own) is None
    assert audit(database, own, days=0).counts["deleted"] == 1
