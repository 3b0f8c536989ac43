"""Draws histories: which steps come, how often, and with what arguments. A history is drawn by its seed and number."""

from collections.abc import Callable
from random import Random
from typing import Any

from tests.simulation.model import CRASHES, GOOD, RAISES
from tests.simulation.world import Fate

Step = tuple[str, dict[str, Any]]
"""The name of a method of Steps, and its arguments."""

_NTH, _FLAG, _THREE = range(8), (False, True), range(3)
_FATES = (*[Fate.COMMIT] * 8, Fate.LOST, Fate.LOST, Fate.ROLLBACK)
_FATES_OR_HOLD = (*[Fate.COMMIT] * 8, Fate.LOST, Fate.ROLLBACK, Fate.HOLD, Fate.HOLD)
_TENANTS, _PRIORITIES = (2, 2, 2, 0, 1), (1, 1, 1, 0, 2)  # often those of which a claim takes several jobs
_SECONDS = (
    0.5, 6.0, 15.0, 31.0, 31.0, 45.0, 61.0, 61.0, 700.0, 3_700.0, 90_000.0, 700_000.0, -5.0, -40.0, -4_000.0
)  # fmt: skip
_TASKS = ("sweep", "finish", "finish", "write", "deadlines", "fold", "low", "deadlines", "forget", "number", "erase")


def _body(random: Random) -> list[tuple[str, int, int]]:
    return [_request(random) for _ in range(random.randint(1, 3))]


def _request(random: Random) -> tuple[str, int, int]:
    """Prompt, width, number of images."""
    prompt = random.choice([GOOD] * 12 + [RAISES, RAISES, CRASHES])
    return prompt, random.choice([64, 64, 256]), 1 if prompt == CRASHES else random.choice([1, 1, 2, 4, 9])


_STEPS: dict[str, tuple[int, dict[str, Any]]] = {
    "submit": (
        6,
        {"tenant": _TENANTS, "body": _body, "priority": _PRIORITIES, "key": range(6), "fate": _FATES}
        | {"shards": _FLAG, "dedupe": _FLAG, "again": _FLAG},
    ),
    "submit_again": (3, {"job": _NTH, "deleted": (True, True, False), "worker": _NTH, "shards": _FLAG}),
    "submit_file": (
        2,
        {"tenant": _TENANTS, "body": _body, "priority": _PRIORITIES, "seconds": (40, 40, 3_600), "fate": _FATES},
    ),
    "open_draft": (1, {"tenant": _TENANTS, "fate": _FATES}),
    "append": (2, {"job": _NTH, "number": _THREE, "body": _body, "fate": _FATES}),
    "finalize": (2, {"job": _NTH, "fate": _FATES}),
    "cancel": (4, {"job": _NTH, "shared": (True, True, False), "fate": _FATES_OR_HOLD}),
    "pause": (2, {"job": _NTH, "paused": _FLAG, "fate": _FATES}),
    "prioritise": (1, {"job": _NTH, "priority": _THREE, "fate": _FATES}),
    "retry": (2, {"job": _NTH, "include_cancelled": _FLAG, "key": range(4), "fate": _FATES}),
    "delete": (2, {"job": _NTH, "fate": _FATES}),
    "suspend": (2, {"tenant": (3, 3, 2), "suspended": _FLAG, "fate": _FATES}),
    "look": (2, {"worker": _NTH, "turn": _THREE, "then": ("", "", "pause", "cancel")}),
    "claim": (16, {"worker": _NTH, "turn": _THREE, "seats": (8, 8, 24, 2, 1), "fate": _FATES_OR_HOLD}),
    "beat": (6, {"worker": _NTH, "fate": _FATES, "at_once": _FLAG}),
    "let_go": (2, {"worker": _NTH, "job": _NTH, "fate": _FATES_OR_HOLD}),
    "settle": (14, {"worker": _NTH, "which": _NTH, "most": (99, 99, 99, 3, 1, 0), "fate": _FATES_OR_HOLD}),
    "crash": (
        5,
        {"worker": _NTH, "which": _NTH, "batch": _NTH, "both": _FLAG, "killed": _FLAG, "alive": _FLAG, "fate": _FATES},
    ),
    "sicken": (1, {"worker": _NTH, "turn": _THREE, "times": (3, 3, 4), "seconds": (1.0, 1.0, 400.0)}),
    "vanish": (1, {"worker": _NTH, "forgets": _FLAG}),
    "pass_time": (6, {"seconds": _SECONDS}),
    "restart_database": (1, {}),
    "end_held": (4, {"commit": (True, True, False)}),
    "expire": (5, {"fate": _FATES_OR_HOLD}),
    "housekeeping": (9, {"what": _TASKS}),
}
_NAMES, _WEIGHTS = list(_STEPS), [weight for weight, _ in _STEPS.values()]


def history(seed: int, number: int, most: int) -> tuple[int | None, list[Step]]:
    """The quota of the third tenant, and up to `most` steps. It begins with two jobs of one tenant and priority, so
    that a claim may hold images of both."""
    random = Random(f"{seed}/{number}")
    quota = random.choice([None, None, None, 3, 12])
    names = random.choices(_NAMES, _WEIGHTS, k=random.randint(most // 2, most - 2))
    steps = [(name, _arguments(random, name)) for name in ("submit", "submit", *names)]
    steps[1][1].update((same, steps[0][1][same]) for same in ("tenant", "priority"))
    return quota, steps


def _arguments(random: Random, name: str) -> dict[str, Any]:
    def drawn(values: Callable[[Random], Any] | tuple[Any, ...] | range) -> Any:
        return values(random) if callable(values) else random.choice(values)

    return {argument: drawn(values) for argument, values in _STEPS[name][1].items()}
