"""Versions that are copied to another bucket: what lies there, when the pointer moves, and what any trouble leaves."""

import dataclasses
import hashlib
import io
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, text

from services.cli import catalogue_tables
from services.core.catalogues import catalogues, copies, destinations, entries, task, versions
from services.core.catalogues.changes import Change
from services.core.catalogues.destinations import Destination
from services.core.catalogues.entries import Picture
from services.core.db.database import Database
from services.core.db.leases import Lease, LeaseLost
from services.core.model.errors import InvalidSubmission, StoreUnavailable
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import cataloguing, factories
from tests.integration.test_catalogue_runs import Crash, Dying, Shop
from tests.peers import S3Proxy
from tests.web import Api

BUCKET = "shop-pictures"
STABLE = "{{ variant }}/{{ item }}.{{ extension }}"
ODD = {"../x": "up", "a/b": "deep", "ü": "two bytes"}


class Copied(Shop):
    """A shop whose pictures are copied to a folder of another bucket."""

    def __init__(self, database: Database, settings: Settings, **more: Any) -> None:
        self.quick = True
        self.folder = uuid.uuid4().hex
        self.place = f"{BUCKET}/{self.folder}"
        super().__init__(database, settings, S3Store(settings), publish=self.to(**more))
        self.other_settings = dataclasses.replace(settings, bucket=BUCKET)
        self.other = S3Store(self.other_settings)
        self.other.prepare()

    def show(self, items: Mapping[str, str]) -> None:
        """Publishes a version with these pictures, without a run, and does what is then to do."""
        self.publish_only(items)
        self.tend()

    def publish_only(self, items: Mapping[str, str]) -> None:
        before = {item: data.decode() for item, data in self.pictures().items()}
        new = [cataloguing.change(item, text) for item, text in items.items() if before.get(item) != text]
        with self.database.begin_system() as connection:
            now = catalogues.find(connection, factories.TENANT, "shop", lock=True)
            version = catalogues.begin_version(connection, now.id)
            entries.begin_as(connection, now.id, base=now.published or 0, version=version, most=1_000)
            entries.replace(connection, now.id, version, [self._picture(one) for one in new])
            entries.remove(
                connection, now.id, version, [cataloguing.change(item) for item in before if item not in items]
            )
            versions.add(connection, now.id, version, 1, images=len(items), size=0, manifests={})
            catalogues.publish(connection, now, version)

    def _picture(self, change: Change) -> Picture:
        data = f"{(change.request or {})['prompt']} {change.position}".encode()
        digest = hashlib.sha256(data)
        key = self.store.key(f"{self.catalogue.folder}objects/{digest.hexdigest()}.png")
        self.store.put_file(key, io.BytesIO(data), "image/png")
        return Picture(change, key, digest.digest(), len(data), "class", 1, change.position)

    def work(self, lease: Lease) -> None:
        """What the scheduler does for the catalogue."""
        lease.take()
        task.run(self.settings, self.store, Notifier(self.settings.redis_url), self.catalogue.id, lease)

    def tend(self) -> None:
        if self.quick:
            lease = Lease(self.database, f"catalogue/{self.catalogue.id}", "scheduler-a")
            self.work(lease)
            lease.release()
        else:
            super().tend()

    def to(self, **more: Any) -> dict[str, Any]:
        return {"to": {"s3": self.place} | more, "require": 0.5}

    def destination(self) -> Destination:
        with self.database.begin_system() as connection:
            found = destinations.find(connection, self.catalogue.id)
        assert found is not None
        return found

    def names(self) -> set[str]:
        return {key.removeprefix(f"{self.folder}/") for key in self.other.under(f"{self.folder}/")}

    def shown(self) -> tuple[int, dict[str, bytes]]:
        """What a reader sees who follows the pointer: the version, and each item's prompt from its verified picture."""
        pointer = json.loads(self.other.read(f"{self.folder}/current.json"))
        manifest = self.other.read(pointer["manifest"]["object_key"])
        assert hashlib.sha256(manifest).hexdigest() == pointer["manifest"]["sha256"]
        found = {}
        for row in map(json.loads, manifest.splitlines()):
            data = self.other.read(row["object_key"])
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (row["sha256"], row["bytes"])
            found[row["item"]] = data.rsplit(b" ", 1)[0]
        assert len(found) == pointer["images"]
        return pointer["version"], found

    def ledger(self) -> set[str]:
        with self.database.begin_system() as connection:
            return {one.name for one in copies.page(connection, self.destination(), after="", limit=1_000)}

    def is_pending(self) -> bool:
        """Whether the scheduler finds something to do."""
        with self.database.begin_system() as connection:
            return self.catalogue.id in {one.id for one in task.pending(connection)}

    def through(self, proxy: S3Proxy | None) -> None:
        """From now on the store is reached through it, or directly again."""
        url = self.other_settings.s3_endpoint_url if proxy is None else proxy.url
        self.settings = dataclasses.replace(self.settings, s3_endpoint_url=url)
        self.store = S3Store(self.settings)

    def put(self, name: str, data: bytes) -> None:
        self.other.put_file(f"{self.folder}/{name}", io.BytesIO(data), "image/png")


