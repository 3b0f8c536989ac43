"""Slots: who runs, who waits, and in which order."""

import inspect
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from fastapi.routing import iter_route_contexts

from services.api.app import create_app
from services.api.errors import ApiError
from services.api.slots import Slots
from services.core.settings import Settings


class Calls:
    """Calls that run until they are let go, and the order in which they began."""

    def __init__(self, slots: Slots) -> None:
        self.slots, self.began, self.refused = slots, list[str](), list[str]()
        self._gates: dict[str, threading.Event] = {}

    async def call(self, name: str, patient: bool = False) -> None:
        """The first letter of the name is the tenant."""
        self._gates[name] = threading.Event()
        try:
            await self.slots.run(ord(name[0]), self._run, name, patient=patient)
        except ApiError as error:
            self.refused.append(f"{name} {error.status} {error.headers['Retry-After']}")

    def _run(self, name: str) -> None:
        self.began.append(name)
        assert self._gates[name].wait(20)

    async def end(self, *names: str) -> None:
        for name in names:
            self._gates[name].set()
            await anyio.wait_all_tasks_blocked()
            with anyio.fail_after(20):
                while self.slots._held.total() > sum(not self._gates[began].is_set() for began in self.began):  # noqa: ASYNC110
                    await anyio.sleep(0.001)

    async def begun(self, names: str) -> None:
        with anyio.fail_after(20):
            while " ".join(self.began) != names:  # noqa: ASYNC110  they begin in threads
                await anyio.sleep(0.001)


def played(slots: Slots, play: Callable[[Calls, Any], Coroutine[Any, Any, None]]) -> Calls:
    calls = Calls(slots)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            try:
                await play(calls, group)
            finally:
                for gate in calls._gates.values():
                    gate.set()

    anyio.run(main)
    assert not slots._held and not slots._waiting, "a slot or a place was left behind"
    return calls


async def begin(calls: Calls, group: Any, *names: str) -> None:
    for name in names:
        group.start_soon(calls.call, name)
        await anyio.wait_all_tasks_blocked()


def test_one_tenant_leaves_a_slot_to_the_others() -> None:
    async def play(calls: Calls, group: Any) -> None:
        await begin(calls, group, "a1", "a2", "a3", "a4", "a5", "b1")
        await calls.begun("a1 a2 a3 b1")

    played(Slots(4), play)


def test_tenants_that_wait_take_turns_and_the_one_that_holds_the_fewest_is_first() -> None:
    async def play(calls: Calls, group: Any) -> None:
        await begin(calls, group, "a1", "a2", "a3", "b1", "a4", "a5", "b2", "b3", "c1")
        await calls.begun("a1 a2 a3 b1")
        await calls.end("b1")
        await calls.begun("a1 a2 a3 b1 b2")  # b and c hold none, and b has waited longer
        await calls.end("a1")
        await calls.begun("a1 a2 a3 b1 b2 c1")
        await calls.end("a2")
        await calls.begun("a1 a2 a3 b1 b2 c1 a4")  # a and b hold one each, and a was served longer ago
        await calls.end("a3", "c1", "a4")
        await calls.begun("a1 a2 a3 b1 b2 c1 a4 b3 a5")

    played(Slots(4), play)


def test_a_tenant_whose_queue_is_full_is_told_to_come_back_and_others_are_not() -> None:
    async def play(calls: Calls, group: Any) -> None:
        await begin(calls, group, "a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2", "b3")
        group.start_soon(calls.call, "a7", True)
        await anyio.wait_all_tasks_blocked()
        await calls.begun("a1 a2 a3 b1")

    calls = played(Slots(4, queue=2), play)
    assert calls.refused == ["a6 429 2"]
    assert set(calls.began) == {"a1", "a2", "a3", "a4", "a5", "a7", "b1", "b2", "b3"}


def test_a_call_that_is_cancelled_while_it_waits_leaves_its_place() -> None:
    async def play(calls: Calls, group: Any) -> None:
        await begin(calls, group, "a1", "a2", "a3")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                await begin(calls, inner, "a4", "b1", "b2")
                scope.cancel()
                calls._gates["b1"].set()
        await begin(calls, group, "a5")
        await calls.end("a1")
        await calls.begun("a1 a2 a3 b1 a5")

    played(Slots(4), play)


def test_no_handler_runs_in_the_threads_that_all_tenants_share() -> None:
    """FastAPI runs synchronous handlers there."""
    servers = {"DATABASE_URL": "postgresql://x/x", "REDIS_URL": "redis://x", "PRESSWORK_SECRET": "secret"}
    app = create_app(Settings.read(servers | {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}))
    handlers = {
        route.path: route.endpoint for route in iter_route_contexts(app.routes) if route.path.startswith("/v1/")
    }
    assert len(handlers) > 20
    assert [path for path, handler in handlers.items() if not inspect.iscoroutinefunction(handler)] == []
