"""Catalogues that redraw photographs: what is asked of whom, what is drawn anew, and what one bad photograph does."""

import dataclasses
import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_network
from typing import Any

import pytest
from PIL import Image as Pictures
from sqlalchemy import text

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import changes, list_writer, photograph_fetching, preparation, rendering, task
from services.core.catalogues.photograph_fetching import Photographs
from services.core.catalogues.photographs import Wanted
from services.core.catalogues.templates import Inapplicable
from services.core.db.database import Database
from services.core.db.leases import Lease
from services.core.deletion import jobs as deletion
from services.core.files import files
from services.core.model import ids
from services.core.model.errors import Conflict
from services.core.model.specs import Image
from services.core.notify import Notifier
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests import cataloguing, factories
from tests.integration.test_catalogue_runs import Shop
from tests.integration.test_fetching import send, serving

FRONT = {"prompt": "{{ title }}", "size": "64x64", "image": "{{ photo }}", "strength": 0.5, "when": "photo"}


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Pictures.new("RGB", (80, 60), (red, 20, 40)).save(file, "PNG")
    return file.getvalue()


class Host:
    """A server of photographs. `asked`: what it has answered, by name and status, since somebody looked."""

    def __init__(self) -> None:
        self.photographs: dict[str, bytes] = {}
        self.status = 200
        self.has_etags = True
        self.when: dict[str, Callable[[], object]] = {}  # what happens when a photograph is asked for
        self.hanging: set[str] = set()  # photographs that come when `going_on` is set
        self.going_on = threading.Event()
        self.has_given_up = False  # to wait for it
        self._asked: list[tuple[str, int]] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.partition("?")[0].strip("/")
        data = self.photographs.get(name)
        self.when.get(name, int)()
        if name in self.hanging and not self.going_on.wait(30):
            self.has_given_up = True
            send(handler, b"", 500)
            return
        etag = f'"{hash(data)}"' if self.has_etags else ""
        status = 404 if data is None and self.status == 200 else self.status
        if status == 200 and etag and handler.headers.get("If-None-Match") == etag:
            status = 304
        if handler.command == "GET":
            self._asked.append((name, status))
        if status == 302:
            send(handler, status=302, Location="http://169.254.169.254/latest/meta-data/")
        else:
            send(handler, (data or b"") if status == 200 else b"", status, ETag=etag)

    def asked(self) -> list[tuple[str, int]]:
        found, self._asked = sorted(self._asked), []
        return found


class PhotographShop(Shop):
    """A catalogue whose feed names photographs of a host."""

    def __init__(self, database: Database, settings: Settings, store: S3Store, url: str, host: Host) -> None:
        super().__init__(database, settings, store, variants={"front": FRONT})
        self.url, self.host = url.partition("/feed.csv")[0], host

    def run(self, rows: dict[str, tuple[str, str]], **asked: Any) -> runs.Run:
        """A night; of each item its title, and the name of its photograph or what stands in its place."""
        self.put(rows)
        self.planned = cataloguing.begin(self.database, self.catalogue, **asked)
        return self.go_on()

    def put(self, rows: dict[str, tuple[str, str]]) -> None:
        lines = [f"{sku},{title},{self.address(photo)}\n" for sku, (title, photo) in rows.items()]
        feed = "sku,title,photo\n" + "".join(lines)
        cataloguing.upload_text(self.database, self.store, self.catalogue, feed)

    def plan(self, rows: dict[str, tuple[str, str]]) -> None:
        """A night that dies when its plan is made."""
        self.put(rows)
        run_id = cataloguing.begin(self.database, self.catalogue)
        lease = Lease(self.database, f"catalogue/{self.catalogue.id}", "scheduler-b")
        assert lease.take()
        catalogue = cataloguing.again(self.database, self.catalogue)
        preparation.prepare(self.settings, self.store, catalogue, self.read(run_id), lease)
        assert self.read(run_id).state == "submitting"
        lease.release()
        self.planned = run_id

    def go_on(self) -> runs.Run:
        self.tend()
        cataloguing.render(self.database, self.store, draw=draw)
        self.tend()
        return self.read(self.planned)

    def delete_files(self, digests: set[bytes]) -> None:
        with self.database.begin_system() as connection:
            query = "SELECT id FROM files WHERE sha256 = ANY(:digests) AND deleted_at IS NULL"
            for number in connection.execute(text(query), {"digests": list(digests)}).scalars().all():
                files.delete(connection, factories.TENANT, number)

    def address(self, photo: str) -> str:
        is_name = photo and "/" not in photo and not photo.startswith("file-")
        return f"{self.url}/{photo}?token=secret" if is_name else photo

    def troubles(self, run: runs.Run) -> dict[str, tuple[int | None, str | None, str | None]]:
        with self.database.begin_system() as connection:
            page = changes.page(connection, run.id, first=0, limit=100, troubled=True)
        return {change.item: (change.line, change.code, change.message) for change in page}

    def files(self) -> list[Any]:
        """Those that are photographs: whose job they are of, and whether they have an end."""
        query = "SELECT id, job_id, expires_at, object_key FROM files WHERE purpose = 'vision' AND deleted_at IS NULL"
        with self.database.begin_system() as connection:
            return list(connection.execute(text(query + " ORDER BY id")))


