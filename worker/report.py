"""What a worker says of itself with each heartbeat: the batch at hand, how full the last ones were, its memory."""

import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from services.core.fleet.abilities import Abilities
from worker.pipeline import Batch, Pipeline, reproducibility_class

SECONDS = 60.0  # how far back `fill` looks
_STATM, _MEMINFO = Path("/proc/self/statm"), Path("/proc/meminfo")


class Report:
    """Written by the thread that renders, and read by the one that beats."""

    def __init__(self, pipeline: Pipeline, abilities: Callable[[], Abilities]) -> None:
        self._pipeline, self._abilities = pipeline, abilities
        self._batch: Batch | None = None
        self._step = 0
        self._rendered: deque[tuple[float, int, int]] = deque()  # when, images, slots
        self._guard = Lock()

    def begins(self, batch: Batch) -> None:
        self._batch, self._step = batch, 0

    def on_step(self, step: int) -> None:
        self._step = step

    def ends(self) -> None:
        self._batch = None

    def rendered(self, images: int, slots: int) -> None:
        with self._guard:
            self._rendered.append((time.monotonic(), images, slots))

    def what_it_is(self) -> dict[str, Any]:
        """What holds for as long as the process lives."""
        card = self._pipeline.card
        return {
            "class": reproducibility_class(self._pipeline, max(card.batch_sizes)),
            "device_kind": self._pipeline.device_kind,
            **self._abilities().as_report(),
        }

    def now(self) -> dict[str, Any]:
        """`fill` is the share of the last minute's batches that held images; null if there was none."""
        batch, step = self._batch, self._step
        used, there = self._pipeline.memory() or _of_process()
        return {
            "batch": None if batch is None else {
                "images": batch.wanted, "of": batch.size, "size": f"{batch.shape.width}x{batch.shape.height}",
                "step": step, "steps": batch.shape.steps_done,
            },
            "fill": self._fill(),
            "memory": [used, there],
            **self._abilities().limits(),
        }  # fmt: skip

    def _fill(self) -> float | None:
        with self._guard:
            while self._rendered and time.monotonic() - self._rendered[0][0] > SECONDS:
                self._rendered.popleft()
            images, slots = (sum(entry[at] for entry in self._rendered) for at in (1, 2))
        return round(images / slots, 3) if slots else None


def _of_process() -> tuple[int, int]:
    """Bytes of memory that this process holds, and bytes of the machine; zeros where Linux does not say."""
    try:
        pages = int(_STATM.read_text().split()[1])
        total = next(line.split()[1] for line in _MEMINFO.read_text().splitlines() if line.startswith("MemTotal:"))
        return pages * os.sysconf("SC_PAGE_SIZE"), int(total) << 10
    except (OSError, ValueError, IndexError, StopIteration):
        return 0, 0
