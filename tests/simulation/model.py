"""The reference: the life of jobs, images and claims in plain Python, as `services/core/model/states.py` and the README
tell it. It is simple and slow, shares no code with the queue but the names of states, and is compared with the database
after each step."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from services.core.model.errors import Conflict, IdempotencyConflict, IdempotencyGone, NotFound, TenantSuspended
from services.core.model.states import ClaimState, ImageState, JobState

Place = tuple[int, int]
"""Job and index."""
GOOD, RAISES, CRASHES = "a mug", "a mug that raises", "a mug that crashes"
CLAIMABLE = (JobState.QUEUED, JobState.IN_PROGRESS)
STOPPED = (JobState.CANCELLING, JobState.CANCELLED, JobState.EXPIRED)
FINAL = (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)
STOPPABLE = (JobState.DRAFT, JobState.VALIDATING, JobState.QUEUED, JobState.IN_PROGRESS)
COUNTED = (ImageState.QUEUED, ImageState.RENDERING, ImageState.DONE, ImageState.FAILED, ImageState.CANCELLED)
DRAFT_DAYS = timedelta(days=7)
KEY_DAYS = timedelta(days=7)
CLAIM_DAYS = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Request:
    """One line of a job. `prompt` decides what becomes of its images: those that say so raise or crash."""

    prompt: str
    seed: int
    width: int
    n: int = 1

    def body(self) -> dict[str, Any]:
        size = f"{self.width}x{self.width}"
        return {"prompt": self.prompt, "seed": self.seed, "n": self.n, "size": size}


@dataclass(slots=True)
class Image:
    prompt: str
    seed: int
    width: int
    request: int  # which one of the job
    state: ImageState = ImageState.QUEUED
    attempt: int = 0
    lost: int = 0
    crashes: int = 0
    cap: int | None = None  # of the quarantine that it is in
    claim: int | None = None

    def is_like(self, other: "Image") -> bool:
        """Whether both are rendered from the same spec."""
        return (self.prompt, self.seed, self.width) == (other.prompt, other.seed, other.width)


@dataclass(slots=True)
class Job:
    id: int
    tenant: int
    state: JobState
    priority: int
    images: list[Image] = field(default_factory=list)
    paused: bool = False
    in_shards: bool = False
    dedupe: bool = False  # stored images that are alike are copied
    of_file: bool = False  # it ends when its output file is written
    reason: str | None = None
    deleted: bool = False
    expires_at: datetime | None = None
    chunks: dict[int, tuple[Request, ...]] = field(default_factory=dict)

    @property
    def counts(self) -> list[int]:
        """Queued, rendering, done, failed, cancelled."""
        found = Counter(image.state for image in self.images)
        return [found[state] for state in COUNTED]

    @property
    def is_stopped(self) -> bool:
        return self.state in STOPPED

    @property
    def is_claimable(self) -> bool:
        return self.state in CLAIMABLE and not self.paused

    def add(self, requests: Iterable[Request]) -> None:
        following = self.images[-1].request + 1 if self.images else 0
        for nth, one in enumerate(requests, following):
            self.images += [Image(one.prompt, one.seed + copy, one.width, nth) for copy in range(one.n)]


@dataclass(slots=True)
class Lease:
    id: int
    worker: str
    places: tuple[Place, ...]
    expires_at: datetime
    seconds: float
    state: ClaimState = ClaimState.OPEN
    ended_at: datetime | None = None
    rendered: bool = False
    gone: set[Place] = field(default_factory=set)  # what was let go
    tenants: dict[int, int] = field(default_factory=dict)  # how many images of each it holds

    @property
    def jobs(self) -> list[int]:
        return sorted({job for job, _ in self.places})


@dataclass(slots=True)
class Failure:
    place: Place
    code: str
    claim: int
    device: str
    batch: int
    at: datetime


@dataclass(slots=True)
class WorkerRow:
    device: str
    state: str
    seen_at: datetime


class Model:
    """What the database should hold. `at` is the moment of the transaction that did it."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.claims: dict[int, Lease] = {}
        self.failures: list[Failure] = []
        self.results: dict[Place, tuple[object, ...]] = {}  # claim, whether copied, object key, sha256, remarks
        self.seconds: dict[int, float] = defaultdict(float)  # of devices, by job
        self.workers: dict[str, WorkerRow] = {}
        self.keys: dict[tuple[int, str], tuple[object, int, datetime]] = {}  # what was asked, job, when
        self.rooms: dict[int, int] = {}  # quotas of images in flight
        self.suspended: set[int] = set()  # tenants
        self.causes: Counter[tuple[int, str]] = Counter()
        self.fresh_events: dict[str, list[tuple[str, dict[str, Any] | None]]] = defaultdict(list)
        self.all_events: dict[str, list[str]] = defaultdict(list)

    # What users do

    def submitted(self, job: Job, requests: Sequence[Request]) -> None:
        job.add(requests)
        self.jobs[job.id] = job
        self._event(job, "job.created")
        if job.state is JobState.QUEUED:
            self._event(job, "job.queued")

    def remembered(self, tenant: int, key: str, asked: object, job: int, at: datetime) -> int | None:
        """None: the key is new, and the job's from now on. Raises as `idempotency.remember` does."""
        known = self.keys.get((tenant, key))
        if known is None:
            self.keys[tenant, key] = asked, job, at
            return None
        if known[0] != asked:
            raise IdempotencyConflict
        if known[1] not in self.jobs or self.jobs[known[1]].deleted:
            raise IdempotencyGone
        return known[1]

    def admitted(self, tenant: int, key: str | None = None) -> None:
        """Whether the tenant's new work is taken. Raises TenantSuspended; not for a key that is known."""
        if tenant in self.suspended and (tenant, key) not in self.keys:
            raise TenantSuspended

    def suspend(self, tenant: int, suspended: bool) -> None:
        if suspended != (tenant in self.suspended):
            self.suspended ^= {tenant}
            self.log(f"tenant/{tenant}", "tenant.suspended" if suspended else "tenant.activated")

    def opened(self, job: Job) -> None:
        job.state, job.expires_at = JobState.QUEUED, None
        self._event(job, "job.submitted")
        self._event(job, "job.queued")

    def visible(self, tenant: int, job_id: int) -> Job:
        job = self.jobs.get(job_id)
        if job is None or job.deleted or job.tenant != tenant:
            raise NotFound
        return job

    def cancel(self, tenant: int, job_id: int, reason: str = "cancelled") -> None:
        job = self.visible(tenant, job_id)
        if job.state in STOPPABLE:
            self._stop(job, reason)
        elif job.state not in (JobState.CANCELLING, JobState.CANCELLED):
            raise Conflict("Its state does not allow that.")

    def pause(self, tenant: int, job_id: int, paused: bool) -> None:
        job = self.visible(tenant, job_id)
        if job.state not in CLAIMABLE:
            raise Conflict("Its state does not allow that.")
        if job.paused != paused:
            job.paused = paused
            self._event(job, "job.paused" if paused else "job.resumed")

    def prioritise(self, tenant: int, job_id: int, priority: int) -> None:
        job = self.visible(tenant, job_id)
        if job.state in FINAL:
            raise Conflict("Its state does not allow that.")
        if job.priority != priority:
            job.priority = priority
            self._event(job, "job.priority_changed")

    def retried_images(self, parent: Job, include_cancelled: bool) -> list[Image]:
        wanted = {ImageState.FAILED} | ({ImageState.CANCELLED} if include_cancelled else set())
        found = [image for image in parent.images if image.state in wanted]
        if parent.state not in FINAL or not found:
            raise Conflict("There is nothing to try again.")
        return [Image(image.prompt, image.seed, image.width, image.request) for image in found]

    def reusable(self, place: Place) -> Place | None:
        """The result that may be copied instead of rendering that image: of the tenant's newest job that has one."""
        wanted, tenant = self.image(place), self.jobs[place[0]].tenant
        found = [
            other for other in self.results
            if self.jobs[other[0]].tenant == tenant and not self.jobs[other[0]].deleted
            and self.image(other).is_like(wanted)
        ]  # fmt: skip
        return min(found, key=lambda other: (-other[0], other[1]), default=None)

    def image(self, place: Place) -> Image:
        return self.jobs[place[0]].images[place[1]]

    def retried(self, child: Job) -> None:
        self.jobs[child.id] = child
        self._event(child, "job.created")
        self.opened(child)

    def delete(self, tenant: int, job_id: int) -> None:
        job = self.jobs.get(job_id)
        if job is None or job.tenant != tenant:
            raise NotFound
        if job.deleted:
            return
        if job.state is JobState.DRAFT:
            self._stop(job, "cancelled")
        elif job.state not in FINAL:
            raise Conflict("Its state does not allow that.")
        job.deleted = True
        self._event(job, "job.deleted")

    def erased(self, job_id: int) -> None:
        """The background task has deleted it."""
        job = self.jobs.pop(job_id)
        assert job.deleted and job.state in FINAL, "a job that lives was deleted"
        self.results = {place: found for place, found in self.results.items() if place[0] != job_id}
        self.failures = [one for one in self.failures if one.place[0] != job_id]
        self.causes = Counter({cause: times for cause, times in self.causes.items() if cause[0] != job_id})

    # What workers do

    @staticmethod
    def may_claim(image: Image, job: Job) -> bool:
        return image.state is ImageState.QUEUED and job.is_claimable

    def in_flight(self, tenant: int) -> int:
        return sum(
            self.jobs[job].tenant == tenant
            for lease in self.claims.values() if lease.state is ClaimState.OPEN for job, _ in lease.places
        )  # fmt: skip

    def claimable(self, hidden: Iterable[Place] = ()) -> list[Place]:
        """What the next claim may take."""
        hidden = set(hidden)
        full = self.suspended | {tenant for tenant, room in self.rooms.items() if self.in_flight(tenant) >= room}
        return [
            (job.id, index)
            for job in self.jobs.values() if job.tenant not in full
            for index, image in enumerate(job.images) if self.may_claim(image, job) and (job.id, index) not in hidden
        ]  # fmt: skip

    def claimed(self, lease: Lease) -> None:
        for job_id, index in lease.places:
            image = self.jobs[job_id].images[index]
            assert self.may_claim(image, self.jobs[job_id]), f"image {index} was claimed and {image.state.word} before"
            image.state, image.claim = ImageState.RENDERING, lease.id
        assert lease.id not in self.claims, "a claim's id was given twice"
        self.claims[lease.id] = lease
        lease.tenants = dict(Counter(self.jobs[job].tenant for job, _ in lease.places))
        for tenant, room in self.rooms.items():
            assert self.in_flight(tenant) <= room, "more is in flight than the tenant's quota"

    def started(self, job_ids: Iterable[int]) -> None:
        for job_id in job_ids:
            if job_id in self.jobs and self.jobs[job_id].state is JobState.QUEUED:
                self.jobs[job_id].state = JobState.IN_PROGRESS
                self._event(self.jobs[job_id], "job.started")

    def beat(self, claim_ids: Iterable[int], seconds: float, at: datetime) -> dict[int, set[int]]:
        """The claims that are held, with those of their jobs that are cancelled."""
        held: dict[int, set[int]] = {}
        for lease in (self.claims[number] for number in claim_ids if number in self.claims):
            if lease.state is ClaimState.OPEN:
                lease.expires_at, lease.seconds = at + timedelta(seconds=seconds), seconds
                held[lease.id] = {job for job in lease.jobs if self.jobs[job].is_stopped}
        return held

    def let_go(self, claim_id: int, jobs: Iterable[int]) -> None:
        """The images of those of these jobs that are cancelled are final, and the claim no longer holds them."""
        lease = self.claims.get(claim_id)
        if lease is None or lease.state is not ClaimState.OPEN:
            return
        gone = {place for place in lease.places if place[0] in jobs and self.jobs[place[0]].is_stopped}
        for place in gone:
            image = self._rendering(place, lease)
            image.state, image.claim = ImageState.CANCELLED, None
        lease.places = tuple(place for place in lease.places if place not in gone)
        lease.gone |= gone
        for place in gone:
            lease.tenants[self.jobs[place[0]].tenant] -= 1

    def verdict(self, claim_id: int) -> str:
        lease = self.claims.get(claim_id)
        if lease is not None and lease.state is ClaimState.OPEN:
            return "ok"
        return "already" if lease is not None and lease.state is ClaimState.SETTLED else "fenced"

    def settled(
        self, claim_id: int, outcomes: dict[Place, str], stored: dict[Place, tuple[object, ...]], device: str,
        seconds: float, at: datetime,
    ) -> set[Place]:  # fmt: skip
        """`outcomes`: done, queued, or the code of a failure. Its jobs share the device's seconds by their images.
        Returns the images whose objects nobody needs."""
        lease = self.claims[claim_id]
        assert lease.state is ClaimState.OPEN and set(outcomes) == {*lease.places, *lease.gone}
        dropped = set()
        for place, outcome in sorted(outcomes.items()):
            self.seconds[place[0]] += seconds / len(outcomes)
            if outcome not in ("done", "queued"):
                self.failures.append(Failure(place, outcome, claim_id, device, len(outcomes), at))
            if place in lease.gone:
                dropped |= {place} if outcome == "done" else set()
                continue
            job, image = self.jobs[place[0]], self._rendering(place, lease)
            image.claim = None
            image.attempt += outcome not in ("done", "queued")
            if job.is_stopped:
                image.state = ImageState.CANCELLED
                dropped |= {place} if outcome == "done" else set()
            elif outcome == "done":
                image.state = ImageState.DONE
                assert place not in self.results, "an image was done twice"
                self.results[place] = (claim_id, *stored[place])
            elif outcome == "queued":
                image.state = ImageState.QUEUED
            else:
                image.state = ImageState.FAILED
                self.causes[place[0], outcome] += 1
        lease.state, lease.ended_at = ClaimState.SETTLED, at
        lease.rendered = seconds > 0
        return dropped

    def device_of(self, worker: str) -> str:
        """Of a worker that is forgotten only the name is known."""
        row = self.workers.get(worker)
        return row.device if row else worker

    def take_back(self, lease: Lease, state: ClaimState, *, device: str, lost: int, at: datetime) -> None:
        for place in lease.places:
            job, image = self.jobs[place[0]], self._rendering(place, lease)
            image.claim = None
            image.lost += lost
            image.state = ImageState.CANCELLED if job.is_stopped else ImageState.QUEUED
            if lost and not job.is_stopped:
                self.failures.append(Failure(place, "lost", lease.id, device, len(lease.places), at))
        lease.state, lease.ended_at = state, at

    # What runs by itself

    def overdue(self, at: datetime, started: datetime, grace: float, hidden: Iterable[int] = ()) -> list[Lease]:
        """Claims whose leases have run out. None is until the database has run for one lease."""
        if started <= at <= started + timedelta(seconds=grace):
            return []
        return [
            lease
            for lease in self.claims.values()
            if lease.state is ClaimState.OPEN and lease.id not in hidden
            and not at <= lease.expires_at <= at + timedelta(seconds=2 * lease.seconds)
        ]  # fmt: skip

    def swept(self, hidden: Iterable[Place] = ()) -> int:
        hidden, swept = set(hidden), 0
        for job in self.jobs.values():
            for index, image in enumerate(job.images if job.state is JobState.CANCELLING else []):
                if image.state is ImageState.QUEUED and (job.id, index) not in hidden:
                    image.state = ImageState.CANCELLED
                    swept += 1
        return swept

    def late(self, at: datetime) -> list[Job]:
        return [job for job in self.jobs.values() if job.expires_at and job.expires_at < at and job.state in STOPPABLE]

    def out_of_time(self, at: datetime) -> int:
        found = self.late(at)
        for job in found:
            self._stop(job, "expired")
        return len(found)

    def writable(self) -> set[int]:
        """Jobs of files whose images are all final."""
        ending = (JobState.FINALIZING, JobState.CANCELLING)
        return {job.id for job in self.jobs.values() if job.of_file and job.state in ending and not sum(job.counts[:2])}

    def finished(self) -> set[int]:
        """Returns what has ended. A job of a file stays `finalizing`, or `cancelling`, until its output is written."""
        ended = set()
        for job in self.jobs.values():
            if sum(job.counts[:2]) or job.state in (*FINAL, JobState.DRAFT):
                continue
            if job.state in CLAIMABLE:
                self._event(job, "job.finalizing")
                job.state = JobState.FINALIZING
            if not job.of_file:
                self.end(job)
                ended.add(job.id)
        return ended

    def end(self, job: Job) -> None:
        _, _, done, failed, cancelled = job.counts
        if job.state is JobState.CANCELLING:
            job.state = JobState(job.reason or "cancelled")
        else:
            job.state = JobState.COMPLETED if done else JobState.FAILED
        reused = sum(bool(is_copy) for (job_id, _), (_, is_copy, *_) in self.results.items() if job_id == job.id)
        counts = {"done": done, "failed": failed, "cancelled": cancelled, "reused": reused, "total": len(job.images)}
        self._event(job, f"job.{job.state}", counts)

    def forgotten(self, at: datetime) -> None:
        """Claims that ended more than a day ago, keys older than a week, workers not seen for a day."""
        self.claims = {
            number: lease
            for number, lease in self.claims.items()
            if lease.ended_at is None or lease.ended_at >= at - CLAIM_DAYS
        }
        self.keys = {key: known for key, known in self.keys.items() if known[2] >= at - KEY_DAYS}
        self.workers = {name: row for name, row in self.workers.items() if row.seen_at >= at - CLAIM_DAYS}

    def log(self, subject: str, kind: str, data: dict[str, Any] | None = None) -> None:
        self.fresh_events[subject].append((kind, data))
        self.all_events[subject].append(kind)

    def _event(self, job: Job, kind: str, data: dict[str, Any] | None = None) -> None:
        self.log(f"job/{job.id}", kind, data)

    def _stop(self, job: Job, reason: str) -> None:
        job.state, job.reason = JobState.CANCELLING, reason
        self._event(job, "job.cancel_requested", {"reason": reason})

    def _rendering(self, place: Place, lease: Lease) -> Image:
        image = self.image(place)
        assert (image.state, image.claim) == (ImageState.RENDERING, lease.id), "two live claims held one image"
        return image
