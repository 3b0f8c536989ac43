"""Histories of jobs, claims, crashes, cancels and clocks over the real SQL, in virtual time: see tests/simulation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from services.local.stack import Stack
from tests.simulation import running
from tests.simulation.world import World

HISTORIES, SEED = 300, 20_311
STEPS = 40


@pytest.fixture(scope="module")
def world(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[World]:
    with fresh_database(template) as url, running.world(stack, url) as world:
        yield world


def test_no_history_breaks_a_promise(world: World) -> None:
    running.run(world, histories=HISTORIES, steps=STEPS, seed=SEED)
    world.assert_virtual()