@pytest.fixture
def allowed(store_admin: Settings) -> Settings:
    return dataclasses.replace(store_admin, publish_buckets=frozenset({BUCKET, store_admin.bucket}))


@pytest.fixture
def shop(database: Database, allowed: Settings) -> Copied:
    return Copied(database, allowed)


def test_a_published_version_is_copied_and_only_what_changes_is_copied_again(shop: Copied, allowed: Settings) -> None:
    shop.quick = False
    shop.night({"a": "red", "b": "blue"} | ODD)
    assert shop.shown() == (1, {"a": b"red", "b": b"blue"} | {item: text.encode() for item, text in ODD.items()})
    first = shop.names()
    assert len(first) == 5 + 2  # the manifest and the pointer
    assert not any(".." in name or name.count("/") != 1 for name in first - {"current.json"})
    found = shop.destination()
    assert (found.state, found.announced, found.counts) == ("done", 1, {"images": 5, "copied": 5, "deleted": 0})
    with S3Proxy(allowed.s3_endpoint_url, lambda *_: None) as proxy:
        shop.through(proxy)
        assert shop.night({"a": "red", "b": "blue"} | ODD).state == "unchanged"
        assert not [path for method, path, _ in proxy.asked if method == "PUT" and BUCKET in path]
        shop.night({"a": "pink"} | ODD)
        asked = [(method, path.partition(f"{shop.folder}/")[2]) for method, path, _ in proxy.asked if BUCKET in path]
    written = [name for method, name in asked if method == "PUT"]
    deleted = [name for method, name in asked if method == "DELETE"]
    assert written[0].startswith("front/a-")
    assert (written[1][:19], written[2:]) == ("manifests/00000002-", ["current.json"])
    assert sorted(name[:8] for name in deleted) == ["front/a-", "front/b-", "manifest"]
    assert asked.index(("PUT", "current.json")) < min(asked.index(("DELETE", name)) for name in deleted)
    assert shop.shown() == (2, {"a": b"pink"} | {item: text.encode() for item, text in ODD.items()})
    assert shop.names() - {"current.json"} == shop.ledger()
    assert shop.destination().counts == {"images": 4, "copied": 1, "deleted": 2}


