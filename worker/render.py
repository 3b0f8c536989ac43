"""The worker's loop: claim, form, render, store, settle, its three stages overlapped.

While one batch renders, the next one is claimed and the last ones are encoded, uploaded and settled. A bounded number
of claims is in hand at any time, so a store that is away fills the spool and then stops the claiming, and no more.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from services.core import jobs, ledger, storage, suspects, upkeep
from services.core.database import Database
from services.core.errors import Away, StoreAway, StoreRefused
from services.core.queues import Bell
from services.core.settings import Settings
from services.core.specs import Claim, FailedImage, Image, Shape, StoredImage
from worker import batching, encoding, retries
from worker.lease import Held, Interrupted, Lease
from worker.pipeline import DeviceSick, OutOfMemory, Picture, Pipeline, Spoiled, canary, reproducibility_class
from worker.retries import Part, Plan

log = logging.getLogger(__name__)
LINGER_SECONDS = 0.15
FRESH_SECONDS = 1.0
UPLOADS = 8
REFUSED_LEASES = 2  # a store that refuses us for so long may take others' images: give ours back
REGROW_BATCHES = 50  # after so many good ones the next larger size is tried again


@dataclass(frozen=True, slots=True)
class Rendered:
    """One image as it came off the device, waiting in the spool."""

    image: Image
    picture: Picture
    reproducibility_class: str
    seconds: float


@dataclass(slots=True)
class Memory:
    """What is known of the device's memory for one shape: the largest declared size that fits, and since when."""

    most: int
    good_batches: int = 0


@dataclass(slots=True)
class Outcome:
    """What rendering made of a claim. Images in neither list were not rendered: they are released."""

    held: Held
    rendered: list[Rendered] = field(default_factory=list)
    plan: Plan | None = None
    seconds: float = 0.0


