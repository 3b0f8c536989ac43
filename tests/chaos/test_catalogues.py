"""Schedulers and Postgres killed at each step of a catalogue's run, while readers look: the run ends once, and whoever
reads sees whole versions only."""

import hashlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import text

from presswork_client import ClientError
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues, manifests
from services.core.db.database import Database
from services.core.model.errors import PressworkError
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from tests.scheduling import waits_for
from tests.up import Up
from tests.waiting import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

ITEMS = [f"SKU-{number}" for number in range(12)]
DEFINITION = {
    "source": {"file": "feed.csv"}, "id": "sku", "keep": 100, "publish": {"public": True},
    "variants": {"front": {"prompt": "night {{ night }} of {{ sku }}", "size": "512x512"}},
}  # fmt: skip
# What another transaction holds while the victim is killed: so it is killed there. None: the run's job is rendered.
STEPS = {
    "while it plans": "LOCK TABLE catalogue_changes IN SHARE MODE",
    "while it submits": "LOCK TABLE payloads IN SHARE MODE",
    "while it renders": None,
    "while it writes": "LOCK TABLE catalogue_entries IN SHARE MODE",
    "while the version becomes whole": "LOCK TABLE catalogue_versions IN SHARE MODE",
    "while it publishes": "SELECT FROM catalogues FOR UPDATE",
    "while it tidies": "",  # as soon as it is published
}


class Reader(threading.Thread):
    """Looks at what is published, in every way that there is, until it is told to stop. `wrong` is what it should not
    have seen, `seen` how often it could look at all of which version."""

    def __init__(self, url: str, key: str, store: S3Store, pointer: str, public: str) -> None:
        super().__init__(daemon=True)
        self._api = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=5)
        self._store, self._pointer, self._public = store, pointer, public
        self.stopping = threading.Event()
        self.wrong: list[str] = []
        self.seen: Counter[str] = Counter()

    def run(self) -> None:
        while not self.stopping.is_set():
            for look in (self._follow_pointer, self._list_items, self._open_links):
                with suppress(httpx.HTTPError, PressworkError, OSError):  # an outage, which is no wrong answer
                    look()
            time.sleep(0.02)

    def _follow_pointer(self) -> None:
        found = json.loads(self._store.read(self._pointer))
        manifest = self._store.read(found["manifests"]["jsonl"]["object_key"])
        self._expect(hashlib.sha256(manifest).hexdigest() == found["manifests"]["jsonl"]["sha256"], "a torn manifest")
        rows = [json.loads(line) for line in manifest.splitlines()]
        for row in rows:
            is_whole = hashlib.sha256(self._store.read(row["object_key"])).hexdigest() == row["sha256"]
            self._expect(is_whole, f"another picture of {row['item']}")
        self._expect_whole("pointer", [(row["item"], row["prompt"]) for row in rows])

    def _list_items(self) -> None:
        answer = self._api.get("/v1/catalogues/shop/items", params={"limit": 1000})
        if answer.status_code == 200:
            self._expect_whole("items", [(row["item"], row["prompt"]) for row in answer.json()["data"]])
        else:
            self._expect(answer.status_code in (500, 503), f"status {answer.status_code}: {answer.text}")

    def _open_links(self) -> None:
        for item in ITEMS[:3]:
            answer = self._api.get(f"{self._public}/front/{item}")
            if answer.status_code == 200:
                is_whole = answer.headers["ETag"] == f'"{hashlib.sha256(answer.content).hexdigest()}"'
                self._expect(is_whole, f"half a picture of {item}")
                self.seen["link"] += 1
            else:
                self._expect(answer.status_code in (500, 503), f"status {answer.status_code} of a link")

    def _expect_whole(self, way: str, pictures: list[tuple[str, str]]) -> None:
        nights = {prompt.split()[1] for _, prompt in pictures}
        self._expect(sorted(item for item, _ in pictures) == sorted(ITEMS), f"{way}: not all items")
        self._expect(len(nights) == 1, f"{way}: pictures of the nights {nights}")
        self.seen[way] += 1

    def _expect(self, is_right: bool, what: str) -> None:
        if not is_right:
            self.wrong.append(what)


