"""Programs that end, stop, fail or wait at each crash point: what the point promises holds afterwards.

A process of its own reaches the point: a web server that a client asks, a worker or a scheduler. Others carry on, and
the client asks again. A test fails if the point was not reached. With all tests each point is met by a kill, with `make
chaos` by every action.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import httpx
import pytest
import redis

from services.core.crash_points import ACTIONS, POINTS
from services.core.settings import Settings
from services.local.stack import Stack
from tests import crash_catalogues as shops
from tests import crash_orders as ordered
from tests import crash_requests as asked
from tests import crash_scenarios as rendered
from tests import crash_tasks as due
from tests import crash_upkeep as upkeep
from tests.crash_programs import Fault, Program
from tests.crash_scenarios import Scenario
from tests.crash_world import World, open_world
from tests.waiting import until

SCENARIOS: dict[str, Callable[[World], Scenario]] = {
    "submit.copying": partial(asked.SubmitMuch, hit=2, is_locking=True),
    "submit.recorded": partial(asked.Submit, is_locking=True),
    "submit.committed": asked.Submit,
    "submit.woken": asked.Submit,
    "input.stored": asked.SubmitWithPicture,
    "chunk.committed": partial(asked.Draft, hit=2),
    "draft.finalized": asked.Draft,
    "file.stored": asked.StoreFile,
    "file.committed": asked.StoreFile,
    "part.stored": partial(asked.Upload, hit=2),
    "upload.joined": asked.Upload,
    "upload.completed": asked.Upload,
    "cancel.committed": asked.Cancel,
    "retry.committed": asked.Retry,
    "delete.committed": asked.Delete,
    "wake-up.marked": asked.Submit,
    "claim.committed": partial(rendered.Render, hit=2),
    "claim.started": rendered.Render,
    "image.copied": partial(rendered.Copy, hit=3),
    "batch.rendered": partial(rendered.Render, hit=2, is_fenced=True),
    "object.encoded": partial(rendered.Render, hit=3, is_fenced=True),
    "image.stored": partial(rendered.Render, hit=3, is_fenced=True),
    "shard.stored": partial(rendered.RenderShards, is_fenced=True),
    "settle.recorded": partial(rendered.Render, is_locking=True),
    "settle.committed": rendered.Render,
    "settle.dropping": partial(rendered.Drop, hit=2),
    "heartbeat.extended": rendered.RenderSlowly,
    "lead.taken": due.Export,
    "task.committed": partial(due.Export, hit=3),
    "lease.taken": due.Export,
    "work.done": due.Export,
    "batch.validated": due.Batch,
    "output.stored": due.EndBatch,
    "export.stored": due.Export,
    "export.listed": due.Export,
    "export.dropped": due.DropExport,
    "dataset.stored": due.Dataset,
    "dataset.listed": due.Dataset,
    "deletion.dropped": due.DeleteJob,
    "deletion.emptied": due.DeleteJob,
    "upload.dropped": due.DropUpload,
    "file.dropped": due.DropFile,
    "retention.dropped": due.DropOld,
    "webhook.sent": partial(due.Deliver, again=0),
    "webhook.recorded": partial(due.Deliver, again=1),
    "schedule.cancelled": due.Fire,
    "schedule.submitted": due.Fire,
    "catalogue.listed": shops.FirstRun,
    "photograph.stored": shops.RunOfPhotographs,
    "catalogue.appended": shops.FirstRun,
    "catalogue.submitted": shops.FirstRun,
    "catalogue.copied": shops.SecondRun,
    "manifest.stored": shops.SecondRun,
    "version.forgotten": shops.RolledBack,
    "pointer.moved": shops.SecondRun,
    "entry.dropped": shops.SecondRun,
    "catalogue.dropped": shops.DropCatalogue,
    "copy.stored": shops.Copied,
    "copy.listed": shops.Copied,
    "copy.pointed": shops.Copied,
    "copy.going": shops.Copied,
    "copy.dropped": shops.Copied,
    "image.submitted": ordered.Generate,
    "part.recorded": partial(asked.Upload, hit=2),
    "batch.created": ordered.CreateBatch,
    "batch.cancelled": ordered.CancelBatch,
    "pause.committed": ordered.Resume,
    "redraw.committed": ordered.Redraw,
    "bulk.asked": ordered.ActOnMany,
    "export.ordered": ordered.OrderExport,
    "run.begun": ordered.BeginRun,
    "schedule.asked": ordered.RunSchedule,
    "lease.committed": partial(due.Export, hit=3),
    "dataset.dropped": upkeep.DropDataset,
    "dataset.shrunk": upkeep.DropVersion,
    "tenant.emptied": upkeep.DeleteTenant,
    "tenant.dropped": upkeep.DeleteTenant,
    "retention.erased": upkeep.Erase,
    "retention.begun": due.DropOld,
    "mark.raised": upkeep.Mark,
    "mark.stored": upkeep.Mark,
    "orphan.dropped": upkeep.DropOrphan,
    "bulk.acted": partial(due.DeleteMany, hit=2),
}


@pytest.fixture(scope="module")
def world(stack: Stack, template: str, fresh_database: Callable[[str], AbstractContextManager[str]]) -> Iterator[World]:
    """One installation for all points."""
    with redis.Redis.from_url(stack.admin["REDIS_URL"]) as administration, fresh_database(template) as url:
        settings = Settings.read(dict(stack.values) | {"DATABASE_URL": url})
        with open_world(settings, administration) as opened:
            yield opened


@pytest.fixture
def scenario(world: World, point: str) -> Scenario:
    return SCENARIOS[point](world)


def test_each_crash_point_has_a_scenario() -> None:
    assert SCENARIOS.keys() == POINTS.keys()


@pytest.mark.parametrize("point", POINTS)
def test_what_a_killed_program_leaves_is_carried_on(world: World, scenario: Scenario, point: str) -> None:
    assert_survives(world, scenario, Fault(point, "kill", scenario.hit))


@pytest.mark.chaos
@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "kill"])
@pytest.mark.parametrize("point", POINTS)
def test_what_a_program_leaves_that_stops_or_fails_or_waits_is_carried_on(
    world: World, scenario: Scenario, point: str, action: str
) -> None:
    assert_survives(world, scenario, Fault(point, action, scenario.hit))


def assert_survives(world: World, scenario: Scenario, fault: Fault) -> None:
    world.begin()
    scenario.prepare()
    program = world.start(scenario.program, fault, **scenario.changes)
    try:
        is_answered = _ask(scenario, program, world.api.http.headers, patience=60 if fault.action == "kill" else 3)
        scenario.meanwhile()
        until(program.has_reached, every=0.005)
        _take_over(world, scenario, fault, program)
    finally:
        program.close()
    assert is_answered or fault.action != "delay"
    world.carry_on(scenario.is_done)
    world.assert_sound()
    world.assert_no_claim()
    scenario.check()


def _ask(scenario: Scenario, program: Program, headers: httpx.Headers, patience: float) -> bool:
    """Whether the client got all its answers from this web server. `patience`: for how many seconds it waits for one
    that may never come; a server that is killed lets nobody wait, and its first answer may take long beside other
    tests."""
    if not program.url:
        return True
    with httpx.Client(base_url=program.url, headers=headers, timeout=patience, trust_env=False) as http:
        try:
            scenario.ask(http)
        except (httpx.TransportError, httpx.HTTPStatusError):
            return False
    return True


def _take_over(world: World, scenario: Scenario, fault: Fault, program: Program) -> None:
    """Others do what is left: once the program has ended, or while it is stopped."""
    if fault.action == "stop":
        program.wait_stopped()
        if not scenario.is_locking:
            world.age()
            scenario.ask(world.api.http)
            world.carry_on(scenario.is_done)
            world.assert_sound()
        program.go_on()
    if fault.action == "kill":
        assert program.wait() == -signal.SIGKILL
    else:
        if program.url:
            program.ask_to_stop()
        assert program.wait() == 0
    if fault.action == "stop" and scenario.is_fenced:
        assert "fenced" in program.verdicts, program.verdicts
    world.assert_sound()
    world.age()
    scenario.ask(world.api.http)
