"""Why a job's images failed, by cause."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from services.api.authentication import Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.jobs import failures
from services.core.jobs.failures import Cause
from services.core.model import ids

router = APIRouter(route_class=TenantRoute)


class FailureCause(BaseModel):
    """`count` images failed for this cause. `message` is the newest reason, `at` its time; `job_id` and `index` name
    the image that it was about, and are null if that was deleted."""

    code: str
    count: int
    message: str
    at: Moment
    job_id: str | None
    index: int | None


class FailureCauses(BaseModel):
    """The most frequent cause comes first."""

    data: list[FailureCause]


@router.get("/jobs/{job_id}/failures", response_model=FailureCauses)
def list_failures(context: ContextDep, tenant: Tenant, job_id: str) -> Any:
    """Why images of the job failed: each cause with its count and newest reason. `/images?cause=` lists the images."""
    number = ids.parse_job(job_id)
    with context.database.read(tenant) as connection:
        found = failures.of_job(connection, tenant, number)
    return FailureCauses(data=[shown(cause) for cause in found])


def shown(cause: Cause) -> FailureCause:
    return FailureCause(
        code=cause.code,
        count=cause.images,
        message=cause.message,
        at=cause.at,
        job_id=None if cause.job_id is None else ids.public_job(cause.job_id),
        index=cause.index,
    )
