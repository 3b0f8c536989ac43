"""Leases by name: one holder at a time, distinguished from earlier holders by an epoch."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import text

from services.core.db import leases
from services.core.db.database import Database
from services.core.db.leases import Lease, LeaseLost
from tests.clock import Clock
from tests.waiting import until

SECONDS = 6.0


def lease(database: Database, holder: str, name: str = "thing") -> Lease:
    return Lease(database, name, holder, SECONDS)


def set_end(database: Database, seconds: float, name: str = "thing") -> None:
    """The lease ends so many seconds from now."""
    statement = "UPDATE leases SET expires_at = clock_timestamp() + make_interval(secs => :seconds) WHERE name = :name"
    with database.begin_system() as connection:
        connection.execute(text(statement), {"seconds": seconds, "name": name})


def take(database: Database, holder: str, name: str = "thing") -> int | None:
    with database.begin_system() as connection:
        return leases.take(connection, name, holder, SECONDS)


def held(database: Database, name: str, holder: str, epoch: int) -> bool:
    with suppress(LeaseLost), database.begin_system() as connection:
        leases.assert_held(connection, name, holder, epoch)
        return True
    return False


def exists(database: Database, name: str) -> bool:
    with database.begin_system() as connection:
        return leases.exists(connection, name, SECONDS)


def waits_for_a_lock(database: Database) -> bool:
    with database.begin_system() as connection:
        return connection.execute(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")).scalar_one()


def test_one_holds_a_lease_and_keeps_its_epoch_until_another_takes_it(database):
    assert take(database, "a") == 1
    assert take(database, "b") is None
    assert take(database, "a") == 1, "its holder takes it again, as a leader does all the time"
    assert take(database, "b", "other") == 1, "another name is another lease"
    set_end(database, -0.1)
    assert take(database, "b") == 2
    assert take(database, "a") is None
    assert take(database, "b") == 2
    set_end(database, -0.1)
    assert take(database, "a") == 3


def test_a_lease_lasts_as_long_as_was_asked_for_and_is_made_longer_by_its_holder(database):
    assert take(database, "a") == 1
    kept = lease(database, "a")
    for again in (lambda: take(database, "a"), kept.take, lambda: used(kept)):
        set_end(database, 0.5)
        again()
        with database.begin_system() as connection:
            left = connection.execute(text("SELECT extract(epoch FROM expires_at - clock_timestamp()) FROM leases"))
            assert SECONDS - 3 < left.scalar_one() <= SECONDS


def used(held: Lease) -> None:
    with held.begin():
        pass


@pytest.mark.parametrize(("seconds", "free"), [(1.9 * SECONDS, False), (2.1 * SECONDS, True), (3.1 * SECONDS, True)])
def test_a_lease_that_ends_later_than_any_given_now_could_is_free(database, seconds, free):
    assert lease(database, "a").take()
    set_end(database, seconds)
    assert lease(database, "b").take() is free


def test_of_two_that_find_it_free_at_once_one_gets_it(database):
    """The second has looked before the first has committed; it waits, and must look again."""
    for number, started in enumerate((False, True)):
        name = f"thing-{number}"
        if started:
            assert take(database, "before", name) == 1
            set_end(database, -1.0, name)
        with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
            assert leases.take(connection, name, "a", SECONDS) == 1 + started
            answer = pool.submit(take, database, "b", name)
            until(lambda: waits_for_a_lock(database))
            connection.commit()
            assert answer.result() is None
        assert held(database, name, "a", 1 + started)


def test_it_is_held_by_this_holder_in_this_epoch_under_this_name(database):
    assert take(database, "a") == 1
    assert held(database, "thing", "a", 1)
    assert not held(database, "thing", "b", 1)
    assert not held(database, "thing", "a", 2)
    assert not held(database, "other", "a", 1)


def test_nobody_takes_a_lease_while_its_holder_is_at_a_transaction(database):
    """Even if it has run out: who takes it next sees all that the holder has written, and nothing comes after."""
    assert take(database, "a") == 1
    set_end(database, -1.0)
    with ThreadPoolExecutor(1) as pool, database.begin_system() as connection:
        leases.assert_held(connection, "thing", "a", 1)
        answer = pool.submit(take, database, "b")
        until(lambda: waits_for_a_lock(database))
        connection.commit()
        assert answer.result() == 2


def test_only_its_holder_ends_a_lease_and_then_it_is_free_at_once(database):
    assert take(database, "a") == 1
    assert take(database, "a", "other") == 1
    for name, holder, epoch in (("thing", "b", 1), ("thing", "a", 2), ("others", "a", 1)):
        with database.begin_system() as connection:
            leases.end(connection, name, holder, epoch)
        assert take(database, "b") is None
    with database.begin_system() as connection:
        leases.end(connection, "thing", "a", 1)
    assert take(database, "b") == 2
    assert take(database, "b", "other") is None


def test_one_transaction_at_a_time_has_the_maintenance_lock_and_no_other_waits_for_it(database):
    with database.begin_system() as one, database.begin_system() as other:
        assert leases.lock_maintenance(one)
        assert not leases.lock_maintenance(other)
        one.rollback()
        assert leases.lock_maintenance(other)


def test_a_lease_is_seen_by_name_while_somebody_holds_it(database):
    assert not exists(database, "thing")
    assert take(database, "a", "other") == 1
    assert not exists(database, "thing")
    assert take(database, "a") == 1
    assert exists(database, "thing")
    set_end(database, -0.1)
    assert not exists(database, "thing")
    set_end(database, 2 * SECONDS + 1)
    assert not exists(database, "thing"), "the clock was set back"


def test_only_its_holder_releases_a_lease_and_nothing_of_it_is_left(database):
    ours, other, stale = lease(database, "a"), lease(database, "a", "other"), lease(database, "a")
    assert ours.take()
    assert other.take()
    for stranger in (lease(database, "b"), stale):  # the second has our name and took nothing
        stranger.release()
        used(ours)
    ours.release()
    used(other)
    with database.begin_system() as connection:
        assert connection.execute(text("SELECT name FROM leases")).scalars().all() == ["other"]


def test_a_transaction_of_the_holder_keeps_this_lease_and_no_other_of_its(database):
    ours, other = lease(database, "a"), lease(database, "a", "other")
    assert ours.take()
    assert other.take()
    set_end(database, -1.0, "other")
    used(ours)
    assert lease(database, "b", "other").take()


def test_a_lease_that_another_began_anew_is_not_ours_though_its_epoch_is(database):
    """Epochs begin at one again when a lease is released."""
    ours = lease(database, "a")
    assert ours.take()
    lease(database, "a").take()
    with database.begin_system() as connection:
        connection.execute(text("DELETE FROM leases"))
    assert take(database, "b") == 1
    with pytest.raises(LeaseLost), ours.begin():
        pass
    ours.release()
    assert held(database, "thing", "b", 1)


def test_who_did_not_get_a_lease_can_do_nothing_in_its_name(database):
    ours, theirs = lease(database, "a"), lease(database, "b")
    assert ours.take()
    assert not theirs.take()
    with pytest.raises(LeaseLost), theirs.begin():
        pass
    ours.release()
    assert lease(database, "b").take()
    for stranger in (theirs, lease(database, "b")):  # they have its holder's name, and took nothing
        with pytest.raises(LeaseLost), stranger.begin():
            pass


def test_a_lease_is_refused_at_once_while_its_holder_is_in_a_transaction(database):
    ours = lease(database, "a")
    assert ours.take()
    with ours.begin():
        assert take(database, "b") is None


def test_keeping_asks_the_database_once_in_a_third_of_the_lease(database, monkeypatch):
    ours = lease(database, "a")
    clock = Clock(monkeypatch, leases)
    assert ours.take()
    set_end(database, 0.1)
    clock.now += SECONDS / 3 - 0.01
    ours.keep()
    with database.begin_system() as connection:
        assert connection.execute(
            text("SELECT expires_at < clock_timestamp() + interval '1 s' FROM leases")
        ).scalar_one()
    clock.now += 0.02
    ours.keep()  # it has run out by now, perhaps; nobody has taken it
    with database.begin_system() as connection:
        assert connection.execute(
            text("SELECT expires_at > clock_timestamp() + interval '1 s' FROM leases")
        ).scalar_one()
    with database.begin_system() as connection:
        connection.execute(text("DELETE FROM leases"))
    clock.now += SECONDS / 3 - 0.01
    ours.keep()  # counted from when it was last kept
    clock.now += 0.02
    with pytest.raises(LeaseLost):
        ours.keep()
