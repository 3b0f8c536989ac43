"""What waits for a scheduler that reaches a crash point of a catalogue: a run, its version, what goes, and the copy of
the version elsewhere."""

import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx

from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, lists, manifests, task
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.changes import Change
from services.core.jobs import lifecycle
from services.core.model import ids
from tests import cataloguing, exporting
from tests.crash_tasks import Task
from tests.factories import TENANT
from tests.integration.test_fetching import send, serving

FIRST, SECOND = {"a": "a red mug", "b": "a blue mug"}, {"a": "a red mug", "b": "a teal mug"}


class FirstRun(Task):
    """A catalogue's first run, which is queued. `night`: the number of the version that is published at the end."""

    night = 1

    def prepare(self) -> None:
        self._make_shop()
        cataloguing.upload(self.world.database, self.world.store, self.shop, FIRST)
        self.run = cataloguing.begin(self.world.database, self.shop)

    def definition(self) -> dict[str, Any]:
        return {"keep": 1}

    def is_done(self) -> bool:
        now = self.now()
        return now.published == now.announced == self.night and not self._is_pending() and self.world.have_ended()

    def check(self) -> None:
        """What is published is whole, of one job a run, and nothing else lies in the catalogue's folder."""
        database, store = self.world.database, self.world.store
        titles = FIRST if self.night == 1 else SECOND
        assert {item for item, _ in cataloguing.pictures(database, store, self.shop)} == set(titles)
        listed = self.world.rows(
            "SELECT object_key, sha256, bytes FROM catalogue_entries WHERE catalogue_id = :id", id=self.shop.id
        )
        for row in listed:
            data = store.read(row.object_key)
            assert (len(data), hashlib.sha256(data).digest()) == (row.bytes, bytes(row.sha256))
        assert set(self._folder("objects/")) == {row.object_key for row in listed}
        pointer = json.loads(store.read(store.key(self.shop.folder + manifests.POINTER)))
        manifest = store.read(pointer["manifests"]["jsonl"]["object_key"])
        assert hashlib.sha256(manifest).hexdigest() == pointer["manifests"]["jsonl"]["sha256"]
        rows = [json.loads(line) for line in manifest.splitlines()]
        assert (pointer["version"], {row["item"]: row["prompt"] for row in rows}) == (self.night, titles)
        assert len(self._folder(manifests.FOLDER)) == len(manifests.FILES)
        assert self._folder(lists.FOLDER) == []
        assert len(self.world.jobs()) == self.night
        self.end()

    def end(self) -> None:
        """No later test has to do with it."""
        with self.world.database.begin(TENANT) as connection:
            catalogues.remove(connection, TENANT, self.shop.name)

    def now(self) -> Catalogue:
        return cataloguing.again(self.world.database, self.shop)

    def _make_shop(self) -> None:
        self.shop = cataloguing.create(self.world.database, f"shop-{self.world.mark}", **self.definition())

    def _folder(self, name: str) -> list[str]:
        return list(self.world.store.under(self.shop.folder + name))

    def _is_pending(self) -> bool:
        with self.world.database.begin_system() as connection:
            return self.shop.id in {one.id for one in task.pending(connection)}


class SecondRun(FirstRun):
    """A run whose picture is rendered. The version before and its picture go when it is published."""

    night = 2

    def prepare(self) -> None:
        self._make_shop()
        self._render(FIRST, "new")
        self.world.run_tasks("catalogue")
        assert self.now().announced == 1
        self._render({"b": SECOND["b"]}, "changed")

    def change(self, item: str, title: str, kind: str) -> Change:
        return cataloguing.change(item, title, kind=kind)

    def _render(self, titles: dict[str, str], kind: str) -> None:
        """Up to where the run's job is done. Its plan is given, since making one takes a second."""
        found = [self.change(item, title, kind) for item, title in titles.items()]
        unchanged = len(FIRST) - len(found)
        self.run = cataloguing.plan(self.world.database, self.world.store, self.shop, found, unchanged)
        self.world.run_tasks("catalogue")
        self.world.render()
        with self.world.database.begin_system() as connection:
            lifecycle.finish(connection)
            assert runs.read(connection, self.run).state == "rendering"


