"""The states of images and jobs, and the one table of moves between them.

Every write of a state goes through the core and follows these tables; the database's CHECK constraints repeat
what a single row can be held to. Nothing leaves a final state.
"""

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
    """A claim is open until it is settled by its worker or taken back by the ledger."""

    OPEN = "open"
    SETTLED = "settled"
    EXPIRED = "expired"  # the lease ran out: a lost host, a lost network, a stopped process
    CRASHED = "crashed"  # the process died while rendering it


IMAGE_MOVES: dict[ImageState, frozenset[ImageState]] = {
    ImageState.QUEUED: frozenset({ImageState.RENDERING, ImageState.CANCELLED}),
    ImageState.RENDERING: frozenset({ImageState.DONE, ImageState.FAILED, ImageState.CANCELLED, ImageState.QUEUED}),
    ImageState.DONE: frozenset(),
    ImageState.FAILED: frozenset(),
    ImageState.CANCELLED: frozenset(),
}

JOB_MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.DRAFT: frozenset({JobState.QUEUED, JobState.CANCELLING}),
    JobState.VALIDATING: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELLING}),
    JobState.QUEUED: frozenset({JobState.IN_PROGRESS, JobState.FINALIZING, JobState.CANCELLING}),
    JobState.IN_PROGRESS: frozenset({JobState.FINALIZING, JobState.CANCELLING}),
    JobState.FINALIZING: frozenset({JobState.COMPLETED, JobState.FAILED}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.EXPIRED}),  # asked to stop, or out of time
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.EXPIRED: frozenset(),
}

FINAL_IMAGE_STATES = frozenset(state for state, moves in IMAGE_MOVES.items() if not moves)
FINAL_JOB_STATES = frozenset(state for state, moves in JOB_MOVES.items() if not moves)
CLAIMABLE_JOB_STATES = frozenset({JobState.QUEUED, JobState.IN_PROGRESS})


def sources(target: JobState) -> list[str]:
    """The states a job may be in for a move to `target`: the guard of every UPDATE of a job's state."""
    return sorted(state.value for state, moves in JOB_MOVES.items() if target in moves)
