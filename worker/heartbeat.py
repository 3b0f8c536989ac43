"""Keeps the worker's claims alive, hears of cancels and of lost leases, and watches that the device moves.

A claim is a `HeldClaim` from the moment it is taken until it is settled; the step callback asks it at every step.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from services.core.db.database import Database
from services.core.model.errors import DatabaseUnavailable
from services.core.model.specs import Claim, Image, StoredImage
from services.core.queue import claims
from services.core.settings import Settings

log = logging.getLogger(__name__)
EXIT_HUNG = 70
USUAL_TIMES = 4


class Interrupted(Exception):
    """Nobody wants this batch any more: its lease is lost, or all its images are cancelled."""


class HeldClaim:
    """One claim in this worker's hands."""

    def __init__(self, claim: Claim, fence_seconds: float) -> None:
        self.claim = claim
        self.left = claim.images  # to render
        self.reused: tuple[StoredImage, ...] = ()
        self.step = 0
        self.cancelled: frozenset[int] = frozenset()
        self.extended_at = time.monotonic()
        self._fence_seconds = fence_seconds
        self._lost = False

    @property
    def fenced(self) -> bool:
        """Whether others may have taken these images: told so by the ledger, or not heard from it for too long."""
        return self._lost or time.monotonic() - self.extended_at > self._fence_seconds

    @property
    def lost(self) -> bool:
        """The ledger said so: settling is of no use."""
        return self._lost

    def skip_stored(self, reused: Iterable[StoredImage]) -> None:
        """These lie in the store already: only the others are left to render."""
        self.reused = tuple(reused)
        there = {(image.job_id, image.index) for image in self.reused}
        self.left = tuple(image for image in self.claim.images if (image.job_id, image.index) not in there)

    def wants(self, image: Image) -> bool:
        return image.job_id not in self.cancelled

    def heard(self, cancelled: frozenset[int] | None, asked_at: float) -> None:
        """A heartbeat's answer: the cancelled jobs, or None for a lost lease. A lease runs from the asking."""
        if cancelled is None:
            self._lost = True
        else:
            self.cancelled, self.extended_at = cancelled, asked_at


class Heartbeat:
    """The heartbeat of all claims that are held, and the watchdog of the one being rendered."""

    def __init__(self, database: Database, settings: Settings, die: Callable[[int], None] = os._exit) -> None:
        self._database = database
        self._settings = settings
        self._die = die
        self._held: dict[int, HeldClaim] = {}
        self._guard = threading.Lock()
        self._rendering: HeldClaim | None = None
        self._progress = 0  # counts up; written by the rendering thread, the next two by the watchdog
        self._seen = 0
        self._silent_watches = 0
        self._usual = self._patience = settings.watchdog_seconds

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

    def rendering(self, held: HeldClaim | None) -> None:
        """Sets the watchdog on a claim, or takes it off."""
        self._progress += 1
        self._rendering = held

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """For what makes no steps, such as compiling: the watchdog waits for so long instead."""
        self._patience = max(seconds, self._usual)
        try:
            yield
        finally:
            self._progress += 1  # first: silence that patience allowed must not count once it is over
            self._patience = self._usual

    def expect(self, silence: float) -> None:
        """So many seconds without a step are usual for this device: the watchdog is no stricter than a few of them."""
        self._usual = max(self._usual, USUAL_TIMES * silence)
        self._patience = max(self._patience, self._usual)

    def on_step(self, step: int) -> None:
        """The pipeline's callback. Raises Interrupted when the batch is of no use any more."""
        self._progress += 1
        held = self._rendering
        if held is None:
            return
        held.step = step
        if held.fenced or not any(held.wants(image) for image in held.left):
            raise Interrupted

    def beat(self) -> None:
        """Extends every held claim once."""
        with self._guard:
            held = dict(self._held)
        if not held:
            return
        steps = {claim_id: entry.step for claim_id, entry in held.items()}
        asked_at = time.monotonic()
        with self._database.begin_system() as connection:
            heard = claims.extend(connection, steps, self._settings.lease_seconds).held
        for claim_id, entry in held.items():
            entry.heard(heard.get(claim_id), asked_at)

    def watch(self) -> None:
        """Ends the process if the device has made no step for the watchdog's time; a live heartbeat must not keep a
        hung device's lease. Time is counted in watches: while the whole process was stopped, nobody watched and no
        device hung."""
        held = self._rendering  # first: what begins after this has made its progress after this, too
        patience, progress = self._patience, self._progress  # in this order: patience ends after progress was made
        self._silent_watches = self._silent_watches + 1 if progress == self._seen else 0
        self._seen = progress
        silent = self._silent_watches * self._settings.beat_seconds
        if held is not None and silent > patience:
            log.error("device hangs", extra={"claim": held.claim.id, "silent_seconds": round(silent, 1)})
            self._die(EXIT_HUNG)

    def _beat_for_ever(self) -> None:
        while True:
            time.sleep(self._settings.beat_seconds)
            try:
                self.beat()
            except DatabaseUnavailable as error:
                log.warning("beat lost", extra={"error": str(error)})
            except Exception:
                log.exception("beat failed")

    def _watch_for_ever(self) -> None:
        while True:
            time.sleep(self._settings.beat_seconds)
            self.watch()