class RolledBack(SecondRun):
    """A version in whose place the one before is published again by a person, after the program has come to its
    point."""

    is_rolled_back = False

    def definition(self) -> dict[str, Any]:
        return {"keep": 2}

    def ask(self, http: httpx.Client) -> None:
        """Once: others have published the second version before."""
        if self.is_rolled_back:
            return
        self.is_rolled_back = True
        self.world.carry_on(lambda: self.now().published == 2)
        with self.world.database.begin_system() as connection:
            found = catalogues.find(connection, TENANT, self.shop.name, lock=True)
            catalogues.publish(connection, found, 1)

    def is_done(self) -> bool:
        now = self.now()
        return now.published == now.announced == 1 and not self._is_pending()

    def check(self) -> None:
        store = self.world.store
        pointer = json.loads(store.read(store.key(self.shop.folder + manifests.POINTER)))
        assert pointer["version"] == 1
        assert store.read(pointer["manifests"]["jsonl"]["object_key"])
        self.end()


class RunOfPhotographs(FirstRun):
    """A first run that redraws photographs of a host."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self._serving = serving(self._answer)

    def definition(self) -> dict[str, Any]:
        front = {"prompt": "{{ title }}", "size": "64x64", "image": self._url + "/{{ sku }}.png", "strength": 0.5}
        return super().definition() | {"variants": {"front": front}}

    def prepare(self) -> None:
        self._url = self._serving.__enter__().rpartition("/")[0]
        super().prepare()

    def check(self) -> None:
        super().check()
        self._serving.__exit__(None, None, None)
        kept = self.world.rows("SELECT object_key FROM files WHERE purpose = 'vision' AND id > :m", m=self.world.mark)
        assert len(kept) == len(FIRST)
        assert all(self.world.store.read(row.object_key) for row in kept)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        send(handler, exporting.picture(1 if "a.png" in handler.path else 2))


class Copied(SecondRun):
    """A version that is copied elsewhere, in the place of the one before."""

    def definition(self) -> dict[str, Any]:
        self.place = f"copies-{self.world.mark}"
        return {"keep": 1, "publish": {"to": {"s3": f"{self.world.settings.bucket}/{self.place}"}}}

    def check(self) -> None:
        super().check()
        self._check_copy()

    def _check_copy(self) -> None:
        """The pointer leads to a whole manifest, that to whole pictures, and nothing else is there."""
        store = self.world.elsewhere
        pointer = json.loads(store.read(f"{self.place}/current.json"))
        manifest = store.read(pointer["manifest"]["object_key"])
        assert hashlib.sha256(manifest).hexdigest() == pointer["manifest"]["sha256"]
        rows = [json.loads(line) for line in manifest.splitlines()]
        assert (pointer["version"], {row["item"]: row["prompt"] for row in rows}) == (self.night, SECOND)
        for row in rows:
            data = store.read(row["object_key"])
            assert (len(data), hashlib.sha256(data).hexdigest()) == (row["bytes"], row["sha256"])
        named = {f"{self.place}/current.json", pointer["manifest"]["object_key"], *(row["object_key"] for row in rows)}
        assert set(store.under(f"{self.place}/")) == named


class DropCatalogue(SecondRun):
    """A catalogue that was deleted after its first version."""

    def prepare(self) -> None:
        super().prepare()
        self.end()
        assert self._folder("")

    def is_done(self) -> bool:
        return not self._is_pending()

    def check(self) -> None:
        assert self._folder("") == []
        for table in ("catalogue_entries", "catalogue_versions"):
            assert not self.world.rows(f"SELECT FROM {table} WHERE catalogue_id = :id", id=self.shop.id), table
        assert self.world.rows("SELECT FROM catalogue_runs WHERE id = :id", id=self.run), ids.public("run_", self.run)
