"""Single versions of a dataset are deleted: the others stay whole, and nothing of the deleted one is left."""

import pytest
from sqlalchemy import text

from services.core.datasets import comparison, dataset_records, version_removal
from services.core.deletion import jobs as deletion
from services.core.model.errors import Conflict, NotFound
from services.core.storage.s3 import S3Store
from tests import collecting
from tests.collecting import TENANT
from tests.integration.test_datasets import Killed, captions, prompts


class DyingStore(S3Store):
    drops_left = 0

    def drop(self, key: str) -> None:
        if self.drops_left == 0:
            raise Killed
        self.drops_left -= 1
        super().drop(key)


def remove(database, number: int, name: str = "mugs") -> None:
    with database.begin(TENANT) as connection:
        version_removal.remove(connection, TENANT, name, number)


def stored(database, store, number: int | None = None) -> set[str]:
    """The keys of the dataset's objects, or of those that were written for a version."""
    with database.begin(TENANT) as connection:
        dataset = dataset_records.find(connection, TENANT, "mugs")
    return set(store.under(dataset.folder(number)))


def named(database, number: int) -> set[str]:
    return {file.object_key for file in collecting.files(database, number).values()}


@pytest.fixture
def grown(database, settings, store) -> int:
    """A job of which versions 1 to 3 are made: each loses an image and gains a job."""
    first = collecting.rendered(database, settings, store, captions(9))
    collecting.make(database, first, images_per_shard=3)
    collecting.export(database, settings, store)
    for number, lost in ((2, 1), (3, 4)):
        collecting.mark(database, first, [lost], "rejected")
        collecting.add(database, collecting.rendered(database, settings, store, captions(2, first=100 * number)))
        collecting.export(database, settings, store)
    return first


@pytest.mark.parametrize("gone", [(1,), (2,), (1, 2), (2, 1)])
def test_what_other_versions_hold_stays_and_all_else_is_deleted(
    database, settings, store, tmp_path, grown, gone
):  # fmt: skip
    kept = {number: (collecting.sums(database, number), named(database, number)) for number in {1, 2, 3} - set(gone)}
    for number in gone:
        remove(database, number)
        with pytest.raises(NotFound, match="no version"):
            collecting.version(database, number)
        collecting.run(database, settings, store)
    assert stored(database, store) == set().union(*(keys for _, keys in kept.values()))
    for number, (sums, _) in kept.items():
        assert collecting.sums(database, number) == sums
        collecting.download(database, store, number, tmp_path / str(number))  # checks every file
    four = collecting.export(database, settings, store)
    assert (four.number, four.base, four.images_written, four.images) == (4, 3, 0, 11)
    with database.begin(TENANT) as connection:
        dataset = dataset_records.find(connection, TENANT, "mugs")
        numbers = [one.number for one in dataset_records.versions(connection, dataset, before=99, limit=9)]
        left, right = (dataset_records.completed(connection, dataset, at) for at in (min(kept), 4))
        found = comparison.compare(connection, left, right, limit=100)
    assert numbers == [4, *sorted(kept, reverse=True)]
    assert (found.added, found.removed) == {1: (4, 2), 2: (2, 1), 3: (0, 0)}[min(kept)]


@pytest.mark.parametrize("at_once", [True, False])
def test_after_the_last_ones_the_next_is_made_from_the_one_before_under_new_names(
    database, settings, store, tmp_path, grown, at_once
):
    before = {number: collecting.sums(database, number) for number in (1, 2, 3)}
    for number in (2, 3):
        remove(database, number)
        if not at_once:
            collecting.run(database, settings, store)
    collecting.run(database, settings, store)
    assert stored(database, store) == named(database, 1)
    assert collecting.sums(database, 1) == before[1]
    collecting.mark(database, grown, [1], None)
    four = collecting.export(database, settings, store)
    # image 4 is still rejected, the two later jobs come anew
    assert (four.state, four.number, four.base, four.images, four.images_written) == ("completed", 4, 1, 12, 6)
    tree = collecting.download(database, store, 4, tmp_path)
    taken = [n for n in range(9) if n != 4] + [200, 201, 300, 301]
    assert prompts(tree) == sorted(f"mug {n}" for n in taken)
    after = collecting.sums(database, 4)
    collecting.mark(database, grown, [0], "rejected")
    five = collecting.export(database, settings, store)
    assert (five.state, five.images) == ("completed", 11), five.error
    assert prompts(collecting.download(database, store, 5, tmp_path / "5")) == sorted(f"mug {n}" for n in taken if n)
    for number in (2, 3):
        for path in before[number].keys() & after.keys() - {"manifest.json", "SHA256SUMS", "README.md"}:
            assert path.startswith(".nv-meta/") or after[path] == before[number][path], path


