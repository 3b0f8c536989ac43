"""Runs histories, and makes one that fails as short as it can be."""

import os
import pprint
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg

from services.core.db.database import Database
from services.core.settings import Settings
from services.local.stack import Stack
from tests.simulation import drawing, healing
from tests.simulation.drawing import Step
from tests.simulation.steps import Steps
from tests.simulation.world import Fate, World

_MOST_REPLAYS = 300


class Broken(AssertionError):
    """A history broke a promise."""


@contextmanager
def world(stack: Stack, url: str) -> Iterator[World]:
    """For that database, which is the simulation's alone."""
    settings = Settings.read(dict(stack.values) | {"DATABASE_URL": url})
    database = Database(url, application="simulation", pool_size=3, nested_loops=True)
    own = f"{stack.superuser_url.rpartition('/')[0]}/{url.rpartition('/')[2]}".replace("+psycopg", "")
    with psycopg.connect(own, autocommit=True) as superuser:
        made = World(database, settings, superuser)
        with made.virtual_ids():
            yield made
    database.close()


def run(world: World, *, histories: int, steps: int, seed: int) -> None:
    """So many histories of up to so many steps. One that fails is made short and printed, as the arguments of `replay`.

    PRESSWORK_HISTORIES, _SEED and _FIRST say which histories to run instead: how many, of which seed, from which number
    on.

    Raises:
        Broken: from what the first failing history said.
    """
    histories, seed, first = (
        int(os.environ.get(f"PRESSWORK_HISTORIES{name}", usual))
        for name, usual in (("", histories), ("_SEED", seed), ("_FIRST", 0))
    )
    print(f"histories {first:,} to {first + histories - 1:,} of up to {steps} steps, PRESSWORK_HISTORIES_SEED={seed}")
    for number in range(first, first + histories):
        quota, drawn = drawing.history(seed, number, steps)
        try:
            replay(world, drawn, quota)
        except Exception as error:
            again = f"PRESSWORK_HISTORIES_SEED={seed} PRESSWORK_HISTORIES_FIRST={number} PRESSWORK_HISTORIES=1"
            short, why = shorten(world, drawn, quota, error)
            program = f"quota = {quota}\nsteps = {pprint.pformat(short, width=118, sort_dicts=False)}"
            raise Broken(f"history {number}, in short:\n{program}\n{why}\nthe same again: {again}") from error
    print(", ".join(f"{what} {times:,}" for what, times in sorted(world.counts.items())))


def first_broken(world: World, *, histories: int, steps: int, seed: int) -> int | None:
    """The number of the first history that fails, if one does."""
    for number in range(histories):
        quota, drawn = drawing.history(seed, number, steps)
        try:
            replay(world, drawn, quota)
        except Exception:
            return number
    return None


def replay(world: World, steps: Sequence[Step], quota: int | None = None) -> None:
    """One history, to its end."""
    made = Steps(world)
    try:
        made.quota(quota)
        for name, arguments in steps:
            getattr(made, name)(**arguments)
        healing.heal(made.history)
    finally:
        world.release()


def shorten(world: World, steps: Sequence[Step], quota: int | None, why: Exception) -> tuple[list[Step], Exception]:
    """Leaves steps out, and faults of steps, for as long as it fails; with what it then says."""
    replays = 0

    def fails(some: Sequence[Step]) -> Exception | None:
        nonlocal replays
        replays += 1
        try:
            replay(world, some, quota)
        except Exception as error:
            return error
        return None

    short, size = list(steps), max(len(steps) // 2, 1)
    while replays < _MOST_REPLAYS:
        for start in range(len(short) - size, -1, -size):
            left = short[:start] + short[start + size :]
            if found := fails(left):
                short, why = left, found
        if size == 1:
            break
        size = max(size // 2, 1)
    for nth, (name, arguments) in enumerate(short):
        if arguments.get("fate", Fate.COMMIT) is not Fate.COMMIT:
            simpler = [*short[:nth], (name, arguments | {"fate": Fate.COMMIT}), *short[nth + 1 :]]
            if found := fails(simpler):
                short, why = simpler, found
    return short, why
