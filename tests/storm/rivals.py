"""Naive workers in the place of Presswork's, under the same faults at the same servers."""

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import redis
from kombu.exceptions import OperationalError

from services.core.settings import Settings
from services.local.servers.postgres import SUPERUSER
from tests.processes import Process
from tests.proxy import Proxy
from tests.storm import naive, naive_celery
from tests.storm.faults import STOP_SECONDS, Faults
from tests.storm.site import _SERVERS, REMOTE, SETTINGS, Site, eventually
from tests.up import Up

WORKERS = 2 * REMOTE
QUIET_SECONDS = 10.0  # five leases
CELERY = ("celery", "-A", "tests.storm.naive_celery", "worker", "-c", "1", "-l", "WARNING", "--without-gossip")
LEASES = ("tests.storm.naive_leases",)


class RivalSite(Site):
    """`presswork up` has the servers, and its own worker has nothing to do. The naive workers are on other hosts."""

    def __init__(self, folder: Path, disk: Path, command: Sequence[str], **environ: str) -> None:
        self.folder, self.disk, self._command = folder, disk, command
        self.guard = threading.Lock()
        self._going = True
        self._numbers = itertools.count(1)
        self.up = Up(disk / "home", folder, "--workers", "1", "--pipeline", "simulated", **SETTINGS)
        self.up.wait()
        secrets = json.loads((self.up.home / "secrets.json").read_text())
        self.values = self.up.values()
        servers = {name: urlsplit(self.values[name]) for name in _SERVERS}
        database, broker = servers["DATABASE_URL"], servers["REDIS_URL"]
        self.values["DATABASE_URL"] = (
            f"{database.scheme}://{SUPERUSER}:{secrets[SUPERUSER]}@127.0.0.1:{database.port}{database.path}"
        )
        self.values["REDIS_URL"] = f"redis://:{secrets['valkey']}@127.0.0.1:{broker.port}/0"
        with self.connect() as connection:
            connection.execute(naive.TABLES)
        self.proxies: dict[str, Proxy] = {}
        remote = dict(self.values)
        for variable, name in _SERVERS.items():
            port = servers[variable].port or 0
            self.proxies[name] = Proxy("127.0.0.1", port)
            remote[variable] = self.values[variable].replace(f":{port}", f":{self.proxies[name].port}")
        draws = {"PRESSWORK_PIPELINE": "simulated", "PRESSWORK_SIMULATED_BATCH_MS": "200", "C_FORCE_ROOT": "1"}
        self._environ = remote | SETTINGS | draws | environ
        self.remote = [self._start() for _ in range(WORKERS)]
        self._keeper = threading.Thread(target=self._keep)
        self._keeper.start()

    def restart(self) -> None:
        """Starts again what has ended. If a fault ends `up` while it starts, the next look starts it once more."""
        with suppress(AssertionError):
            super().restart()

    def workers(self) -> list[int]:
        return [worker.pid for worker in self.remote if worker.popen.poll() is None]

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.values["DATABASE_URL"].replace("+psycopg", ""), autocommit=True, connect_timeout=2)

    def settings(self) -> Settings:
        return Settings.read({name: value for name, value in self.values.items() if name != "PRESSWORK_URL"})

    def _start(self) -> Process:
        module, *arguments = self._command
        return Process(module, self._environ, self.folder / f"rival-{next(self._numbers)}.log", *arguments)


class RivalFaults(Faults):
    """A stopped child goes on when another has drawn an image that it holds: a lease is all that ended it."""

    def _claim_of(self, child: int) -> int | None:
        with self._database() as database:
            held = database.execute(_HELD, [child]).fetchone()
        return int(held[0]) if held else None

    def _state_of(self, claim: int) -> str:
        try:
            with self._database() as database:
                row = database.execute("SELECT state FROM naive WHERE id = %s", [claim]).fetchone()
        except psycopg.OperationalError:
            return "unknown"
        return str(row[0]) if row else "unknown"

    def _go_on(self, worker: int, child: psutil.Process, claim: int) -> str:
        try:
            done = eventually(lambda: not child.is_running() or self._state_of(claim) == "done", STOP_SECONDS)
            child.resume()
        except psutil.NoSuchProcess:
            return "died"
        else:
            return "too late" if done else "not missed"
        finally:
            self._stopped.discard(worker)


class Customer:
    """Submits images, and tries each again until it is taken."""

    def __init__(self, site: RivalSite, celery: bool) -> None:
        self._site, self._numbers = site, itertools.count()
        self._app = naive_celery.app if celery else None
        if self._app:
            self._app.conf.update(broker_url=site.values["REDIS_URL"])
        self.submitted = 0
        self._quiet = 0.0  # when there was a message last

    def submit(self, images: int) -> None:
        for number in itertools.islice(self._numbers, images):
            assert eventually(lambda number=number: self._insert(number), 120)
            assert self._app is None or eventually(lambda number=number: self._send(number), 120)
            self.submitted += 1

    def done(self) -> int:
        try:
            with self._site.connect() as database:
                row = database.execute("SELECT count(*) FROM naive WHERE state = 'done'").fetchone()
        except psycopg.Error:
            return 0
        return int(row[0]) if row else 0

    def wait(self, seconds: float) -> None:
        """Until all is done, or for long there was no message that could lead to more."""
        self._quiet = time.monotonic()
        eventually(self._is_over, seconds)

    def _is_over(self) -> bool:
        if self.done() == self.submitted:
            return True
        if self._app is None or self._has_messages():
            self._quiet = time.monotonic()
        return time.monotonic() - self._quiet > QUIET_SECONDS

    def _has_messages(self) -> bool:
        try:
            with redis.Redis.from_url(self._site.values["REDIS_URL"]) as client:
                return bool(client.llen(naive_celery.QUEUE) or client.hlen("unacked"))
        except redis.RedisError:
            return True  # nobody can say

    def _insert(self, number: int) -> bool:
        try:
            with self._site.connect() as database:
                database.execute("INSERT INTO naive (id) VALUES (%s) ON CONFLICT DO NOTHING", [number])
        except psycopg.Error:
            return False
        return True

    def _send(self, number: int) -> bool:
        try:
            naive_celery.render.apply_async((number,), retry=False)
        except (OperationalError, redis.RedisError, OSError):
            return False
        return True


@dataclass(frozen=True)
class Outcome:
    images: int
    lost: int  # accepted, and never done
    drawn_twice: int  # images that were stored and recorded more than once
    wrong: int  # whose object has other bytes than are recorded


def look(site: RivalSite) -> Outcome:
    with site.connect() as database:
        rows = database.execute("SELECT id, sha256 FROM naive ORDER BY id").fetchall()
        twice = database.execute(_TWICE).fetchall()
    settings = site.settings()
    client = naive.store(settings)

    def is_wrong(row: tuple[int, bytes]) -> bool:
        body = client.get_object(Bucket=settings.bucket, Key=naive.key(settings, row[0]))["Body"].read()
        return hashlib.sha256(body).digest() != row[1]

    done = [(number, sha256) for number, sha256 in rows if sha256 is not None]
    with ThreadPoolExecutor(8) as pool:
        wrong = sum(pool.map(is_wrong, done))
    return Outcome(len(rows), len(rows) - len(done), len(twice), wrong)


_HELD = "SELECT id FROM naive WHERE pid = %s AND state = 'rendering' ORDER BY id DESC LIMIT 1 FOR UPDATE SKIP LOCKED"
_TWICE = "SELECT id FROM naive_drawn GROUP BY id HAVING count(*) > 1"
