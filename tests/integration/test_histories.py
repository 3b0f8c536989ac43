"""Histories of jobs, claims, crashes, cancels and clocks over the real SQL, in virtual time: see tests/simulation."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from services.local.stack import Stack
from tests.simulation import running
from tests.simulation.drawing import Step
from tests.simulation.model import CRASHES, GOOD
from tests.simulation.world import Fate, World

HISTORIES, SEED, STEPS = 300, 20_311, 40
# What so many histories come to at least, so that they prove something.
_REACHED = {
    "settled: fenced": 10, "settled: already": 3, "expired": 50, "poison": 10, "cancelled while rendering": 10,
    "waited for a lock": 10, "held claim": 20, "held settle": 5, "erased": 3,
    "sick": 10, "let go": 20, "refused: suspended": 5, "out of time": 10,
    "copied": 20, "submitted again": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[World]:
    with fresh_database(template) as url, running.world(stack, url) as world:
        yield world


def _submit(*body: tuple[str, int, int], key: int = 5, fate: Fate = Fate.COMMIT, dedupe: bool = False) -> Step:
    head = {"priority": 1, "key": key, "shards": False, "dedupe": dedupe, "again": False}
    return "submit", {"tenant": 0, "body": list(body), "fate": fate} | head


def _claim(worker: int, seats: int = 8, fate: Fate = Fate.COMMIT) -> Step:
    return "claim", {"worker": worker, "turn": 1, "seats": seats, "fate": fate}


def _settle(worker: int, fate: Fate = Fate.COMMIT) -> Step:
    return "settle", {"worker": worker, "which": 0, "most": 99, "fate": fate}


EXPIRE: Step = ("expire", {"fate": Fate.COMMIT})
_CRASH = {"which": 0, "batch": 0, "both": False, "killed": False, "alive": False, "fate": Fate.COMMIT}
# By name, and what they come to.
KNOWN: dict[str, tuple[list[Step], str]] = {
    "a worker that was stopped settles late": (
        [
            _submit((GOOD, 64, 9)), _claim(0), ("pass_time", {"seconds": 31.0}), EXPIRE, _claim(1), _settle(0),
            _settle(1),
        ],
        "settled: fenced",
    ),
    "a settle is committed and its reply lost": (
        [_submit((GOOD, 64, 4)), _claim(0), _settle(0, Fate.LOST), _settle(0)],
        "settled: already",
    ),
    "a submit is committed and its reply lost": (
        [_submit((GOOD, 64, 2), key=1, fate=Fate.LOST), _submit((GOOD, 64, 2), key=1)],
        "submitted again",
    ),
    "a claim is open while another is made, and a cancel": (
        [
            _submit((GOOD, 64, 9), (GOOD, 64, 9)), _claim(0, fate=Fate.HOLD), _claim(1),
            ("cancel", {"job": 0, "shared": False, "fate": Fate.COMMIT}), ("end_held", {"commit": True}),
            ("cancel", {"job": 0, "shared": False, "fate": Fate.COMMIT}), _settle(0), _settle(1),
        ],
        "waited for a lock",
    ),
    "of a claim of two jobs one is cancelled, and lost with the other": (
        [
            _submit((GOOD, 64, 2)), _submit((GOOD, 64, 3)), _claim(0),
            ("cancel", {"job": 0, "shared": True, "fate": Fate.COMMIT}),
            ("beat", {"worker": 0, "fate": Fate.COMMIT, "at_once": True}), ("pass_time", {"seconds": 31.0}), EXPIRE,
            _settle(0),
        ],
        "let go",
    ),
    "a worker is forgotten while an expiry of its claim is open": (
        [
            _submit((GOOD, 64, 1)), _claim(0), ("pass_time", {"seconds": 90_000.0}), ("expire", {"fate": Fate.HOLD}),
            ("housekeeping", {"what": "forget"}), ("end_held", {"commit": True}),
        ],
        "expired",
    ),
    "the clock is set back while images are rendered": (
        [_submit((GOOD, 64, 4)), _claim(0), ("pass_time", {"seconds": -4_000.0}), EXPIRE, _claim(1), _settle(0)],
        "expired",
    ),
    "what a job wants to copy is deleted with the job that has it": (
        [
            _submit((GOOD, 64, 4)), _claim(0), _settle(0), ("housekeeping", {"what": "finish"}),
            _submit((GOOD, 64, 4), dedupe=True), _claim(0), ("delete", {"job": 0, "fate": Fate.COMMIT}),
            ("housekeeping", {"what": "erase"}), _settle(0),
        ],
        "to be copied and gone",
    ),
    "one image of eight crashes two devices": (
        [
            _submit((GOOD, 64, 4), (CRASHES, 64, 1), (GOOD, 64, 2)), _claim(0), ("crash", {"worker": 0} | _CRASH),
            _claim(1), ("crash", {"worker": 1} | _CRASH),
        ],
        "poison",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_history_ends_well(world: World, name: str) -> None:
    steps, comes_to = KNOWN[name]
    before = world.counts[comes_to]
    running.replay(world, steps)
    assert world.counts[comes_to] > before


def test_no_history_breaks_a_promise(world: World) -> None:
    world.counts.clear()
    running.run(world, histories=HISTORIES, steps=STEPS, seed=SEED)
    world.assert_virtual()
    if "PRESSWORK_HISTORIES" in os.environ:
        return
    missed = {what: world.counts[what] for what, least in _REACHED.items() if world.counts[what] < least}
    assert not missed, f"too few for {HISTORIES} histories: {missed}"
