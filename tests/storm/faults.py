"""What each kind of fault of the storm does. None of them waits for what it breaks to be whole again."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import redis

from tests.storm.site import Site, eventually
from tests.up import family, kill

STOPPED_AT_ONCE = 2
SECONDS = (1.0, 3.0)  # of whatever is not over at once
STOP_SECONDS = 40.0  # the longest that a stopped child waits for its lease to be over


class Faults:
    """`strike` injects one. It returns whether it could, at this moment."""

    def __init__(self, site: Site, chance: random.Random) -> None:
        self._site, self._chance = site, chance
        self._stopped: set[int] = set()  # workers of which a child is stopped: only what kills all reaches them
        self._pool = ThreadPoolExecutor(STOPPED_AT_ONCE, "stops")
        self.stops: list[Future[str]] = []
        self._kinds: dict[str, Callable[[], bool]] = {
            "kill the child of a worker": self._kill_child,
            "kill a worker": self._kill_worker,
            "kill the web server": lambda: self._kill("web"),
            "kill the scheduler": lambda: self._kill("scheduler"),
            "stop a child beyond its lease": self._stop_child,
            "wipe Redis": self._wipe,
            "kill Redis": lambda: self._kill("valkey"),
            "Redis refuses": self._refuse,
            "crash Postgres": lambda: self._kill("postgres", chance.choice((signal.SIGKILL, signal.SIGQUIT))),
            "kill the object store": lambda: self._kill("seaweedfs"),
            "the object store hangs": self._hang_store,
            "cut a host off": self._cut_off,
            "fill the disk": self._fill_disk,
            "kill the supervisor": self._kill_supervisor,
            "cut the power": self._cut_power,
        }

    def strike(self, kind: str) -> bool:
        try:
            return self._kinds[kind]()
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError, json.JSONDecodeError):
            return False  # an earlier fault has just ended what this one is for

    def _aim(self) -> int | None:
        """The worker for the next fault."""
        free = [pid for pid in self._site.workers() if pid not in self._stopped]
        return self._chance.choice(free) if free else None

    def _kill_child(self) -> bool:
        worker = self._aim()
        children = psutil.Process(worker).children() if worker else []
        for child in children:
            kill(child)
        return bool(children)

    def _kill_worker(self) -> bool:
        worker = self._aim()
        for process in family(worker) if worker else []:
            kill(process)
        return worker is not None

    def _kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> bool:
        pid = self._site.up.pids().get(name)
        if pid is None:
            return False
        os.kill(pid, number)
        return True

    def _stop_child(self) -> bool:
        """Freezes a child that holds a claim until that claim has expired."""
        worker = self._aim()
        if worker is None or len(self._stopped) == STOPPED_AT_ONCE:
            return False
        child = next(iter(psutil.Process(worker).children()), None)
        if child is None:
            return False
        os.kill(child.pid, signal.SIGSTOP)
        claim = None
        with suppress(psycopg.OperationalError):
            if eventually(lambda: child.status() == psutil.STATUS_STOPPED, 2.0):
                claim = self._claim_of(child.pid)
        if claim is None:
            os.kill(child.pid, signal.SIGCONT)
            return False
        self._stopped.add(worker)
        self.stops.append(self._pool.submit(self._go_on, worker, child, claim))
        return True

    def _go_on(self, worker: int, child: psutil.Process, claim: int) -> str:
        try:
            over = eventually(lambda: not lives(child) or self._state_of(claim) != "open", STOP_SECONDS)
            child.send_signal(signal.SIGCONT)
            fenced = f'"claim": {claim}, "verdict": "fenced"'
            if over and eventually(lambda: not lives(child) or fenced in self._site.log(), 20.0):
                return "fenced" if fenced in self._site.log() else "died"
            return "went on"
        except psutil.NoSuchProcess:
            return "died"
        finally:
            self._stopped.discard(worker)

    def _claim_of(self, child: int) -> int | None:
        """The newest claim of a stopped child. None, too, while one of its transactions has the claim locked: it is
        being settled, or no sweep can expire it."""
        with self._database() as database:
            claims = database.execute(_CLAIMS, {"pid": child}).fetchall()
        return int(claims[0][0]) if claims else None

    def _state_of(self, claim: int) -> str:
        with suppress(psycopg.OperationalError), self._database() as database:
            row = database.execute("SELECT state FROM claims WHERE id = %s", [claim]).fetchone()
            return str(row[0]) if row else "forgotten"
        return "open"  # nobody can say

    @contextmanager
    def _database(self) -> Iterator[psycopg.Connection]:
        url = self._site.values["DATABASE_URL"].replace("+psycopg", "")
        with psycopg.connect(url, connect_timeout=2) as database:
            yield database

    def _wipe(self) -> bool:
        return self._told_redis(lambda client: client.flushall())

    def _refuse(self) -> bool:
        """Redis has no memory left, and so refuses whatever writes."""

        def refuse(client: "redis.Redis") -> None:
            before = client.config_get("maxmemory")["maxmemory"]  # type: ignore[index]
            client.config_set("maxmemory", 1)
            time.sleep(self._chance.uniform(*SECONDS))
            client.config_set("maxmemory", before)

        return self._told_redis(refuse)

    def _told_redis(self, tell: Callable[["redis.Redis"], object]) -> bool:
        password = json.loads((self._site.up.home / "secrets.json").read_text())["valkey"]
        port = urlsplit(self._site.values["REDIS_URL"]).port or 0
        try:
            with redis.Redis(port=port, password=password, socket_timeout=5) as client:
                tell(client)
            return True
        except redis.RedisError:
            return False

    def _hang_store(self) -> bool:
        pid = self._site.up.pids().get("seaweedfs")
        if pid is None:
            return False
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(*SECONDS))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        return True

    def _cut_off(self) -> bool:
        """Both workers of the other hosts lose one server or several; connections are reset, or hang."""
        proxies = list(self._site.proxies.values())
        some = self._chance.sample(proxies, self._chance.randint(1, len(proxies)))
        for proxy in some:
            proxy.cut() if self._chance.random() < 0.5 else proxy.hang()
        time.sleep(self._chance.uniform(*SECONDS) + 1.0)
        for proxy in some:
            proxy.mend()
        return True

    def _fill_disk(self) -> bool:
        """Not one byte more fits the disk of all servers."""
        ballast = Path(self._site.disk) / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(b"\0" * (1 << 24))
            time.sleep(self._chance.uniform(*SECONDS))
        finally:
            ballast.unlink(missing_ok=True)
        return True

    def _kill_supervisor(self) -> bool:
        with self._site.guard:
            if not self._site.up.is_running:
                return False
            self._site.up.process.popen.kill()
            self._site.up.process.popen.wait()
        return True

    def _cut_power(self) -> bool:
        with self._site.guard:
            if not self._site.up.is_running:
                return False
            together = [threading.Thread(target=worker.kill) for worker in self._site.remote]
            for thread in together:
                thread.start()
            self._site.up.cut_power()
            for thread in together:
                thread.join()
        return True


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


_CLAIMS = """
SELECT claims.id FROM claims JOIN workers ON workers.id = worker_id
WHERE pid = %(pid)s AND workers.state IN ('ready', 'busy') AND claims.state = 'open'
ORDER BY claims.id DESC FOR UPDATE OF claims SKIP LOCKED
"""
