"""Runs of catalogues: what is rendered, copied and published of a feed, and what readers see."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import pytest
from sqlalchemy import text

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import (
    catalogues,
    changes,
    entries,
    expansion,
    lists,
    manifests,
    redrawing,
    reviewing,
    task,
    versions,
)
from services.core.catalogues.changes import Change
from services.core.db.database import Connection, Database
from services.core.db.leases import Lease
from services.core.deletion import jobs as deletion
from services.core.jobs import lifecycle, queries, shapes
from services.core.marks import marks
from services.core.marks.asked import Mark
from services.core.model.errors import Conflict, InvalidSubmission
from services.core.model.specs import Spec
from services.core.notify import Notifier
from services.core.policy import policies
from services.core.queue import segments
from services.core.schedules import firing
from services.core.schedules import runs as schedule_runs
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import cataloguing, factories, scheduling


class Shop:
    """A catalogue, with what a night needs."""

    def __init__(self, database: Database, settings: Settings, store: S3Store, **more: Any) -> None:
        self.database, self.settings, self.store = database, settings, store
        factories.register(database)
        self.catalogue = cataloguing.create(database, **more)

    def begin(self, items: Mapping[str, str], **asked: Any) -> int:
        cataloguing.upload(self.database, self.store, self.catalogue, items)
        run_id = cataloguing.begin(self.database, self.catalogue, **asked)
        self.tend()
        return run_id

    def night(self, items: Mapping[str, str], *, failing: tuple[str, ...] = (), **asked: Any) -> runs.Run:
        run_id = self.begin(items, **asked)
        cataloguing.render(self.database, self.store, failing=failing)
        self.tend()
        return self.read(run_id)

    def read(self, run_id: int) -> runs.Run:
        return cataloguing.read(self.database, run_id)

    def tend(self) -> None:
        cataloguing.tend(self.database, self.settings, self.store)

    def define(self, **more: Any) -> None:
        with self.database.begin(factories.TENANT) as connection:
            catalogues.put(connection, factories.TENANT, "shop", cataloguing.DEFINITION | more)

    def pictures(self) -> dict[str, bytes]:
        found = cataloguing.pictures(self.database, self.store, self.catalogue)
        return {item: data.rsplit(b" ", 1)[0] for (item, _), data in found.items()}

    def published(self) -> int | None:
        return cataloguing.again(self.database, self.catalogue).published

    def publish(self, version: int) -> None:
        with self.database.begin_system() as connection:
            found = catalogues.find(connection, factories.TENANT, self.catalogue.name, lock=True)
            catalogues.publish(connection, found, version)
        self.tend()

    def pointer(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.read(self.store.key(self.catalogue.folder + manifests.POINTER)))
        return found

    def objects(self, folder: str = "objects/") -> set[str]:
        return set(self.store.under(self.catalogue.folder + folder))

    def look(self) -> None:
        """As if pages had shown all pictures small."""
        for key in self.objects():
            self.store.put_file(self.store.key(self.catalogue.thumbnail_of(key)), io.BytesIO(b"small"), "image/webp")

    def scheduled(self, schedule_id: int) -> list[schedule_runs.Run]:
        with self.database.begin_system() as connection:
            schedule_runs.settle(connection)
            before = datetime(2100, 1, 1, tzinfo=UTC)
            return schedule_runs.page(connection, factories.TENANT, schedule_id, before=before, limit=10)

    def stale(self, version: int) -> set[str]:
        with self.database.begin_system() as connection:
            page = entries.page(connection, self.catalogue.id, version, after=("", ""), limit=100)
        return {entry.item for entry in page if entry.is_stale_in(version)}

    def pending(self) -> list[int]:
        with self.database.begin_system() as connection:
            return [item.id for item in runs.pending(connection)]

    def change(self, run: runs.Run, item: str) -> Change:
        with self.database.begin(factories.TENANT) as connection:
            page = changes.page(connection, run.id, first=0, limit=100)
        [found] = [change for change in page if change.item == item]
        return found

    def mark(self, run: runs.Run, item: str, mark: Mark | None) -> None:
        place = self.change(run, item).image(run.job_id)
        assert place is not None
        with self.database.begin(factories.TENANT) as connection:
            marks.put(connection, factories.TENANT, place[0], [place[1]], mark)

    def redraw(self, run: runs.Run, *items: str, key: str | None = None) -> int:
        with self.database.begin(factories.TENANT) as connection:
            positions = [self.change(run, item).position for item in items]
            return redrawing.redraw(
                connection, self.catalogue, run.id, positions, policy=policies.NOTHING, idempotency_key=key
            ).job_id

    def bytes(self, item: str) -> bytes:
        """What readers see, the seed with it."""
        return cataloguing.pictures(self.database, self.store, self.catalogue)[item, "front"]


@pytest.fixture
def shop(database: Database, settings: Settings, store: S3Store) -> Shop:
    return Shop(database, settings, store)


def test_a_night_renders_what_is_new_or_changed_and_publishes_it_as_a_whole(shop: Shop) -> None:
    first = shop.night({"a": "red", "b": "blue", "c": "green"})
    assert (first.state, first.version, shop.published()) == ("published", 1, 1)
    assert first.counts == {"new": 3, "changed": 0, "model": 0, "retried": 0, "broken": 0, "removed": 0, "unchanged": 0,
                            "images": 3, "done": 3, "failed": 0, "rejected": 0}  # fmt: skip
    assert shop.pictures() == {"a": b"red", "b": b"blue", "c": b"green"}
    objects = shop.objects()
    second = shop.night({"b": "blue", "a": "pink"})
    assert (second.state, second.version, second.base) == ("published", 2, 1)
    assert {kind: second.counts[kind] for kind in ("new", "changed", "removed", "unchanged")} == {
        "new": 0, "changed": 1, "removed": 1, "unchanged": 1}  # fmt: skip
    assert shop.pictures() == {"a": b"pink", "b": b"blue"}
    assert len(shop.objects() - objects) == 1  # what is unchanged is not copied again
    lines = shop.store.read(shop.pointer()["manifests"]["jsonl"]["object_key"]).decode().splitlines()
    assert [(row["item"], row["version"], row["stale"]) for row in map(json.loads, lines)] == [
        ("a", 2, False), ("b", 1, False)]  # fmt: skip
    assert shop.pointer()["version"] == 2
    third = shop.night({"a": "pink", "b": "blue"})
    assert (third.state, third.version, shop.published()) == ("unchanged", None, 2)
    assert not shop.objects(lists.FOLDER)


def test_a_failed_item_keeps_its_last_good_picture_and_is_tried_again(shop: Shop) -> None:
    shop.night({"a": "red", "b": "blue"})
    changed = {"a": "odd", "b": "blue"}
    kept = shop.night(changed, failing=("odd",))
    assert (kept.state, shop.published()) == ("kept", 1)
    assert kept.error == {
        "code": "too_few_good",
        "message": "1 of 2 pictures are good, 50.0%; publish.require asks for 100.0%.",
    }
    shop.define(publish={"require": 0.5})
    third = shop.night(changed, failing=("odd",))
    assert (third.state, third.version, third.counts["failed"]) == ("published", 3, 1)
    assert shop.pictures() == {"a": b"red", "b": b"blue"}
    assert shop.stale(3) == {"a"}
    with shop.database.begin_system() as connection:
        [troubled] = changes.page(connection, third.id, first=0, limit=10, troubled=True)
    assert (troubled.item, troubled.line, troubled.code, troubled.message) == ("a", 2, "error", "It cannot be drawn.")
    fourth = shop.night(changed)
    assert (fourth.state, fourth.counts["retried"]) == ("published", 1)
    assert shop.pictures() == {"a": b"odd", "b": b"blue"}
    assert shop.stale(4) == set()
    assert shop.stale(3) == {"a"}


def test_a_catalogue_whose_first_version_is_kept_is_left_alone_until_the_next_run(shop: Shop) -> None:
    run_id = shop.begin({"a": "odd"})
    cataloguing.render(shop.database, shop.store, failing=["odd"])
    lease = Lease(shop.database, f"catalogue/{shop.catalogue.id}", "scheduler-b")
    assert lease.take()
    task.run(shop.settings, shop.store, Notifier(shop.settings.redis_url), shop.catalogue.id, lease)
    lease.release()
    assert shop.read(run_id).state == "kept" and shop.published() is None
    assert shop.pending() == []  # else schedulers look at it again and again


def test_a_catalogue_asks_for_a_class_and_what_it_has_stays(shop: Shop) -> None:
    """Each variant for its own, or the catalogue for all. The class decides no key, so pictures that are there stay."""
    shop.night({"a": "red"})
    classes = [f"{factories.REVISION}/simulated/uint8/simulated/{size}" for size in (16, 4)]
    front = cataloguing.DEFINITION["variants"]["front"]
    side = front | {"prompt": "{{ title }}, side", "reproducibility_class": classes[1]}
    shop.define(reproducibility_class=classes[0], variants={"front": front, "side": side})
    run_id = shop.begin({"a": "red", "b": "blue"})
    run = shop.read(run_id)
    assert run.job_id is not None and run.counts["unchanged"] == 1
    with shop.database.begin(factories.TENANT) as connection:
        asked = [one.shape.reproducibility_class for one in shapes.of_job(connection, run.job_id)]
        page = changes.page(connection, run.id, first=0, limit=10)
    assert sorted(asked) == sorted(classes)
    told = {(one.item, one.variant): (one.request or {}).get("reproducibility_class") for one in page}
    assert told == {("b", "front"): classes[0], ("a", "side"): classes[1], ("b", "side"): classes[1]}


def test_a_rollback_shows_the_old_pictures_and_the_next_night_begins_there(shop: Shop) -> None:
    shop.night({"a": "red", "b": "blue"})
    shop.night({"a": "ugly", "b": "blue", "c": "new"})
    shop.publish(1)
    assert shop.pictures() == {"a": b"red", "b": b"blue"}
    assert shop.pointer()["version"] == 1
    third = shop.night({"a": "red", "b": "navy"})
    assert (third.base, third.version, third.counts["changed"]) == (1, 3, 1)
    assert shop.pictures() == {"a": b"red", "b": b"navy"}
    shop.publish(2)
    assert shop.pictures() == {"a": b"ugly", "b": b"blue", "c": b"new"}


def test_old_versions_go_with_the_objects_that_no_kept_one_has(shop: Shop) -> None:
    for night in range(6):
        shop.night({"a": str(night % 4), "b": "stays"})
        shop.look()
    with shop.database.begin_system() as connection:
        kept = [one.version for one in versions.listed(connection, shop.catalogue.id)]
        rows = entries.page(connection, shop.catalogue.id, 6, after=("", ""), limit=10)
    assert kept == [6, 5, 4]
    assert {entry.item: entry.from_version for entry in rows} == {"a": 6, "b": 1}
    assert {data.rsplit(b" ", 1)[0] for data in map(shop.store.read, shop.objects())} == {b"3", b"0", b"1", b"stays"}
    assert len(shop.objects(manifests.FOLDER)) == 9  # three of each version
    small = {shop.store.key(shop.catalogue.thumbnail_of(key)) for key in shop.objects()}
    assert set(shop.store.under(shop.catalogue.thumbnails)) == small


def test_a_schedule_runs_a_catalogue_and_ends_with_it(shop: Shop) -> None:
    cataloguing.upload(shop.database, shop.store, shop.catalogue, {"a": "red"})
    schedule = scheduling.put(
        shop.database, shop.settings, deadline="5h", target={"catalogue": {"name": "shop"}}, overlap="skip"
    )
    with shop.database.begin_system() as connection:
        firing.fire(connection, scheduling.NIGHT)
    scheduling.submitter(shop.database, shop.settings)()
    shop.tend()
    [run] = shop.scheduled(schedule.id)
    assert (run.state, run.job_id, run.deadline_at) == ("running", None, scheduling.NIGHT + timedelta(hours=5))
    cataloguing.render(shop.database, shop.store)
    shop.tend()
    [done] = shop.scheduled(schedule.id)
    assert (done.state, shop.pictures()) == ("completed", {"a": b"red"})
    with pytest.raises(InvalidSubmission, match="There is no catalogue"):
        scheduling.put(shop.database, shop.settings, target={"catalogue": {"name": "another"}})


def test_too_many_removed_items_wait_for_a_person(shop: Shop) -> None:
    shop.night({"a": "red", "b": "blue"})
    held = shop.night({"b": "blue"})
    assert (held.state, held.version, shop.published()) == ("kept", None, 1)
    assert held.error is not None
    assert held.error["code"] == "too_many_removed"
    assert shop.night({"b": "blue"}, accept_removed=True).state == "published"
    assert set(shop.pictures()) == {"b"}


def test_a_plan_changes_nothing(shop: Shop) -> None:
    found = shop.night({"a": "red"}, plan_only=True)
    assert (found.state, found.counts["new"], found.job_id, shop.published()) == ("planned", 1, None, None)


def test_a_source_that_is_not_usable_ends_the_run_with_one_report(shop: Shop) -> None:
    shop.night({"a": "red"})
    cataloguing.upload_text(shop.database, shop.store, shop.catalogue, "sku,title\na,red\nb,blue\na,pink\n")
    run = shop.read(cataloguing.begin(shop.database, shop.catalogue))
    shop.tend()
    found = shop.read(run.id)
    assert found.error is not None
    assert (found.state, found.error["code"], shop.published()) == ("failed", "bad_source", 1)
    assert "line 4" in found.error["message"]
    assert [problem["line"] for problem in found.source["problems"]] == [4]


def test_a_broken_item_keeps_its_picture_and_names_its_line(shop: Shop) -> None:
    shop.night({"a": "red", "b": "blue"})
    shop.define(publish={"require": 0.5})
    run = shop.night({"a": "pink", "b": ""})
    assert (run.state, run.counts["broken"], run.counts["failed"]) == ("published", 1, 1)
    assert shop.pictures() == {"a": b"pink", "b": b"blue"}
    with shop.database.begin_system() as connection:
        [broken] = changes.page(connection, run.id, first=0, limit=10, kind="broken")
    assert (broken.item, broken.line, broken.outcome, broken.code) == ("b", 3, "failed", "empty_result")


def test_changed_pictures_wait_for_a_person(database: Database, settings: Settings, store: S3Store) -> None:
    shop = Shop(database, settings, store, publish={"review": "changed", "require": 0})
    shop.night({"a": "red", "b": "blue"})  # what is new waits for nobody
    assert shop.published() == 1
    changed = {"a": "pink", "b": "navy", "c": "new"}
    run = shop.night(changed)
    assert (run.state, run.counts["to_review"]) == ("reviewing", 2)
    shop.mark(run, "a", "accepted")
    shop.tend()
    assert shop.read(run.id).state == "reviewing"
    shop.mark(run, "b", "rejected")
    shop.tend()
    done = shop.read(run.id)
    assert (done.state, done.counts["done"], done.counts["rejected"]) == ("published", 2, 1)
    assert shop.pictures() == {"a": b"pink", "b": b"blue", "c": b"new"}
    again = shop.night(changed)  # with another seed
    assert (again.state, again.counts["changed"]) == ("reviewing", 1)


def test_a_review_waits_for_the_pictures_that_replace_others_and_for_no_other_mark(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop = Shop(database, settings, store, publish={"review": "changed", "require": 0})
    shop.night({"a": "red", "b": "blue"})
    begun = shop.begin({"a": "pink", "b": "navy", "c": "new", "d": "newer"})
    cataloguing.render(database, store)
    shop.mark(shop.read(begun), "c", "accepted")  # before the review begins
    shop.tend()
    run = shop.read(begun)
    assert (run.state, run.counts["to_review"]) == ("reviewing", 2)
    shop.mark(run, "d", "accepted")
    assert shop.pending() == []  # nobody looks again and again
    shop.mark(run, "a", "accepted")
    shop.tend()
    assert (shop.read(begun).state, shop.pending()) == ("reviewing", [])
    shop.mark(run, "a", None)
    shop.mark(run, "b", "accepted")
    shop.tend()
    assert (shop.read(begun).state, shop.pending()) == ("reviewing", [])
    with database.begin(factories.TENANT) as connection:
        marked = marks.counts(connection, factories.TENANT, run.job_id or 0)
    assert (reviewing.done(run, marked, left=1), reviewing.done(run, marked, left=0)) == (1, 2)
    shop.mark(run, "c", None)
    shop.mark(run, "a", "accepted")
    shop.tend()
    assert shop.read(begun).state == "published"


def reviewed(database: Database, settings: Settings, store: S3Store, **asked: Any) -> tuple[Shop, runs.Run]:
    """A shop with two changed pictures in a review."""
    shop = Shop(database, settings, store, publish={"review": "changed", "require": 0})
    shop.night({"a": "red", "b": "blue"})
    run = shop.night({"a": "pink", "b": "navy"}, **asked)
    assert (run.state, run.counts["to_review"]) == ("reviewing", 2)
    return shop, run


def test_a_picture_that_is_drawn_again_takes_the_place_of_the_old_one_and_waits_for_a_mark(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop, run = reviewed(database, settings, store)
    shop.mark(run, "b", "accepted")
    shop.mark(run, "a", "rejected")
    before = shop.change(run, "a")
    assert before.request is not None
    job = shop.redraw(run, "a")
    shop.tend()
    assert (shop.read(run.id).state, shop.pending()) == ("reviewing", [])  # it is waited for
    with pytest.raises(Conflict, match="a, front is being drawn again already"):
        shop.redraw(run, "a")
    cataloguing.render(database, store)
    shop.tend()
    now, change = shop.read(run.id), shop.change(run, "a")
    assert (now.state, now.redraw_jobs, shop.pending()) == ("reviewing", [job], [])
    assert change.request is not None
    assert (change.redraws, change.image(run.job_id), change.position) == (1, (job, 0), before.position)
    assert change.request["seed"] not in (before.request["seed"], None)
    with database.begin(factories.TENANT) as connection:
        [page] = [reviewing.page(connection, now, "none", after=-1, limit=10).changes]
        marked = reviewing.counts(connection, now)
        view = queries.image(connection, factories.TENANT, job, 0)
    assert ([one.item for one in page], reviewing.done(now, marked, left=1)) == (["a"], 1)
    assert view is not None and (view.seed, view.payload.prompt) == (change.request["seed"], "pink")
    assert change.render_key is not None
    with database.begin_system() as connection:
        shape = connection.execute(text("SELECT model_revision, width, height, steps FROM segments WHERE job_id = :id"),
                                   {"id": job}).one()  # fmt: skip
    spec = Spec(shape[0], "pink", "", view.seed, *shape[1:], view.payload.guidance_scale)
    assert change.render_key.hex() == spec.render_key("png", None)
    shop.mark(now, "a", "accepted")
    shop.tend()
    done = shop.read(run.id)
    assert (done.state, done.counts["done"], done.counts["rejected"]) == ("published", 2, 0)
    assert shop.bytes("a") == f"pink {change.request['seed']}".encode()
    with database.begin_system() as connection:
        entry = entries.find(connection, shop.catalogue.id, 2, "a", "front")
    assert entry is not None
    assert (entry.job_id, entry.index, entry.request["seed"]) == (job, 0, change.request["seed"])
    assert shop.night({"a": "pink", "b": "navy"}).state == "unchanged"  # it keeps its new look
    again = shop.night({"a": "rose", "b": "navy"})
    seeds = shop.change(again, "a")
    assert seeds.request is not None
    assert (seeds.redraws, seeds.request["seed"]) == (1, change.request["seed"])


def test_a_review_waits_for_what_is_drawn_again_when_all_others_have_a_mark(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop, run = reviewed(database, settings, store)
    shop.mark(run, "a", "accepted")
    shop.tend()  # now it waits for the other one
    shop.redraw(run, "a")
    shop.mark(run, "b", "accepted")
    assert shop.pending() == [shop.catalogue.id]
    shop.tend()
    assert (shop.read(run.id).state, shop.pending()) == ("reviewing", [])
    cataloguing.render(database, store)
    assert shop.pending() == []
    shop.mark(run, "a", "accepted")
    shop.tend()
    assert shop.read(run.id).state == "published"


def test_a_picture_may_be_drawn_again_many_times_and_each_seed_follows_from_the_last(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop, run = reviewed(database, settings, store)
    seeds = []
    for _ in range(3):
        shop.redraw(run, "a", "b")
        cataloguing.render(database, store)
        shop.tend()
        found = shop.change(run, "a")
        assert found.request is not None
        seeds.append(found.request["seed"])
    assert len(set(seeds)) == 3 and len(shop.read(run.id).redraw_jobs) == 3
    rule = expansion.seed_of
    assert seeds == [rule("by-id", "shop", "a", "front", redraws) for redraws in (1, 2, 3)]
    shop.mark(run, "a", "rejected")
    shop.mark(run, "b", "accepted")
    shop.tend()
    assert shop.read(run.id).state == "published"
    next_one = shop.change(shop.night({"a": "pink", "b": "navy"}), "a")
    assert next_one.request is not None
    assert next_one.request["seed"] == rule("by-id", "shop", "a", "front", 4)


def test_a_redraw_is_one_job_however_often_it_is_sent_or_what_is_cut_off(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop, run = reviewed(database, settings, store)
    with database.begin(factories.TENANT) as connection:
        redrawing.redraw(connection, shop.catalogue, run.id, [shop.change(run, "a").position], policy=policies.NOTHING)
        connection.rollback()  # as if the process had died before the commit
    assert (shop.read(run.id).redraw_jobs, shop.change(run, "a").redraws) == ([], 0)
    job = shop.redraw(run, "a", key="once")
    assert shop.redraw(run, "a", key="once") == job
    assert shop.read(run.id).redraw_jobs == [job]
    for item, code in (("c", "not_reviewed"), ("a", "being_drawn")):
        position = 17 if item == "c" else shop.change(run, item).position
        with database.begin(factories.TENANT) as connection, pytest.raises(Conflict) as refused:
            redrawing.redraw(connection, shop.catalogue, run.id, [position], policy=policies.NOTHING)
        assert refused.value.code == code
    with database.begin(factories.TENANT) as connection:
        total = connection.execute(text("SELECT total FROM jobs WHERE id = :id"), {"id": job}).scalar_one()
    assert total == 1


@pytest.mark.parametrize("undecided", ["accept", "reject"])
def test_at_the_deadline_what_is_still_being_drawn_again_is_stopped_and_the_rest_counts(
    database: Database, settings: Settings, store: S3Store, undecided: str
) -> None:
    shop = Shop(database, settings, store, publish={"review": "changed", "require": 0, "undecided": undecided})
    shop.night({"a": "red", "b": "blue"})
    run = shop.night({"a": "pink", "b": "navy"}, deadline=datetime.now(UTC) + timedelta(days=1))
    shop.redraw(run, "a")
    cataloguing.render(database, store)
    late = shop.redraw(run, "b")
    with database.begin_system() as connection:
        connection.execute(text("UPDATE catalogue_runs SET deadline = now() WHERE id = :id"), {"id": run.id})
    assert shop.pending() == [shop.catalogue.id]
    shop.tend()
    done = shop.read(run.id)
    assert (done.state, done.counts["done"]) == ("published", 1 if undecided == "accept" else 0)
    assert shop.pictures() == {"a": b"pink" if undecided == "accept" else b"red", "b": b"blue"}
    with database.begin_system() as connection:
        [job] = queries.any_jobs(connection, [late])
        segments.sweep_cancelled(connection)
        lifecycle.finish(connection)
    assert job.cancel_requested_at is not None
    wanted = shop.change(run, "b").request
    again = shop.night({"a": "pink", "b": "navy"})  # the next run draws what was asked for
    found = shop.change(again, "b")
    assert wanted is not None and found.request is not None
    assert (found.kind, found.request["seed"]) == ("retried", wanted["seed"])
    with pytest.raises(Conflict, match="not in a review"):
        shop.redraw(run, "a")


def test_a_redraw_that_fails_or_is_deleted_ends_the_wait_and_the_picture_before_stays(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop, run = reviewed(database, settings, store)
    shop.redraw(run, "a")
    job = shop.redraw(run, "b")
    shop.tend()
    assert shop.pending() == []
    with database.begin_system() as connection:
        lifecycle.cancel(connection, factories.TENANT, job)
        segments.sweep_cancelled(connection)
        lifecycle.finish(connection)
        deletion.delete(connection, factories.TENANT, job)
    assert shop.pending() == []  # the other one is still drawn
    cataloguing.render(database, store, failing=("pink",))
    shop.tend()
    done = shop.read(run.id)
    assert (done.state, done.counts["failed"], done.causes) == ("published", 2, {"error": 1, "not_rendered": 1})
    assert shop.pictures() == {"a": b"red", "b": b"blue"}


def test_a_cancelled_run_stops_what_its_review_draws_again(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop, run = reviewed(database, settings, store)
    job = shop.redraw(run, "a")
    with database.begin(factories.TENANT) as connection:
        runs.cancel(connection, shop.catalogue.id, run.id)
    shop.tend()
    with database.begin_system() as connection:
        [found] = queries.any_jobs(connection, [job])
    assert shop.read(run.id).state == "cancelled" and found.cancel_requested_at is not None


def test_a_run_whose_job_is_deleted_during_the_review_ends(
    database: Database, settings: Settings, store: S3Store
) -> None:
    shop = Shop(database, settings, store, publish={"review": "changed"})
    shop.night({"a": "red"})
    run = shop.night({"a": "pink"})
    assert run.state == "reviewing" and run.job_id is not None
    with database.begin_system() as connection:
        deletion.delete(connection, factories.TENANT, run.job_id)
    shop.tend()
    assert shop.read(run.id).state == "kept"
    assert shop.pictures() == {"a": b"red"}
    shop.begin({"a": "blue"})  # and the next run may begin


def test_at_the_deadline_a_run_writes_what_there_is(shop: Shop) -> None:
    shop.night({"a": "red"})
    shop.define(publish={"require": 0})
    late = shop.begin({"a": "pink", "b": "new"}, deadline=datetime.now(UTC) - timedelta(seconds=1))
    with shop.database.begin_system() as connection:
        segments.sweep_cancelled(connection)
        lifecycle.finish(connection)
    shop.tend()
    run = shop.read(late)
    assert (run.state, run.counts["failed"]) == ("published", 2)
    assert shop.pictures() == {"a": b"red"}


def test_one_run_at_a_time_and_a_cancelled_one_changes_nothing(shop: Shop) -> None:
    shop.night({"a": "red"})
    going = shop.begin({"a": "pink"})
    with pytest.raises(Conflict, match="has not ended"):
        cataloguing.begin(shop.database, shop.catalogue)
    with shop.database.begin(factories.TENANT) as connection:
        runs.cancel(connection, shop.catalogue.id, going)
    shop.tend()
    assert shop.read(going).state == "cancelled"
    assert shop.pictures() == {"a": b"red"}
    assert shop.night({"a": "pink"}).state == "published"


def test_a_deleted_catalogue_leaves_no_object(shop: Shop) -> None:
    shop.night({"a": "red"})
    shop.look()
    with shop.database.begin(factories.TENANT) as connection:
        catalogues.remove(connection, factories.TENANT, "shop")
    shop.tend()
    assert not list(shop.store.under(shop.catalogue.folder))
    assert not list(shop.store.under(shop.catalogue.thumbnails))
    assert cataloguing.create(shop.database).id != shop.catalogue.id


def test_a_version_that_was_published_meanwhile_stays(shop: Shop) -> None:
    shop.night({"a": "red"})
    shop.night({"a": "pink"})
    run_id = shop.begin({"a": "blue"})
    shop.publish(1)
    cataloguing.render(shop.database, shop.store)
    shop.tend()
    run = shop.read(run_id)
    assert run.error is not None
    assert (run.state, run.error["code"], shop.pictures()) == ("kept", "published_meanwhile", {"a": b"red"})


class Crash(BaseException):
    """The process dies."""


class Dying(Database):
    """Dies at one of its transactions: before its commit, or after it."""

    def die_at(self, transaction: int, *, committed: bool) -> Self:
        self._left, self._committed = transaction, committed
        return self

    @contextmanager
    def begin_system(self) -> Iterator[Connection]:
        self._left -= 1
        with super().begin_system() as connection:
            yield connection
            if self._left == 0 and not self._committed:
                raise Crash
        if self._left == 0:
            raise Crash


def test_a_run_that_dies_at_any_transaction_ends_once_and_readers_see_whole_versions(
    shop: Shop, database_url: str
) -> None:
    shop.night({"a": "red", "b": "blue", "c": "green"})
    before, after = shop.pictures(), {"a": b"pink", "b": b"blue", "d": b"new"}
    cataloguing.upload(shop.database, shop.store, shop.catalogue, {"a": "pink", "b": "blue", "d": "new"})
    run_id = cataloguing.begin(shop.database, shop.catalogue)
    dying = Dying(database_url, application="presswork dying")
    lease = Lease(dying, f"catalogue/{shop.catalogue.id}", "scheduler-a")
    deaths = 0
    for transaction in range(1, 80):
        if shop.read(run_id).is_final:
            break
        for committed in (False, True):
            lease.database.die_at(transaction, committed=committed)  # type: ignore[attr-defined]
            try:
                lease.take()
                task.run(shop.settings, shop.store, Notifier(shop.settings.redis_url), shop.catalogue.id, lease)
            except Crash:
                deaths += 1
            run = shop.read(run_id)
            assert shop.pictures() == (after if shop.published() == 2 else before)
            if run.state == "rendering":
                cataloguing.render(shop.database, shop.store)
    dying.close()
    shop.tend()
    assert deaths > 12
    assert (run.state, run.version, shop.published()) == ("published", 2, 2)
    assert run.counts["done"] == 2
    assert shop.pointer()["version"] == 2
    with shop.database.begin_system() as connection:
        assert len(queries.jobs(connection, factories.TENANT, before=2**63 - 1, limit=10)) == 2
