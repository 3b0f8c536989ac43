"""Seven hosts with a slow network that loses packets: any two are cut off from each other, and two go for good.

Web server, schedulers, two workers, Postgres, Valkey and SeaweedFS each have a network namespace of their own. They
listen on its address there, which nothing outside reaches. The README's promises P1 to P9 are asked at the end.
"""

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import text

from services.core.db import database as databases
from services.core.db.database import Database
from services.core.jobs import queries
from services.core.model import ids
from services.core.model.states import ImageState
from services.core.settings import Settings
from services.core.storage.s3 import S3Store
from services.core.tenants import api_keys
from services.local.home import Home
from services.local.servers import Postgres, SeaweedFS, Valkey, postgres, seaweedfs, valkey
from tests import hosts, memory
from tests.factories import TENANT
from tests.processes import Process
from tests.waiting import until

SERVERS = ("database", "redis", "store")
HOSTS = (*SERVERS, "web", "scheduler", "worker-a", "worker-b")
OBSERVER = "observer"  # the client, and the test itself
DELAY, FAR, LOSS = 0.001, 0.02, 0.01  # seconds each way, those of the host that is far away, the share of packets
FAR_AWAY = "worker-b"
CUT_SECONDS = (2.0, 5.0)
LONG_CUT, CUT_LONG = 13.0, (("database", "worker-a"), ("database", "web"))  # beyond TCP's patience with the database
PROMISED_SECONDS = 35.0  # P4: a lost host's images can be claimed again
IMAGES = 48  # of a job; the last prompt of each is a bad one
PORT = 8000

pytestmark = [pytest.mark.chaos, pytest.mark.skipif(bool(hosts.missing()), reason=hosts.missing())]


@dataclass
class Site:
    """What runs where."""

    network: hosts.Network
    environ: dict[str, str]
    folder: Path
    superuser_url: str
    processes: dict[str, list[Process]] = field(default_factory=dict)

    def start(self, host: str, module: str, **more: str) -> Process:
        log = self.folder / f"{host}-{module}.log"
        process = self.network[host].run(lambda: Process(module, self.environ | more, log))
        self.processes.setdefault(host, []).append(process)
        return process

    def lose(self, host: str) -> None:
        """A power cut: nobody is told."""
        self.network.unplug(host)
        for process in self.processes.pop(host):
            process.kill()

    def end(self) -> None:
        for process in itertools.chain(*self.processes.values()):
            process.kill()


@pytest.fixture
def chance() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, chance: random.Random, tmp_path: Path) -> Iterator[Site]:
    network = hosts.Network([OBSERVER, *HOSTS], delay=DELAY, loss=LOSS, chance=random.Random(chance.random()))
    try:
        with memory.folder("presswork-hosts-") as folder, hosts.visiting(network[OBSERVER]):
            addresses = {name: network[name].address for name in SERVERS}
            listen(monkeypatch, addresses)
            home = Home(folder / "home")
            home.open()
            kinds = (Postgres, Valkey, SeaweedFS)
            ports = home.ports({name: two for kind in kinds for name, two in kind.wanted_ports().items()}, print)
            servers = {"database": Postgres(home, ports), "redis": Valkey(home, ports)}
            servers["store"] = SeaweedFS(home, ports, Settings.default("PRESSWORK_BUCKET"))
            try:
                for name, server in servers.items():
                    network[name].run(server.start)
                for name, server in servers.items():
                    network[name].run(server.wait_ready)
                site = Site(network, {}, tmp_path, servers["database"].superuser_url)
                network["database"].run(admit, servers["database"])
                network["database"].run(databases.migrate, servers["database"].migrator_url)
                site.environ = environ(servers, addresses)
                yield site
                site.end()
            finally:
                for name, server in servers.items():
                    network[name].run(server.stop)
                home.close()
    finally:
        network.close()


def listen(monkeypatch: pytest.MonkeyPatch, addresses: Mapping[str, str]) -> None:
    """The servers listen on their hosts' addresses, too."""
    monkeypatch.setitem(postgres.SETTINGS, "listen_addresses", f"127.0.0.1,{addresses['database']}")
    configuration = valkey.CONFIGURATION.replace("bind 127.0.0.1", f"bind 127.0.0.1 {addresses['redis']}")
    monkeypatch.setattr(valkey, "CONFIGURATION", configuration)
    monkeypatch.setitem(seaweedfs.FIXED, "ip.bind", "0.0.0.0")  # of the namespace


