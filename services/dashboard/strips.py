"""The strip of the last runs of something: a bar for each, whose height tells states apart where colours do not."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.dashboard.words import plural

RUNS = 30
_WIDTH, _HEIGHT = 5, 20
_SHORT = {
    "skipped": 6, "planned": 6, "unchanged": 10, "cancelled": 10, "waiting": 10, "queued": 10, "submitting": 14,
    "running": 14, "rendering": 14, "writing": 14, "reviewing": 14,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """A run in the strip."""

    state: str
    at: datetime
    x: int
    y: int
    height: int


def bars(newest: Sequence[tuple[str, datetime]]) -> list[Bar]:
    """The state and moment of each run, the newest first, become bars from left to right, the oldest first."""
    return [
        Bar(state, at, (RUNS - 1 - place) * (_WIDTH + 1), _HEIGHT - height, height)
        for place, (state, at) in enumerate(newest[:RUNS])
        for height in [_SHORT.get(state, _HEIGHT)]
    ][::-1]


def said(states: Sequence[str]) -> str:
    """What the strip shows, in words."""
    counted = [f"{states.count(state):,} {state}" for state in dict.fromkeys(states)]
    return f"The last {plural(len(states), 'run')}: {', '.join(counted)}." if states else "No run yet."