class Night:
    """A shop on an installation of its own, whose runs are disturbed."""

    def __init__(self, folder: Path) -> None:
        self.up = Up(folder / "home", folder, "--workers", "1", "--pipeline", "simulated", PRESSWORK_LEASE_SECONDS="3")
        self.client = self.up.client()
        values = self.up.values()
        self.settings = Settings.read({name: values[name] for name in values if not name.startswith("PRESSWORK_URL")})
        self.database = Database(self.settings.database_url, application="tests")
        self.feed, self.count = folder / "feed.csv", 0
        until(lambda: self.client.put_catalogue("shop", DEFINITION))

    def begin(self) -> str:
        """The next night begins: every item has another prompt."""
        self.count += 1
        self.feed.write_text("sku,night\n" + "".join(f"{item},{self.count}\n" for item in ITEMS))
        self.client.upload_to_catalogue("shop", self.feed)
        return self.client.run_catalogue("shop")["id"]

    def end(self, run: str) -> None:
        """Waits for the end. What a killed scheduler held runs out meanwhile."""

        def is_over() -> bool:
            with suppress(PressworkError, ClientError, httpx.HTTPError, psycopg.Error):
                with self.database.begin_system() as connection:
                    connection.execute(text("UPDATE leases SET expires_at = least(expires_at, now() + interval '2 s')"))
                return self.client.catalogue_run("shop", run)["state"] == "published"
            return False

        until(is_over, seconds=120, every=0.5)

    def kill(self, victim: str) -> None:
        """All its processes, at once."""
        pid = self.up.pid(victim)
        family = [pid, *_children(pid)]
        for one in family:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{one}/fd").exists() and _lives(one) for one in family))

    def kill_at(self, block: str | None, victim: str) -> str:
        """Begins a night and kills the victim at that step. Returns the run."""
        if not block:
            run = self.begin()
            until(lambda: self._state(run) == ("published" if block == "" else "rendering"), seconds=60, every=0.005)
            self.kill(victim)
            return run
        with suppress(PressworkError, psycopg.Error), self.database.begin_system() as blocking:
            run = self._begin_while(blocking, block)
            self.kill(victim)
            blocking.rollback()
        return run

    def _begin_while(self, blocking: Any, block: str) -> str:
        mine = blocking.execute(text("SELECT pg_backend_pid()")).scalar_one()
        run = ""
        if "catalogues" in block:  # which a new run reads, and the end of a run locks
            run = self.begin()
            until(lambda: self._state(run) in ("rendering", "writing", "published"), every=0.005)
        blocking.execute(text(block))
        run = run or self.begin()
        until(lambda: waits_for(self.database, mine) or self._state(run) == "published", seconds=60)
        return run

    def _state(self, run: str) -> str:
        with self.database.begin_system() as connection:
            return runs.read(connection, runs.parse_id(run)).state


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    night = Night(tmp_path_factory.mktemp("nights"))
    yield night
    night.database.close()
    night.client.close()
    night.up.process.stop(60)


@pytest.mark.parametrize("victim", ["scheduler", "postgres"])
def test_readers_see_whole_versions_whatever_is_killed_at_each_step_of_a_run(night: Night, victim: str) -> None:
    night.end(night.begin())
    with night.database.begin_system() as connection:
        shop = catalogues.find(connection, 1, "shop")
    store = S3Store(night.settings)
    pointer = store.key(shop.folder + manifests.POINTER)
    until(lambda: list(store.under(shop.folder + manifests.POINTER)))
    values, public = night.up.values(), night.client.catalogue("shop")["public_url"]
    assert public is not None
    reader = Reader(values["PRESSWORK_URL"], values["PRESSWORK_API_KEY"], store, pointer, public)
    reader.start()
    for step, block in STEPS.items():
        run = night.kill_at(block, victim)
        night.end(run)
        assert not reader.wrong, (step, reader.wrong[:3])
    reader.stopping.set()
    reader.join(30)
    assert not reader.wrong, reader.wrong[:3]
    assert min(reader.seen[way] for way in ("pointer", "items", "link")) > 20, reader.seen
    found = list(night.client.catalogue_runs("shop"))
    assert [one["state"] for one in found] == ["published"] * night.count
    assert [one["version"] for one in found] == list(range(night.count, 0, -1))
    assert len({one["job_id"] for one in found}) == night.count
    assert len(list(night.client.jobs())) == night.count  # no run submitted twice
    until(lambda: json.loads(store.read(pointer))["version"] == night.count, seconds=60)


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
