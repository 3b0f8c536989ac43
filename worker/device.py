"""The device: renders a claim part by part, and tells bad prompts from a sick device and from lack of memory."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from services.core.fleet.abilities import Abilities
from services.core.model.errors import SettingsError
from services.core.model.specs import Claim, Image, Shape
from worker import batching, retries
from worker.doubts import Doubts
from worker.heartbeat import Heartbeat, HeldClaim, Interrupted
from worker.pipeline import (
    Batch,
    CompileFailed,
    DeviceSick,
    InvalidOutput,
    OutOfMemory,
    Picture,
    Pipeline,
    canary,
    reproducibility_class,
)
from worker.report import Report
from worker.retries import Part, RetryPlan

log = logging.getLogger(__name__)
COMPILE_SECONDS = 900.0  # how long compiling a shape may take before the watchdog treats the device as hung
REGROW_BATCHES = 50  # after this many successful batches the next larger size is tried again
RETRY_SECONDS = 300.0  # until a class whose batch did not fit is tried again
OTHER_CLASS = "In its decoder this image needs more range than the class that was asked for has; ask for no class."


@dataclass(frozen=True, slots=True)
class Rendered:
    """One rendered image, waiting in the spool to be stored."""

    image: Image
    picture: Picture
    reproducibility_class: str
    seconds: float
    batch_size: int


@dataclass(slots=True)
class Memory:
    """What is known of the device's memory for one shape: the largest declared batch size that fits, and the number of
    batches that succeeded since it was found. `found_at`: when, by the monotonic clock."""

    max_size: int
    good_batches: int = 0
    found_at: float = field(default_factory=time.monotonic)


class _DoesNotFit(Exception):
    """The batch size of the class that was asked for does not fit the device's memory."""


@dataclass(slots=True)
class Outcome:
    """The result of rendering a claim. Images that are neither in `rendered` nor in `plan.failed` are released.

    `pass_seconds` is the time of the passes that gave pictures, `slots` their batch sizes summed, padding included.
    """

    held: HeldClaim
    rendered: list[Rendered] = field(default_factory=list)
    plan: RetryPlan | None = None
    seconds: float = 0.0
    pass_seconds: float = 0.0
    slots: int = 0


