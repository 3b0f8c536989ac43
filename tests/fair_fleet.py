"""A fleet in virtual time over the real queue: workers claim, render for so long, settle and charge as real ones do."""

import heapq
from collections import Counter
from collections.abc import Callable
from itertools import count
from math import ceil

from services.core.db.database import Database
from services.core.model.specs import Claim
from services.core.queue import claims, counters, looks, segments
from services.core.tenants import fair_share
from tests import factories
from worker import batching

BATCH = 16
TICK = 2.0  # seconds from one charge of a worker to the next, as in worker/child.py


class Worker:
    """One that claims by the worker's own rule: up to `most` images, in batches of BATCH."""

    def __init__(self, database: Database, name: str, most: int = BATCH) -> None:
        self._database, self.name, self._most = database, name, most
        self._turns, self._charges = batching.Turns(), Counter[int]()
        self._charged_at = 0.0

    def claim(self) -> Claim | None:
        """What it takes next; None: nothing waits."""
        while True:
            with self._database.begin_system() as connection:
                found = looks.candidates(connection, factories.REVISION, 0, self.name)
                if not found.rows:
                    return None
                found = found.in_turn(self._turns.choose(found.waiting), self._charges)
                seats = found.seats(BATCH, self._most)
                taken = claims.claim(connection, found, worker_id=self.name, seats=seats, lease=3600)
            if taken is not None:
                for image in taken.images:
                    self._charges[image.tenant_id] += batching.cost(taken.shape, 1)  # type: ignore[assignment]
                return taken
            with self._database.begin_system() as connection:
                if not segments.raise_low(connection):
                    return None

    def settle(self, claim: Claim, now: float) -> None:
        factories.settle(self._database, claim)
        if now - self._charged_at >= TICK:
            self._charged_at = now
            charges, self._charges = self._charges, Counter[int]()
            for tenant, cost in charges.items():
                with self._database.begin_system() as connection:
                    fair_share.charge(connection, tenant, cost)


class Fleet:
    """Workers whose batches take so many seconds, and whose claims have up to `most` images. `done`: when each image
    was done, with its tenant and job."""

    def __init__(self, database: Database, *, workers: int = 2, batch_seconds: float = 1.0, most: int = BATCH) -> None:
        self.database, self.now = database, 0.0
        self.done: list[tuple[float, int, int]] = []
        self.claims: list[int] = []
        self._seconds, self._tie = batch_seconds, count()
        self._moments: list[tuple[float, int, Worker, Claim | None]] = []
        for number in range(workers):  # they do not all begin at the same moment
            begins = number * batch_seconds / workers
            heapq.heappush(self._moments, (begins, next(self._tie), Worker(database, f"worker-{number}", most), None))

    def run(self, until: Callable[[], bool]) -> None:
        """Renders until that is so, or nothing waits."""
        swept = self.now
        while self._moments and not until():
            self.now, _, worker, held = heapq.heappop(self._moments)
            if held is not None:
                worker.settle(held, self.now)
                self.done += [(self.now, image.tenant_id, image.job_id) for image in held.images]
            if self.now - swept >= TICK:
                swept = self.now
                for verb in (counters.fold, fair_share.lift_idle):
                    with self.database.begin_system() as connection:
                        verb(connection)
            taken = worker.claim()
            self.claims.append(len(taken.images) if taken else 0)
            ends = self.now + self._seconds * ceil((len(taken.images) if taken else 1) / BATCH)
            heapq.heappush(self._moments, (ends, next(self._tie), worker, taken))
            if taken is None and all(held is None for _, _, _, held in self._moments):
                return

    def finished(self, job: int) -> float:
        """When the last image of the job was done."""
        return max(at for at, _, found in self.done if found == job)

    def served(self, since: float, until: float) -> Counter[int]:
        """How many images of each tenant were done in that time."""
        return Counter(tenant for at, tenant, _ in self.done if since < at <= until)


def jain(shares: list[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, and 1/n if one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))
