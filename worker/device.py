"""The device: renders a claim part by part, and tells bad prompts from a sick device and from lack of memory.

Where the pipeline allows it, the last stage of a batch runs beside the next one. Two claims are then open at most. What
fails beside another batch is rendered again with nothing beside it, so each fault is known to be of one batch.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from services.core.crash_points import crash_point
from services.core.fleet.abilities import Abilities
from services.core.model.specs import Claim, Image, Shape
from worker import batching, retries
from worker.batch_sizes import BatchSizes
from worker.doubts import Doubts
from worker.health import Health
from worker.heartbeat import Heartbeat, HeldClaim, Interrupted
from worker.metrics import Counts
from worker.outcome import Outcome, Rendered
from worker.pipeline import (
    Batch,
    Begun,
    CompileFailed,
    DeviceSick,
    InvalidOutput,
    OutOfMemory,
    Overlapping,
    Picture,
    Pipeline,
    reproducibility_class,
)
from worker.report import Report
from worker.retries import Part, RetryPlan

log = logging.getLogger(__name__)
OTHER_CLASS = "In its decoder this image needs more range than the class that was asked for has; ask for no class."
Done = Callable[[Outcome], object]
Ahead = Callable[[int], object]
Mark = Callable[..., None]


class _DoesNotFit(Exception):
    """The batch size of the class that was asked for does not fit the device's memory."""


@dataclass(slots=True, eq=False)
class _Late:
    """A part whose pictures the pipeline hands out later. `beside`: another one was in flight with it."""

    part: Part
    begun: Begun | None
    seconds: float
    beside: bool = False
    pictures: Sequence[Picture | InvalidOutput] | None = None
    error: Exception | None = None

    def take(self) -> None:
        """Waits for the pictures, or for what went wrong."""
        begun, self.begun = self.begun, None
        if begun is not None:
            began = time.monotonic()
            try:
                self.pictures = begun.pictures()
            except Exception as error:
                self.error = error
            self.seconds += time.monotonic() - began

    def drop(self) -> None:
        begun, self.begun = self.begun, None
        if begun is not None:
            begun.drop()

    @property
    def is_sound(self) -> bool:
        return self.pictures is not None and len(self.pictures) == self.part.size and not self.invalid

    @property
    def invalid(self) -> bool:
        wanted = (self.pictures or ())[: len(self.part.images)]
        return any(isinstance(picture, InvalidOutput) for picture in wanted)


@dataclass(slots=True, eq=False)
class _Work:
    """A claim that is being rendered; `late` is its last part, if that is in flight."""

    outcome: Outcome
    plan: RetryPlan
    tried: int
    done: Done
    ahead: Ahead
    at_hand: tuple[Image, ...] = ()
    late: _Late | None = None
    crowded: int = 0  # the size of a batch for which there was no memory beside another

    @property
    def claim(self) -> Claim:
        return self.outcome.held.claim

    @property
    def in_flight(self) -> tuple[Image, ...]:
        """What dies with the process: the batch at hand, and what is in flight of the one before."""
        late = self.late
        if late is None or late.begun is None or late.part.images == self.at_hand:
            return self.at_hand
        return late.part.images + self.at_hand