def draw(image: Image) -> bytes:
    return f"{image.spec.prompt}, from {image.spec.input_sha256[:8]} at {image.spec.first_step} 0".encode()


def drawn(title: str, data: bytes) -> bytes:
    return f"{title}, from {hashlib.sha256(data).hexdigest()[:8]} at 6".encode()


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def shop(database: Database, settings: Settings, store: S3Store, host: Host) -> Iterator[PhotographShop]:
    here = dataclasses.replace(settings, fetch_http=True, fetch_networks=(ip_network("127.0.0.0/8"),))
    with serving(host.answer) as url:
        yield PhotographShop(database, here, store, url, host)


def test_a_changed_photograph_is_redrawn_and_a_night_of_unchanged_ones_downloads_none(shop: PhotographShop):
    shop.host.photographs = {"a.png": picture(1), "b.png": picture(2)}
    feed = {"a": ("mug", "a.png"), "b": ("hat", "b.png"), "c": ("vase", ""), "d": ("cup", "a.png")}
    first = shop.run(feed)
    assert (first.state, first.counts["new"], first.counts["done"]) == ("published", 3, 3)
    assert shop.pictures() == {
        "a": drawn("mug", picture(1)),
        "b": drawn("hat", picture(2)),
        "d": drawn("cup", picture(1)),
    }
    assert shop.host.asked() == [("a.png", 200), ("b.png", 200)]
    kept = shop.files()
    assert [(file.job_id, file.expires_at) for file in kept] == [(first.job_id, None)] * 2
    assert shop.run(feed).state == "unchanged"
    assert shop.host.asked() == [("a.png", 304), ("b.png", 304)]
    shop.host.photographs["a.png"] = picture(3)
    third = shop.run(feed)
    assert (third.state, third.counts["changed"], third.counts["unchanged"]) == ("published", 2, 1)
    assert shop.pictures() == {
        "a": drawn("mug", picture(3)),
        "b": drawn("hat", picture(2)),
        "d": drawn("cup", picture(3)),
    }
    assert shop.host.asked() == [("a.png", 200), ("b.png", 304)]
    assert shop.run(feed | {"a": ("bowl", "a.png")}).counts["changed"] == 1  # by its title: the photograph is here
    assert shop.host.asked() == [("a.png", 304), ("b.png", 304)]
    assert len(shop.files()) == 3
    shop.host.has_etags = False  # downloaded each night, and nothing is drawn
    assert shop.run(feed | {"a": ("bowl", "a.png")}).state == "unchanged"
    assert shop.host.asked() == [("a.png", 200), ("b.png", 200)]
    assert len(shop.files()) == 3


def test_what_is_drawn_again_is_fetched_again_when_its_file_has_gone(shop: PhotographShop):
    shop.host.photographs = {"a.png": picture(1)}
    first = shop.run({"a": ("mug", "a.png")})
    with shop.database.begin_system() as connection:
        assert first.job_id is not None
        deletion.delete(connection, factories.TENANT, first.job_id)
    assert shop.files() == []
    shop.host.asked()
    assert shop.run({"a": ("mug", "a.png")}).state == "unchanged"
    assert shop.host.asked() == [("a.png", 304)]
    assert shop.run({"a": ("hat", "a.png")}).state == "published"
    assert shop.host.asked() == [("a.png", 200)]
    assert shop.pictures() == {"a": drawn("hat", picture(1))}