class Press:
    """One pipeline and everything around it. `run` may be called from any thread; one at a time does the work."""

    def __init__(
        self, settings: Settings, pipeline: Pipeline, database: Database, store: storage.ImageStore, bell: Bell,
        lease: Lease, *, worker_id: str, host: str, mark: Callable[[int], None] = lambda _claim_id: None,
    ) -> None:  # fmt: skip
        self.settings, self.pipeline, self.database, self.store, self.bell = settings, pipeline, database, store, bell
        self.lease, self.worker_id = lease, worker_id
        self.device = f"{host} {pipeline.device}"
        self.stopping = threading.Event()
        self.busy = False
        self.sick = False
        self._mark = mark
        self._one_at_a_time = threading.Lock()
        self._seats = threading.Semaphore(settings.spool_batches)
        self._claiming = ThreadPoolExecutor(1, "claim")
        self._storing = ThreadPoolExecutor(settings.spool_batches, "store")
        self._uploading = ThreadPoolExecutor(UPLOADS, "upload")
        self._turns = batching.turns()
        self._memory: dict[Shape, Memory] = {}
        self._charges: dict[int, float] = {}
        self._refused = False

    def run(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Works until nothing waits, `until()` says so or the worker stops. False: another thread is at it."""
        if self.sick or not self._one_at_a_time.acquire(blocking=False):
            return False
        self.busy = True
        try:
            self._work(until)
        finally:
            self.busy = False
            self._one_at_a_time.release()
        return True

    def wait_idle(self) -> None:
        """Returns when nobody is at work; with `stopping` set, for good."""
        with self._one_at_a_time:
            pass

    def take_charges(self) -> dict[int, float]:
        """What each tenant has used since the last call."""
        charges, self._charges = self._charges, {}
        return charges

    # The loop -------------------------------------------------------------------------------------------------------

    def _work(self, until: Callable[[], bool]) -> None:
        settling: list[Future[None]] = []
        upcoming = self._claiming.submit(self._claim)
        try:
            while (held := upcoming.result()) is not None:
                if self.stopping.is_set() or self.sick:
                    self._store_and_settle(Outcome(held))
                    break
                upcoming = self._claiming.submit(lambda: None if until() else self._claim())
                outcome = self._render(held)
                settling = [future for future in settling if not future.done()]
                settling.append(self._storing.submit(self._store_and_settle, outcome))
        finally:
            for future in settling:
                future.result()

    def _claim(self) -> Held | None:
        """Takes the next images, as soon as the spool has room."""
        while not self._seats.acquire(timeout=0.2):
            if self.stopping.is_set() or self.sick:
                return None
        held = None
        try:
            if not self.stopping.is_set() and not self.sick:
                self._check_store()
                held = self._take()
        except Away as error:
            log.warning("claim put off", extra={"error": str(error)})
        finally:
            if held is None:
                self._seats.release()
        return held

    def _check_store(self) -> None:
        """After a store has refused for long: nothing is claimed until it takes us again."""
        if self._refused:
            self.store.check()
            self._refused = False

    def _take(self) -> Held | None:
        seats = max(self.pipeline.card.batch_sizes)
        found = self._candidates()
        if found.rows and found.age < FRESH_SECONDS and found.most_waiting < seats:
            time.sleep(LINGER_SECONDS)
            found = self._candidates()
        while found.rows:
            with self.database.begin() as connection:
                claim = ledger.claim(
                    connection,
                    found,
                    model_revision=self.pipeline.card.revision,
                    worker_id=self.worker_id,
                    seats=seats,
                    lease=self.settings.lease_seconds,
                )
            if claim is not None:
                held = self.lease.hold(claim)
                self._after_claim(claim, found, seats)
                return held
            # Drained, or all locked by others: lift the marks, so that these are not looked at again; then the rest.
            with self.database.begin() as connection:
                upkeep.raise_low(connection, found.job_ids)
            found = found.others
        return None

    def _candidates(self) -> ledger.Candidates:
        with self.database.begin() as connection:
            return ledger.candidates(connection, self.pipeline.card.revision, next(self._turns))

    def _after_claim(self, claim: Claim, found: ledger.Candidates, seats: int) -> None:
        """What may follow a claim and is healed by a duty if it does not. Never raises: the claim is held."""
        for image in claim.images:
            share = batching.cost(claim.shape, 1)
            self._charges[image.tenant_id] = self._charges.get(image.tenant_id, 0.0) + share
        if len(claim.images) == seats:
            self.bell.ring(self.pipeline.card.name)
        try:
            if claim.fresh_jobs:
                with self.database.begin() as connection:
                    ledger.start(connection, claim.fresh_jobs)
            if len(claim.images) < seats:
                with self.database.begin() as connection:
                    upkeep.raise_low(connection, found.job_ids)
        except Exception as error:
            log.warning("start put off", extra={"claim": claim.id, "error": str(error)})

    # Render ---------------------------------------------------------------------------------------------------------

    def _render(self, held: Held) -> Outcome:
        claim = held.claim
        plan = Plan(self.pipeline.card.batch_sizes, self._most(claim.shape))
        plan.add(claim.images)
        outcome = Outcome(held, plan=plan)
        self.lease.rendering(held)
        self._mark(claim.id)
        began = time.monotonic()
        try:
            while part := plan.next():
                self._render_part(part, outcome, plan)
        except Interrupted:
            log.info("render interrupted", extra={"claim": claim.id, "fenced": held.fenced})
        except DeviceSick as error:
            log.error("device sick", extra={"claim": claim.id, "error": str(error)})
            self.sick = True
            plan.failed.clear()
            outcome.rendered.clear()
        except Exception:
            log.exception("render failed; what is left is released", extra={"claim": claim.id})
        finally:
            self._mark(0)
            self.lease.rendering(None)
            outcome.seconds = time.monotonic() - began
            self._remember(claim.shape, plan.most)
        return outcome

    def _most(self, shape: Shape) -> int:
        """The largest declared size to try; one more once the device has done well for a while."""
        sizes = self.pipeline.card.batch_sizes
        memory = self._memory.get(shape)
        if memory is None:
            return max(sizes)
        if memory.good_batches >= REGROW_BATCHES:
            return min((size for size in sizes if size > memory.most), default=memory.most)
        return memory.most

    def _remember(self, shape: Shape, most: int) -> None:
        if most == max(self.pipeline.card.batch_sizes):
            self._memory.pop(shape, None)
            return
        memory = self._memory.setdefault(shape, Memory(most))
        memory.good_batches = memory.good_batches + 1 if memory.most == most else 0
        memory.most = most

    def _render_part(self, part: Part, outcome: Outcome, plan: Plan) -> None:
        began = time.monotonic()
        try:
            pictures = self.pipeline.render(
                batching.form(part.images, outcome.held.claim.shape, part.size), self.lease.on_step
            )
        except OutOfMemory:
            log.warning("out of memory", extra={"claim": outcome.held.claim.id, "size": part.size})
            if not plan.step_down(part):
                self.check_device()
                plan.too_large(part)
        except Interrupted:
            raise
        except Exception as error:
            log.warning(
                "batch failed", extra={"claim": outcome.held.claim.id, "images": len(part.images)}, exc_info=True
            )
            if not plan.stands_alone(part):
                plan.halve(part)
            else:
                self.check_device()
                plan.give_up(part, error)
        else:
            seconds = (time.monotonic() - began) / len(part.images)
            name = reproducibility_class(self.pipeline, part.size)
            if len(pictures) != part.size:
                raise DeviceSick(f"The pipeline made {len(pictures)} pictures of {part.size}.")
            if any(isinstance(picture, Spoiled) for picture in pictures[: len(part.images)]):
                self.check_device()
            for image, picture in zip(part.images, pictures, strict=False):  # the rest is padding
                if isinstance(picture, Spoiled):
                    plan.spoiled(image, picture.message)
                else:
                    outcome.rendered.append(Rendered(image, picture, name, seconds))

    def check_device(self) -> None:
        """Renders the canary. Raises DeviceSick when that fails: then it was not the prompt."""
        try:
            (picture, *_) = self.pipeline.render(canary(self.pipeline.card), self.lease.on_step)
        except Interrupted:
            raise
        except Exception as error:
            raise DeviceSick(f"The device failed on the canary image: {error}") from error
        if isinstance(picture, Spoiled):
            raise DeviceSick(f"The device spoiled the canary image: {picture.message}")

    # Store and settle -----------------------------------------------------------------------------------------------

    def _store_and_settle(self, outcome: Outcome) -> None:
        try:
            stored = [future.result() for future in [self._uploading.submit(self._store, outcome.held, rendered)
                                                     for rendered in outcome.rendered]]  # fmt: skip
            unstorable = [image for image in stored if isinstance(image, FailedImage)]
            self._settle(outcome, [image for image in stored if isinstance(image, StoredImage)], unstorable)
        except Exception:
            log.exception("settle failed; the lease will run out", extra={"claim": outcome.held.claim.id})
        finally:
            self.lease.let_go(outcome.held)
            self._seats.release()

    def _store(self, held: Held, rendered: Rendered) -> StoredImage | FailedImage | None:
        """Encodes and uploads; tries again for as long as the store is away. None: not wanted any more, or not now."""
        image, spec = rendered.image, rendered.image.spec
        if not held.wants(image):
            return None
        try:
            data = encoding.encode(rendered.picture.pixels, image.output_format)
        except Exception as error:
            log.exception("image cannot be encoded", extra={"claim": held.claim.id, "index": image.index})
            return retries.failure(image, error)
        key = storage.image_key(
            image.tenant_id, jobs.public_id(image.job_id), image.index, spec.render_key(image.output_format),
            image.output_format,
        )  # fmt: skip
        metadata = {"device": self.device, "class": rendered.reproducibility_class}
        pause, refused_until = 0.2, time.monotonic() + REFUSED_LEASES * self.settings.lease_seconds
        while not held.lost and held.wants(image):
            try:
                found = self.store.put(
                    key, data, encoding.MEDIA_TYPES[image.output_format], metadata, claim_id=held.claim.id
                )
            except StoreAway as error:
                if isinstance(error, StoreRefused) and time.monotonic() > refused_until:
                    self._refused = True
                if self.stopping.is_set() or self._refused:
                    break
                log.warning("store away", extra={"claim": held.claim.id, "error": str(error)})
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
                continue
            return StoredImage(
                job_id=image.job_id,
                index=image.index,
                object_key=found.key,
                sha256=found.sha256,
                bytes=found.size,
                device=found.metadata.get("device", self.device),
                reproducibility_class=found.metadata.get("class", rendered.reproducibility_class),
                truncated=rendered.picture.truncated,
                render_seconds=rendered.seconds,
            )
        return None

    def _settle(self, outcome: Outcome, stored: list[StoredImage], unstorable: list[FailedImage]) -> None:
        """Ends the claim; tries again while the database is away, since a lost reply may hide a commit."""
        claim = outcome.held.claim
        failed = [*(outcome.plan.failed if outcome.plan else []), *unstorable]
        ended = {(image.job_id, image.index) for image in stored} | {(image.job_id, image.index) for image in failed}
        released = [place for image in claim.images if (place := (image.job_id, image.index)) not in ended]
        pause = 0.1
        while True:
            try:
                with self.database.begin() as connection:
                    settlement = ledger.settle(
                        connection, claim.id, device=self.device, stored=stored, failed=failed, released=released,
                        render_seconds=outcome.seconds,
                    )  # fmt: skip
                    if settlement.verdict is ledger.Verdict.FENCED:
                        suspects.alive_after_all(connection, claim.id)
                break
            except Away as error:
                if self.stopping.is_set() and pause >= 2.0:
                    raise
                log.warning("settle put off", extra={"claim": claim.id, "error": str(error)})
                time.sleep(pause)
                pause = min(pause * 2, 2.0)
        if settlement.verdict is ledger.Verdict.OK:
            self._drop(settlement.dropped)
        log.info(
            "settled",
            extra={"claim": claim.id, "verdict": settlement.verdict.value, "done": len(stored), "failed": len(failed),
                   "released": len(released)},
        )  # fmt: skip

    def _drop(self, images: Sequence[StoredImage]) -> None:
        """Removes the objects of images that were cancelled while they were stored: nobody will ask for them."""
        for image in images:
            try:
                self.store.drop(image.object_key)
            except StoreAway as error:
                log.warning("object left behind", extra={"key": image.object_key, "error": str(error)})
