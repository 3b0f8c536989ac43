"""The lanes: what waits, by shape, priority and tenant, and who can serve it."""

from typing import Any

from fastapi import APIRouter, Request

from services.api.dependencies import ContextDep
from services.core.jobs import lanes
from services.dashboard import access, reading, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)


@router.get("/lanes")
def show_lanes(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    is_all = visitor.principal.operator and visitor.may("admin")
    with context.database.read_system() as connection:  # as the system: what waits stands in one index for all tenants
        found = lanes.waiting(connection, visitor.tenant, all_tenants=is_all)
    values: dict[str, Any] = {"lanes": found.lanes, "more": found.more, "priorities": reading.PRIORITIES}
    return rendering.page(request, "lanes.html", visitor=visitor, is_all=is_all, **values)