def test_a_photograph_that_cannot_be_used_is_one_items_trouble_which_keeps_its_picture(shop: PhotographShop):
    shop.host.photographs = {f"{name}.png": picture(number) for number, name in enumerate("abcd")}
    feed = {name: (name, f"{name}.png") for name in "abcd"}
    shop.run(feed)
    before = shop.pictures()
    del shop.host.photographs["a.png"]
    shop.host.photographs["b.png"] = b"<html>no picture</html>"
    shop.host.photographs["c.png"] = picture(9)
    shop.define(variants={"front": FRONT}, publish={"require": 0.1})
    feed["d"] = ("d", "ftp://user:secret@shop.example/d.png")
    feed |= {"e": ("e", "HTTPS://user:secret@shop.example/"), "f": ("f", "shop/d.png?key=secret")}
    second = shop.run(feed)
    assert (second.state, second.counts["broken"], second.counts["changed"]) == ("published", 5, 1)
    assert shop.pictures() == before | {"c": drawn("c", picture(9))}
    example = "https://shop.example/feed.csv"
    no_password = f"The address must be an address such as {example}, in ASCII and without a password or a fragment."
    assert shop.troubles(second) == {
        "a": (2, "image_not_fetched", "The photograph cannot be fetched: 127.0.0.1 answers with status 404."),
        "b": (3, "invalid_image", "The photograph cannot be used: The file is not a PNG, JPEG or WebP picture."),
        "d": (5, "invalid_image", f'image is "ftp://..."; {photograph_fetching.RULE}.'),
        "e": (6, "image_not_fetched", f"The photograph cannot be fetched: {no_password}"),
        "f": (7, "invalid_image", f'image is "shop/d.png?..."; {photograph_fetching.RULE}.'),
    }  # fmt: skip
    assert shop.stale(2) == {"a", "b", "d"}
    shop.host.asked()
    shop.host.photographs |= {"a.png": picture(0), "b.png": picture(1)}
    third = shop.run({name: (name, f"{name}.png") for name in "abcd"})
    assert (third.state, third.counts["broken"], shop.stale(3)) == ("published", 0, set())
    assert shop.host.asked() == [("a.png", 304), ("b.png", 304), ("c.png", 304), ("d.png", 304)]
    assert shop.pictures() == before | {"c": drawn("c", picture(9))}


def test_a_photograph_is_bounded_and_leads_nowhere_inside(shop: PhotographShop):
    lease = Lease(shop.database, f"catalogue/{shop.catalogue.id}", "scheduler-b")
    assert lease.take()
    for changed, status, sentence in (
        ({"max_input_bytes": 1_024}, 200, "What 127.0.0.1 has there is larger than 1,024 bytes."),
        ({"max_input_pixels": 4_096}, 200, "The picture has 80 x 60 pixels; it may have 4,096 in all."),
        ({"fetch_networks": ()}, 200, "127.0.0.1 has an address that is not public"),
        ({"fetch_http": False}, 200, "The address must begin with https://."),
        ({}, 302, "169.254.169.254 has an address that is not public"),
    ):
        shop.host.photographs = {"a.png": picture(1) + b"x" * (2_000 if "max_input_bytes" in changed else 0)}
        shop.host.status = status
        settings = dataclasses.replace(shop.settings, **changed)  # type: ignore[arg-type]
        with Photographs(settings, shop.store, lease, factories.TENANT, 7) as photographs:
            found = photographs.find({shop.address("a.png"): Wanted(None, is_drawn=True)})
        [refused] = found.values()
        assert isinstance(refused, Inapplicable), changed
        assert sentence in str(refused) and "secret" not in str(refused)
    assert shop.files() == []


