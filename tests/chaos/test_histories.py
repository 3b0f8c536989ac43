"""Ten thousand histories of the queue in virtual time, and proof that they would find faults: see tests/simulation."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from services.local.stack import Stack
from tests.simulation import faults, running
from tests.simulation.faults import FAULTS, Fault
from tests.simulation.world import World

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7_200)]
HISTORIES, STEPS = 10_000, 40
ENOUGH = 300  # histories in which a fault is found: as many as CI runs


@pytest.fixture(scope="module")
def world(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[World]:
    with fresh_database(template) as url, running.world(stack, url) as world:
        yield world


def test_no_history_breaks_a_promise(world: World) -> None:
    """Others at each run; what is printed finds them again."""
    seed = int.from_bytes(os.urandom(4), "big")
    running.run(world, histories=HISTORIES, steps=STEPS, seed=seed)
    world.assert_virtual()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_the_code_is_found(world: World, fault: Fault) -> None:
    with faults.broken(fault):
        found = running.first_broken(
            world, histories=ENOUGH, steps=STEPS, seed=random.Random(fault.name).getrandbits(32)
        )
    assert found is not None, f"{ENOUGH} histories did not find it"
    print(f"found by history {found}")
