"""What pages of catalogues read: where two versions differ, what went wrong by cause, and what is left to review."""

import random
from typing import Any

import pytest

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import changes, differences, entries, needs, preparation, reviewing
from services.core.catalogues.entries import Picture
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.marks import marks
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import cataloguing, factories
from tests.cataloguing import change

VERSIONS = 7
Sums = dict[tuple[str, str], bytes]


def make_versions(database: Database, catalogue_id: int) -> dict[int, Sums]:
    """Versions that change, remove and take back pictures by chance, each of the one before or of an older one."""
    chance, made = random.Random(7), dict[int, Sums]({0: {}})
    for version in range(1, VERSIONS + 1):
        base = version - 1 if version < 4 else chance.randrange(1, version)
        drawn = [change(f"item-{nth}", chance.choice("abc")) for nth in range(12) if chance.random() < 0.4]
        gone = [change(f"item-{nth}") for nth in range(12) if chance.random() < 0.15]
        gone = [one for one in gone if one.item not in {other.item for other in drawn}]
        with database.begin_system() as connection:
            while entries.begin_as(connection, catalogue_id, base=base, version=version, most=5):
                pass
            pictures = [Picture(one, "key", one.render_key or b"", 1, "class", 1, 0) for one in drawn]
            entries.replace(connection, catalogue_id, version, pictures)
            entries.remove(connection, catalogue_id, version, gone)
            page = entries.page(connection, catalogue_id, version, after=("", ""), limit=100)
        made[version] = {(one.item, one.variant): one.sha256 for one in page}
        places = {(one.item, one.variant) for one in gone}
        wanted = {place: sha for place, sha in made[base].items() if place not in places}
        assert made[version] == wanted | {(one.item, one.variant): one.render_key for one in drawn}
    return made


def test_differences_are_all_that_two_versions_have_not_in_common_in_order(database: Database) -> None:
    catalogue = cataloguing.create(database)
    made = make_versions(database, catalogue.id)
    for before in range(1, VERSIONS + 1):
        for after in range(1, VERSIONS + 1):
            found, behind = [], ("", "")
            with database.begin_system() as connection:
                while behind is not None:
                    page, behind = differences.page(connection, catalogue.id, before, after, behind=behind, limit=3)
                    found += page
                counted, is_all = differences.count(connection, catalogue.id, before, after)
            old, new = made[before], made[after]
            differing = sorted(place for place in old | new if old.get(place) != new.get(place))
            assert [(one.item, one.variant) for one in found] == differing, (before, after)
            sums = [(one.before and one.before.sha256, one.after and one.after.sha256) for one in found]
            assert sums == [(old.get(place), new.get(place)) for place in differing]
            assert (is_all, counted) == (True, len(differing))


@pytest.mark.parametrize("rows", [4 * VERSIONS, 2 * VERSIONS, 5])  # two of each version, one, and not even that
def test_pages_of_differences_of_versions_far_apart_read_no_more_and_leave_nothing_out(
    database: Database, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(differences, "ROWS", rows)
    catalogue = cataloguing.create(database)
    made = make_versions(database, catalogue.id)
    old, new = made[1], made[VERSIONS]
    found, behind = [], ("", "")
    with database.begin_system() as connection:
        while behind is not None:
            page, behind = differences.page(connection, catalogue.id, 1, VERSIONS, behind=behind, limit=2)
            assert len(page) <= 2
            found += page
    assert [(one.item, one.variant) for one in found] == sorted(
        place for place in old | new if old.get(place) != new.get(place)
    )


def test_causes_are_counted_and_their_first_lines_are_named(database: Database) -> None:
    catalogue = cataloguing.create(database)
    run_id = cataloguing.begin(database, catalogue)
    lease = Lease(database, f"catalogue/{catalogue.id}", cataloguing.HOLDER)
    assert lease.take()
    wrong: dict[str, Any] = {"kind": "broken", "message": "It is wrong."}
    found = [change(f"sku-{nth}", code="late" if nth % 3 else "early", **wrong) for nth in range(30)]
    preparation.record(cataloguing.read(database, run_id), [*found, change("fine")], lease)
    with database.begin_system() as connection:
        counted, first = changes.causes(connection, run_id), changes.examples(connection, run_id, 3)
    assert counted == {"late": 20, "early": 10}
    assert {code: [one.item for one in some] for code, some in first.items()} == {
        "early": ["sku-0", "sku-3", "sku-6"], "late": ["sku-1", "sku-2", "sku-4"],
    }  # fmt: skip


def test_what_is_left_to_review_is_found_and_marked_a_part_at_a_time(
    database: Database, settings: Settings, store: S3Store
) -> None:
    factories.register(database)
    review = {"publish": {"review": "changed", "require": 0.1}}
    catalogue = cataloguing.create(database, **review)
    listed = [change("new"), *(change(f"sku-{nth}", kind="changed") for nth in range(6)), change("bad", kind="retried")]
    run_id = cataloguing.plan(database, store, catalogue, listed)
    cataloguing.tend(database, settings, store)
    cataloguing.render(database, store)
    with database.begin_system() as connection:
        job_id = runs.read(connection, run_id).job_id
    assert job_id is not None
    with database.begin(factories.TENANT) as connection:
        marks.put(connection, factories.TENANT, job_id, [1, 3], "accepted")
    cataloguing.tend(database, settings, store)
    run = cataloguing.read(database, run_id)
    assert (run.state, run.counts["to_review"]) == ("reviewing", 5)
    with database.begin(factories.TENANT) as connection:
        [need] = needs.of_tenant(connection, factories.TENANT)
        assert need.run is not None and (need.catalogue, need.run.id, need.copy) == ("shop", run_id, None)
        first = reviewing.page(connection, run, "none", after=-1, limit=3)
        rest = reviewing.page(connection, run, "none", after=first.place or 0, limit=3)
        accepted = reviewing.page(connection, run, "accepted", after=-1, limit=3)
        assert [[one.item for one in page.changes] for page in (first, rest, accepted)] == [
            ["sku-1", "sku-3", "sku-4"], ["sku-5", "bad"], ["sku-0", "sku-2"],
        ]  # fmt: skip
        assert (rest.place, accepted.place) == (None, None)
        assert reviewing.mark_next(connection, run, "rejected", after=-1, most=4) == (4, 6)
        assert reviewing.mark_next(connection, run, "rejected", after=6, most=4) == (1, None)
    cataloguing.tend(database, settings, store)
    assert cataloguing.read(database, run_id).counts["rejected"] == 5
    with database.begin(factories.TENANT) as connection:
        assert needs.of_tenant(connection, factories.TENANT) == []