def test_a_host_that_is_away_is_not_asked_for_each_photograph(shop: PhotographShop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(photograph_fetching, "AT_ONCE", 1)
    shop.host.photographs = {f"{number}.png": picture(number) for number in range(30)}
    shop.host.status = 503
    found = shop.run({str(number): ("mug", f"{number}.png") for number in range(30)})
    assert found.counts["broken"] == 30
    assert len(shop.host.asked()) == photograph_fetching.MOST_FAILURES
    said = {message for _, _, message in shop.troubles(found).values()}
    assert said == {
        "The photograph cannot be fetched: 127.0.0.1 answers with status 503.",
        "The photograph cannot be fetched: 127.0.0.1 failed 10 times in a row, so it was not asked again in this run.",
    }


def test_a_photograph_that_hangs_holds_up_no_other(shop: PhotographShop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(list_writer, "TOGETHER", 2)
    shop.host.photographs = {f"{name}.png": picture(number) for number, name in enumerate("abcdef")}
    shop.host.hanging = {"a.png"}
    shop.host.when = {"f.png": shop.host.going_on.set}
    found = shop.run({name: (name, f"{name}.png") for name in "abcdef"})
    assert (found.state, found.counts["done"], found.counts["broken"]) == ("published", 6, 0)
    assert shop.host.asked()[0] == ("a.png", 200)


def test_a_host_that_takes_too_long_gets_less_time_and_then_none(shop: PhotographShop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(photograph_fetching, "AT_ONCE", 1)
    monkeypatch.setattr(photograph_fetching, "MOST_PATIENT", 0)
    monkeypatch.setattr(photograph_fetching, "HASTY_SECONDS", 1.0)
    monkeypatch.setattr(photograph_fetching, "MOST_SLOW", 1)
    monkeypatch.setattr(list_writer, "TOGETHER", 1)
    monkeypatch.setattr(list_writer, "_LEFT", 0)
    shop.host.photographs = {f"{name}.png": picture(number) for number, name in enumerate("abc")}
    shop.host.hanging = {"a.png"}
    found = shop.run({"a": ("a", "a.png"), "b": ("b", "b.png"), "c": ("c", "a.png")})
    shop.host.going_on.set()
    assert found.counts["broken"] == 3
    said = {item: message for item, (_, _, message) in shop.troubles(found).items()}
    assert said["a"] == said["c"] == "The photograph cannot be fetched: 127.0.0.1 took too long to answer."
    assert said["b"] == (
        "The photograph cannot be fetched: 127.0.0.1 took too long 1 times, so it was not asked again in this run."
    )


def test_a_plan_that_waits_for_a_photograph_is_cancelled_or_left_to_another_scheduler(
    shop: PhotographShop, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(photograph_fetching, "_WATCH_SECONDS", 0.05)
    monkeypatch.setattr(preparation, "_LOOK_SECONDS", 0.05)
    shop.host.photographs = {"a.png": picture(1)}
    shop.host.hanging = {"a.png"}
    shop.put({"a": ("mug", "a.png")})
    run_id = cataloguing.begin(shop.database, shop.catalogue)
    stopping = threading.Event()
    lease = Lease(shop.database, f"catalogue/{shop.catalogue.id}", "scheduler-b", stopping=stopping)
    assert lease.take()
    shop.host.when = {"a.png": stopping.set}
    task.run(shop.settings, shop.store, Notifier(shop.settings.redis_url), shop.catalogue.id, lease)
    assert shop.read(run_id).state == "queued"
    lease.release()

    def cancel() -> None:
        with shop.database.begin_system() as connection:
            runs.cancel_any(connection, run_id)

    shop.host.when = {"a.png": cancel}
    shop.tend()
    assert shop.read(run_id).state == "cancelled"
    assert not shop.host.has_given_up
    shop.host.going_on.set()
    assert shop.files() == []


def test_a_plan_keeps_no_photograph_and_one_that_is_cut_off_leaves_none(shop: PhotographShop):
    shop.host.photographs = {"a.png": picture(1)}
    planned = shop.run({"a": ("mug", "a.png")}, plan_only=True)
    assert (planned.state, planned.counts["new"], shop.files()) == ("planned", 1, [])
    shop.define(variants={"front": FRONT}, removed_limit=0.0)
    shop.run({"a": ("mug", "a.png"), "b": ("hat", "a.png")})
    kept = shop.run({"a": ("cup", "a.png")})
    assert (kept.state, kept.job_id) == ("kept", None)  # an item has gone, so nothing was submitted
    assert len(shop.files()) == 1
    shop.host.photographs["a.png"] = picture(2)
    assert shop.run({"a": ("cup", "a.png")}).state == "kept"
    first, second = shop.files()
    assert first.expires_at is None and second.expires_at is not None
    with shop.database.begin_system() as connection:
        connection.execute(text("UPDATE files SET expires_at = now() - interval '1 s' WHERE expires_at IS NOT NULL"))
        assert [waiting.id for waiting in files.doomed(connection)] == [second.id]


def test_a_photograph_that_goes_between_plan_and_submission_costs_its_own_picture_alone(
    shop: PhotographShop, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rendering, "REQUESTS", 2)
    shop.define(variants={"front": FRONT}, publish={"require": 0.25})
    shop.host.photographs = {f"{name}.png": picture(number) for number, name in enumerate("abcd")}
    feed = {name: (name, f"{name}.png") for name in "abcd"}
    shop.plan(feed)
    gone = {hashlib.sha256(picture(number)).digest() for number in (0, 3)}
    shop.delete_files(gone)
    first = shop.go_on()
    assert (first.state, first.counts["done"], first.counts["failed"]) == ("published", 2, 2)
    assert shop.pictures() == {"b": drawn("b", picture(1)), "c": drawn("c", picture(2))}
    assert {item: found[1] for item, found in shop.troubles(first).items()} == dict.fromkeys("ad", "image_not_found")
    second = shop.run(feed)
    assert (second.state, second.counts["retried"], second.counts["done"]) == ("published", 2, 2)
    assert set(shop.pictures()) == set("abcd")
    shop.plan(feed | {"a": ("mug", "a.png")})
    shop.delete_files({hashlib.sha256(picture(0)).digest()})
    third = shop.go_on()  # with nothing that it could submit
    assert (third.state, third.counts["failed"], shop.stale(3)) == ("published", 1, {"a"})


def test_a_photograph_that_another_runs_plan_has_brought_stays_with_the_job_that_draws_it(shop: PhotographShop):
    shop.host.photographs = {"a.png": picture(1)}
    first = shop.run({"a": ("mug", "a.png")})
    with shop.database.begin_system() as connection:
        connection.execute(text("UPDATE files SET expires_at = now() + interval '1 day' WHERE purpose = 'vision'"))
    second = shop.run({"a": ("hat", "a.png")})
    [file] = shop.files()
    assert (file.job_id, file.expires_at) == (second.job_id, None) != (first.job_id, None)


def test_a_file_and_an_earlier_image_are_redrawn(shop: PhotographShop):
    shop.host.photographs = {"a.png": picture(1)}
    first = shop.run({"a": ("mug", "a.png")})
    assert first.job_id is not None
    [file] = shop.files()
    named = {"b": ("hat", files.public_id(file.id)), "c": ("cup", f"{ids.public_job(first.job_id)}/0")}
    shop.define(variants={"front": FRONT}, publish={"require": 0.5})
    second = shop.run({"a": ("mug", "a.png")} | named | {"d": ("vase", "file-0000000000000")})
    assert {item: code for item, (_, code, _) in shop.troubles(second).items()} == {"d": "image_not_found"}
    mug = drawn("mug", picture(1))
    assert shop.pictures() == {"a": mug, "b": drawn("hat", picture(1)), "c": drawn("cup", mug + b" 0")}


def test_a_review_draws_a_photograph_again_from_the_same_bytes(shop: PhotographShop):
    shop.host.photographs = {"a.png": picture(1)}
    shop.run({"a": ("mug", "a.png")})
    shop.define(variants={"front": FRONT}, publish={"review": "changed"})
    shop.host.photographs["a.png"] = picture(2)
    run = shop.run({"a": ("mug", "a.png")})
    before = shop.change(run, "a")
    assert run.state == "reviewing" and before.request is not None and run.job_id is not None
    file = shop.files()[1]
    shop.host.photographs["a.png"] = picture(3)  # what the host has by now is another run's
    job = shop.redraw(run, "a")
    asked = shop.change(run, "a").request
    assert asked == before.request | {"seed": asked and asked["seed"]} != before.request
    assert (asked["image"], asked["strength"]) == (files.public_id(file.id), 0.5)
    with shop.database.begin(factories.TENANT) as connection, pytest.raises(Conflict):
        files.delete(connection, factories.TENANT, file.id)  # the job needs it
    seen: list[Image] = []
    cataloguing.render(shop.database, shop.store, draw=lambda image: seen.append(image) or draw(image))
    [image] = seen
    assert (image.job_id, image.spec.input_sha256) == (job, hashlib.sha256(picture(2)).hexdigest())
    assert (image.spec.seed, image.spec.first_step) == (asked["seed"], 6)
    change = shop.change(run, "a")
    assert change.render_key is not None and change.render_key.hex() == image.spec.render_key("png", None)
    shop.mark(run, "a", "accepted")
    shop.tend()
    assert (shop.read(run.id).state, shop.pictures()) == ("published", {"a": drawn("mug", picture(2))})
    shop.host.photographs["a.png"] = picture(2)
    assert shop.run({"a": ("mug", "a.png")}).state == "unchanged"