def test_a_rollback_another_template_and_another_folder_are_followed(shop: Copied) -> None:
    shop.show({"a": "red", "b": "blue"})
    shop.show({"a": "pink", "c": "green"})
    shop.publish(1)
    assert shop.shown() == (1, {"a": b"red", "b": b"blue"})
    shop.define(publish=shop.to(name=STABLE))
    shop.tend()
    assert {name[:11] for name in shop.ledger()} == {"front/a.png", "front/b.png", "manifests/0"}
    assert shop.names() - {"current.json"} == shop.ledger()
    with shop.database.begin_system() as connection:
        named = connection.exec_driver_sql("SELECT name, xmin FROM catalogue_copies ORDER BY name").all()
    shop.show({"a": "red", "b": "green"})
    with shop.database.begin_system() as connection:
        after = connection.exec_driver_sql("SELECT name, xmin FROM catalogue_copies ORDER BY name").all()
    assert (after[0] == named[0], after[1] == named[1]) == (True, False)  # what stays is not written again
    shop.publish(1)
    shop.show({"a": "navy", "b": "blue"})
    assert shop.shown() == (4, {"a": b"navy", "b": b"blue"})
    left, shop.folder = shop.folder, uuid.uuid4().hex
    shop.place = f"{BUCKET}/{shop.folder}"
    shop.define(publish=shop.to())
    shop.tend()
    assert shop.shown() == (4, {"a": b"navy", "b": b"blue"})
    assert len(list(shop.other.under(f"{left}/"))) == 4  # what lies at another place stays
    shop.define()
    shop.tend()
    with shop.database.begin_system() as connection:
        assert destinations.find(connection, shop.catalogue.id) is None
        catalogues.remove(connection, factories.TENANT, "shop")
    shop.tend()
    assert shop.shown()[0] == 4
    with shop.database.begin_system() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM catalogue_copies").scalar() == 0


def test_a_store_that_refuses_in_the_middle_leaves_the_old_version_and_is_tried_again(
    shop: Copied, allowed: Settings
) -> None:
    shop.show({"a": "red", "b": "blue", "c": "green"})
    before, copied = shop.names(), 0

    def rule(method: str, path: str, _: Any) -> Any:
        nonlocal copied
        copied += method == "PUT" and f"/{shop.place}/" in path
        # Not a HEAD, whose answer has no body that could say so.
        return (403, "AccessDenied", "") if copied > 2 and method != "HEAD" and f"/{shop.place}/" in path else None

    with S3Proxy(allowed.s3_endpoint_url, rule) as proxy:
        shop.through(proxy)
        shop.show(dict.fromkeys("abcd", "pink"))
        found = shop.destination()
        assert shop.published() == 2  # whoever reads from here is not concerned
        assert (found.state, found.announced, found.next_at is not None) == ("failed", 1, True)
        assert found.error is not None
        assert found.error["message"] == (
            f"The object store refuses s3://{BUCKET} with AccessDenied: the store's key needs s3:GetObject, "
            "s3:PutObject and s3:DeleteObject there, and s3:ListBucket on the bucket."
        )
        assert shop.shown() == (1, {"a": b"red", "b": b"blue", "c": b"green"})
        assert before < shop.names()
        copied = -1_000
        with shop.database.begin(factories.TENANT) as connection:
            destinations.again(connection, shop.catalogue.id)
        shop.tend()
    found = shop.destination()
    assert (found.state, found.counts["images"], shop.shown()) == ("done", 4, (2, dict.fromkeys("abcd", b"pink")))
    assert found.counts["copied"] < 4  # what had been copied is read back
    assert len(shop.names()) == 4 + 2


def test_pictures_that_would_have_one_name_are_named_and_nothing_is_copied(shop: Copied) -> None:
    shop.define(publish=shop.to(name="{{ item | downcase }}.png"))
    shop.show({"a": "red", "b": "blue"})
    shop.show({"a": "pink", "A": "green", "b": "blue"})
    found = shop.destination()
    assert found.error is not None
    assert (found.state, found.error["code"], found.next_at) == ("failed", "same_name", None)
    assert "publish.to.name gives a.png for the item 'A', variant front and for the item 'a'" in found.error["message"]
    assert shop.shown() == (1, {"a": b"red", "b": b"blue"})
    shop.show({"A": "green", "b": "blue"})  # the name is free now
    assert shop.shown() == (3, {"A": b"green", "b": b"blue"})
    shop.define(publish=shop.to(name="{{ item | slice: 5 }}"))
    shop.tend()
    found = shop.destination()
    assert found.error is not None
    assert (found.error["code"], shop.shown()[0]) == ("bad_name", 3)


