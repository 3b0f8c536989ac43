"""The workers: what each is, what it does and how fast."""

from typing import Any

from fastapi import APIRouter, Request

from services.api.dependencies import ContextDep
from services.core.fleet import workers
from services.dashboard import access, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)


@router.get("/fleet")
def show_fleet(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    with context.database.begin_system() as connection:  # as the system: claims are of all tenants
        fleet = workers.listed(connection)
    gone = ("stopped", "crashed")
    live = [one for one in fleet if one.silent < workers.LIVE_SECONDS and one.state not in gone]
    others = [one for one in fleet if one not in live]
    return rendering.page(request, "fleet.html", visitor=visitor, live=live, others=others)