def admit(server: Postgres) -> None:
    """Postgres lets the other hosts in, by password."""
    with (server.data / "pg_hba.conf").open("a") as rules:
        rules.write("host all all samenet scram-sha-256\n")
    with psycopg.connect(server.superuser_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute("SELECT pg_reload_conf()")


def environ(servers: Mapping[str, object], addresses: Mapping[str, str]) -> dict[str, str]:
    database, redis, store = servers["database"], servers["redis"], servers["store"]
    urls = {
        "DATABASE_URL": (database.url("app"), "database"), "REDIS_URL": (redis.url("app"), "redis"),
        "AWS_ENDPOINT_URL": (store.url, "store"),
    }  # fmt: skip
    return {name: url.replace("127.0.0.1", addresses[host]) for name, (url, host) in urls.items()} | {
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "PRESSWORK_SECRET": "s" * 48,
        "PRESSWORK_PIPELINE": "simulated",
        "PRESSWORK_SIMULATED_FAULTS": "1",
        "PRESSWORK_SIMULATED_BATCH_MS": "200",
        "PRESSWORK_LEASE_SECONDS": "2",
        "PRESSWORK_STORE_SECONDS": "1",  # so that most cuts are outages, and not only pauses
        "OMP_NUM_THREADS": "1",
    }


class Clients:
    """A client that submits jobs through the web server, one after the other, until each is accepted."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=10)
        self.accepted: list[int] = []
        self.tries = 0
        self._going = True
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._going = False
        self._thread.join()

    def cancel(self, job_id: int) -> None:
        answer = self._patiently("POST", f"/v1/jobs/{ids.public_job(job_id)}/cancel")
        assert answer.status_code in (200, 202), answer.text

    def _run(self) -> None:
        while self._going:
            number = len(self.accepted)
            images = [{"prompt": f"a mug {index}", "size": "64x64", "seed": index} for index in range(IMAGES - 1)]
            images.append({"prompt": "fault:nan", "size": "64x64", "seed": 0})
            answer = self._patiently(
                "POST", "/v1/jobs", json={"images": images}, headers={"Idempotency-Key": f"job-{number}"}
            )
            assert answer.status_code == 202, answer.text
            self.accepted.append(ids.parse_job(answer.json()["id"]))
            time.sleep(0.5)

    def _patiently(self, verb: str, path: str, **more: object) -> httpx.Response:
        """Tries until the server has answered; 503 is no answer."""
        while True:
            self.tries += 1
            try:
                answer = self._http.request(verb, path, **more)
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if answer.status_code != 503:
                return answer
            time.sleep(0.2)


@pytest.mark.timeout(600)
def test_hosts_that_are_cut_off_and_lost_lose_no_image_and_double_none(site: Site, chance: random.Random):
    network = site.network
    for host in SERVERS:
        network.slow(FAR_AWAY, host, FAR)
    store = S3Store(Settings.read(site.environ))
    store.prepare()
    database = Database(site.environ["DATABASE_URL"], application="tests", pool_size=10)
    url = f"http://{network['web'].address}:{PORT}"
    site.start("web", "services.web", PRESSWORK_HOST=network["web"].address, PRESSWORK_PORT=str(PORT),
               PRESSWORK_PUBLIC_URL=url)  # fmt: skip
    for host in ("scheduler", "web"):
        site.start(host, "scheduler.app")
    for host in ("worker-a", "worker-b"):
        site.start(host, "worker.app")
    with database.begin_system() as connection:
        key = api_keys.issue_key(connection, site.environ["PRESSWORK_SECRET"], TENANT, "test")
    until(lambda: ready(database) == {"worker-a", "worker-b"}, seconds=120)
    clients = Clients(url, key)
    clients.start()
    until(lambda: clients.accepted)

    began, cuts = time.monotonic(), 0
    pairs = list(itertools.combinations(HOSTS, 2))
    chance.shuffle(pairs)
    cancelled = 0
    for pair in pairs:
        network.cut(*pair)
        time.sleep(LONG_CUT if pair in CUT_LONG else chance.uniform(*CUT_SECONDS))
        network.mend(*pair)
        cuts += 1
        if cuts == len(pairs) // 2:
            cancelled = clients.accepted[-1]
            clients.cancel(cancelled)
            done_then = counts(database, cancelled)["done"]
    until(lambda: cut_in_a_heartbeat(network, database, FAR_AWAY))
    for host in (FAR_AWAY, "scheduler"):
        site.lose(host)
    lost_at = time.monotonic()
    until(lambda: not holds(database, FAR_AWAY), seconds=PROMISED_SECONDS)
    freed = time.monotonic() - lost_at
    time.sleep(2.0)  # and what comes afterwards is accepted and done, too
    clients.end()
    jobs = clients.accepted
    until(lambda: all(is_final(database, job) for job in jobs), seconds=240)

    assert counts(database, cancelled)["done"] == done_then, "P6"
    images = assert_each_once(database, store, [job for job in jobs if job != cancelled])
    with database.begin_system() as connection:
        lost = connection.execute(text("SELECT sum(lost), max(lost) FROM images")).one()
    assert "store unavailable" in (site.folder / "worker-a-worker.app.log").read_text(), "no cut was an outage"
    print(
        f"{len(jobs)} jobs, {images} images, {cuts} cuts in {lost_at - began:.0f} s, 2 hosts lost; {clients.tries} "
        f"requests of clients; {lost[0]} leases of images lost, of one {lost[1]}; a lost host's images were free after "
        f"{freed:.1f} s; packets: {network.carried} carried, {network.lost} lost, {network.refused} cut off"
    )
    database.close()


def assert_each_once(database: Database, store: S3Store, jobs: list[int]) -> int:
    """Of these jobs every image but the bad ones is done once, with the bytes that are recorded; how many."""
    for job in jobs:  # P1, P2, P5, P8: all are there, the bad prompt has failed alone, and no outage failed any
        assert counts(database, job) == {"queued": 0, "rendering": 0, "done": IMAGES - 1, "failed": 1, "cancelled": 0}
    with database.begin_system() as connection:
        rows = connection.execute(_RESULTS, {"jobs": jobs}).all()
        failures = connection.execute(_FAILED, {"jobs": jobs}).all()
    assert [(row.job_id, row.place) for row in rows] == [(job, n) for job in sorted(jobs) for n in range(IMAGES - 1)]
    assert {row.code for row in failures} == {"invalid_output"} and len(failures) == len(jobs)
    assert len({row.object_key for row in rows}) == len(rows)
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda row: hashlib.sha256(store.read(row.object_key)).digest(), rows))
    assert digests == [bytes(row.sha256) for row in rows]
    same = {n: {bytes(row.sha256) for row in rows if row.place == n} for n in range(IMAGES - 1)}
    assert all(len(found) == 1 for found in same.values()), "P9"
    mine = {ids.public_job(job) for job in jobs}
    objects = [key for key in store.under("") if mine & set(key.split("/"))]
    assert sorted(objects) == sorted(row.object_key for row in rows), "one object of each image, and no other"
    return len(rows)


def ready(database: Database) -> set[str]:
    with database.begin_system() as connection:
        return {row.host for row in queries.fleet(connection) if row.state in ("ready", "busy")}


def cut_in_a_heartbeat(network: hosts.Network, database: Database, host: str) -> bool:
    """Cuts the worker off while a transaction of it has locked a claim, which a sweep passes over. False: not now."""
    if not locks(database, host):
        return False
    network.cut(host, "database")
    time.sleep(5 * FAR)  # what is under way arrives
    if locks(database, host):
        return True
    network.mend(host, "database")
    return False


def locks(database: Database, host: str) -> bool:
    with database.begin_system() as connection:
        return connection.execute(_FREE, {"host": host}).all() != connection.execute(_OPEN, {"host": host}).all()


def holds(database: Database, host: str) -> bool:
    with database.begin_system() as connection:
        return bool(connection.execute(_HOLDS, {"host": host}).scalar_one())


def counts(database: Database, job_id: int) -> dict[str, int]:
    with database.begin(TENANT) as connection:
        found = queries.job(connection, TENANT, job_id)
    assert found is not None, "P1"
    assert sum(found.counts.values()) == found.total == IMAGES, "P7"
    return dict(found.counts)


def is_final(database: Database, job_id: int) -> bool:
    found = counts(database, job_id)
    return not found["queued"] and not found["rendering"]


_HOLDS = text("""
SELECT EXISTS (SELECT FROM claims JOIN workers ON workers.id = worker_id WHERE host = :host AND claims.state = 'open')
""")
_OPEN = text("""
SELECT claims.id FROM claims JOIN workers ON workers.id = worker_id WHERE host = :host AND claims.state = 'open'
ORDER BY claims.id
""")
_FREE = text(f"{_OPEN.text} FOR UPDATE OF claims SKIP LOCKED")
_RESULTS = text("""
SELECT job_id, index AS place, object_key, sha256 FROM results WHERE job_id = ANY(CAST(:jobs AS bigint[]))
ORDER BY job_id, index
""")
_FAILED = text(f"""
SELECT f.code FROM images i JOIN LATERAL (
  SELECT code FROM failures WHERE job_id = i.job_id AND index = i.index AND code <> 'lost' ORDER BY id DESC LIMIT 1
) f ON true WHERE i.job_id = ANY(CAST(:jobs AS bigint[])) AND i.state = {int(ImageState.FAILED)}
""")