def test_what_others_wrote_is_neither_replaced_nor_deleted(shop: Copied) -> None:
    shop.define(publish=shop.to(name=STABLE))
    shop.put("front/b.png", b"theirs")
    shop.show({"a": "red", "b": "blue"})
    found = shop.destination()
    assert found.error is not None
    assert found.error["message"] == (
        f"s3://{shop.place}/front/b.png exists and is not of this catalogue; delete it, or name another folder in "
        "publish.to.s3."
    )
    assert shop.other.read(f"{shop.folder}/front/b.png") == b"theirs"
    assert "current.json" not in shop.names()
    shop.other.drop(f"{shop.folder}/front/b.png")
    with shop.database.begin(factories.TENANT) as connection:
        destinations.again(connection, shop.catalogue.id)
    shop.tend()
    assert shop.shown() == (1, {"a": b"red", "b": b"blue"})
    shop.put("front/b.png", b"theirs again")
    shop.show({"a": "red"})
    assert (shop.destination().state, shop.other.read(f"{shop.folder}/front/b.png")) == ("done", b"theirs again")
    shop.put("current.json", b"{}")
    shop.show({"a": "pink"})
    assert (shop.destination().state, shop.other.read(f"{shop.folder}/current.json")) == ("failed", b"{}")


def test_of_two_catalogues_at_one_place_the_first_to_point_there_has_it(shop: Copied, allowed: Settings) -> None:
    def rule(method: str, path: str, _: Any) -> Any:
        if method == "GET" and f"/{shop.place}/front/" in path:  # while ours are copied
            shop.put("current.json", b"theirs")
        return None

    with S3Proxy(allowed.s3_endpoint_url, rule) as proxy:
        shop.through(proxy)
        shop.show({"a": "red"})
    found = shop.destination()
    assert found.error is not None
    assert (found.error["code"], shop.other.read(f"{shop.folder}/current.json")) == ("taken", b"theirs")


def test_a_copy_is_read_back_before_it_counts(shop: Copied, allowed: Settings) -> None:
    def rule(method: str, path: str, _: Any) -> Any:
        if method == "GET" and f"/{shop.place}/front/" in path:
            shop.put(path.partition(f"{shop.folder}/")[2], b"damaged")
        return None

    with S3Proxy(allowed.s3_endpoint_url, rule) as proxy:
        shop.through(proxy)
        shop.show({"a": "red"})
    found = shop.destination()
    assert found.error is not None
    assert (found.error["code"], found.announced, "current.json" in shop.names()) == ("damaged", None, False)


def test_a_copy_that_dies_at_any_transaction_ends_once_and_readers_see_whole_versions(
    shop: Copied, database_url: str
) -> None:
    shop.show({"a": "red", "b": "blue", "c": "green"})
    after = {"a": b"pink", "b": b"blue", "d": b"new"}
    shop.publish_only({item: text.decode() for item, text in after.items()})
    dying = Dying(database_url, application="presswork dying")
    lease = Lease(dying, f"catalogue/{shop.catalogue.id}", "scheduler-a")
    deaths = 0
    for transaction in range(1, 80):
        for committed in (False, True):
            dying.die_at(transaction, committed=committed)
            try:
                shop.work(lease)
            except Crash:
                deaths += 1
            version, found = shop.shown()
            assert shop.is_pending() or (version, shop.destination().state) == (2, "done")
            assert found == (after if version == 2 else {"a": b"red", "b": b"blue", "c": b"green"})
        if shop.destination().version == 2 and shop.destination().state == "done":
            break
    dying.close()
    shop.tend()
    assert deaths > 12
    assert shop.shown() == (2, after)
    assert len(shop.names()) == 3 + 2


