"""The device: renders a claim part by part, and tells a bad prompt from a device that is sick or short of memory."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from services.core.model.errors import SettingsError
from services.core.model.specs import Image, Shape
from worker import batching
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
from worker.retries import Part, RetryPlan

log = logging.getLogger(__name__)
COMPILE_SECONDS = 900.0  # how long a shape may take to compile before the watchdog thinks that the device hangs
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
    """What rendering made of a claim. Images in neither list were not rendered: they are released. `pass_seconds` went
    into passes that gave pictures, for `slots` images, padding included."""

    held: HeldClaim
    rendered: list[Rendered] = field(default_factory=list)
    plan: RetryPlan | None = None
    seconds: float = 0.0
    pass_seconds: float = 0.0
    slots: int = 0


class Device:
    """One pipeline and what is known of it. Used by one thread at a time."""

    def __init__(self, pipeline: Pipeline, heartbeat: Heartbeat, name: str, mark: Callable[[int], None]) -> None:
        self.pipeline, self.heartbeat, self.name = pipeline, heartbeat, name
        self.sick = False
        self.unfit = ""  # why nothing can be compiled for it, in one sentence
        self._mark = mark
        self._memory: dict[Shape, Memory] = {}
        self._thread = ThreadPoolExecutor(1, "device")

    def render(self, held: HeldClaim) -> Outcome:
        """Renders what is left of a claim, as far as it can, and stops at once when nobody wants it any more."""
        if not held.left:
            return Outcome(held)
        claim = held.claim
        tried = self._most(claim.shape)
        plan = RetryPlan(self.pipeline.card.batch_sizes, tried)
        plan.add(held.left)
        outcome = Outcome(held, plan=plan)
        self.heartbeat.rendering(held)
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
        except CompileFailed as error:  # what was rendered before is good
            log.error("device unfit", extra={"claim": claim.id, "error": str(error)})
            self.unfit = str(error)
        except Exception:
            log.exception("render failed; what is left is released", extra={"claim": claim.id})
        finally:
            self._mark(0)
            self.heartbeat.rendering(None)
            outcome.seconds = time.monotonic() - began
            if outcome.rendered:
                self._remember(claim.shape, tried, plan.most)
        return outcome

    @property
    def serves(self) -> bool:
        """Whether it is to be given work."""
        return not self.sick and not self.unfit

    def expected_class(self, shape: Shape) -> str:
        """The reproducibility class of the next batch of that shape, unless the device has less room than is known."""
        return reproducibility_class(self.pipeline, self._most(shape))

    def _most(self, shape: Shape) -> int:
        """The largest declared size to try; one more once the device has done well for a while."""
        sizes = self.pipeline.card.batch_sizes
        memory = self._memory.get(shape)
        if memory is None:
            return max(sizes)
        if memory.good_batches >= REGROW_BATCHES:
            return min((size for size in sizes if size > memory.most), default=memory.most)
        return memory.most

    def _remember(self, shape: Shape, tried: int, most: int) -> None:
        """`tried`, and then `most`, was the largest size. A larger one that failed is not tried again for a while."""
        if most == max(self.pipeline.card.batch_sizes):
            self._memory.pop(shape, None)
            return
        memory = self._memory.setdefault(shape, Memory(most))
        memory.good_batches = memory.good_batches + 1 if memory.most == most == tried else 0
        memory.most = most

    def _render_part(self, part: Part, outcome: Outcome, plan: RetryPlan) -> None:
        batch = batching.form(part.images, outcome.held.claim.shape, part.size)
        try:
            self._prepare(batch)
            began = time.monotonic()
            pictures = self._run(self.pipeline.render, batch, self.heartbeat.on_step)
        except OutOfMemory:
            log.warning("out of memory", extra={"claim": outcome.held.claim.id, "size": part.size})
            if not plan.step_down(part):
                self.check(part.size)
                plan.too_large(part)
        except (Interrupted, DeviceSick, CompileFailed):
            raise
        except Exception as error:
            log.warning(
                "batch failed", extra={"claim": outcome.held.claim.id, "images": len(part.images)}, exc_info=True
            )
            if not plan.stands_alone(part):
                plan.halve(part)
            else:
                self.check(part.size)
                plan.give_up(part, error)
        else:
            pass_seconds = time.monotonic() - began
            seconds = pass_seconds / len(part.images)
            name = reproducibility_class(self.pipeline, part.size)
            if len(pictures) != part.size:
                raise DeviceSick(f"The pipeline made {len(pictures)} pictures of {part.size}.")
            if any(isinstance(picture, InvalidOutput) for picture in pictures[: len(part.images)]):
                self.check(part.size)
            outcome.pass_seconds += pass_seconds
            outcome.slots += part.size
            for image, picture in zip(part.images, pictures, strict=False):  # the rest is padding
                if isinstance(picture, InvalidOutput):
                    plan.invalid_output(image, picture.message)
                else:
                    outcome.rendered.append(Rendered(image, picture, name, seconds))

    def check(self, size: int | None = None) -> None:
        """Renders the canary in a batch of that declared size, by default the largest that there is room for. Raises
        DeviceSick when that fails: then it was not the prompt; or CompileFailed: then it was not the device either."""
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
            raise DeviceSick(f"The device spoiled the canary image: {picture.message}")

    def _render_canary(self, size: int) -> Picture | InvalidOutput:
        """Notes how long this device is silent at most while it does well: the watchdog is to know."""
        batch = canary(self.pipeline.card, size)
        self._prepare(batch)
        heard = [time.monotonic()]

        def on_step(step: int) -> None:
            heard.append(time.monotonic())
            self.heartbeat.on_step(step)

        pictures: Sequence[Picture | InvalidOutput] = self._run(self.pipeline.render, batch, on_step)
        heard.append(time.monotonic())
        self.heartbeat.expect(max(after - before for before, after in pairwise(heard)))
        return pictures[0]

    def _prepare(self, batch: Batch) -> None:
        """Compiles what is not compiled yet. No prompt is to blame for what goes wrong here, but for memory; and no
        device for a compiler that fails, or a folder that does not take what it makes."""
        try:
            with self.heartbeat.patience(COMPILE_SECONDS):
                self._run(self.pipeline.prepare, batch.shape, batch.size)
        except (OutOfMemory, CompileFailed):
            raise
        except SettingsError as error:
            raise CompileFailed(str(error)) from error
        except Exception as error:
            raise DeviceSick(f"The pipeline cannot be made ready for a batch of {batch.size}: {error}") from error

    def _run(self, verb: Callable[..., Any], *arguments: object) -> Any:
        """On the device's own thread: what a compiler keeps for a thread must be found again."""
        return self._thread.submit(verb, *arguments).result()
