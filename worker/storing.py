"""Judges, encodes, scores, uploads and settles rendered images in the background; retries while a server is away.

Uploading has a deadline. What is not stored by then is released, to be rendered again; if an upload still hangs, its
process ends.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from operator import itemgetter
from typing import TypeVar

from services.core.crash_points import crash_point
from services.core.db.database import Database
from services.core.fleet import throughput
from services.core.model import ids
from services.core.model.errors import StoreRefused, StoreUnavailable, Unavailable
from services.core.model.specs import FailedImage, Image, StoredImage
from services.core.queue import quarantine, settlement
from services.core.settings import Settings
from services.core.storage import contract, keys, members
from worker import encoding, provenance, retries, sharding
from worker.device import Device
from worker.heartbeat import Heartbeat, HeldClaim
from worker.judging import Judging, Unjudged
from worker.outcome import Encoded, Outcome, Rendered
from worker.pipeline import OutOfMemory, Picture
from worker.scoring import Scoring

log = logging.getLogger(__name__)
UPLOADS = 8
HOPELESS = UPLOADS  # failures of the store or a policy in a row, after which a worker that stops tries no further
REVIEW_PAUSES = (0.1, 0.5, 2.0)  # seconds between tries to check a picture while the device has no memory for it
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
REFUSED_LEASES = 2  # a store that refuses this worker for so long may accept others': release the images


class StoringStage:
    """The stage after rendering. Once `stopping` is set, images that cannot be stored at once are released."""

    def __init__(
        self, settings: Settings, database: Database, store: contract.ImageStore, heartbeat: Heartbeat, device: Device,
        stopping: threading.Event, abandon: Callable[[], None], scoring: Scoring, judging: Judging,
    ) -> None:  # fmt: skip
        self._settings, self._database, self._objects, self._heartbeat = settings, database, store, heartbeat
        self._device, self._pipeline, self._stopping = device.name, device.pipeline, stopping
        self._cannot_check, self._counts = device.cannot_check, device.counts
        self._abandon, self._scoring, self._judging = abandon, scoring, judging
        self._closed = False
        self._failures = 0  # of the store or a policy, in a row
        self._batches = ThreadPoolExecutor(settings.spool_batches, "store")
        self._uploading = ThreadPoolExecutor(UPLOADS, "upload")
        self._handed_over = 0  # claims that are not settled yet
        self._counting = threading.Lock()
        self._pace = throughput.Pending()

    def hand_over(self, outcome: Outcome, done: Callable[[], None]) -> Future[None]:
        """Stores and settles in the background; calls `done` when the claim is no longer held."""
        outcome.held.begin_storing(self._settings)
        self._count(1)
        return self._batches.submit(self._store_and_settle, outcome, done)

    def store_away(self) -> None:
        """Lets nothing be claimed until the store answers."""
        self._closed = True
        self._counts.store_away.set(1)

    @property
    def trouble(self) -> str:
        """Why nothing is claimed, for people; empty while nothing is known to be wrong."""
        return "waits for the object store" if self._closed else self._judging.trouble

    def check(self) -> None:
        """If the store was unusable for long, or a policy is away, raises until it answers again, so that nothing is
        claimed."""
        if self._closed:
            self._objects.check()
            self._closed = False
        self._counts.store_away.set(0)
        self._judging.check()

    def _store_and_settle(self, outcome: Outcome, done: Callable[[], None]) -> None:
        hanging = False
        try:
            with outcome.held.trace.part("store"):
                stored, hanging = self._store_all(outcome)
            unstorable = [image for image in stored if isinstance(image, FailedImage)]
            uploaded = [image for image in stored if isinstance(image, StoredImage)]
            with outcome.held.trace.part("settle"), self._counts.settle_seconds.time():
                self._settle(outcome, [*outcome.held.reused, *uploaded], unstorable)
        except Exception:
            log.exception("settle failed; the lease will expire", extra={"claim": outcome.held.claim.id})
        finally:
            outcome.held.trace.end()
            self._heartbeat.release_claim(outcome.held)
            self._count(-1)
            done()
        if hanging:
            seconds = round(self._settings.abandon_seconds, 1)
            log.error("store hangs; the process ends", extra={"claim": outcome.held.claim.id, "seconds": seconds})
            self._abandon()

    def _is_hopeless(self) -> bool:
        """Whether nothing more is to be tried: the worker stops, and a claim of many images, each of which waits for a
        store or a policy that does not answer, would outlast the time that it has for that."""
        return self._stopping.is_set() and self._failures >= HOPELESS

    def _count(self, by: int) -> None:
        with self._counting:
            self._handed_over += by

    def _is_hurried(self) -> bool:
        """Whether the device is about to wait for a place in the spool, or the worker for its end."""
        return self._stopping.is_set() or self._handed_over >= self._settings.spool_batches - 1

    def _store_all(self, outcome: Outcome) -> tuple[list[StoredImage | FailedImage | None], bool]:
        """What became of the images that were stored in time, and whether any thread hangs."""
        held, until = outcome.held, time.monotonic() + self._settings.abandon_seconds
        found, hanging = self._each(lambda one: self._store(held, one), outcome.rendered, until)
        stored = [one for one in found if not isinstance(one, Encoded)]
        if lots := sharding.lots(one for one in found if isinstance(one, Encoded)):
            shards, late = self._each(lambda lot: self._store_shard(held, lot), lots, until)
            stored += [image for shard in shards for image in shard]
            hanging = hanging or late
        return stored, hanging

    def _each(self, work: Callable[[_Item], _Found], items: Sequence[_Item], until: float) -> tuple[list[_Found], bool]:
        """The results of those that have ended by then, in order, and whether any goes on. Each uploading thread takes
        one item after the other."""
        left, found = deque(enumerate(items)), dict[int, _Found]()

        def take() -> None:
            while True:
                try:
                    at, item = left.popleft()
                except IndexError:
                    return
                found[at] = work(item)

        threads = [self._uploading.submit(take) for _ in range(min(UPLOADS, len(items)))]
        ended, unfinished = wait(threads, max(0.0, until - time.monotonic()))
        left.clear()
        hanging = any(not thread.cancel() for thread in unfinished)
        for thread in ended:
            thread.result()
        return [one for _, one in sorted(found.copy().items(), key=itemgetter(0))], hanging

    def _store(self, held: HeldClaim, rendered: Rendered) -> StoredImage | FailedImage | Encoded | None:
        """Encodes, and stores what is an object of its own; retries while the store is away. None: not wanted, or to be
        released."""
        encoded = self._encode(held, rendered)
        if not isinstance(encoded, Encoded) or encoded.image.in_shards:
            return encoded
        image = encoded.image
        name = keys.image_name(
            image.tenant_id, ids.public_job(image.job_id), image.index, image.render_key, image.output_format
        )  # fmt: skip
        metadata = {"class": rendered.reproducibility_class}
        found = self._put(held, image, name, encoded.data, encoding.MEDIA_TYPES[image.output_format], metadata)
        crash_point("image.stored")
        return None if found is None else self._stored(held, encoded, found.key, found.sha256, found)

    def _store_shard(self, held: HeldClaim, lot: Sequence[Encoded]) -> list[StoredImage]:
        """Stores images of one job in one object; none of them if that did not work."""
        shard = sharding.tar(lot, held.claim.id)
        found = self._put(held, shard.images[0], shard.name, shard.data, sharding.MEDIA_TYPE, {})
        crash_point("shard.stored")
        if found is None:
            return []
        return [
            self._stored(held, member.encoded, member.key(found.key), member.sha256) for member in shard.members
        ]  # fmt: skip

    def _encode(self, held: HeldClaim, rendered: Rendered) -> Encoded | FailedImage | None:
        """Checks, judges, encodes, and begins to score."""
        image = rendered.image
        if not held.wants(image) or self._is_hopeless():
            return None
        try:
            picture = self._review(rendered.picture)
        except Exception as error:
            log.exception("picture cannot be checked", extra={"claim": held.claim.id, "index": image.index})
            self._cannot_check(held.claim.shape, rendered, error)
            return None
        try:
            refused = self._judging.refusal(
                image, picture, lambda: self._goes_on(held, image), until=held.store_until
            )  # fmt: skip
        except Unjudged:
            self._failures += 1
            return None
        if refused is not None:
            return refused
        try:
            embedded = provenance.describe(image, self._pipeline.card.name, rendered.reproducibility_class)
            pending = self._scoring.begin(picture.pixels, image.spec.prompt)
            with self._counts.encode_seconds.time():
                data = encoding.encode(picture.pixels, image.output_format, image.output_compression, embedded)
        except Exception as error:
            log.exception("image cannot be encoded", extra={"claim": held.claim.id, "index": image.index})
            return retries.failure(image, error)
        return Encoded(rendered, picture, data, pending)

    def _put(
        self, held: HeldClaim, image: Image, name: str, data: bytes, media_type: str, metadata: dict[str, str]
    ) -> contract.StoredObject | None:
        """Stores the object for as long as `image`, one of those in it, is wanted. None: it was given up."""
        crash_point("object.encoded")
        metadata = metadata | {"device": self._device, "versions": self._pipeline.versions}
        pause, refused_until = 0.2, time.monotonic() + REFUSED_LEASES * self._settings.lease_seconds
        while not held.lost and held.wants(image) and not self._is_hopeless():
            if time.monotonic() > held.store_until:
                self.store_away()
                break
            try:
                with self._counts.store_seconds.time():
                    found = self._objects.put(
                        self._objects.key(name), data, media_type, metadata, claim_id=held.claim.id
                    )  # fmt: skip
                self._failures = 0
                return found
            except StoreUnavailable as error:
                self._failures += 1
                is_refusal = isinstance(error, StoreRefused)
                self._counts.store_failed(refused=is_refusal)
                if is_refusal and time.monotonic() > refused_until:
                    self.store_away()
                if self._stopping.is_set() or self._closed:
                    break
                log.warning("store unavailable", extra={"claim": held.claim.id, "error": str(error)})
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
        return None

    def _stored(
        self, held: HeldClaim, encoded: Encoded, key: str, sha256: bytes, found: contract.StoredObject | None = None
    ) -> StoredImage:
        """`found` is the image's own object, which another worker may have written."""
        image, picture, rendered = encoded.image, encoded.picture, encoded.rendered
        scored = self._scoring.end(encoded.pending, self._is_hurried, held.store_until)
        own = {
            "device": self._device, "class": rendered.reproducibility_class, "versions": self._pipeline.versions,
        }  # fmt: skip
        written = own if found is None else found.metadata
        return StoredImage(
            job_id=image.job_id,
            index=image.index,
            object_key=key,
            sha256=sha256,
            bytes=len(encoded.data) if found is None else found.size,
            device=written.get("device", self._device),
            reproducibility_class=written.get("class", rendered.reproducibility_class),
            versions=written.get("versions"),  # the writer of an adopted object may have stored none
            truncated=picture.truncated,  # decided by the spec, so also true of an adopted object
            flagged=picture.flagged,
            unknown_words=picture.unknown_words,
            render_seconds=rendered.seconds,
            render_key=bytes.fromhex(image.render_key),
            scores=scored.numbers,
            phash=scored.phash,
        )

    def _goes_on(self, held: HeldClaim, image: Image) -> bool:
        """Whether the image is still worth waiting for."""
        is_wanted = not held.lost and held.wants(image)
        return is_wanted and not self._stopping.is_set() and time.monotonic() < held.store_until

    def _review(self, picture: Picture) -> Picture:
        """The picture with its verdict. It waits for memory, which the batch that is being rendered may give back; a
        picture that cannot be checked is not stored."""
        for pause in REVIEW_PAUSES:
            try:
                return self._pipeline.review(picture)
            except OutOfMemory:
                time.sleep(pause)
        return self._pipeline.review(picture)

    def _settle(self, outcome: Outcome, stored: list[StoredImage], unstorable: list[FailedImage]) -> None:
        """Ends the claim; retries while the database is unavailable, since a lost reply may hide a commit."""
        claim = outcome.held.claim
        failed = [*outcome.held.failed, *(outcome.plan.failed if outcome.plan else []), *unstorable]
        ended = {(image.job_id, image.index) for image in stored} | {(image.job_id, image.index) for image in failed}
        released = [place for image in claim.images if (place := (image.job_id, image.index)) not in ended]
        pause = 0.1
        while True:
            try:
                with self._database.begin_system() as connection:
                    settled = settlement.settle(
                        connection, claim.id, device=self._device, stored=stored, failed=failed, released=released,
                        render_seconds=outcome.seconds, slots=outcome.slots, rendered=outcome.begun,
                    )  # fmt: skip
                    if settled.verdict is settlement.Verdict.FENCED:
                        quarantine.retract_crash(connection, claim.id)
                    crash_point("settle.recorded")
                crash_point("settle.committed")
                break
            except Unavailable as error:
                if self._stopping.is_set() and pause >= 2.0:
                    raise
                log.warning("settle postponed", extra={"claim": claim.id, "error": str(error)})
                time.sleep(pause)
                pause = min(pause * 2, 2.0)
        if settled.verdict is settlement.Verdict.FENCED:
            self._counts.fenced()
        else:
            reused = len(outcome.held.reused)
            self._counts.settled(
                done=len(stored) - reused, reused=reused, released=len(released), causes=[one.code for one in failed]
            )
        if settled.verdict is settlement.Verdict.OK:
            self._drop(settled.dropped)
            self._measure(outcome)
        log.info(
            "settled",
            extra={"claim": claim.id, "verdict": settled.verdict.value, "done": len(stored), "failed": len(failed),
                   "released": len(released), "reused": len(outcome.held.reused)},
        )  # fmt: skip

    def _measure(self, outcome: Outcome) -> None:
        """Records the rendering time. A failure is logged and ignored, since the claim is settled."""
        if not outcome.rendered:
            return
        shape, seconds = outcome.held.claim.shape, outcome.pass_seconds / outcome.slots
        try:
            if due := self._pace.add(shape, len(outcome.rendered), seconds):
                with self._database.begin_system() as connection:
                    throughput.record(
                        connection, shape, self._device, images=due.images, seconds_per_image=due.seconds_per_image
                    )
        except Exception as error:
            log.warning("throughput not recorded", extra={"claim": outcome.held.claim.id, "error": str(error)[:200]})

    def _drop(self, images: Sequence[StoredImage]) -> None:
        """Deletes the objects of images that were cancelled while they were being stored: of a job all or none, so that
        a shard goes with all of its images."""
        for key in members.objects_of(image.object_key for image in images):
            crash_point("settle.dropping")
            try:
                self._objects.drop(key)
            except StoreUnavailable as error:
                log.warning("object left behind", extra={"key": key, "error": str(error)})