def test_a_rollback_while_pictures_are_deleted_copies_them_again(shop: Copied, allowed: Settings) -> None:
    shop.show(dict.fromkeys("abcde", "red"))

    def rule(method: str, path: str, _: Any) -> Any:
        is_refused = method == "DELETE" and f"/{shop.place}/" in path and "/front/a-" not in path
        return (503, "SlowDown", "") if is_refused else None

    with S3Proxy(allowed.s3_endpoint_url, rule) as proxy:
        shop.through(proxy)
        shop.show(dict.fromkeys("abcde", "pink"))
    assert (shop.destination().state, shop.shown()) == ("failed", (2, dict.fromkeys("abcde", b"pink")))
    assert shop.destination().error == {
        "code": "store_away", "message": "The object store cannot be reached, or is too busy.",
    }  # fmt: skip
    shop.through(None)
    shop.publish(1)
    assert (shop.destination().state, shop.shown()) == ("done", (1, dict.fromkeys("abcde", b"red")))
    assert shop.destination().counts["copied"] == 1  # what had not gone yet is read back


def test_until_the_pointer_moves_its_manifest_stays_and_all_former_ones_go(shop: Copied, allowed: Settings) -> None:
    def rule(method: str, path: str, _: Any) -> Any:
        return (503, "SlowDown", "") if method == "PUT" and f"/{shop.place}/current.json" in path else None

    shop.show({"a": "red"})
    with S3Proxy(allowed.s3_endpoint_url, rule) as proxy:
        shop.through(proxy)
        for name in (STABLE, "x/" + STABLE):
            shop.define(publish=shop.to(name=name))
            shop.tend()
            assert shop.shown() == (1, {"a": b"red"})
    assert len(shop.names()) == 3 + 3 + 1
    shop.through(None)
    shop.show({"a": "pink"})
    assert (shop.destination().state, shop.shown()) == ("done", (2, {"a": b"pink"}))
    assert shop.names() == {"current.json"} | shop.ledger()
    assert len(shop.names()) == 3


def test_the_upload_of_a_manifest_keeps_the_lease(shop: Copied, allowed: Settings) -> None:
    class Counted(Lease):
        kept = 0  # since the last transaction

        def keep(self) -> None:
            super().keep()
            self.kept += 1

        @contextmanager
        def begin(self) -> Iterator[Connection]:
            with super().begin() as connection:
                yield connection
            self.kept = 0

    lease = Counted(shop.database, f"catalogue/{shop.catalogue.id}", "scheduler-a")
    kept = []

    def rule(method: str, path: str, _: Any) -> None:
        if method == "PUT" and f"/{shop.place}/manifests/" in path:
            kept.append(lease.kept)

    shop.publish_only({"a": "red"})
    with S3Proxy(allowed.s3_endpoint_url, rule) as proxy:
        shop.through(proxy)
        shop.work(lease)
    assert (len(kept), kept > [0]) == (1, True)


def test_what_the_other_bucket_refuses_names_it_and_not_our_own(shop: Copied, allowed: Settings) -> None:
    def rule(method: str, path: str, _: Any) -> Any:
        return (400, "InvalidBucketName", "") if method == "PUT" and f"/{shop.place}/" in path else None

    with S3Proxy(allowed.s3_endpoint_url, rule) as proxy:
        shop.through(proxy)
        shop.show({"a": "red"})
    assert shop.destination().error == {
        "code": "store_refused",
        "message": f"The object store refuses s3://{BUCKET} with InvalidBucketName: no bucket may have that name.",
    }


def test_a_pointer_that_a_late_scheduler_moved_back_is_moved_again(shop: Copied, allowed: Settings) -> None:
    """It was stopped between its last look at its lease and the PUT."""
    shop.show({"a": "red"})
    direct, store, name = shop.settings, shop.store, f"catalogue/{shop.catalogue.id}"
    moved: list[int] = []

    def rule(method: str, path: str, _: Any) -> None:
        if method == "PUT" and f"/{shop.place}/current.json" in path and not moved:
            with shop.database.begin_system() as connection:
                connection.execute(text("UPDATE leases SET expires_at = '-infinity'"))
            shop.publish_only({"a": "blue"})
            other = Lease(shop.database, name, "scheduler-b")
            assert other.take()
            task.run(direct, store, Notifier(direct.redis_url), shop.catalogue.id, other)
            other.release()
            moved.append(shop.shown()[0])

    shop.publish_only({"a": "pink"})
    with S3Proxy(allowed.s3_endpoint_url, rule) as proxy:
        shop.through(proxy)
        with pytest.raises(LeaseLost):
            shop.work(Lease(shop.database, name, "scheduler-a"))
    shop.through(None)
    assert moved == [3]
    assert json.loads(shop.other.read(f"{shop.folder}/current.json"))["version"] == 2, "the fault is there"
    shop.tend()
    assert (shop.destination().state, shop.shown()) == ("done", (3, {"a": b"blue"}))
    assert shop.names() == {"current.json"} | shop.ledger()


