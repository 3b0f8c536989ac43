"""How fast a job's images were finished over time."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from services.api.authentication import Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.jobs import job_rates
from services.core.model import ids

router = APIRouter(route_class=TenantRoute)


class JobRatePoint(BaseModel):
    """What of the job was finished in so many seconds from `at` on. `rate`: images done or failed per second."""

    at: Moment
    seconds: float
    done: int
    failed: int
    rate: float


class JobRates(BaseModel):
    """`data` begins when a worker first took images of the job, and ends when the job finished, or now. It is empty
    until images were finished."""

    data: list[JobRatePoint]


@router.get("/jobs/{job_id}/rates", response_model=JobRates)
def show_job_rates(context: ContextDep, tenant: Tenant, job_id: str) -> Any:
    """How fast images of the job were finished over time, in up to 120 spans of equal length, however long it runs."""
    number = ids.parse_job(job_id)
    with context.database.read(tenant) as connection:
        found = job_rates.of_job(connection, tenant, number)
    return JobRates(
        data=[
            JobRatePoint(
                at=point.at,
                seconds=round(point.seconds, 3),
                done=point.done,
                failed=point.failed,
                rate=round(point.rate, 6),
            )
            for point in found
        ]
    )