class Device:
    """One pipeline, its health and its memory limits. Used by one thread at a time."""

    def __init__(self, pipeline: Pipeline, heartbeat: Heartbeat, name: str, mark: Callable[[int], None]) -> None:
        self.pipeline, self.heartbeat, self.name = pipeline, heartbeat, name
        self.sick = False
        self.unusable = ""  # why nothing can be compiled here, in one sentence
        self._mark = mark
        self._memory: dict[Shape, Memory] = {}
        self._doubts = Doubts()
        self._classes = {size: reproducibility_class(pipeline, size) for size in pipeline.card.batch_sizes}
        self.report = Report(pipeline, self.abilities)
        self._thread = ThreadPoolExecutor(1, "device")

    def render(self, held: HeldClaim) -> Outcome:
        """Renders the remaining images as far as possible; stops at the next step once none is wanted."""
        if not held.remaining:
            return Outcome(held)
        claim = held.claim
        for shape, size in self._doubts.take_too_large():
            self._step_down(shape, size)
        if claim.reproducibility_class and not self.abilities().batch_of(_asked(claim)):
            return Outcome(held)  # since it was claimed, its batch has turned out not to fit
        tried = self._size_of(claim)
        plan = RetryPlan(self.pipeline.card.batch_sizes, tried)
        outcome = Outcome(held, plan=plan)
        self.heartbeat.rendering(held)
        self._mark(claim.id)
        began = time.monotonic()
        try:
            self._resolve_doubts()
            plan.begin(held.remaining, self._doubts.take_at_fault(held.remaining))
            while part := plan.next():
                self._render_part(part, outcome, plan)
        except Interrupted:
            log.info("render interrupted", extra={"claim": claim.id, "fenced": held.fenced})
        except _DoesNotFit:
            log.warning("class does not fit; its images are released", extra={"claim": claim.id, "size": tried})
            smaller = batching.next_smaller(self.pipeline.card.batch_sizes, tried) or tried
            self._remember(claim.shape, tried, min(smaller, self._max_size(claim.shape)))
        except DeviceSick as error:
            log.error("device sick", extra={"claim": claim.id, "error": str(error)})
            self.sick = True
            plan.failed.clear()
            outcome.rendered.clear()
        except CompileFailed as error:  # images rendered before are valid
            log.error("device unusable", extra={"claim": claim.id, "error": str(error)})
            self.unusable = str(error)
        except Exception:
            log.exception("render failed; the remaining images are released", extra={"claim": claim.id})
        finally:
            self._mark(0)
            self.heartbeat.rendering(None)
            self.report.ends()
            outcome.seconds = time.monotonic() - began
            if outcome.rendered and not claim.reproducibility_class:
                self._remember(claim.shape, tried, plan.max_size)
        return outcome

    @property
    def usable(self) -> bool:
        """Whether it may claim images."""
        return not self.sick and not self.unusable

    def cannot_check(self, shape: Shape, rendered: Rendered, error: Exception) -> None:
        """A picture's review raised `error`, and its image is released. Any thread may tell.

        If memory is short, the next claim of that shape is rendered in smaller batches. Otherwise the canary is
        rendered before the next claim; if it can be checked, the image is at fault, and fails when it is claimed again.
        """
        image = rendered.image
        if not isinstance(error, OutOfMemory):
            self._doubts.add(retries.failure(image, error))
        elif batching.next_smaller(self.pipeline.card.batch_sizes, rendered.batch_size) is None:
            self._doubts.add(retries.failed(image, "resource", retries.OUT_OF_MEMORY))
        else:
            self._doubts.add_too_large(shape, rendered.batch_size)

    def expected_class(self, claim: Claim) -> str:
        """The reproducibility class of the claim's next batch, unless that turns out not to fit in memory."""
        return self._classes[self._size_of(claim)]

    def abilities(self) -> Abilities:
        """What it can render now. Any thread may ask."""
        sizes = sorted(self._classes)
        retried = time.monotonic() - RETRY_SECONDS
        too_large = {
            shape: min(size for size in sizes if size > memory.max_size)
            for shape, memory in list(self._memory.items())
            if memory.found_at > retried
        }
        return Abilities.of(self.pipeline.card, self._classes, too_large)

    def _size_of(self, claim: Claim) -> int:
        """The batch size to try: that of the class that was asked for, or else the largest that fits."""
        if claim.reproducibility_class:
            return next(size for size, name in self._classes.items() if name == claim.reproducibility_class)
        return self._max_size(claim.shape)

    def _max_size(self, shape: Shape) -> int:
        """The largest declared batch size to try; the next larger one after REGROW_BATCHES successful batches."""
        sizes = self.pipeline.card.batch_sizes
        memory = self._memory.get(shape)
        if memory is None:
            return max(sizes)
        if memory.good_batches >= REGROW_BATCHES:
            return min((size for size in sizes if size > memory.max_size), default=memory.max_size)
        return memory.max_size

    def _remember(self, shape: Shape, tried: int, max_size: int) -> None:
        """Records that `max_size` fits after `tried` was tried; a larger one waits for REGROW_BATCHES."""
        if max_size == max(self.pipeline.card.batch_sizes):
            self._memory.pop(shape, None)
            return
        memory = self._memory.setdefault(shape, Memory(max_size))
        memory.good_batches = memory.good_batches + 1 if memory.max_size == max_size == tried else 0
        memory.max_size = max_size
        if tried > max_size:
            memory.found_at = time.monotonic()

    def _step_down(self, shape: Shape, size: int) -> None:
        smaller = batching.next_smaller(self.pipeline.card.batch_sizes, size)
        if smaller is not None and smaller < self._max_size(shape):
            self._remember(shape, size, smaller)

    def _resolve_doubts(self) -> None:
        """Raises as `check` does."""
        if doubted := self._doubts.still_open():
            self.check()
            self._doubts.device_is_healthy(doubted)

    def _render_part(self, part: Part, outcome: Outcome, plan: RetryPlan) -> None:
        held = outcome.held
        batch = batching.form(part.images, held.claim.shape, part.size, held.inputs)
        try:
            self.report.begins(batch)
            self._prepare(batch)
            began = time.monotonic()
            pictures = self._run(self.pipeline.render, batch, self._on_step)
        except OutOfMemory:
            log.warning("out of memory", extra={"claim": outcome.held.claim.id, "size": part.size})
            smaller = batching.next_smaller(self.pipeline.card.batch_sizes, part.size)
            if outcome.held.claim.reproducibility_class and smaller is not None:
                raise _DoesNotFit from None
            if not plan.step_down(part):
                self.check(part.size)
                plan.too_large(part)
        except (Interrupted, DeviceSick, CompileFailed):
            raise
        except Exception as error:
            log.warning(
                "batch failed", extra={"claim": outcome.held.claim.id, "images": len(part.images)}, exc_info=True
            )
            if not plan.is_single(part):
                plan.halve(part)
            else:
                self.check(part.size)
                plan.give_up(part, error)
        else:
            pass_seconds = time.monotonic() - began
            seconds = pass_seconds / len(part.images)
            if len(pictures) != part.size:
                raise DeviceSick(f"The pipeline made {len(pictures)} pictures of {part.size}.")
            if any(isinstance(picture, InvalidOutput) for picture in pictures[: len(part.images)]):
                self.check(part.size)
            outcome.pass_seconds += pass_seconds
            outcome.slots += part.size
            self.report.rendered(len(part.images), part.size)
            for image, picture in zip(part.images, pictures, strict=False):  # the rest is padding
                if isinstance(picture, InvalidOutput):
                    plan.invalid_output(image, picture.message)
                else:
                    name = reproducibility_class(self.pipeline, part.size, picture.decoded_in)
                    if held.claim.reproducibility_class not in ("", name):
                        plan.failed.append(retries.failed(image, "other_class", OTHER_CLASS))
                        continue
                    outcome.rendered.append(Rendered(image, picture, name, seconds, part.size))

    def _on_step(self, step: int) -> None:
        self.report.on_step(step)
        self.heartbeat.on_step(step)

    def check(self, size: int | None = None) -> None:
        """Renders the canary in a batch of `size`, by default of the largest declared size that fits, and has its
        picture checked.

        Raises:
            DeviceSick: the canary failed, so the device is at fault and no prompt.
            CompileFailed: a compiler failed, so neither the device nor a prompt is at fault.
        """
        card = self.pipeline.card
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
        batch = canary(self.pipeline.card, size)
        self._prepare(batch)
        step_times = [time.monotonic()]

        def on_step(step: int) -> None:
            step_times.append(time.monotonic())
            self.heartbeat.on_step(step)

        pictures: Sequence[Picture | InvalidOutput] = self._run(self.pipeline.render, batch, on_step)
        step_times.append(time.monotonic())
        self.heartbeat.expect_silence(max(after - before for before, after in pairwise(step_times)))
        picture = pictures[0]
        return picture if isinstance(picture, InvalidOutput) else self.pipeline.review(picture)

    def _prepare(self, batch: Batch) -> None:
        """Compiles what the batch needs.

        Raises:
            OutOfMemory: the batch does not fit; a smaller one may.
            CompileFailed: a compiler failed or its output cannot be written; the device is not at fault.
            DeviceSick: anything else failed; no prompt is at fault.
        """
        try:
            with self.heartbeat.extended_timeout(COMPILE_SECONDS):
                self._run(self.pipeline.prepare, batch.shape, batch.size)
        except (OutOfMemory, CompileFailed):
            raise
        except SettingsError as error:
            raise CompileFailed(str(error)) from error
        except Exception as error:
            raise DeviceSick(f"The pipeline cannot be prepared for a batch of {batch.size}: {error}") from error

    def _run(self, verb: Callable[..., Any], *arguments: object) -> Any:
        """Runs on one thread that belongs to the device, because compilers keep caches per thread."""
        return self._thread.submit(verb, *arguments).result()


def _asked(claim: Claim) -> Shape:
    """The claim's shape with the class that was asked for."""
    return replace(claim.shape, reproducibility_class=claim.reproducibility_class)
