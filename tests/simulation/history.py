"""One history: its workers, and how a step is done in the database and in the model and compared.
`steps` has what may come in any order."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from services.core.db.database import Connection
from services.core.events import numbering, queries
from services.core.fleet import workers
from services.core.model import ids
from services.core.model.errors import (
    Conflict,
    DatabaseUnavailable,
    IdempotencyConflict,
    IdempotencyGone,
    NotFound,
    TenantSuspended,
)
from services.core.model.specs import Claim, FailedImage, Image, StoredImage
from services.core.model.states import JobState
from services.core.queue import claims, dedupe, job_states, looks, quarantine, segments, settlement
from services.core.queue.looks import Candidates
from services.core.storage import keys, members
from tests import factories
from tests.simulation import compare, crashes
from tests.simulation.model import CRASHES, GOOD, RAISES, Job, Lease, Model, Place, Request, WorkerRow
from tests.simulation.world import Fate, Held, NotCommitted, World

LEASE = 30.0
REPRODUCIBILITY_CLASS = "test/16"
BATCH = 8
REFUSALS = (Conflict, NotFound, IdempotencyConflict, IdempotencyGone, TenantSuspended)
_LANE = 16  # segments that a look reads of a lane


@dataclass(slots=True)
class Worker:
    """A process, and what it believes that it holds."""

    host: str
    generation: int = 0
    holds: dict[int, Claim] = field(default_factory=dict)
    cancelled: dict[int, set[int]] = field(default_factory=dict)  # by claim, its jobs that it knows to be cancelled
    seen: Candidates | None = None  # a look that it has not acted on yet
    copies: dict[int, dict[Place, StoredImage]] = field(default_factory=dict)  # by claim, what it may copy

    @property
    def id(self) -> str:
        return f"{self.host}-{self.generation}"

    @property
    def device(self) -> str:
        return f"{self.host} device"


class History:
    def __init__(self, world: World) -> None:
        world.reset()
        self.world, self.model = world, Model()
        self._before: compare.Snapshot | None = None
        self._seen: set[int] = set()  # events, by id
        self._all_seen = 0  # up to this id: what is held open has an earlier one than what is committed meanwhile
        self.read: dict[str, list[str]] = {}  # what a reader of events has seen, by subject
        self._read_to = 0
        self.killed_alone: set[Place] = set()  # good images whose process was killed while it rendered nothing else
        self.workers = [Worker(f"host-{name}") for name in "abc"]
        self.register(*self.workers)

    @property
    def held(self) -> Held | None:
        return self.world.held

    def count(self, what: str, times: int = 1) -> None:
        self.world.counts[what] += times

    def do(
        self, work: Callable[..., Any], modelled: Callable[[datetime], Any], fate: Fate = Fate.COMMIT, *,
        tenant: int | None = None, whole: bool = False, kind: str = "", locks: Iterable[int] = (),
        heard: Callable[[Any], None] = lambda _result: None,
    ) -> None:  # fmt: skip
        """Does a step in the database and in the model, and compares the two. `work` takes the open transaction, or the
        database if `whole`. `heard`: what the client does with the answer, if it gets one. `locks`: claims
        that it locks."""
        if fate is Fate.HOLD and self.held is None:
            self._hold(work, modelled, Held(kind, claims=frozenset(locks)), heard)
            return
        fate = Fate.COMMIT if fate is Fate.HOLD else fate
        try:
            result = self.world.do(work, fate) if whole else self.world.run(work, fate, tenant)
        except NotCommitted:
            self.count(fate.value)
        except DatabaseUnavailable:
            self._waited(kind, is_empty=not locks)
        except REFUSALS as refusal:
            self._refused(modelled, refusal)
        else:
            wanted = modelled(self.world.clock.now)
            assert result == wanted, f"{result} was answered, and {wanted} should have been"
            self.count(fate.value)
            if fate is Fate.COMMIT:
                heard(result)
        self.check()

    def _hold(
        self, work: Callable[..., Any], modelled: Callable[[datetime], Any], held: Held, heard: Callable[[Any], None]
    ) -> None:
        try:
            result, held.end = self.world.hold(work)
        except REFUSALS as refusal:
            self._refused(modelled, refusal)
            return
        at = self.world.clock.now

        def committed() -> None:
            wanted = modelled(at)
            assert result == wanted, f"{result} was answered, and {wanted} should have been"
            heard(result)

        held.committed = committed
        self.world.held = held
        self.count(f"held {held.kind}")

    def _refused(self, modelled: Callable[[datetime], Any], refusal: Exception) -> None:
        self.count("refused: suspended", isinstance(refusal, TenantSuspended))
        try:
            modelled(self.world.clock.now)
        except type(refusal):
            return
        raise AssertionError(f"it was refused: {refusal!r}")

    def _waited(self, kind: str, *, is_empty: bool) -> None:
        """It would have had to wait for the transaction that is held, and gave up. No claim waits for a claim, a settle
        or an expiry, and no expiry that has nothing to do but what they hold."""
        assert self.held is not None
        self.count("waited for a lock")
        waits = kind != "claim" or self.held.kind == "cancel" or self.model.rooms
        assert waits, f"a claim waited for a transaction: {self.held.kind}"
        assert kind != "expire" or not is_empty, f"an expiry waited for a transaction: {self.held.kind}"

    def check(self) -> None:
        found = self.world.snapshot(self._all_seen)
        found["events"] = [row for row in found["events"] if row[0] not in self._seen]
        self._seen |= {row[0] for row in found["events"]}
        if self.held is None:
            self._all_seen = max(self._seen, default=0)
        compare.possible(found, self._before)
        compare.same(found, self.model)
        self._before = found

    # Workers

    def register(self, *started: Worker) -> None:
        def registered(connection: Connection) -> None:
            for worker in started:
                workers.register(
                    connection, worker.id, host=worker.host, pid=1, device="device", model=factories.CARD.name,
                    revision=factories.REVISION, state="ready",
                )  # fmt: skip

        def modelled(at: datetime) -> None:
            for worker in started:
                self.model.workers[worker.id] = WorkerRow(worker.device, "ready", at)

        self.do(registered, modelled)

    def report(self, worker: Worker) -> None:
        """Its heartbeat. One whose row was forgotten registers again."""

        def modelled(at: datetime) -> bool:
            row = self.model.workers.get(worker.id)
            if row is not None:
                row.state, row.seen_at = "busy", at
            return row is not None

        known = worker.id in self.model.workers
        self.do(lambda connection: workers.beat(connection, worker.id, "busy"), modelled)
        if not known:
            self.register(worker)

    def claim(self, worker: Worker, turn: int, seats: int, fate: Fate, seen: Candidates | None = None) -> Claim | None:
        """Returns what it took, which the worker holds only if it was told."""
        taken: list[Claim] = []
        name = worker.id  # its process may be another one when a transaction that is held open is committed

        def claim(connection: Connection) -> Claim | None:
            found = seen or looks.candidates(connection, factories.REVISION, turn, name)
            while found.rows:
                claim = claims.claim(connection, found, worker_id=name, seats=seats, lease=LEASE)
                if claim is not None:
                    idle = {image.tenant_id for image in claim.images} & self.model.suspended
                    assert seen or not idle, f"a claim took images of a suspended tenant: {idle}"
                    taken.append(claim)
                    return claim
                segments.raise_low(connection, found.job_ids)
                found = found.others
            return None

        def modelled(at: datetime) -> Claim | None:
            if taken:
                self.model.claimed(self._valid(taken[0], name, seats, at))
            return taken[0] if taken else None

        def heard(claim: Claim | None) -> None:
            if claim is not None:
                worker.holds[claim.id] = claim
                self._look_for_copies(worker, claim)
                self.count("claimed")
                self.count("quarantined", claim.suspect)

        may_be_empty = self.held is not None or seen is not None or fate is not Fate.COMMIT
        self.do(claim, modelled, fate, kind="claim", heard=heard)
        if taken and self.held is None and fate is Fate.COMMIT and taken[0].fresh_jobs:
            fresh = taken[0].fresh_jobs
            self.do(lambda connection: job_states.start(connection, fresh), lambda _at: self.model.started(fresh))
        if not taken and not may_be_empty and (waiting := self.model.claimable()) and self._is_seen_whole():
            assert seats < BATCH, f"nothing was claimed, and {waiting} wait"  # drained segments may be in front
        return taken[0] if taken else None

    def _valid(self, claim: Claim, worker: str, seats: int, at: datetime) -> Lease:
        """The claim as the model has it. Whether its images may be claimed, the model says."""
        places = tuple(factories.places(claim))
        images = [self.model.jobs[job].images[index] for job, index in places]
        assert len(set(places)) == len(places) <= seats, f"{seats} seats, and {places}"
        assert {image.width for image in images} == {claim.shape.width}, "a claim of two shapes"
        caps, of_jobs = {image.cap for image in images}, {job for job, _ in places}
        assert len(caps) == 1 and claim.suspect == (caps != {None}), f"quarantined beside others: {caps}"
        if claim.suspect:
            (cap,) = caps
            assert len(of_jobs) == 1 and cap is not None and len(places) <= cap, f"a cap of {cap}, and {places}"
        for given, image in zip(claim.images, images, strict=True):
            job = self.model.jobs[given.job_id]
            assert (given.spec.prompt, given.spec.seed, given.spec.width, given.tenant_id, given.in_shards) == (
                image.prompt, image.seed, image.width, job.tenant, job.in_shards,
            ), f"image {given.index} was claimed with another's payload"  # fmt: skip
        fresh = sorted(job for job in of_jobs if self.model.jobs[job].state is JobState.QUEUED)
        assert list(claim.fresh_jobs) == fresh
        return Lease(claim.id, worker, places, at + timedelta(seconds=LEASE), LEASE)

    def _is_seen_whole(self) -> bool:
        """Whether no lane has more segments than a look reads."""
        lanes: dict[tuple[int, int], set[tuple[int, int, int | None]]] = {}
        for job in self.model.jobs.values():
            for image in job.images if job.is_claimable else []:
                lanes.setdefault((job.tenant, job.priority), set()).add((job.id, image.width, image.cap))
        return all(len(lane) * 2 < _LANE for lane in lanes.values())

    def _look_for_copies(self, worker: Worker, claim: Claim) -> None:
        """What its tenant has already, and what the model says it has. Others may act before it is copied."""
        wanted = [image for image in claim.images if image.dedupe]
        assert [image.job_id for image in wanted] == [
            image.job_id for image in claim.images if self.model.jobs[image.job_id].dedupe
        ]
        if not wanted:
            return
        copies: dict[Place, StoredImage] = {}

        def find(connection: Connection) -> dict[Place, Place]:
            copies.update(dedupe.find(connection, wanted, REPRODUCIBILITY_CLASS))
            return {place: (found.job_id, found.index) for place, found in copies.items()}

        def modelled(_at: datetime) -> dict[Place, Place]:
            places = [(image.job_id, image.index) for image in wanted]
            return {place: found for place in places if (found := self.model.reusable(place))}

        self.do(find, modelled)
        worker.copies[claim.id] = copies

    def let_go(self, worker: Worker, claim: Claim, fate: Fate) -> None:
        """Ends the cancelled part of a claim, if that is not all of it."""
        jobs = worker.cancelled.get(claim.id, set())
        if not jobs or jobs >= {image.job_id for image in claim.images}:
            return
        self.do(
            lambda connection: settlement.let_go(connection, claim.id, sorted(jobs)),
            lambda _at: self.model.let_go(claim.id, jobs), fate, kind="let go", locks=[claim.id],
        )  # fmt: skip
        self.count("let go")

    def settle(self, worker: Worker, claim: Claim, most: int, fate: Fate) -> None:
        """Ends a claim that the worker believes to hold: of the first `most` images it has rendered what can be."""
        copies = self._copy(claim, worker.copies.get(claim.id, {}))
        outcomes: dict[Place, str] = dict.fromkeys(copies, "done")
        to_render = [image for image in claim.images if (image.job_id, image.index) not in copies]
        for nth, image in enumerate(to_render):
            by_prompt = {GOOD: "done", RAISES: "render_error", CRASHES: "queued"}
            outcomes[image.job_id, image.index] = by_prompt[image.spec.prompt] if nth < most else "queued"
        device = worker.device
        done = [place for place, outcome in outcomes.items() if outcome == "done" and place not in copies]
        rendered = self._store(claim, done, device)
        stored = copies | rendered
        failed = [
            FailedImage(*place, outcome, "It raised.")
            for place, outcome in outcomes.items()
            if outcome not in ("done", "queued")
        ]

        def settled(connection: Connection) -> tuple[str, list[Place]]:
            found = settlement.settle(
                connection, claim.id, device=device, stored=list(stored.values()), failed=failed,
                released=[place for place, outcome in outcomes.items() if outcome == "queued"],
                render_seconds=1.0 if rendered else None, slots=len(rendered),
            )  # fmt: skip
            if found.verdict is settlement.Verdict.FENCED:
                quarantine.retract_crash(connection, claim.id)
            return found.verdict.value, sorted((one.job_id, one.index) for one in found.dropped)

        def modelled(at: datetime) -> tuple[str, list[Place]]:
            verdict = self.model.verdict(claim.id)
            self.count(f"settled: {verdict}")
            if verdict == "ok":
                remarks = {place: _recorded(one) for place, one in stored.items()}
                seconds = 1.0 if rendered else 0.0
                self.count("copied", len(copies))
                return verdict, sorted(self.model.settled(claim.id, outcomes, remarks, device, seconds, at))
            if verdict == "fenced":
                crashes.retracted(self.model, claim.id)
            return verdict, sorted(stored)

        def heard(_answer: Any) -> None:
            worker.holds.pop(claim.id, None)

        self.do(settled, modelled, fate, kind="settle", locks=[claim.id], heard=heard)

    def _copy(self, claim: Claim, found: dict[Place, StoredImage]) -> dict[Place, StoredImage]:
        """Copies what is still there. Each copy is an object of its own, also that of a member."""
        copies = {}
        for image in claim.images:
            place = image.job_id, image.index
            source = found.get(place)
            if source is None:
                continue
            if not self.world.objects.issuperset(members.objects_of([source.object_key])):
                self.count("to be copied and gone")
                continue
            key = _object_of(image)
            self.world.objects.add(key)
            copies[place] = replace(
                source, job_id=image.job_id, index=image.index, object_key=key, render_seconds=0.0, reused=True
            )
        return copies

    def _store(self, claim: Claim, rendered: list[Place], device: str) -> dict[Place, StoredImage]:
        """Puts the objects, of which a shard is one."""
        stored = {}
        for image in claim.images:
            place = image.job_id, image.index
            if place not in rendered:
                continue
            digest, key = hashlib.sha256(image.render_key.encode()), _object_of(image)
            if image.in_shards:
                job, first = image.job_id, min(index for job_id, index in rendered if job_id == image.job_id)
                tar = keys.shard_name(image.tenant_id, ids.public_job(job), first, claim.id, digest.hexdigest())
                key = f"{tar}#{512 * image.index}+10"
            self.world.objects.update(members.objects_of([key]))
            stored[place] = StoredImage(
                *place, object_key=key, sha256=digest.digest(), bytes=10, device=device,
                reproducibility_class=REPRODUCIBILITY_CLASS, versions=f"test {image.index % 2}",
                truncated=image.spec.seed % 2 == 1, flagged=(None, False, True)[image.spec.seed % 3],
                unknown_words=(), render_seconds=0.1, render_key=bytes.fromhex(image.render_key), phash=image.spec.seed,
            )  # fmt: skip
        return stored

    def crash(
        self, worker: Worker, rendering: dict[int, list[Place]], fate: Fate = Fate.COMMIT, *, is_alive: bool = False
    ) -> bool:
        """The parent reports that the process died over these images; `is_alive`: wrongly. Returns whether the device
        looks sick."""
        sick: list[bool] = []

        def died(connection: Connection) -> bool:
            return quarantine.child_died(connection, worker.id, rendering=rendering, device=worker.device)

        def modelled(at: datetime) -> bool:
            poisoned = len(self.model.causes)
            sick.append(crashes.child_died(self.model, worker.id, rendering, worker.device, at))
            self.count("crashed")
            self.count("sick", sick[-1])
            self.count("poison", len(self.model.causes) - poisoned)
            return sick[-1]

        self.do(died, modelled, fate)
        if fate is Fate.LOST:
            self.do(died, modelled)
        if not is_alive:
            worker.holds = {}
            worker.generation += 1
            self.register(worker)
        return any(sick)

    # Events

    def number(self) -> None:
        """Numbers what is committed, and reads on."""
        while True:
            with self.world.database.begin_system() as connection:
                numbered = numbering.number(connection)
                for event in queries.after(connection, self._read_to):
                    assert event.seq == self._read_to + 1, f"event {event.seq} after {self._read_to}"
                    self._read_to = event.seq
                    self.read.setdefault(event.subject, []).append(event.kind)
            if not numbered:
                return


def _object_of(image: Image) -> str:
    job = ids.public_job(image.job_id)
    return keys.image_name(image.tenant_id, job, image.index, image.render_key, image.output_format)


def _recorded(image: StoredImage) -> tuple[object, ...]:
    return (
        image.reused,
        image.object_key,
        image.sha256.hex(),
        image.device,
        image.versions,
        image.truncated,
        image.flagged,
        image.phash,
    )


def requests_of(body: list[tuple[str, int, int]]) -> tuple[Request, ...]:
    return tuple(Request(prompt, 100 * nth, width, n) for nth, (prompt, width, n) in enumerate(body, 1))


def batches(claim: Claim) -> list[list[Place]]:
    places = factories.places(claim)
    return [places[first : first + BATCH] for first in range(0, len(places), BATCH)]


def is_bad(claim: Claim, batch: list[Place]) -> bool:
    """Whether rendering it kills the process."""
    return any(image.spec.prompt == CRASHES for image in claim.images if (image.job_id, image.index) in batch)


def pick(some: list[Any], nth: int) -> Any:
    return some[nth % len(some)]


def live(jobs: dict[int, Job], *states: JobState) -> list[Job]:
    """Those that their tenants see, in that state."""
    return [job for job in jobs.values() if not job.deleted and job.state in states]
