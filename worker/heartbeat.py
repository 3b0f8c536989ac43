"""Extends the leases of the worker's claims, learns of cancels and lost leases, and detects a hung device.

A claim is a `HeldClaim` from when it is taken until it is settled; the step callback checks it at every step.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from services.core import traces
from services.core.crash_points import crash_point
from services.core.db.database import Database
from services.core.model.errors import DatabaseUnavailable
from services.core.model.specs import Claim, FailedImage, Image, StoredImage
from services.core.queue import claims, settlement
from services.core.settings import Settings

log = logging.getLogger(__name__)
EXIT_HUNG = 70
SILENCE_FACTOR = 4


class Interrupted(Exception):
    """The batch is no longer wanted: its claim's lease is lost, or all its images are cancelled."""


class HeldClaim:
    """One claim that this worker holds."""

    def __init__(self, claim: Claim, fence_seconds: float) -> None:
        self.claim = claim
        self.remaining = claim.images  # to render
        self.at_hand: tuple[Image, ...] | None = None  # of these, what is being rendered; None: all
        self.reused: tuple[StoredImage, ...] = ()
        self.inputs: dict[str, Any] = {}  # input pictures by their file's sha256, as pixels of the shape's size
        self.failed: tuple[FailedImage, ...] = ()  # before they could be rendered
        self.step = 0
        self.trace = traces.NO_BATCH
        self.cancelled: frozenset[int] = frozenset()
        self.extended_at = time.monotonic()
        self.store_until = self.hold_until = math.inf  # no upload begins after the first, no beat after the second
        self._fence_seconds = fence_seconds
        self._lost = False

    @property
    def fenced(self) -> bool:
        """Whether another worker may have these images: the lease is lost, or was not extended for `fence_seconds`."""
        return self._lost or time.monotonic() - self.extended_at > self._fence_seconds

    @property
    def lost(self) -> bool:
        """Whether the database has reported the lease as lost; settling would be refused."""
        return self._lost

    def skip_stored(self, reused: Iterable[StoredImage]) -> None:
        """Marks images that are already stored; only the others remain to be rendered."""
        self.reused = tuple(reused)
        stored = {(image.job_id, image.index) for image in self.reused}
        self.remaining = tuple(image for image in self.claim.images if (image.job_id, image.index) not in stored)

    def begin_storing(self, settings: Settings) -> None:
        """Sets the deadlines of the storing stage. A claim that is not settled by the last one loses its lease."""
        now = time.monotonic()
        self.store_until = now + settings.storing_seconds
        self.hold_until = now + settings.abandon_seconds + settings.lease_seconds

    def wants(self, image: Image) -> bool:
        return image.job_id not in self.cancelled

    def update(self, cancelled: frozenset[int] | None, asked_at: float) -> None:
        """Applies a heartbeat's answer: the cancelled jobs, or None for a lost lease. It counts from `asked_at`. Those
        that were let go are not named again."""
        if cancelled is None:
            self._lost = True
        else:
            self.cancelled, self.extended_at = self.cancelled | cancelled, asked_at


class Heartbeat:
    """Extends all held claims, and runs the watchdog of the one that is being rendered."""

    def __init__(self, database: Database, settings: Settings, exit_process: Callable[[int], None] = os._exit) -> None:
        self._database = database
        self._settings = settings
        self._exit = exit_process
        self._held: dict[int, HeldClaim] = {}
        self._guard = threading.Lock()
        self._rendering: HeldClaim | None = None
        self._progress = 0  # counts up; written by the rendering thread, the next two by the watchdog
        self._seen = 0
        self._silent_watches = 0
        self._usual_timeout = self._timeout = settings.watchdog_seconds

    def start(self) -> None:
        for name, verb in (("lease", self._beat_for_ever), ("watchdog", self._watch_for_ever)):
            threading.Thread(target=verb, name=name, daemon=True).start()

    def hold(self, claim: Claim) -> HeldClaim:
        held = HeldClaim(claim, self._settings.fence_seconds)
        with self._guard:
            self._held[claim.id] = held
        return held

    def release_claim(self, held: HeldClaim) -> None:
        with self._guard:
            self._held.pop(held.claim.id, None)

    @property
    def holds(self) -> bool:
        """Whether any claim is held."""
        with self._guard:
            return bool(self._held)

    def rendering(self, held: HeldClaim | None) -> None:
        """Starts the watchdog for a claim; None stops it."""
        self._progress += 1
        self._rendering = held

    @contextmanager
    def extended_timeout(self, seconds: float) -> Iterator[None]:
        """Lets the watchdog wait for `seconds` while there are no steps, as during compiling."""
        self._timeout = max(seconds, self._usual_timeout)
        try:
            yield
        finally:
            self._progress += 1  # first: silence that the longer timeout allowed must not count after it
            self._timeout = self._usual_timeout

    def expect_silence(self, silence: float) -> None:
        """Makes the watchdog allow SILENCE_FACTOR times `silence`, the seconds without a step that are normal."""
        self._usual_timeout = max(self._usual_timeout, SILENCE_FACTOR * silence)
        self._timeout = max(self._timeout, self._usual_timeout)

    def on_step(self, step: int) -> None:
        """The pipeline's callback. Raises Interrupted when the batch is no longer wanted."""
        self._progress += 1
        held = self._rendering
        if held is None:
            return
        held.step = step
        at_hand = held.remaining if held.at_hand is None else held.at_hand
        if held.fenced or not any(held.wants(image) for image in at_hand):
            raise Interrupted

    def beat(self) -> None:
        """Extends every held claim once, but none that should have been settled long ago."""
        with self._guard:
            now = time.monotonic()
            held = {claim_id: entry for claim_id, entry in self._held.items() if now < entry.hold_until}
        if not held:
            return
        steps = {claim_id: entry.step for claim_id, entry in held.items()}
        asked_at = time.monotonic()
        with self._database.begin_system() as connection:
            answers = claims.extend(connection, steps, self._settings.lease_seconds).held
        crash_point("heartbeat.extended")
        for claim_id, entry in held.items():
            entry.update(answers.get(claim_id), asked_at)
        for claim_id, cancelled in answers.items():
            if cancelled and any(map(held[claim_id].wants, held[claim_id].claim.images)):  # else it ends as a whole
                with self._database.begin_system() as connection:
                    settlement.let_go(connection, claim_id, sorted(cancelled))

    def watch(self) -> None:
        """Ends the process if the device has made no step within the timeout, so that a hung device loses its lease.

        Time is counted in calls, not read from the clock: a process that was stopped as a whole did not hang.
        """
        held = self._rendering  # first: a claim that begins later also counts its progress later
        timeout, progress = (
            self._timeout,
            self._progress,
        )  # in this order: a timeout is shortened only after progress was counted
        self._silent_watches = self._silent_watches + 1 if progress == self._seen else 0
        self._seen = progress
        silent = self._silent_watches * self._settings.beat_seconds
        if held is not None and silent > timeout:
            log.error("device hangs", extra={"claim": held.claim.id, "silent_seconds": round(silent, 1)})
            self._exit(EXIT_HUNG)

    def _beat_for_ever(self) -> None:
        while True:
            time.sleep(self._settings.beat_seconds)
            try:
                self.beat()
            except DatabaseUnavailable as error:
                log.warning("heartbeat postponed", extra={"error": str(error)})
            except Exception:
                log.exception("heartbeat failed")

    def _watch_for_ever(self) -> None:
        while True:
            time.sleep(self._settings.beat_seconds)
            self.watch()
