"""Events, of one job or of all of a tenant's: as pages of JSON, or as a stream that goes on (server-sent events)."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from services.api import parameters
from services.api.authentication import Caller, Tenant
from services.api.dependencies import Context, ContextDep
from services.api.event_stream import STREAM, EventStream, Missed
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.events import queries as events
from services.core.jobs import queries
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.model.scopes import Principal

router = APIRouter(route_class=TenantRoute)
MOST_BEHIND = 20_000  # events of all tenants that a stream reads to catch up
MOST_AHEAD = 20_000  # of this server: another one has seen more, or it was another database's
_OF_A_JOB = 1_000
LastEventId = Annotated[
    int | None,
    Header(
        alias="Last-Event-ID", ge=0, lt=2**63, description="the id of the last message of a stream that was cut off"
    ),
]


@router.get(
    "/jobs/{job_id}/events",
    response_model=schemas.EventPage,
    responses={200: {"content": {STREAM: {"schema": {"type": "string"}}}}},
)
async def list_events(
    request: Request,
    context: ContextDep,
    tenant: Tenant,
    caller: Caller,
    job_id: str,
    after: parameters.After = 0,
    limit: parameters.Limit = 100,
    last_event_id: LastEventId = None,
) -> Any:
    """The job's events, oldest first; one is listed about a second after it happened. With `Accept: text/event-stream`
    the answer goes on: messages named like the event's kind, with its `seq` as id, and a message `job` with the job as
    it is, whenever it has changed. A stream begins after `Last-Event-ID`, or else after `after`."""
    number = ids.parse_job(job_id)
    if STREAM in request.headers.get("accept", ""):
        context.feed.admit()
        await context.requests.run(tenant, lambda: _assert_exists(context, tenant, number), patient=True)
        seq = after if last_event_id is None else last_event_id
        return EventStream(context, caller, number, lambda: _missed(context, tenant, number, seq))
    return await context.requests.run(tenant, lambda: _page(context, caller, number, after, limit))


@router.get("/events", response_class=Response, responses={200: {"content": {STREAM: {}}}})
async def follow_events(
    context: ContextDep, caller: Caller, after: parameters.Seq = None, last_event_id: LastEventId = None
) -> Any:
    """The tenant's events as they happen, as server-sent events, and a message `job` with each unfinished job, at first
    and whenever it has changed. A stream that was cut off goes on after `Last-Event-ID` (or `after`); a message `reset`
    says that too much has happened since."""
    context.feed.admit()
    seq = after if last_event_id is None else last_event_id
    return EventStream(context, caller, None, lambda: _missed_of_all(context, caller.tenant_id, seq))


def _assert_exists(context: Context, tenant: int, number: int) -> None:
    with context.database.read(tenant) as connection:
        if not queries.exists(connection, tenant, number):
            raise NotFound("There is no such job.")


def _page(context: Context, caller: Principal, number: int, after: int, limit: int) -> schemas.EventPage:
    tenant = caller.tenant_id
    _assert_exists(context, tenant, number)
    with context.database.read(tenant) as connection:
        found = events.of_subject(connection, tenant, events.job(number), after_seq=after, limit=limit + 1)
    names_hosts = caller.sees_hosts
    shown = [schemas.event(event, names_hosts=names_hosts) for event in found[:limit]]
    return schemas.EventPage(data=shown, has_more=len(found) > limit)


def _missed(context: Context, tenant: int, number: int, seq: int) -> Missed:
    with context.database.read(tenant) as connection:
        view = queries.job(connection, tenant, number)
        if seq - context.feed.seq > MOST_AHEAD:
            return Missed([], too_much=True, job=view)
        found = events.of_subject(connection, tenant, events.job(number), after_seq=seq, limit=_OF_A_JOB)
        return Missed(found, after=seq, job=view)


def _missed_of_all(context: Context, tenant: int, seq: int | None) -> Missed:
    if seq is None:
        return Missed([])
    if context.feed.seq - seq > MOST_BEHIND or seq - context.feed.seq > MOST_AHEAD:
        return Missed([], too_much=True)
    if seq >= context.feed.seq:
        return Missed([], after=seq)
    with context.database.read(tenant) as connection:
        return Missed(events.of_tenant(connection, tenant, seq, most=MOST_BEHIND), after=seq)
