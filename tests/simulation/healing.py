"""The end of a history: a healthy fleet of two drains the queue as real workers do."""

from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count

from sqlalchemy import text

from services.core.db.database import Connection
from services.core.db.leases import Lease
from services.core.deletion import task
from services.core.fleet import workers
from services.core.jobs import idempotency, lifecycle
from services.core.model.states import ClaimState, JobState
from services.core.model.tenant_requests import TenantChanges
from services.core.queue import claims, counters, expiry, job_states, segments
from services.core.queue.job_states import Files
from services.core.storage import members
from services.core.tenants import tenants
from tests.simulation.history import LEASE, History, batches, is_bad, live
from tests.simulation.model import CRASHES, FINAL, GOOD, RAISES
from tests.simulation.world import Fate

_ROUNDS = 200
_ALL = 10_000
_NEAR = 0.001  # seconds


def heal(history: History) -> None:
    world, model = history.world, history.model
    world.release()
    for worker in history.workers:
        worker.holds, worker.seen = {}, None
        worker.generation += 1
    history.register(*history.workers)
    for tenant in sorted(model.suspended):
        suspend(history, tenant, False)
    for job in live(model.jobs, JobState.QUEUED, JobState.IN_PROGRESS):
        if job.paused:
            history.do(
                lambda connection, job=job: lifecycle.pause(connection, job.tenant, job.id, False),
                lambda _at, job=job: model.pause(job.tenant, job.id, False), tenant=job.tenant,
            )  # fmt: skip
    for job in live(model.jobs, JobState.DRAFT):
        history.do(
            lambda connection, job=job: lifecycle.cancel(connection, job.tenant, job.id),
            lambda _at, job=job: model.cancel(job.tenant, job.id), tenant=job.tenant,
        )  # fmt: skip
    for rounds in count():
        if any(lease.state is ClaimState.OPEN for lease in model.claims.values()):
            expire(history)
        if model.late(world.clock.now):
            deadlines(history)
        if any(job.state is JobState.CANCELLING for job in model.jobs.values()):
            sweep(history)
        if any(job.state not in FINAL and not sum(job.counts[:2]) for job in model.jobs.values()):
            finish(history)
        if model.writable():
            write(history)
        if all(job.state in FINAL for job in model.jobs.values()):
            break
        assert rounds < _ROUNDS, "the fleet is healthy, and does not come to an end"
        _render(history, rounds)
    erase(history)
    fold(history)
    _assert_ended(history)


def _render(history: History, rounds: int) -> None:
    worker = history.workers[rounds % 2]
    if any(lease.state is ClaimState.OPEN for lease in history.model.claims.values()):
        history.world.clock.now += timedelta(seconds=LEASE + 1)
        return
    claim = history.claim(worker, rounds % 3, 24, Fate.COMMIT)
    if claim is None:
        return
    bad = [batch for batch in batches(claim) if is_bad(claim, batch)]
    if not bad:
        history.settle(worker, claim, _ALL, Fate.COMMIT)
    elif history.crash(worker, {claim.id: bad[0]}):
        history.world.clock.now += timedelta(minutes=11)  # it cools down