def test_our_own_pointer_follows_a_rollback_after_tidying_failed(shop: Copied, allowed: Settings) -> None:
    shop.define(publish=shop.to(), keep=2)
    shop.show({"a": "red"})
    shop.show({"a": "pink"})
    with S3Proxy(
        allowed.s3_endpoint_url, lambda method, *_: (503, "SlowDown", "") if method == "DELETE" else None
    ) as proxy:
        shop.through(proxy)
        with pytest.raises(StoreUnavailable):
            shop.show({"a": "blue"})
    assert shop.pointer()["version"] == 3
    shop.through(None)
    shop.publish(2)
    assert (shop.pointer()["version"], shop.shown()) == (2, (2, {"a": b"pink"}))


def test_only_places_that_the_settings_name_are_written_to_and_the_api_tells(served: Api) -> None:
    place = "/v1/catalogues/copied"
    for s3, message in (("elsewhere/shop", "PRESSWORK_PUBLISH_BUCKETS does not name the bucket elsewhere."),):
        refused = served.http.put(place, json=cataloguing.DEFINITION | {"publish": {"to": {"s3": s3}}})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "publish.to.s3"), refused.text
        assert refused.json()["error"]["message"] == message
    served.http.put(place, json=cataloguing.DEFINITION)
    assert served.http.get(place).json()["destination"] is None
    with served.database.begin_system() as connection:
        found = catalogues.find(connection, 1, "copied")
        destinations.want(connection, found, "elsewhere/shop", STABLE, 1)
        destinations.fail(connection, found.id, "taken", "It is taken.", again=False)
    shown = served.http.get(place).json()["destination"]
    assert shown | {"began_at": ""} == {
        "s3": "elsewhere/shop", "version": 1, "state": "failed", "announced": None, "images": 0, "copied": 0,
        "deleted": 0, "error": {"code": "taken", "message": "It is taken."}, "next_at": None, "began_at": "",
        "finished_at": None,
    }  # fmt: skip
    assert catalogue_tables.destination(shown).plain == (
        "s3://elsewhere/shop: version 1 failed\nIt is taken.\nit waits for a change; `presswork catalogue publish` "
        "tries at once"
    )
    listed = {one["name"]: one["destination"] for one in served.http.get("/v1/catalogues").json()["data"]}
    assert listed["copied"] == shown
    assert served.http.delete(place).status_code == 204


@pytest.mark.parametrize(("prefix", "folder", "fits"), [
    ("own/", "pictures", True), ("own/", "own", False), ("own/", "own/x", False), ("own/", "", False),
    ("own/", "o", True), ("", "pictures", False),
])  # fmt: skip
def test_our_own_objects_are_never_written_over(allowed: Settings, prefix: str, folder: str, *, fits: bool) -> None:
    from services.core.catalogues import copying, definition

    settings = dataclasses.replace(allowed, prefix=prefix)
    s3 = f"{allowed.bucket}/{folder}".rstrip("/")
    found, problems = definition.read("shop", cataloguing.DEFINITION | {"publish": {"to": {"s3": s3}}})
    assert found is not None, problems
    if fits:
        copying.check(settings, S3Store(settings), found)
        return
    with pytest.raises(InvalidSubmission, match="Presswork's own objects lie"):
        copying.check(settings, S3Store(settings), found)
