"""The first page: whether all is well and why not, how fast it goes, what waits, what failed, and new pictures."""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request

from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.v1 import overview as issues
from services.core.catalogues import catalogue_runs, needs
from services.core.catalogues.needs import Need
from services.core.jobs import overview, queries, rates
from services.core.model import ids
from services.dashboard import access, catalogue_words, reading, rendering
from services.dashboard.charts import Chart
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
SPANS: dict[str, tuple[rates.Grain, int]] = {"hour": ("minute", 61), "day": ("hour", 25), "week": ("hour", 169)}
_PAST_THE_NEWEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Read:
    """What the page shows. `is_new`: the tenant has no job at all. `needs`: catalogues that need a person."""

    overview: overview.Overview
    jobs: list[reading.Shown]
    chart: Chart
    is_new: bool
    needs: list[Need]


@router.get("/")
async def show_overview(request: Request, context: ContextDep, visitor: access.Signed, span: str = "hour") -> Any:
    visitor.require("view")
    if span not in SPANS:
        raise ApiError(400, "invalid_parameter", f"There is no such span; there are {', '.join(SPANS)}.")
    servers = await issues.of_servers(request)
    try:
        found = await context.requests.run(visitor.tenant, _read, context, visitor, span)
    except Exception:
        if issues.database_trouble(servers) is None:
            raise
        found = None
    return rendering.page(
        request,
        "overview.html",
        visitor=visitor,
        status=503 if found is None else 200,
        issues=servers if found is None else issues.together(servers, found.overview),
        found=found,
        span=span,
        spans=SPANS,
        here="/" if span == "hour" else f"/?span={span}",
        public_job=ids.public_job,
        public_run=catalogue_runs.public_id,
        said=catalogue_words.need,
        copied=catalogue_words.not_copied,
    )


def _read(context: Context, visitor: access.Visitor, span: str) -> Read:
    tenant, (grain, points) = visitor.tenant, SPANS[span]
    with context.database.read(tenant) as connection:
        found = overview.overview(connection, tenant, names_hosts=visitor.principal.sees_hosts)
        series = rates.series(connection, tenant, grain, points)
        nothing = not (found.jobs or found.pictures or found.failures)
        is_new = nothing and not queries.jobs(connection, tenant, before=_PAST_THE_NEWEST, limit=1)
        waiting = needs.of_tenant(connection, tenant)
    return Read(found, reading.shown(context, found.jobs), Chart(series, grain), is_new, waiting)
