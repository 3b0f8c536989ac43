"""The render loop: claim, form, render, store, settle, in three overlapping stages.

While one batch renders, the next is claimed and the previous ones are encoded, uploaded and settled. The number of held
claims is bounded: while the store is unavailable, the spool fills up and then claiming stops; nothing else happens.
"""

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from services.core import traces
from services.core.crash_points import crash_point
from services.core.db.database import Connection, Database
from services.core.model.errors import Unavailable
from services.core.model.specs import Claim
from services.core.notify import Notifier
from services.core.queue import claims, job_states, looks, segments, walks
from services.core.queue.tail import Leaving
from services.core.settings import Settings
from services.core.storage import contract
from worker import batching, exit_codes
from worker.charges import Charges
from worker.claim_sizes import ClaimSizes, Following
from worker.dedupe import Dedupe
from worker.device import Device
from worker.heartbeat import Heartbeat, HeldClaim
from worker.inputs import Inputs
from worker.judging import Judging
from worker.outcome import Outcome
from worker.pipeline import Pipeline
from worker.scoring import Scoring
from worker.storing import StoringStage

log = logging.getLogger(__name__)
LINGER_SECONDS = 0.15
FRESH_SECONDS = 1.0


class RenderLoop:
    """Renders queued images with one pipeline. Any thread may call `run`; one thread at a time does the work."""

    def __init__(
        self, settings: Settings, pipeline: Pipeline, database: Database, store: contract.ImageStore,
        notifier: Notifier, heartbeat: Heartbeat, *, worker_id: str, host: str,
        mark: Callable[..., None] = lambda *_claim_ids: None, exit_process: Callable[[int], None] = os._exit,
        scoring: Scoring | None = None, judging: Judging | None = None,
    ) -> None:  # fmt: skip
        self.settings, self.pipeline = settings, pipeline
        self.database, self.notifier = database, notifier
        self.heartbeat, self.worker_id = heartbeat, worker_id
        self.stopping = threading.Event()
        self.busy = False
        self.device = Device(pipeline, heartbeat, f"{host} {pipeline.device}", mark, self.stopping.is_set)
        self._mark, self._exit = mark, exit_process
        self._dedupe = Dedupe(
            database, store, self.device, settings.storing_seconds, takes_flagged=settings.safety_checker != "refuse"
        )
        self.scoring = Scoring(settings) if scoring is None else scoring
        self.judging = Judging(settings) if judging is None else judging
        self._storing = StoringStage(
            settings, database, store, heartbeat, self.device, self.stopping, self._abandon, self.scoring, self.judging
        )
        self._inputs = Inputs(settings, store, self.stopping, self._storing.store_away)
        self._one_at_a_time = threading.Lock()
        self._seats = threading.Semaphore(settings.spool_batches)
        self._claiming = ThreadPoolExecutor(1, "claim")
        self._turns, self._sizes = batching.Turns(), ClaimSizes(settings.storing_seconds, settings.spool_batches)
        self._free_at = 0.0  # when the device should have rendered what it is at, by the monotonic clock
        self._left = False  # whether the last claim left work to others
        self.leaving = Leaving()
        self._walk = walks.Walk()
        self.charges = Charges()

    def run(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Renders until the queue is empty, `until()` is true or the worker stops.

        Returns False at once if another thread is rendering or the device is not usable.
        """
        if not self.device.usable or not self._one_at_a_time.acquire(blocking=False):
            return False
        self.busy = True
        try:
            self._work(until)
        finally:
            self.busy = False
            self._one_at_a_time.release()
        return True

    @property
    def state(self) -> str:
        """What the worker says of itself: sick, busy or ready. It is busy while it holds images; not while it looks for
        some and its store does not answer, since others would leave it work that it cannot take."""
        if self.device.sick:
            return "sick"
        return "busy" if self.heartbeat.holds else "ready"

    @property
    def trouble(self) -> str:
        """Why it claims nothing, for people; empty while nothing is known to be wrong."""
        return self._storing.trouble

    def wait_idle(self) -> None:
        """Waits until no thread renders; once `stopping` is set, none will again."""
        with self._one_at_a_time:
            pass

    def _abandon(self) -> None:
        """Ends the process, whose threads cannot be ended. What it renders is not at fault."""
        self._mark()
        self._exit(exit_codes.STORE_HANGS)

    def _work(self, until: Callable[[], bool]) -> None:
        def claim_next() -> HeldClaim | None:
            return None if until() else self._claim()

        settling: list[Future[None]] = []
        upcoming = self._claiming.submit(self._claim)
        try:
            while (held := upcoming.result() or self._claim_what_was_left(until)) is not None:
                if self.stopping.is_set() or not self.device.usable:
                    settling.append(self._hand_over(Outcome(held)))
                    break
                self._free_at = time.monotonic() + held.claim.seconds
                following = Following(held.claim.shape, self._sizes, lambda: self._claiming.submit(claim_next))
                settling[:] = [future for future in settling if not future.done()]
                self.device.begin(held, self._rendered(settling), following.ahead)
                upcoming = following.claimed()
                if not upcoming.done() or upcoming.result() is None:  # nothing to overlap with
                    self.device.finish()
                self._free_at = 0.0
        finally:
            self.device.finish()
            for future in settling:
                future.result()

    def _claim_what_was_left(self, until: Callable[[], bool]) -> HeldClaim | None:
        """What the busy device left to others, it may end sooner than they do once it is idle."""
        return self._claim() if self._left and not until() else None

    def _claim(self) -> HeldClaim | None:
        """Claims the next images as soon as the spool has a free place."""
        while not self._seats.acquire(timeout=0.2):
            if self.stopping.is_set() or not self.device.usable:
                return None
        held = None
        try:
            if not self.stopping.is_set() and self.device.usable:
                self._storing.check()
                with self.device.counts.claim_seconds.time():
                    held = self._take()
        except Unavailable as error:
            log.warning("claim postponed", extra={"error": str(error)})
        finally:
            if held is None:
                self._seats.release()
        return held

    def _rendered(self, settling: list[Future[None]]) -> Callable[[Outcome], None]:
        """What is done with a batch that begins now, once it is rendered."""
        began = traces.now()

        def take(outcome: Outcome) -> None:
            outcome.held.trace.record("render", began)
            if outcome.slots:
                self._sizes.measured(outcome.held.claim.shape, outcome.pass_seconds / outcome.slots)
            settling.append(self._hand_over(outcome))

        return take

    def _hand_over(self, outcome: Outcome) -> Future[None]:
        began = time.monotonic()

        def settled() -> None:
            if outcome.rendered:
                shape, images = outcome.held.claim.shape, len(outcome.rendered)
                self._sizes.stored(shape, images, time.monotonic() - began)
            self._seats.release()

        return self._storing.hand_over(outcome, settled)

    def _take(self) -> HeldClaim | None:
        began = traces.now()
        found, claim = self._look_and_claim()
        if claim is not None:
            crash_point("claim.committed")
        self._left = False
        self.leaving.keep(found.segments)
        while found.rows:
            if claim is None:
                with self.database.begin_system() as connection:
                    claim = self._claim_of(connection, found)
            now = time.monotonic()
            self.leaving.note(found.left(claim), found.alike, now=now, until=now + found.patience)
            if claim is not None:
                held = self.heartbeat.hold(claim)
                try:
                    held.trace = self._traced(claim, began)
                    self._after_claim(claim, found)
                    fetching = time.monotonic()
                    self._dedupe.copy_existing(held)
                    self._inputs.fetch(held)
                    self._sizes.fetched(time.monotonic() - fetching)
                    self._charge(held)
                except BaseException:  # no thread can be started, say: the lease runs out, and others take the images
                    self.heartbeat.release_claim(held)
                    raise
                return held
            # Drained, locked by others or left to them: raise the marks, so that these are not read again, or are known
            # to the image; then try the rest.
            self._left = self._left or found.leaves > 0
            with self.database.begin_system() as connection:
                segments.raise_low(connection, found.job_ids)
            began, found = traces.now(), found.others
        return None

    def _look_and_claim(self) -> tuple[looks.Candidates, Claim | None]:
        """What waits, and what was claimed of it in the same transaction; not yet of what has just arrived and fills no
        batch, since more may follow at once. A worker without work looks on at once where it can serve nothing at the
        front of a lane."""
        turn = None
        for _ in range(walks.STRIDE):
            with self.database.begin_system() as connection:
                found, moved = self._look(connection)
                if found.rows:
                    is_first = turn is None
                    turn = self._turns.choose(found.waiting) if turn is None else turn
                    found = found.in_turn(turn, self.charges.unpaid())
                    if not (is_first and found.age < FRESH_SECONDS and found.max_waiting < self._batch_of(found)):
                        return found, self._claim_of(connection, found)
                elif not moved:
                    break
            if found.rows:
                time.sleep(LINGER_SECONDS)
        return found, None

    def _look(self, connection: Connection) -> tuple[looks.Candidates, bool]:
        """What it sees, and whether the next look begins further back."""
        revision, able, now = self.pipeline.card.revision, self.device.abilities(), time.monotonic()
        found = looks.candidates(
            connection, revision, 0, self.worker_id, able, free=max(self._free_at - now, 0.0),
            overdue=self.leaving.overdue(now), after=self._walk.after,
        )  # fmt: skip
        return found, self._walk.go_on(connection, revision, able, found.lanes, now)

    def _claim_of(self, connection: Connection, found: looks.Candidates) -> Claim | None:
        return claims.claim(
            connection, found, worker_id=self.worker_id, seats=self._seats_of(found), lease=self.settings.lease_seconds
        )

    def _batch_of(self, found: looks.Candidates) -> int:
        return found.batch(max(self.pipeline.card.batch_sizes))

    def _seats_of(self, found: looks.Candidates) -> int:
        """The most images of a claim."""
        batch = self._batch_of(found)
        return found.seats(batch, self._sizes.images(found.shape, batch))

    def _traced(self, claim: Claim, began: int) -> traces.Batch:
        """The span of the claim's batch. Never raises, since the claim is held."""
        if not traces.is_on():
            return traces.NO_BATCH
        try:
            with self.database.begin_system() as connection:
                parents = job_states.traceparents(connection, [image.job_id for image in claim.images])
        except Exception as error:
            log.warning("batch not traced", extra={"claim": claim.id, "error": type(error).__name__})
            return traces.NO_BATCH
        batch = traces.batch("batch", parents, began, claim=claim.id, images=len(claim.images))
        batch.record("claim", began)
        return batch

    def _after_claim(self, claim: Claim, found: looks.Candidates) -> None:
        """Updates that a periodic task repeats if they fail here. Never raises, since the claim is held."""
        seats = self._seats_of(found)
        if len(claim.images) >= seats:
            self.notifier.notify(self.pipeline.card.name)
        try:
            if claim.fresh_jobs:
                with self.database.begin_system() as connection:
                    job_states.start(connection, claim.fresh_jobs)
                crash_point("claim.started")
            if len(claim.images) < seats:
                with self.database.begin_system() as connection:
                    segments.raise_low(connection, found.job_ids)
        except Exception as error:
            log.warning("start postponed", extra={"claim": claim.id, "error": str(error)})

    def _charge(self, held: HeldClaim) -> None:
        for tenant_id, images in Counter(image.tenant_id for image in held.remaining).items():
            self.charges.add(tenant_id, batching.cost(held.claim.shape, images))
