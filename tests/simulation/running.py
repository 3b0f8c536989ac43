"""Runs many histories, and says by which seed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import hypothesis
import psycopg
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import get_state_machine_test

from services.core.db.database import Database
from services.core.settings import Settings
from services.local.stack import Stack
from tests.simulation.machine import Machine
from tests.simulation.world import World

SEED = 20_311


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
    """So many histories of up to so many steps. The first that fails is made as short as possible and printed as a
    program; the same seed finds it again. PRESSWORK_HISTORIES and PRESSWORK_HISTORIES_SEED choose others."""
    histories = int(os.environ.get("PRESSWORK_HISTORIES", histories))
    seed = int(os.environ.get("PRESSWORK_HISTORIES_SEED", seed))
    print(f"{histories:,} histories of up to {steps} steps, PRESSWORK_HISTORIES_SEED={seed}")
    phases = [Phase.generate, *([] if "PRESSWORK_HISTORIES_RAW" in os.environ else [Phase.shrink])]
    machine = type("Machine", (Machine,), {"world": world})
    test = get_state_machine_test(
        machine,
        settings=hypothesis.settings(
            max_examples=histories, stateful_step_count=steps, deadline=None, database=None, phases=phases,
            suppress_health_check=list(HealthCheck), print_blob=False,
        ),
    )  # fmt: skip
    try:
        hypothesis.seed(seed)(test)()
    finally:
        print(", ".join(f"{what} {times:,}" for what, times in sorted(world.counts.items())))