def _assert_ended(history: History) -> None:
    for job in history.model.jobs.values():
        assert job.state in FINAL, f"job {job.id} is {job.state} though all were healthy for long"
        stopped = job.state in (JobState.CANCELLED, JobState.EXPIRED)
        for index, image in enumerate(job.images):
            outcomes = {GOOD: ("done",), RAISES: ("failed",), CRASHES: ("failed",)}[image.prompt]
            outcomes += ("failed",) if (job.id, index) in history.killed_alone else ()
            outcomes += ("cancelled",) if stopped else ()
            assert image.state.word in outcomes, f"image {index} of {image.prompt!r} ended as {image.state.word}"
    history.number()
    assert history.read == dict(history.model.all_events), "a reader of events missed one, or saw one twice"
    with history.world.database.begin_system() as connection:
        used = connection.execute(text("SELECT tenant_id, images_queued, bytes_stored FROM tenant_usage")).all()
        spent = connection.execute(text("SELECT job_id, device_seconds FROM counters")).all()
    for row in spent:
        seconds = history.model.seconds[row.job_id]
        assert abs(row.device_seconds - seconds) < _NEAR, f"{row.device_seconds} s of job {row.job_id}, not {seconds}"
    stored: dict[int, int] = {}
    for job_id, _ in history.model.results:
        owner = history.model.jobs[job_id].tenant
        stored[owner] = stored.get(owner, 0) + 10
    for row in used:
        assert (row.images_queued, row.bytes_stored) == (0, stored.get(row.tenant_id, 0)), f"usage: {row}"
    kept = set(members.objects_of(str(key) for _, _, key, *_ in history.model.results.values()))
    assert kept <= history.world.objects, "the object of a result was deleted"


def suspend(history: History, tenant: int, suspended: bool, fate: Fate = Fate.COMMIT) -> None:
    asked = TenantChanges(state="suspended" if suspended else "active")

    def changed(connection: Connection) -> None:
        tenants.change(connection, tenant, asked)

    history.do(changed, lambda _at: history.model.suspend(tenant, suspended), fate)


def expire(history: History, fate: Fate = Fate.COMMIT) -> None:
    world, model = history.world, history.model
    overdue: dict[int, str] = {}  # the claims, and the device of each by what is known of its worker now

    def modelled(at: datetime) -> int:
        images = 0
        for number, device in overdue.items():
            lease = model.claims[number]
            model.take_back(lease, ClaimState.EXPIRED, device=device, lost=1, at=at)
            images += len(lease.places)
        history.count("expired", len(overdue))
        return images

    hidden = history.held.claims if history.held else ()
    at = world.clock.now + timedelta(milliseconds=1)  # when the transaction begins
    overdue |= {
        lease.id: model.device_of(lease.worker) for lease in model.overdue(at, world.clock.started, LEASE, hidden)
    }
    history.do(lambda connection: expiry.expire(connection, LEASE), modelled, fate, kind="expire", locks=overdue)


def sweep(history: History) -> None:
    if history.held is None:  # what is locked is passed over
        history.do(segments.sweep_cancelled, lambda _at: history.model.swept())


def finish(history: History) -> None:
    history.do(lambda connection: set(lifecycle.finish(connection)), lambda _at: history.model.finished())


def write(history: History) -> None:
    """What writes the output files of jobs that were submitted as files, a few at a time."""
    found: set[int] = set()

    def written(connection: Connection) -> bool:
        found.update(job.id for job in job_states.finishable(connection))
        assert all(job_states.finish(connection, job_id, Files()) for job_id in found)
        return bool(found)

    def modelled(_at: datetime) -> bool:
        could = history.model.writable()
        assert found <= could, f"of these jobs not all images are final: {found - could}"
        for job_id in found:
            history.model.end(history.model.jobs[job_id])
        return bool(could)

    history.do(written, modelled)


def fold(history: History) -> None:
    _unseen(history, counters.fold)


def low(history: History) -> None:
    _unseen(history, segments.raise_low)


def _unseen(history: History, step: Callable[[Connection], object]) -> None:
    """What nobody sees from outside."""

    def work(connection: Connection) -> None:
        step(connection)

    history.do(work, lambda _at: None)


def deadlines(history: History) -> None:
    def modelled(at: datetime) -> int:
        stopped = history.model.out_of_time(at)
        history.count("out of time", stopped)
        return stopped

    history.do(job_states.expire, modelled)


def forget(history: History) -> None:
    def forgotten(connection: Connection) -> None:
        for step in (claims.forget, idempotency.forget, workers.forget):
            step(connection)

    history.do(forgotten, history.model.forgotten)


def number(history: History) -> None:
    history.number()


def erase(history: History) -> None:
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
