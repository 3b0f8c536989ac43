"""The answer that goes on: server-sent events for one who watches."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.api.dependencies import Context
from services.api.feed import Watcher, event_message, job_message, message
from services.core.events.queries import Event
from services.core.jobs.queries import JobView
from services.core.model.errors import Unavailable
from services.core.model.scopes import Principal

STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Missed:
    """What happened before a stream began, and the job as it is. The client has all events up to `after`."""

    events: Sequence[Event]
    after: int = 0
    job: JobView | None = None
    too_much: bool = False


class EventStream(Response):
    """Begins to watch, then reads what was before: so nothing falls between the two."""

    media_type = STREAM

    def __init__(self, context: Context, who: Principal, job: int | None, read_missed: Callable[[], Missed]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._context, self._who, self._job, self._read_missed = context, who, job, read_missed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(data: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if scope["state"]["is_head"]:
            await write(b"", more=False)
            return
        await write(b"retry: 2000\n\n")
        async with self._context.feed.watch(self._who, self._job) as watcher:
            leaving = asyncio.create_task(_leave(receive, watcher))
            try:
                missed = await self._context.requests.run(self._who.tenant_id, self._read_missed, patient=True)
                _tell(watcher, missed)
                is_over = False
                while not is_over:
                    await watcher.changed.wait()
                    is_over = watcher.ended  # perhaps before the first look: its last message is sent all the same
                    await write(watcher.take(), more=not is_over)
            except Unavailable:
                await write(b"", more=False)  # the client connects again
            finally:
                leaving.cancel()


async def _leave(receive: Receive, watcher: Watcher) -> None:
    """Ends the stream when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    watcher.end("gone", "The client has gone.")


def _tell(watcher: Watcher, missed: Missed) -> None:
    if missed.too_much:
        watcher.tell(message("reset", '{"message": "Too much has happened since: begin again."}'))
    watcher.catch_up(missed.after, [(event.seq, event_message(event, watcher.names_hosts)) for event in missed.events])
    if missed.job is not None:
        watcher.snapshot(missed.job.id, missed.job.as_of, job_message(missed.job))