def test_retries_stay_of_one_family_when_the_version_that_knew_the_one_between_is_deleted(
    database, settings, store, tmp_path
):
    first = collecting.rendered(database, settings, store, captions(6), failed=frozenset({1, 2}))
    collecting.make(database, first)
    collecting.export(database, settings, store)
    between = collecting.retried(database, settings, store, first, failed=frozenset({0}))
    collecting.retried(database, settings, store, between)
    assert collecting.export(database, settings, store).images == 6
    with database.begin_system() as connection:
        deletion.delete(connection, TENANT, between)
        connection.execute(text("SELECT presswork_delete_images(:id, 0, 9)"), {"id": between})
        while connection.execute(text("SELECT presswork_delete_job(:id, 100)"), {"id": between}).scalar_one():
            pass
    remove(database, 2)
    collecting.run(database, settings, store)
    three = collecting.export(database, settings, store)
    assert (three.base, three.images) == (1, 5), three.error
    found = prompts(collecting.download(database, store, 3, tmp_path))
    assert found == [f"mug {n}" for n in (0, 1, 3, 4, 5)]  # that of the retry of the retry is there


def test_the_only_version_is_deleted_and_the_next_one_is_the_first_of_new_numbers(database, settings, store):
    collecting.make(database, collecting.rendered(database, settings, store, captions(4)), images_per_shard=3)
    collecting.export(database, settings, store)
    names = set(collecting.sums(database, 1))
    remove(database, 1)
    collecting.run(database, settings, store)
    assert stored(database, store) == set()
    two = collecting.export(database, settings, store)
    assert (two.number, two.base, two.images_written) == (2, 0, 4)
    assert not {path for path in collecting.sums(database, 2) if path.startswith("data/")} & names


def test_what_is_being_written_or_read_for_another_version_is_not_deleted(database, settings, store, grown):
    number = collecting.order(database)
    with pytest.raises(Conflict, match="Version 4 of mugs is being written; cancel it"):
        remove(database, number)
    with pytest.raises(Conflict, match="Version 4 of mugs is being written from it; wait for that, or cancel it"):
        remove(database, 3)
    remove(database, 2)
    collecting.run(database, settings, store)
    assert collecting.version(database, 4).state == "completed"
    with pytest.raises(NotFound):
        remove(database, 2)
    with pytest.raises(NotFound):
        remove(database, 9)


def test_a_version_that_failed_is_taken_from_the_list(database, settings, store):
    job = collecting.rendered(database, settings, store, captions(2))
    collecting.make(database, job, filters={"metadata": ["lang=xx"]})
    assert collecting.export(database, settings, store).state == "failed"
    remove(database, 1)
    collecting.run(database, settings, store)
    with database.begin(TENANT) as connection:
        dataset = dataset_records.find(connection, TENANT, "mugs")
        assert dataset_records.versions(connection, dataset, before=9, limit=9) == []


def test_a_deletion_that_is_killed_goes_on_and_is_an_event_of_its_transaction(database, settings, store, grown):
    kept = collecting.sums(database, 3)
    dying = DyingStore(settings)
    remove(database, 1)
    remove(database, 2)
    deaths = 0
    for holder in (f"scheduler-{n}" for n in range(40)):
        dying.drops_left = deaths
        try:
            collecting.run(database, settings, dying, holder)
            break
        except Killed:
            deaths += 1
            collecting.age_leases(database)
            assert collecting.sums(database, 3) == kept
    assert deaths >= 4
    assert stored(database, store) == named(database, 3)
    with database.begin_system() as connection:
        rows = connection.execute(text("SELECT subject, data FROM events WHERE kind = 'dataset.version_deleted'")).all()
    assert [tuple(row) for row in rows] == [("dataset/mugs", {"version": n}) for n in (1, 2)]
