"""The events of the tenant's jobs as they happen: the stream that all pages of a browser share."""

from typing import Any

from fastapi import APIRouter

from services.api import parameters
from services.api.dependencies import ContextDep
from services.api.v1 import events
from services.dashboard import access
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)


@router.get("/live")
async def follow(
    context: ContextDep,
    visitor: access.Signed,
    after: parameters.Seq = None,
    last_event_id: events.LastEventId = None,
) -> Any:
    """As `GET /v1/events`, for whoever is signed in."""
    visitor.require("view")
    return await events.follow_events(context, visitor.principal, after, last_event_id)
