"""Slots: how many calls run at the same time, in all and for one tenant. No tenant can keep all threads for itself.

Tenants that wait take turns: a slot that becomes free goes to the waiting tenant that holds the fewest, and among
equals to the one that was served longest ago. All methods run on the event loop.
"""

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar, TypeVarTuple

import anyio

from services.api.errors import RETRY_SECONDS, ApiError

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
QUEUE = 200  # requests of one tenant that wait for a slot

Tenant = int | None  # None: whoever has a signed link


class Slots:
    """`total` calls run at once, up to three quarters of them for one tenant."""

    def __init__(self, total: int, queue: int = QUEUE) -> None:
        self.total, self.each = total, max(1, total - max(1, total // 4))
        self._queue = queue
        self._threads = anyio.CapacityLimiter(total)
        self._held: Counter[Tenant] = Counter()
        self._waiting: dict[Tenant, deque[anyio.Event]] = {}  # the tenant that was served last comes last

    async def run(
        self,
        tenant: Tenant,
        function: Callable[[*Arguments], T],
        *arguments: *Arguments,
        patient: bool = False,
    ) -> T:
        """Runs the function in a thread when it is the tenant's turn. `patient`: it waits however many wait already.

        Raises:
            ApiError: 429, too many calls of this tenant wait.
        """
        async with self._slot(tenant, patient):
            return await anyio.to_thread.run_sync(function, *arguments, limiter=self._threads)

    @asynccontextmanager
    async def _slot(self, tenant: Tenant, patient: bool) -> AsyncIterator[None]:
        if tenant in self._waiting or not self._is_free(tenant):
            await self._wait(tenant, patient)
        else:
            self._held[tenant] += 1
        try:
            yield
        finally:
            self._release(tenant)

    async def _wait(self, tenant: Tenant, patient: bool) -> None:
        waiting = self._waiting.get(tenant, deque())
        if len(waiting) >= self._queue and not patient:
            message = f"{self._queue} requests of yours wait already; send fewer at a time, or try again in a moment."
            raise ApiError(429, "too_many_requests", message, headers={"Retry-After": RETRY_SECONDS})
        turn = anyio.Event()
        self._waiting.setdefault(tenant, waiting).append(turn)
        try:
            await turn.wait()
        except BaseException:  # cancelled: the slot that it was given meanwhile, or its place, goes to others
            if turn.is_set():
                self._release(tenant)
            else:
                waiting.remove(turn)
                if not waiting:
                    del self._waiting[tenant]
            raise

    def _release(self, tenant: Tenant) -> None:
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        while ready := [other for other in self._waiting if self._is_free(other)]:
            chosen = min(ready, key=lambda other: self._held[other])
            waiting = self._waiting.pop(chosen)
            waiting.popleft().set()
            self._held[chosen] += 1
            if waiting:
                self._waiting[chosen] = waiting

    def _is_free(self, tenant: Tenant) -> bool:
        return self._held.total() < self.total and self._held[tenant] < self.each
