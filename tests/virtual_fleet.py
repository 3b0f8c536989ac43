"""A fleet in virtual time: workers with a prefetch, as the render loop has, that share one queue by the real rule."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from services.core.queue import tail
from services.core.queue.peers import LOOK_SECONDS, PATIENCE
from services.core.queue.tail import Leaving, Pace

ELSEWHERE = -1  # a batch of work that only its worker sees
SEGMENT = (1, 0)


@dataclass(frozen=True, slots=True)
class Worker:
    """`seconds` an image in a full batch of `batch`. It dies at `dies`, and what it holds is queued `lease` later.
    Until `elsewhere` it claims older work, which nobody else is able to render."""

    seconds: float
    batch: int
    dies: float = float("inf")
    elsewhere: float = 0.0

    @property
    def batch_seconds(self) -> float:
        return self.seconds * self.batch


@dataclass(slots=True)
class _State:
    worker: Worker
    held: int = 0  # claimed and not begun, or ELSEWHERE
    rendering: int = 0
    until: float = 0.0  # the end of the batch at hand
    looks_at: float = 0.0
    leaving: Leaving = field(default_factory=Leaving)

    def free_at(self, now: float) -> float:
        at = self.until if self.rendering else now
        return at + self.worker.batch_seconds * (self.held != 0)

    def pace(self, now: float, idle: float) -> Pace:
        """`idle`: in how many seconds it begins if it holds nothing."""
        free = self.free_at(now) - now if self.rendering or self.held else idle
        return Pace(free, self.worker.batch_seconds, self.worker.batch)

    def take(self, queued: int, now: float, others: Sequence[Pace]) -> int:
        """How many of the queued images it takes; none if it leaves all of them to others."""
        own = self.pace(now, 0.0)
        leave = 0 if self.leaving.overdue(now) else tail.left(own, others)
        left = [SEGMENT] if 0 < queued <= leave else []
        self.leaving.note(left, [SEGMENT], now=now, until=now + own.end + PATIENCE)
        return min(self.worker.batch, queued) if queued > leave else 0


@dataclass(frozen=True, slots=True)
class Run:
    """When the last image was done, and how many each worker rendered."""

    seconds: float
    images: tuple[int, ...]


def ideal(workers: Sequence[Worker], images: int) -> float:
    """Seconds in which the workers would render so many images if each image could be divided among them."""
    return images / sum(1 / worker.seconds for worker in workers)


def render(workers: Sequence[Worker], images: int, *, by_rule: bool = True, lease: float = 35.0) -> Run:
    """Renders them all. A worker claims its first batch at 0, and the next one whenever it begins one."""
    states = [_State(worker) for worker in workers]
    done = [0] * len(workers)
    queued, last = images, 0.0
    moments: list[tuple[float, int, str, int]] = []
    tie = count()

    def at(moment: float, what: str, nth: int) -> None:
        heapq.heappush(moments, (moment, next(tie), what, nth))

    for nth, state in enumerate(states):
        at(0.0, "look", nth)
        if state.worker.dies < float("inf"):
            at(state.worker.dies, "die", nth)

    def alive(state: _State, now: float) -> bool:
        return now < state.worker.dies

    def claim(nth: int, now: float) -> int:
        """What the worker takes; nothing if it leaves all of it."""
        nonlocal queued
        state = states[nth]
        if now < state.worker.elsewhere:
            return ELSEWHERE
        others = [other.pace(now, LOOK_SECONDS) for other in states if other is not state and alive(other, now)]
        taken = state.take(queued, now, others if by_rule else [])
        queued -= taken
        return taken

    def begin(nth: int, now: float) -> None:
        """Renders what it holds and claims the next; or looks once more, idle, for what it left."""
        state = states[nth]
        state.held = state.held or claim(nth, now)
        if not state.held:
            state.looks_at = now + LOOK_SECONDS
            at(state.looks_at, "look", nth)
            return
        state.rendering, state.held = state.held, 0
        state.until = now + state.worker.batch_seconds
        at(state.until, "end", nth)
        state.held = claim(nth, now)

    while moments and sum(done) < images:
        now, _, what, nth = heapq.heappop(moments)
        state = states[nth]
        if what == "die":
            at(now + lease, "expire", nth)
        elif what == "expire":
            queued += max(state.held, 0) + max(state.rendering, 0)
            state.held = state.rendering = 0
        elif not alive(state, now):
            continue
        elif what == "end":
            done[nth] += max(state.rendering, 0)
            last = now if state.rendering > 0 else last
            state.rendering = 0
            begin(nth, now)
        elif not state.rendering and now >= state.looks_at:
            begin(nth, now)
    assert sum(done) == images, "work is left, and nobody looks for it"
    return Run(last, tuple(done))
