"""The states of images and jobs, and the one table of moves between them.

Every write of a state goes through `services.core.queue` and follows these tables. The database's CHECK constraints
repeat the rules that concern a single row. Nothing leaves a final state.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class ImageState(IntEnum):
    """An image's state, as the narrow column stores it."""

    QUEUED = 0
    RENDERING = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def word(self) -> str:
        return self.name.lower()


class JobState(StrEnum):
    DRAFT = "draft"
    VALIDATING = "validating"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class ClaimState(StrEnum):
    """A claim is open until its worker settles it or the queue takes it back."""

    OPEN = "open"
    SETTLED = "settled"
    EXPIRED = "expired"  # the lease ran out: the host or the network was lost, or the process was stopped
    CRASHED = "crashed"  # the process died while rendering it


IMAGE_MOVES: dict[ImageState, frozenset[ImageState]] = {
    ImageState.QUEUED: frozenset({ImageState.RENDERING, ImageState.CANCELLED}),
    ImageState.RENDERING: frozenset({ImageState.DONE, ImageState.FAILED, ImageState.CANCELLED, ImageState.QUEUED}),
    ImageState.DONE: frozenset(),
    ImageState.FAILED: frozenset(),
    ImageState.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class JobMove:
    """One kind of move: the states that a job may move from, which guard the move's UPDATE, and those it may reach."""

    sources: frozenset[JobState]
    targets: frozenset[JobState]

    @property
    def guard(self) -> list[str]:
        """The sources, as a parameter for `state = ANY(:sources)`."""
        return guard(self.sources)


def _move(sources: set[JobState], *targets: JobState) -> JobMove:
    return JobMove(frozenset(sources), frozenset(targets))


# An image is made queued, or failed if the content policy refuses its prompt.
FIRST_IMAGE_STATES = frozenset({ImageState.QUEUED, ImageState.FAILED})
FIRST_JOB_STATES = frozenset({JobState.DRAFT, JobState.VALIDATING, JobState.QUEUED})
CLAIMABLE_JOB_STATES = frozenset({JobState.QUEUED, JobState.IN_PROGRESS})

OPEN = _move({JobState.DRAFT}, JobState.QUEUED)
ACCEPT = _move({JobState.VALIDATING}, JobState.QUEUED)
REFUSE = _move({JobState.VALIDATING}, JobState.FAILED)
START = _move({JobState.QUEUED}, JobState.IN_PROGRESS)
FINALIZE = _move({JobState.QUEUED, JobState.IN_PROGRESS}, JobState.FINALIZING)
STOP = _move({JobState.DRAFT, JobState.VALIDATING, JobState.QUEUED, JobState.IN_PROGRESS}, JobState.CANCELLING)
FINISH = _move({JobState.FINALIZING}, JobState.COMPLETED, JobState.FAILED)
FINISH_STOPPED = _move({JobState.CANCELLING}, JobState.CANCELLED, JobState.EXPIRED)  # by a user, or out of time

JOB_VERBS = (OPEN, ACCEPT, REFUSE, START, FINALIZE, STOP, FINISH, FINISH_STOPPED)
JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    state: frozenset(target for move in JOB_VERBS if state in move.sources for target in move.targets)
    for state in JobState
}

FINAL_IMAGE_STATES = frozenset(state for state, moves in IMAGE_MOVES.items() if not moves)
FINAL_JOB_STATES = frozenset(state for state, moves in JOB_MOVES.items() if not moves)
ENDING_JOB_STATES = FINISH.sources | FINISH_STOPPED.sources
STOPPED_JOB_STATES = FINISH_STOPPED.sources | FINISH_STOPPED.targets


def guard(states: frozenset[JobState]) -> list[str]:
    """Those states, as a parameter for `state = ANY(:sources)`."""
    return sorted(state.value for state in states)
