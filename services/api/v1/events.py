"""The events of a job, in order."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from services.api import parameters
from services.api.authentication import Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.events import queries as events
from services.core.jobs import queries
from services.core.model import ids
from services.core.model.errors import NotFound

router = APIRouter(route_class=TenantRoute)


class Event(BaseModel):
    """Something that happened at `at`. `seq` grows; `actor` is the process that did it."""

    seq: int
    at: schemas.Moment
    kind: str
    actor: str
    data: dict[str, int | str]


class EventPage(BaseModel):
    """In order of `seq`. For the next page, now or later, ask with `after` as the last `seq`. An event that is
    committed late gets a higher number, so none is missed."""

    data: list[Event]
    has_more: bool


@router.get("/jobs/{job_id}/events", response_model=EventPage)
def list_events(
    context: ContextDep, tenant: Tenant, job_id: str, after: parameters.After = 0, limit: parameters.Limit = 100
) -> Any:
    """The job's events, oldest first. An event is listed about a second after it happened."""
    number = ids.parse_job(job_id)
    with context.database.begin(tenant) as connection:
        if not queries.exists(connection, tenant, number):
            raise NotFound("There is no such job.")
        found = events.of_subject(connection, tenant, events.job(number), after_seq=after, limit=limit + 1)
    page = [
        Event(seq=event.seq, at=event.at, kind=event.kind, actor=event.actor, data=event.data)
        for event in found[:limit]
    ]
    return EventPage(data=page, has_more=len(found) > limit)
