"""What a test of crash points does with a program, and what holds in the end. Each scenario serves several points."""

from typing import Any

import httpx

from services.core.jobs import lifecycle
from services.core.model import ids
from tests.crash_world import World
from tests.factories import TENANT, submit
from tests.render_loops import mugs
from tests.waiting import until

IMAGES = 10


class Scenario:
    """`program` is the one that reaches the point. `changes`: of its settings. `is_locking`: at the point it has a
    transaction open, whose rows nobody else can take while it is stopped. `is_fenced`: at the point it holds a claim
    that it has not settled, so that after a stop it is told that the lease was lost."""

    program = "worker"
    changes: dict[str, Any] = {}  # noqa: RUF012  no scenario changes it

    def __init__(self, world: World, *, hit: int = 1, is_locking: bool = False, is_fenced: bool = False) -> None:
        self.world, self.hit, self.is_locking, self.is_fenced = world, hit, is_locking, is_fenced

    def prepare(self) -> None:
        """What there is when the program starts."""

    def ask(self, http: httpx.Client) -> None:
        """What a client wants of a web server, again and again until it has it."""

    def meanwhile(self) -> None:
        """What others do while the program is at work."""

    def is_done(self) -> bool:
        return self.world.have_ended()

    def check(self) -> None:
        """What holds once it is done, beside what always holds."""


class Render(Scenario):
    """A job, by a worker."""

    head: dict[str, Any] | None = None

    def prepare(self) -> None:
        self.job = submit(self.world.database, self.world.settings, mugs(IMAGES), head=self.head)

    def check(self) -> None:
        self.world.assert_done(self.job, IMAGES)
        attempts = self.world.rows("SELECT max(attempt) AS most FROM images WHERE job_id = :job", job=self.job)
        assert attempts[0].most == 0


class RenderSlowly(Render):
    changes = {"simulated_batch_ms": 1_300.0}  # noqa: RUF012  so that a heartbeat comes while it renders


class RenderShards(Render):
    head = {"store": "shards"}  # noqa: RUF012


class Copy(Render):
    """A job of images that another one has."""

    head = {"dedupe": True}  # noqa: RUF012

    def prepare(self) -> None:
        submit(self.world.database, self.world.settings, mugs(IMAGES))
        self.world.render()
        super().prepare()


class Drop(Render):
    """A job that is cancelled when its images are stored and not settled."""

    changes = {"simulated_batch_ms": 500.0}  # noqa: RUF012  so that it is not settled before

    def prepare(self) -> None:
        self.job = submit(self.world.database, self.world.settings, mugs(4))

    def meanwhile(self) -> None:
        until(lambda: self.world.counts(self.job) == {"rendering": 4}, 20, every=0.01)
        with self.world.database.begin(TENANT) as connection:  # for whose end the settlement waits
            lifecycle.cancel(connection, TENANT, self.job)
            until(lambda: len(self.world.objects(f"/{ids.public_job(self.job)}/")) == 4, 20, every=0.01)

    def check(self) -> None:
        assert self.world.counts(self.job) == {"cancelled": 4}
