"""The installation that tests of crash points stand on, and programs in this process that are well and carry on."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_network
from typing import Any

import redis  # noqa: TC002  as the fixtures do
from sqlalchemy import text

from scheduler.background_tasks import BackgroundTaskRunner, background_tasks
from services.core.db.database import Database
from services.core.fleet import models
from services.core.jobs import queries
from services.core.model import ids
from services.core.model.errors import DatabaseUnavailable
from services.core.model.states import ImageState
from services.core.notify import Notifier
from services.core.queue import expiry
from services.core.settings import Settings
from services.core.storage import installation
from services.core.storage.s3 import S3Store
from tests import crash_programs, programs, receiving
from tests.crash_programs import Fault, Program
from tests.factories import TENANT
from tests.render_loops import RenderLoopMaker, render_loop_maker
from tests.waiting import until
from tests.web import Api, open_api
from worker.pipelines.simulated import SimulatedPipeline

_AGE_CLAIMS = text("UPDATE claims SET expires_at = now() - interval '1 hour' WHERE state = 'open'")
_OPEN = text("SELECT count(*) FROM claims WHERE state = 'open'")
_JOBS = text("SELECT id, finished_at FROM jobs WHERE id > :mark ORDER BY id")
_WHOLE = text("""
SELECT id, tenant_id FROM jobs WHERE id > :mark AND deleted_at IS NULL AND objects_deleted_at IS NULL ORDER BY id
""")
_STATES = text("SELECT index, state, attempt FROM images WHERE job_id = :id ORDER BY index")
_RESULTS = text("SELECT index, object_key, sha256, bytes FROM results WHERE job_id = :id ORDER BY index")


@dataclass
class World:
    """`mark`: what the test before has made has lower ids."""

    settings: Settings
    api: Api
    database: Database
    store: S3Store
    redis: "redis.Redis"
    make_render_loop: RenderLoopMaker
    elsewhere: S3Store  # the same bucket, but for the installation's prefix
    mark: int = 0
    _names: int = 0

    def begin(self) -> None:
        """A test begins: no wake-up of the one before keeps another from being sent."""
        self.mark = ids.new()
        self.redis.delete("presswork:wake-up:simulated")

    def start(self, name: str, fault: Fault, **changes: Any) -> Program:
        return Program(name, replace(self.settings, **changes), fault)

    def age(self) -> None:
        """All leases are over: a minute has passed. If a stopped program has a transaction open, the server ends it."""

        def age() -> bool:
            try:
                with self.database.begin_system() as connection:
                    connection.execute(_AGE_CLAIMS)
                    connection.execute(text("UPDATE leases SET expires_at = '-infinity'"))
                receiving.hurry(self.database)
                with self.database.begin_system() as connection:
                    expiry.expire(connection, 0.0)
            except DatabaseUnavailable:  # a row stayed locked
                return False
            return True

        until(age, 40)

    def carry_on(self, is_done: Callable[[], bool]) -> None:
        """Other programs do what is left, until it is done."""

        def work() -> bool:
            if is_done():
                return True
            self.render()
            self.keep_going()
            return False

        until(work, 60, every=0.01)

    def render(self) -> None:
        self.make_render_loop().run()

    def keep_going(self) -> None:
        """A round of a scheduler's work."""
        self._names += 1
        crash_programs.keep_going(programs.settings("scheduler", self.settings), f"other-{self._names}", 1)

    def run_tasks(self, *names: str) -> None:
        """These background tasks, once."""
        own = programs.settings("scheduler", self.settings)
        tasks = background_tasks(own, self.store, Notifier(own.redis_url))
        BackgroundTaskRunner(self.database, [task for task in tasks if task.name in names], "before").run_once()

    def jobs(self) -> list[int]:
        """Those of this test."""
        with self.database.begin_system() as connection:
            return list(connection.execute(_JOBS, {"mark": self.mark}).scalars())

    def have_ended(self) -> bool:
        """Whether all jobs have."""
        with self.database.begin_system() as connection:
            return all(row.finished_at for row in connection.execute(_JOBS, {"mark": self.mark}))

    def counts(self, job_id: int, tenant: int = TENANT) -> dict[str, int]:
        """As a user reads them; they always add up."""
        with self.database.begin(tenant) as connection:
            found = queries.job(connection, tenant, job_id)
        assert found is not None
        assert sum(found.counts.values()) == found.total and min(found.counts.values()) >= 0, found.counts
        return {state: count for state, count in found.counts.items() if count}

    def assert_sound(self) -> None:
        """Of every job of which nothing was deleted: each image is in one state, as the counts say; each that is done
        has one result, which is read back by its sha256, and no other has any."""
        with self.database.begin_system() as connection:
            whole = connection.execute(_WHOLE, {"mark": self.mark}).all()
        for job_id, tenant in whole:
            counts = self.counts(job_id, tenant)
            with self.database.begin_system() as connection:
                images = connection.execute(_STATES, {"id": job_id}).all()
                results = connection.execute(_RESULTS, {"id": job_id}).all()
            names = Counter(ImageState(row.state).name.lower() for row in images)
            assert {state: count for state, count in counts.items() if state in ("done", "failed")} == {
                state: count for state, count in names.items() if state in ("done", "failed")
            }
            assert [row.index for row in images] == list(range(len(images)))
            assert [row.index for row in results] == [row.index for row in images if row.state == ImageState.DONE]
            assert len({row.object_key for row in results}) == len(results)
            for row in results:
                data = self.store.read(row.object_key)
                assert (len(data), hashlib.sha256(data).digest()) == (row.bytes, bytes(row.sha256)), row.object_key

    def assert_no_claim(self) -> None:
        with self.database.begin_system() as connection:
            assert connection.execute(_OPEN).scalar_one() == 0

    def assert_done(self, job_id: int, images: int) -> None:
        assert self.counts(job_id) == {"done": images}

    def objects(self, part: str) -> list[str]:
        """The keys with this in their names."""
        return [key for key in self.store.under("") if part in key]

    def rows(self, statement: str, **values: Any) -> list[Any]:
        with self.database.begin_system() as connection:
            return list(connection.execute(text(statement), values))


@contextmanager
def open_world(settings: Settings, administration: "redis.Redis") -> Iterator[World]:
    own = replace(
        receiving.to_this_machine(settings), lease_seconds=6.0, batch_sizes=(4, 1), scorers=(), simulated_faults=True,
        simulated_noise=True, prefix=f"crash-{ids.new()}/", publish_buckets=frozenset({settings.bucket}),
        fetch_http=True, fetch_networks=(ip_network("127.0.0.1/32"),),
    )  # fmt: skip
    store = S3Store(own)
    store.prepare()
    with open_api(own) as api, render_loop_maker(own.database_url, own, store) as make:
        loop = make()
        with api.database.begin_system() as connection:
            models.register(connection, SimulatedPipeline(own).card)
        installation.claim_prefix(api.database, store)
        elsewhere = S3Store(replace(own, prefix=""))
        yield World(own, api, api.database, store, administration, lambda: loop, elsewhere)