class Device:
    """One pipeline, its health and its memory limits. Used by one thread at a time."""

    def __init__(
        self, pipeline: Pipeline, heartbeat: Heartbeat, name: str, mark: Mark,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        """`mark` is told what is being rendered: the ids of none, one or two claims, each with its images of which
        that is so. Once `is_stopping()`, no further batch of a claim begins."""
        self.pipeline, self.heartbeat, self.name = pipeline, heartbeat, name
        self.sick = False
        self.unusable = ""  # why nothing can be compiled here, in one sentence
        self._mark, self._is_stopping = mark, is_stopping
        self._sizes = BatchSizes(pipeline.card.batch_sizes)
        self._doubts = Doubts()
        self._classes = {size: reproducibility_class(pipeline, size) for size in pipeline.card.batch_sizes}
        self._health = Health(pipeline, heartbeat)
        self._open: list[_Work] = []
        self.check = self._health.check
        self.report = Report(pipeline, self.abilities)
        self.counts = Counts(pipeline.card.name)

    def render(self, held: HeldClaim) -> Outcome:
        """Renders the remaining images as far as possible; stops at the next step once none is wanted."""
        found: list[Outcome] = []
        self.finish()
        self.begin(held, found.append)
        self.finish()
        return found[0]

    def begin(self, held: HeldClaim, done: Done, ahead: Ahead = lambda _images: None) -> None:
        """Renders as `render` does, but the last stage may still run when it returns, beside the next claim's images.
        `done` is called once with the outcome: now, or in a later call of `begin` or `finish`, by some thread. Before
        each batch `ahead` is told how many images are left behind it."""
        work = self._plan(held, done, ahead)
        if work is None:
            self.finish()
            done(Outcome(held))
            return
        if work.plan.alone:
            self.finish()  # what crashes the process must not be held against another claim
        earlier = list(self._open)
        self._open.append(work)
        self._attempt(work, lambda: self._render_all(work))
        for other in earlier:
            if other in self._open:
                self._finish(other)
        if self.sick:
            self._finish(work)
        elif work.late is None:
            self._complete(work)

    def finish(self) -> None:
        """Ends what was begun."""
        for work in list(self._open):
            self._finish(work)

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
        return Abilities.of(self.pipeline.card, self._classes, self._sizes.too_large())

    def _size_of(self, claim: Claim) -> int:
        """The batch size to try: that of the class that was asked for, or else the largest that fits."""
        if claim.reproducibility_class:
            return next(size for size, name in self._classes.items() if name == claim.reproducibility_class)
        return self._sizes.largest(claim.shape)

    def _plan(self, held: HeldClaim, done: Done, ahead: Ahead) -> _Work | None:
        """None: there is nothing to render."""
        claim = held.claim
        if not held.remaining:
            return None
        for shape, size in self._doubts.take_too_large():
            self._sizes.step_down(shape, size)
        if claim.reproducibility_class and not self.abilities().batch_of(_asked(claim)):
            return None  # since it was claimed, its batch has turned out not to fit
        tried = self._size_of(claim)
        alone = claim.suspect or self._sizes.is_alone(claim.shape, tried)
        plan = RetryPlan(self.pipeline.card.batch_sizes, tried, alone=alone)
        return _Work(Outcome(held, plan=plan), plan, tried, done, ahead, held.remaining[:tried])

    def _attempt(self, work: _Work, verb: Callable[[], None]) -> None:
        """Lets `verb` render images of the claim. What it raises ends the claim, and is told apart here."""
        claim, plan, outcome = work.claim, work.plan, work.outcome
        self.heartbeat.rendering(outcome.held)
        self._mark_open()
        began = time.monotonic()
        try:
            with self.counts.busy.working():
                verb()
            return
        except Interrupted:
            log.info("render interrupted", extra={"claim": claim.id, "fenced": outcome.held.fenced})
        except _DoesNotFit:
            log.warning("class does not fit; its images are released", extra={"claim": claim.id, "size": work.tried})
            smaller = batching.next_smaller(self.pipeline.card.batch_sizes, work.tried) or work.tried
            self._sizes.remember(claim.shape, work.tried, min(smaller, self._sizes.largest(claim.shape)))
        except DeviceSick as error:
            log.error("device sick", extra={"claim": claim.id, "error": str(error)})
            self.sick = True
            self.counts.sick.set(1)
            self._give_back(work)
        except CompileFailed as error:  # images rendered before are valid
            log.error("device unusable", extra={"claim": claim.id, "error": str(error)})
            self.unusable = str(error)
        except Exception:
            log.exception("render failed; the remaining images are released", extra={"claim": claim.id})
        finally:
            self.heartbeat.rendering(None)
            self.report.ends()
            outcome.seconds += time.monotonic() - began
        plan.stop()

    def _finish(self, work: _Work) -> None:
        """Takes what is in flight of a claim, and renders what failed beside another one."""
        give_back = self.sick  # also watched: what is in flight on a sick device may never end
        self._attempt(work, lambda: self._give_back(work) if give_back else self._take_all(work))
        self._complete(work)

    def _complete(self, work: _Work) -> None:
        self._open.remove(work)
        self._mark_open()
        if work.outcome.rendered and not work.claim.reproducibility_class:
            self._sizes.remember(work.claim.shape, work.tried, work.plan.max_size)
        if work.crowded == work.plan.max_size:
            self._sizes.beside(work.claim.shape, work.crowded, is_fixed=bool(work.claim.reproducibility_class))
        work.done(work.outcome)

    def _give_back(self, work: _Work) -> None:
        """All of a sick device's claim: its pictures are not to be trusted, and no image is at fault."""
        work.plan.stop()
        work.plan.failed.clear()
        work.outcome.rendered.clear()
        late, work.late = work.late, None
        if late is not None:
            self._health.run(late.drop)

    def _mark_open(self) -> None:
        self._mark(*((work.claim.id, work.in_flight) for work in self._open))

    def _render_all(self, work: _Work) -> None:
        if doubted := self._doubts.still_open():
            self.check()
            self._doubts.device_is_healthy(doubted)
        remaining = work.outcome.held.remaining
        work.plan.begin(remaining, self._doubts.take_at_fault(remaining))
        self._render_parts(work)

    def _render_parts(self, work: _Work) -> None:
        """Renders what is planned. Images of cancelled jobs are left out: they are released with the claim."""
        held, is_first = work.outcome.held, not work.outcome.slots
        while part := work.plan.next():
            if not is_first and self._is_stopping():
                work.plan.stop()
                return
            is_first = False
            wanted = tuple(image for image in part.images if held.wants(image))
            if wanted:
                work.ahead(work.plan.images)
                self._render_part(replace(part, images=wanted), work)
                crash_point("batch.rendered")

    def _take_all(self, work: _Work) -> None:
        while work.late is not None or not work.plan.is_empty:
            late, work.late = work.late, None
            if late is not None:
                self._accept(late, work)
            self._render_parts(work)

    def _render_part(self, part: Part, work: _Work) -> None:
        """Up to where the next part may begin; then accepts the part before."""
        beside = self._in_flight(alone=work.plan.alone)
        batch = batching.form(part.images, work.claim.shape, part.size, work.outcome.held.inputs)
        work.at_hand = work.outcome.held.at_hand = part.images
        self._mark_open()
        work.outcome.begins(part.images, part.size)
        try:
            self.report.begins(batch)
            self._health.prepare(batch)
            began = time.monotonic()
            begun, pictures = self._begin(batch, alone=work.plan.alone)
        except Exception as error:
            self._failed(part, work, error, beside=bool(beside))
            return
        late = _Late(part, begun, time.monotonic() - began, bool(beside), pictures)
        earlier, work.late = work.late, late
        if earlier is not None:
            self._accept(earlier, work)
        if late.begun is None and work.late is late:
            work.late = None
            self._accept(late, work)

    def _in_flight(self, *, alone: bool) -> list[_Late]:
        """What was begun and is not taken; nothing, if a part is to be rendered alone."""
        found = [work.late for work in self._open if work.late is not None and work.late.begun is not None]
        for late in found:
            if alone:
                self._health.run(late.take)
            else:
                late.beside = True
        return [] if alone else found

    def _begin(self, batch: Batch, *, alone: bool) -> tuple[Begun | None, Sequence[Picture | InvalidOutput] | None]:
        """A part in flight, or its pictures."""
        pipeline: object = self.pipeline
        if isinstance(pipeline, Overlapping) and not alone:
            return self._health.run(pipeline.begin, batch, self._on_step), None
        return None, self._health.run(self.pipeline.render, batch, self._on_step)

    def _failed(self, part: Part, work: _Work, error: Exception, *, beside: bool) -> None:
        """Plans what becomes of a part's images, or raises the error if that ends the claim."""
        claim, plan = work.claim, work.plan
        if isinstance(error, Interrupted) and not work.outcome.held.fenced:
            log.info("batch interrupted", extra={"claim": claim.id, "images": len(part.images)})
            return  # others of the claim may be wanted
        if isinstance(error, (Interrupted, DeviceSick, CompileFailed)):
            raise error
        if beside:
            log.warning("batch failed beside another", extra={"claim": claim.id}, exc_info=error)
            if isinstance(error, OutOfMemory):
                work.crowded = part.size
            plan.again(part)
        elif isinstance(error, OutOfMemory):
            log.warning("out of memory", extra={"claim": claim.id, "size": part.size})
            smaller = batching.next_smaller(self.pipeline.card.batch_sizes, part.size)
            if claim.reproducibility_class and smaller is not None:
                raise _DoesNotFit from None
            if not plan.step_down(part):
                self.check(part.size)
                plan.too_large(part)
        else:
            log.warning("batch failed", extra={"claim": claim.id, "images": len(part.images)}, exc_info=error)
            if not plan.is_single(part):
                plan.halve(part)
            else:
                self.check(part.size)
                plan.give_up(part, error)

    def _accept(self, late: _Late, work: _Work) -> None:
        """Takes the pictures of a part into the claim's outcome."""
        if late.begun is not None:
            self._health.run(late.take)
        if late.error is not None:
            self._failed(late.part, work, late.error, beside=late.beside)
            return
        if not late.is_sound:
            if len(late.pictures or ()) != late.part.size:
                raise DeviceSick(f"The pipeline made {len(late.pictures or ())} pictures of {late.part.size}.")
            self.check(late.part.size)
        self._record(late, work)

    def _record(self, late: _Late, work: _Work) -> None:
        part, outcome, plan, asked = late.part, work.outcome, work.plan, work.claim.reproducibility_class
        outcome.pass_seconds += late.seconds
        outcome.slots += part.size
        self.report.rendered(len(part.images), part.size)
        self.counts.batch(len(part.images), part.size, late.seconds)
        seconds = late.seconds / len(part.images)
        for image, picture in zip(part.images, late.pictures or (), strict=False):  # the rest is padding
            if isinstance(picture, InvalidOutput):
                plan.invalid_output(image, picture.message)
                continue
            name = reproducibility_class(self.pipeline, part.size, picture.decoded_in)
            if asked in ("", name):
                outcome.rendered.append(Rendered(image, picture, name, seconds, part.size))
            else:
                plan.failed.append(retries.failed(image, "other_class", OTHER_CLASS))

    def _on_step(self, step: int) -> None:
        self.report.on_step(step)
        self.counts.busy.step()
        for work in self._open[:-1]:
            self._hand_out(work)
        self.heartbeat.on_step(step)

    def _hand_out(self, work: _Work) -> None:
        """Completes an earlier claim in the middle of a later one, if all went well with it."""
        late = work.late
        if late is None or not work.plan.is_empty or (late.begun is not None and not late.begun.ready):
            return
        late.take()
        if late.is_sound:
            work.late = None
            self._record(late, work)
            self._complete(work)


def _asked(claim: Claim) -> Shape:
    """The claim's shape with the class that was asked for."""
    return replace(claim.shape, reproducibility_class=claim.reproducibility_class)
