"""The steps: what users, workers, schedulers, clocks and servers may do next, in any order.

Arguments are small numbers that pick among what there is, so a failing history stays one while steps are left out.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from services.core.batches import batch_jobs
from services.core.db.database import Connection
from services.core.deletion import jobs as deletion
from services.core.jobs import drafts, lifecycle, retry, submissions
from services.core.model import requests
from services.core.model.errors import Conflict
from services.core.model.specs import Claim
from services.core.model.states import ClaimState, ImageState, JobState
from services.core.policy import policies
from services.core.queue import claims, looks
from tests import factories
from tests.simulation import healing
from tests.simulation.history import (
    LEASE,
    History,
    Worker,
    batches,
    is_bad,
    live,
    pick,
    requests_of,
)
from tests.simulation.model import FINAL, Job, Place, Request
from tests.simulation.world import TENANTS, Fate, World

_FEW, _MANY = 2, 24  # seats: some images are left for the next claim, or it is of several jobs
PRIORITIES = {0: "high", 1: "normal", 2: "low"}
Body = list[tuple[str, int, int]]
"""Requests: prompt, width, number of images."""


class Steps:
    """The steps of one history. One for which there is nothing to do does nothing."""

    def __init__(self, world: World) -> None:
        self.world, self.history = world, History(world)
        self.model = self.history.model
        self._keyed: dict[tuple[int, str], tuple[Any, ...]] = {}  # what was last submitted with a key

    def quota(self, quota: int | None) -> None:
        """The third tenant may have so many images in flight."""
        if quota is not None:
            self.model.rooms[3] = quota
            self.world.superuser.execute("UPDATE tenants SET max_images_in_flight = %s WHERE id = 3", [quota])

    # Users

    def submit(
        self, tenant: int, body: Body, priority: int, key: int, fate: Fate, shards: bool, dedupe: bool, again: bool
    ) -> None:
        """With one of few keys, so that they come again, for other bodies, and for the same if `again`; or without."""
        owner, asked = pick(list(TENANTS), tenant), (requests_of(body), priority, shards, dedupe)
        name = f"key-{key}" if key < 3 else None
        if name is not None:
            asked = self._keyed.get((owner, name), asked) if again else asked
            self._keyed[owner, name] = asked
        self._submit(owner, *asked, name, fate)

    def submit_again(self, job: int, deleted: bool, worker: int, shards: bool) -> None:
        """What an ended job has, once more, to be copied; that job may be deleted before. It is claimed at once."""
        having = [one for one in self._ended if any(image.state is ImageState.DONE for image in one.images)]
        if not having:
            return
        source = pick(having, job)
        if deleted:
            self._by_user(deletion.delete, self.model.delete, source, Fate.COMMIT, system=True)
        done = [image for image in source.images if image.state is ImageState.DONE]
        asked = tuple(Request(image.prompt, image.seed, image.width) for image in done)
        self._submit(source.tenant, asked, 0, shards, True, None, Fate.COMMIT)
        self.claim(worker, 0, _MANY, Fate.COMMIT)

    def _submit(
        self, owner: int, asked: tuple[Request, ...], priority: int, shards: bool, dedupe: bool, name: str | None,
        fate: Fate,
    ) -> None:  # fmt: skip
        head = {"priority": PRIORITIES[priority], "dedupe": dedupe} | ({"store": "shards"} if shards else {})
        label = requests.JobOptions.model_validate(head)
        with self._submission(asked) as submission:

            def modelled(at: datetime) -> int:
                self.model.admitted(owner, name)
                what = (asked, repr(head))
                known = self.model.remembered(owner, name, what, submission.job_id, at) if name else None
                if known is None:
                    state = JobState.QUEUED
                    job = Job(submission.job_id, owner, state, priority, in_shards=shards, dedupe=dedupe)
                    self.model.submitted(job, asked)
                else:
                    self.history.count("submitted again")
                return known or submission.job_id

            def record(database: Any) -> int:
                return submission.record(database, owner, label=label, idempotency_key=name).job_id

            self.history.do(record, modelled, fate, whole=True)

    def submit_file(self, tenant: int, body: Body, priority: int, seconds: int, fate: Fate) -> None:
        """With a completion window of so many seconds. Its file is read at once."""
        owner, asked = pick(list(TENANTS), tenant), requests_of(body)
        with self._submission(asked) as submission:

            def accepted(connection: Connection) -> bool:
                batch_jobs.create(
                    connection, owner, job_id=submission.job_id, input_file_id=1, priority=priority, labels={},
                    dedupe=False, embed_prompt=False, completion_window="", window_seconds=seconds,
                    output_expires_seconds=None, base_url="",
                )  # fmt: skip
                submission.close()
                return batch_jobs.accept(connection, submission)

            def modelled(at: datetime) -> bool:
                self.model.admitted(owner)
                expires = at + timedelta(seconds=seconds)
                job = Job(submission.job_id, owner, JobState.QUEUED, priority, of_file=True, expires_at=expires)
                self.model.submitted(job, asked)
                return True

            self.history.do(accepted, modelled, fate)

    def open_draft(self, tenant: int, fate: Fate) -> None:
        owner, job_id = pick(list(TENANTS), tenant), self.world.clock.new_id()
        label = requests.JobOptions.model_validate({})

        def modelled(at: datetime) -> None:
            self.model.admitted(owner)
            expires = at + timedelta(days=drafts.KEPT_DAYS)
            self.model.submitted(Job(job_id, owner, JobState.DRAFT, 1, expires_at=expires), ())

        def opened(connection: Connection) -> int | None:
            return drafts.open_draft(connection, owner, job_id, label)

        self.history.do(opened, modelled, fate, tenant=owner)

    def append(self, job: int, number: int, body: Body, fate: Fate) -> None:
        if not self._drafts:
            return
        draft, asked = pick(self._drafts, job), requests_of(body)

        def append(connection: Connection) -> bool:
            existing = drafts.existing(connection, draft.tenant, draft.id, number)
            with self._submission(asked, existing) as submission:
                return drafts.append(connection, draft.tenant, submission, number)[1]

        def modelled(_at: datetime) -> bool:
            found = self.model.visible(draft.tenant, draft.id)
            if found.state is not JobState.DRAFT or found.chunks.get(number, asked) != asked:
                raise Conflict("It is no draft, or the chunk is another one.")
            is_known = number in found.chunks
            if not is_known:
                self.model.admitted(draft.tenant)
                found.chunks[number] = asked
                found.add(asked)
            return is_known

        self.history.do(append, modelled, fate, tenant=draft.tenant)

    def finalize(self, job: int, fate: Fate) -> None:
        if not any(job.images for job in self._drafts):
            return
        draft = pick([job for job in self._drafts if job.images], job)
        total = len(draft.images)

        def modelled(_at: datetime) -> list[str]:
            found = self.model.visible(draft.tenant, draft.id)
            self.model.admitted(draft.tenant)
            self.model.opened(found)
            return [factories.CARD.name]

        def finalize(connection: Connection) -> list[str]:
            return drafts.finalize(connection, draft.tenant, draft.id, total)

        self.history.do(finalize, modelled, fate, tenant=draft.tenant)

    def cancel(self, job: int, shared: bool, fate: Fate) -> None:
        """`shared`: one that shares a claim with others, if there is one."""
        if not self._visible:
            return
        wanted = pick((self._sharing if shared else []) or self._visible, job)
        if any(image.state is ImageState.RENDERING for image in wanted.images):
            self.history.count("cancelled while rendering")
        if wanted.is_stopped and fate is Fate.HOLD:
            fate = Fate.COMMIT  # it changes nothing and locks nothing, so others may even delete the job meanwhile
        self._by_user(lifecycle.cancel, self.model.cancel, wanted, fate, kind="cancel")

    def pause(self, job: int, paused: bool, fate: Fate) -> None:
        if not self._visible:
            return
        self._by_user(lifecycle.pause, self.model.pause, pick(self._visible, job), fate, paused)

    def prioritise(self, job: int, priority: int, fate: Fate) -> None:
        if not self._visible:
            return

        def change(connection: Connection, tenant: int, job_id: int) -> None:
            lifecycle.change(connection, tenant, job_id, priority=priority)

        def modelled(tenant: int, job_id: int) -> None:
            self.model.prioritise(tenant, job_id, priority)

        self._by_user(change, modelled, pick(self._visible, job), fate)

    def retry(self, job: int, include_cancelled: bool, key: int, fate: Fate) -> None:
        if not self._ended:
            return
        parent, name = pick(self._ended, job), f"retry-{key}" if key < 2 else None
        asked = requests.RetryOptions.model_validate({"include_cancelled": include_cancelled})
        made: list[int] = []

        def retried(connection: Connection) -> int:
            found = retry.retry(
                connection, parent.tenant, parent.id, asked, policy=policies.NOTHING, idempotency_key=name
            )
            made.append(found.job_id)
            return found.job_id

        def modelled(at: datetime) -> int:
            self.model.visible(parent.tenant, parent.id)
            images = self.model.retried_images(parent, include_cancelled)
            self.model.admitted(parent.tenant, name)
            child = made[0] if made else 0
            what = (parent.id, include_cancelled)
            known = self.model.remembered(parent.tenant, name, what, child, at) if name else None
            if known is not None:
                return known
            job = Job(child, parent.tenant, JobState.DRAFT, parent.priority, images)
            job.in_shards, job.dedupe = parent.in_shards, parent.dedupe
            self.model.retried(job)
            self.history.count("retried")
            return child

        self.history.do(retried, modelled, fate, tenant=parent.tenant)

    def delete(self, job: int, fate: Fate) -> None:
        if not (self._ended or self._drafts):
            return
        self._by_user(deletion.delete, self.model.delete, pick([*self._ended, *self._drafts], job), fate, system=True)

    def suspend(self, tenant: int, suspended: bool, fate: Fate) -> None:
        """An administrator suspends a tenant, or makes it active again."""
        healing.suspend(self.history, tenant, suspended, fate)

    # Workers

    def look(self, worker: int, turn: int, then: str) -> None:
        """It looks, and others act before it claims. `then`: a user may at once pause or cancel a job that it saw."""
        one = self._worker(worker)
        one.seen = self.world.run(lambda connection: looks.candidates(connection, factories.REVISION, turn, one.id))
        seen = [job for job in self._visible if one.seen and one.seen.rows and job.id in one.seen.job_ids]
        if seen and then == "pause":
            self._by_user(lifecycle.pause, self.model.pause, seen[0], Fate.COMMIT, True)
        elif seen and then == "cancel":
            self._by_user(lifecycle.cancel, self.model.cancel, seen[0], Fate.COMMIT, kind="cancel")

    def claim(self, worker: int, turn: int, seats: int, fate: Fate) -> None:
        """By what it saw before, or by what it sees now."""
        one = self._worker(worker)
        seen, one.seen = one.seen, None
        self.history.claim(one, turn, seats, fate, seen)

    def beat(self, worker: int, fate: Fate, at_once: bool) -> None:
        """`at_once`: what it hears to be cancelled it lets go, before others may act."""
        if not self._holders:
            return
        one = pick(self._to_hear or self._holders, worker)
        steps = dict.fromkeys(one.holds, 5)

        def extend(connection: Connection) -> dict[int, set[int]]:
            return {number: set(jobs) for number, jobs in claims.extend(connection, steps, LEASE).held.items()}

        def heard(held: dict[int, set[int]]) -> None:
            one.holds = {number: claim for number, claim in one.holds.items() if number in held}
            for number, jobs in held.items():
                one.cancelled.setdefault(number, set()).update(jobs)

        self.history.do(extend, lambda at: self.model.beat(steps, LEASE, at), fate, heard=heard)
        self.history.report(one)
        for claim in one.holds.values() if at_once else ():
            self.history.let_go(one, claim, Fate.COMMIT)

    def let_go(self, worker: int, job: int, fate: Fate) -> None:
        """What follows a heartbeat that heard of a cancel, after others may have acted. If none did, it happens first:
        a claim of several jobs, of which one is cancelled."""
        if not self._letting_go:
            if not self._sharing:
                self.claim(worker, 1, _MANY, Fate.COMMIT)
            if self._sharing:
                self.cancel(job, shared=True, fate=Fate.COMMIT)
                self.beat(worker, Fate.COMMIT, at_once=False)
        if self._letting_go:
            one, claim = pick(self._letting_go, worker)
            self.history.let_go(one, claim, fate)

    def settle(self, worker: int, which: int, most: int, fate: Fate) -> None:
        """What the worker believes to hold, however late."""
        if not self._holders:
            return
        one = pick(self._holders, worker)
        self.history.settle(one, pick(list(one.holds.values()), which), most, fate)

    def crash(self, worker: int, which: int, batch: int, both: bool, killed: bool, alive: bool, fate: Fate) -> None:
        """The process is reported dead: of a picture, if one of a batch is such, or because it was killed. It may be
        alive after all, and settle."""
        if not self._holders:
            return
        one = pick(self._holders, worker)
        held = list(one.holds.values())
        claim = pick(held, which)
        chosen = [some for some in batches(claim) if killed or is_bad(claim, some)]
        if not chosen:
            return
        rendering = {claim.id: pick(chosen, batch)}
        if both and len(held) > 1:  # the last stage of one claim ran beside the first batch of another
            other = pick(held, which + 1)
            rendering[other.id] = batches(other)[0]
        if killed:
            self._note_killed(rendering)
        self.history.crash(one, rendering, fate, is_alive=alive and killed)

    def sicken(self, worker: int, turn: int, times: int, seconds: float) -> None:
        """Its device crashes on whatever it renders, so often, with so much time from one crash to the next."""
        one = self._worker(worker)
        one.seen = None
        for _ in range(times):
            claim = self.history.claim(one, turn, _FEW, Fate.COMMIT)
            if claim is None:
                return
            rendering = {claim.id: batches(claim)[0]}
            self._note_killed(rendering)
            self.history.crash(one, rendering)
            self.pass_time(seconds)

    def vanish(self, worker: int, forgets: bool) -> None:
        """A host is lost, and nobody reports it. Or only its process was stopped while a new one starts, and it goes on
        later."""
        one = self._worker(worker)
        one.holds = {} if forgets else one.holds
        one.generation += 1
        self.history.register(one)

    # Clocks, schedulers and servers

    def pass_time(self, seconds: float) -> None:
        self.world.clock.now += timedelta(seconds=seconds)

    def restart_database(self) -> None:
        """What is open is rolled back, and nobody could extend a lease meanwhile."""
        self.world.release()
        self.world.clock.started = self.world.clock.now

    def end_held(self, commit: bool) -> None:
        if self.world.held is not None:
            self.world.end_held(commit=commit)
            self.history.check()

    def expire(self, fate: Fate) -> None:
        healing.expire(self.history, fate)

    def housekeeping(self, what: str) -> None:
        """What schedulers and the workers' timers do."""
        getattr(healing, what)(self.history)

    def _by_user(
        self, verb: Callable[..., Any], modelled: Callable[..., Any], job: Job, fate: Fate, *more: Any,
        kind: str = "", system: bool = False,
    ) -> None:  # fmt: skip
        tenant = None if system or fate is Fate.HOLD else job.tenant
        self.history.do(
            lambda connection: verb(connection, job.tenant, job.id, *more),
            lambda _at: modelled(job.tenant, job.id, *more), fate, tenant=tenant, kind=kind,
        )  # fmt: skip

    def _note_killed(self, rendering: dict[int, list[Place]]) -> None:
        """What was rendered alone may be taken for poison."""
        alone = [place for places in rendering.values() for place in places]
        if len(alone) == 1:
            self.history.killed_alone.add(alone[0])

    def _submission(
        self, asked: tuple[Request, ...], existing: submissions.ExistingJob | None = None
    ) -> submissions.Submission:
        submission = submissions.Submission(
            self.world.settings, self.world.registry, policy=policies.NOTHING, existing=existing
        )
        for nth, request in enumerate(asked):
            submission.add(nth, request.body())
        return submission

    def _worker(self, nth: int) -> Worker:
        return pick(self.history.workers, nth)  # type: ignore[no-any-return]

    @property
    def _holders(self) -> list[Worker]:
        return [worker for worker in self.history.workers if worker.holds]

    @property
    def _to_hear(self) -> list[Worker]:
        """Those who hold images of a job that was cancelled."""
        stopped = {job.id for job in self.model.jobs.values() if job.is_stopped}
        return [
            worker for worker in self._holders
            if any(image.job_id in stopped for claim in worker.holds.values() for image in claim.images)
        ]  # fmt: skip

    @property
    def _letting_go(self) -> list[tuple[Worker, Claim]]:
        return [
            (worker, claim) for worker in self._holders
            for claim in worker.holds.values()
            if 0 < len(worker.cancelled.get(claim.id, ())) < len({image.job_id for image in claim.images})
        ]  # fmt: skip

    @property
    def _sharing(self) -> list[Job]:
        """Visible jobs of which an image is rendered beside those of other jobs."""
        shared = {
            job for lease in self.model.claims.values()
            if lease.state is ClaimState.OPEN and len(lease.jobs) > 1 for job in lease.jobs
        }  # fmt: skip
        return [job for job in self._visible if job.id in shared and not job.is_stopped]

    @property
    def _visible(self) -> list[Job]:
        return live(self.model.jobs, *JobState)

    @property
    def _drafts(self) -> list[Job]:
        return live(self.model.jobs, JobState.DRAFT)

    @property
    def _ended(self) -> list[Job]:
        return live(self.model.jobs, *FINAL)
