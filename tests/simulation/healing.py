"""The end of a history: a healthy fleet of two drains the queue as real workers do."""

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING

from services.core.db.database import Connection
from services.core.db.leases import Lease
from services.core.deletion import task
from services.core.fleet import workers
from services.core.jobs import idempotency, lifecycle
from services.core.model.states import ClaimState, JobState
from services.core.queue import claims, counters, expiry, job_states, segments
from tests.simulation import history as histories
from tests.simulation.model import FINAL
from tests.simulation.world import Fate

if TYPE_CHECKING:
    from tests.simulation.history import History

_ROUNDS = 200
_ALL = 10_000


def heal(history: "History") -> None:
    world, model = history.world, history.model
    world.release()
    for worker in history.workers:
        worker.holds, worker.seen = {}, None
        worker.generation += 1
    history.register(*history.workers)
    for job in histories.live(model.jobs, JobState.QUEUED, JobState.IN_PROGRESS):
        if job.paused:
            history.do(
                lambda connection, job=job: lifecycle.pause(connection, job.tenant, job.id, False),
                lambda _at, job=job: model.pause(job.tenant, job.id, False), tenant=job.tenant,
            )  # fmt: skip
    for job in histories.live(model.jobs, JobState.DRAFT):
        history.do(
            lambda connection, job=job: lifecycle.cancel(connection, job.tenant, job.id),
            lambda _at, job=job: model.cancel(job.tenant, job.id), tenant=job.tenant,
        )  # fmt: skip
    for rounds in count():
        if any(lease.state is ClaimState.OPEN for lease in model.claims.values()):
            expire(history)
        if any(job.state is JobState.CANCELLING for job in model.jobs.values()):
            sweep(history)
        if any(job.state not in FINAL and not sum(job.counts[:2]) for job in model.jobs.values()):
            finish(history)
        if all(job.state in FINAL for job in model.jobs.values()):
            break
        assert rounds < _ROUNDS, "the fleet is healthy, and does not come to an end"
        _render(history, rounds)
    fold(history)
    erase(history)
    history.assert_ended()


def _render(history: "History", rounds: int) -> None:
    worker = history.workers[rounds % 2]
    if any(lease.state is ClaimState.OPEN for lease in history.model.claims.values()):
        history.world.clock.now += timedelta(seconds=histories.LEASE + 1)
        return
    claim = history.claim(worker, rounds % 3, 24, Fate.COMMIT)
    if claim is None:
        return
    bad = [batch for batch in histories.batches(claim) if histories.is_bad(claim, batch)]
    if not bad:
        history.settle(worker, claim, _ALL, Fate.COMMIT)
    elif history.crash(worker, {claim.id: bad[0]}):
        history.world.clock.now += timedelta(minutes=11)  # it cools down


def expire(history: "History", fate: Fate = Fate.COMMIT) -> None:
    world, model = history.world, history.model
    overdue: list[int] = []

    def modelled(at: datetime) -> int:
        images = 0
        for lease in (model.claims[number] for number in overdue):
            model.take_back(lease, ClaimState.EXPIRED, lost=1, at=at)
            images += len(lease.places)
        history.count("expired", len(overdue))
        return images

    already = history.held
    hidden = already.claims if already else ()
    at = world.clock.now + timedelta(milliseconds=1)  # when the transaction begins
    overdue += [lease.id for lease in model.overdue(at, world.clock.started, histories.LEASE, hidden)]
    history.do(lambda connection: expiry.expire(connection, histories.LEASE), modelled, fate, kind="expire")
    if fate is Fate.HOLD and history.held is not None and not already:
        history.held.claims = frozenset(overdue)


def sweep(history: "History") -> None:
    if history.held is None:  # what is locked is passed over
        history.do(segments.sweep_cancelled, lambda _at: history.model.swept())


def finish(history: "History") -> None:
    history.do(lambda connection: set(lifecycle.finish(connection)), lambda _at: history.model.finished())


def fold(history: "History") -> None:
    _unseen(history, counters.fold)


def low(history: "History") -> None:
    _unseen(history, segments.raise_low)


def _unseen(history: "History", step: Callable[[Connection], object]) -> None:
    """What nobody sees from outside."""

    def work(connection: Connection) -> None:
        step(connection)

    history.do(work, lambda _at: None)


def deadlines(history: "History") -> None:
    history.do(job_states.expire, history.model.out_of_time)


def forget(history: "History") -> None:
    def forgotten(connection: Connection) -> None:
        for step in (claims.forget, idempotency.forget, workers.forget):
            step(connection)

    history.do(forgotten, history.model.forgotten)


def number(history: "History") -> None:
    history.number()


def erase(history: "History") -> None:
    """The background task that deletes deleted jobs."""
    if history.held is not None:
        return
    with history.world.database.begin_system() as connection:
        found = {job.id for job in task.pending(connection)}
    deleted = {job.id for job in history.model.jobs.values() if job.deleted and job.state in FINAL}
    assert found == deleted, "the task finds what is deleted"
    for job_id in sorted(found):
        lease = Lease(history.world.database, f"delete {job_id}", "simulation")
        assert lease.take()
        task.run(history.world, job_id, lease)  # type: ignore[arg-type]
        lease.release()
        history.model.erased(job_id)
        history.count("erased")
        history.check()
