"""What a worker's child counts. Each metric has the model's name as its first label, which `of` gives.

Outside of a worker that shows its metrics, they are counted in the process's memory, where nobody reads them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.core.metrics import registry
from services.core.metrics.bounded import LONGEST, Bounded

DEVICE_SICK = registry.gauge("presswork_worker_device_sick")
STORE_AWAY = registry.gauge("presswork_worker_store_away")
BUSY = registry.counter("presswork_worker_busy_seconds_total")
CLAIM_SECONDS = registry.histogram("presswork_worker_claim_seconds")
RENDER_SECONDS = registry.histogram("presswork_worker_render_seconds")
BATCH_IMAGES = registry.counter("presswork_worker_batch_images_total")
BATCH_SLOTS = registry.counter("presswork_worker_batch_slots_total")
ENCODE_SECONDS = registry.histogram("presswork_worker_encode_seconds")
STORE_SECONDS = registry.histogram("presswork_worker_store_seconds")
STORE_ERRORS = registry.counter("presswork_worker_store_errors_total")
SETTLE_SECONDS = registry.histogram("presswork_worker_settle_seconds")
CLAIMS = registry.counter("presswork_worker_claims_total")
IMAGES = registry.counter("presswork_worker_images_total")
FAILURES = registry.counter("presswork_worker_failures_total")
EXPIRED = registry.counter("presswork_worker_expired_images_total")
CAUSES = 50


class Counts:
    """The metrics of one worker. Safe for many threads."""

    def __init__(self, model: str) -> None:
        self._model = model[:LONGEST]
        self._cause = Bounded(CAUSES)
        self.sick = DEVICE_SICK.labels(self._model)
        self.store_away = STORE_AWAY.labels(self._model)
        self.busy = Busy(self._model)
        self.claim_seconds = CLAIM_SECONDS.labels(self._model)
        self.encode_seconds = ENCODE_SECONDS.labels(self._model)
        self.store_seconds = STORE_SECONDS.labels(self._model)
        self.settle_seconds = SETTLE_SECONDS.labels(self._model)
        self.expired = EXPIRED.labels(self._model)
        self._render_seconds = RENDER_SECONDS.labels(self._model)
        self._images = BATCH_IMAGES.labels(self._model)
        self._slots = BATCH_SLOTS.labels(self._model)
        for kind in ("refused", "unavailable"):  # zeros, so that the first time is a change
            STORE_ERRORS.labels(self._model, kind)
        for verdict in ("ok", "fenced"):
            CLAIMS.labels(self._model, verdict)
        for outcome in ("done", "reused", "failed", "released"):
            IMAGES.labels(self._model, outcome)

    def batch(self, images: int, slots: int, seconds: float) -> None:
        """A batch was rendered."""
        self._render_seconds.observe(seconds)
        self._images.inc(images)
        self._slots.inc(slots)

    def store_failed(self, *, refused: bool) -> None:
        STORE_ERRORS.labels(self._model, "refused" if refused else "unavailable").inc()

    def settled(self, *, done: int, reused: int, released: int, causes: list[str]) -> None:
        """A claim was settled; `causes` has the code of each image that failed."""
        CLAIMS.labels(self._model, "ok").inc()
        for outcome, count in (("done", done), ("reused", reused), ("released", released), ("failed", len(causes))):
            IMAGES.labels(self._model, outcome).inc(count)
        for cause in causes:
            FAILURES.labels(self._model, self._cause(cause)).inc()

    def fenced(self) -> None:
        """A claim's lease was lost, so nothing of it was recorded."""
        CLAIMS.labels(self._model, "fenced").inc()


class Busy:
    """Counts the seconds that the device works, at every step: a batch may take minutes, and may never end."""

    def __init__(self, model: str) -> None:
        self._seconds = BUSY.labels(model)
        self._since: float | None = None

    @contextmanager
    def working(self) -> Iterator[None]:
        self._since = time.monotonic()
        try:
            yield
        finally:
            self.step()
            self._since = None

    def step(self) -> None:
        since, now = self._since, time.monotonic()
        if since is not None:
            self._since = now
            self._seconds.inc(now - since)
