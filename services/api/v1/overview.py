"""How it all goes: the rates of a tenant's images."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from services.api import parameters
from services.api.authentication import Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.jobs import rates

router = APIRouter(route_class=TenantRoute)


class Rates(BaseModel):
    """Images done or failed per second: in the last one to two minutes, and over the last hour, day and week."""

    now: float
    hour: float
    day: float
    week: float


class RatePoint(BaseModel):
    """What was finished in the minute or hour that began at `at`. `reused` of the done images were copied.
    `device_seconds`: how long accelerators were at it. `batch_fill`: the share of their batches that held images; null
    if there was no batch."""

    at: Moment
    done: int
    failed: int
    reused: int
    device_seconds: float
    batch_fill: float | None


class RateSeries(BaseModel):
    """`data` begins with the oldest minute or hour and ends with the current one."""

    rates: Rates
    data: list[RatePoint]


@router.get("/rates", response_model=RateSeries)
def show_rates(
    context: ContextDep, tenant: Tenant, by: parameters.Grain = "minute", points: parameters.Points = 60
) -> Any:
    """How fast the tenant's images were finished, by minute (kept for two days) or by hour (kept for two years)."""
    with context.database.begin(tenant) as connection:
        found, series = rates.rates(connection, tenant), rates.series(connection, tenant, by, points)
    return RateSeries(rates=shown(found), data=[_point(point) for point in series])


def shown(found: rates.Rates) -> Rates:
    return Rates(**{name: round(rate, 6) for name, rate in asdict(found).items()})


def _point(point: rates.Point) -> RatePoint:
    return RatePoint(
        at=point.at,
        done=point.done,
        failed=point.failed,
        reused=point.reused,
        device_seconds=round(point.device_seconds, 3),
        batch_fill=round((point.done - point.reused) / point.slots, 3) if point.slots else None,
    )
