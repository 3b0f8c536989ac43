"""The pipeline on a thread of its own, and the canary that tells a sick device from a bad prompt."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

from services.core.model.errors import SettingsError
from worker.heartbeat import Heartbeat, Interrupted
from worker.pipeline import Batch, CompileFailed, DeviceSick, InvalidOutput, OutOfMemory, Picture, Pipeline, canary

COMPILE_SECONDS = 900.0  # how long compiling a shape may take before the watchdog treats the device as hung


class Health:
    """Used by one thread at a time."""

    def __init__(self, pipeline: Pipeline, heartbeat: Heartbeat) -> None:
        self._pipeline, self._heartbeat = pipeline, heartbeat
        self._thread = ThreadPoolExecutor(1, "device")

    def run(self, verb: Callable[..., Any], *arguments: object) -> Any:
        """Runs on the one thread that belongs to the device, because compilers keep caches per thread."""
        return self._thread.submit(verb, *arguments).result()

    def prepare(self, batch: Batch) -> None:
        """Compiles what the batch needs.

        Raises:
            OutOfMemory: the batch does not fit; a smaller one may.
            CompileFailed: a compiler failed or its output cannot be written; the device is not at fault.
            DeviceSick: anything else failed; no prompt is at fault.
        """
        try:
            with self._heartbeat.extended_timeout(COMPILE_SECONDS):
                self.run(self._pipeline.prepare, batch.shape, batch.size)
        except (OutOfMemory, CompileFailed):
            raise
        except SettingsError as error:
            raise CompileFailed(str(error)) from error
        except Exception as error:
            raise DeviceSick(f"The pipeline cannot be prepared for a batch of {batch.size}: {error}") from error

    def check(self, size: int | None = None) -> None:
        """Renders the canary in a batch of `size`, by default of the largest declared size that fits, and has its
        picture checked.

        Raises:
            DeviceSick: the canary failed, so the device is at fault and no prompt.
            CompileFailed: a compiler failed, so neither the device nor a prompt is at fault.
        """
        card = self._pipeline.card
        sizes = [declared for declared in card.batch_sizes if size is None or declared <= size]
        try:
            for declared in sizes[:-1]:
                try:
                    picture = self._render_canary(declared)
                    break
                except OutOfMemory:
                    continue
            else:
                picture = self._render_canary(sizes[-1])
        except (Interrupted, DeviceSick, CompileFailed):
            raise
        except Exception as error:
            raise DeviceSick(f"The device failed on the canary image: {error}") from error
        if isinstance(picture, InvalidOutput):
            raise DeviceSick(f"The device gave invalid output for the canary image: {picture.message}")

    def _render_canary(self, size: int) -> Picture | InvalidOutput:
        """Measures the longest time between two steps on a healthy device, and tells the watchdog to allow for it."""
        batch = canary(self._pipeline.card, size)
        self.prepare(batch)
        step_times = [time.monotonic()]

        def on_step(step: int) -> None:
            step_times.append(time.monotonic())
            self._heartbeat.on_step(step)

        pictures: Sequence[Picture | InvalidOutput] = self.run(self._pipeline.render, batch, on_step)
        step_times.append(time.monotonic())
        self._heartbeat.expect_silence(max(after - before for before, after in pairwise(step_times)))
        picture = pictures[0]
        return picture if isinstance(picture, InvalidOutput) else self._pipeline.review(picture)
