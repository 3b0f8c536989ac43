"""Actions on a submitted job: change its priority or labels, pause, resume, and retry its failed images."""

from typing import Any

from fastapi import APIRouter, Request, Response

from services.api import dependencies, openapi
from services.api.authentication import Tenant
from services.api.body import json_object, streaming
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.api.v1.jobs import shown
from services.core.crash_points import crash_point
from services.core.jobs import lifecycle, queries, retry
from services.core.model import ids, requests
from services.core.policy import policies
from services.core.policy.refusals import Door

router = APIRouter(route_class=TenantRoute)


@router.patch("/jobs/{job_id}", response_model=schemas.Job, openapi_extra=openapi.body(requests.JobChanges))
def change_job(context: ContextDep, tenant: Tenant, job_id: str, body: json_object.Small) -> Any:
    """Changes a job's priority, or replaces its labels."""
    number = ids.parse_job(job_id)
    asked = json_object.parse(requests.JobChanges, body)
    priority = None if asked.priority is None else requests.PRIORITIES[asked.priority]
    with context.database.begin(tenant) as connection:
        lifecycle.change(connection, tenant, number, priority=priority, labels=asked.labels)
    return shown(context, tenant, number)


@router.post("/jobs/{job_id}/pause", response_model=schemas.Job)
def pause_job(context: ContextDep, tenant: Tenant, job_id: str) -> Any:
    """Pauses a job: no more of its images begin until it is resumed. Images that are being rendered go on."""
    return _pause(context, tenant, ids.parse_job(job_id), True)


@router.post("/jobs/{job_id}/resume", response_model=schemas.Job)
def resume_job(context: ContextDep, tenant: Tenant, job_id: str) -> Any:
    """Resumes a paused job."""
    return _pause(context, tenant, ids.parse_job(job_id), False)


@router.post(
    "/jobs/{job_id}/retry",
    status_code=202,
    response_model=schemas.Job,
    openapi_extra=openapi.body(requests.RetryOptions, required=False) | openapi.IDEMPOTENT,
)
async def retry_job(
    request: Request,
    response: Response,
    context: ContextDep,
    tenant: Tenant,
    job_id: str,
    body: json_object.SmallOrNone,
) -> Any:
    """Submits the failed images, or those of one `cause` or of some `indexes`, as a new job with the same specs, seeds
    and custom_ids. The old job is not changed."""
    number = ids.parse_job(job_id)
    asked = json_object.parse(requests.RetryOptions, body)
    key = streaming.idempotency_key(request)
    receipt, answer = await context.submissions.run(tenant, _retry, context, tenant, number, asked, key)
    if receipt.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    response.headers.update(dependencies.location(context, request, f"/v1/jobs/{answer.id}"))
    return answer


def _retry(
    context: Context, tenant: int, number: int, asked: requests.RetryOptions, key: str | None
) -> tuple[retry.RetryResult, schemas.Job]:
    with context.database.begin(tenant) as connection:
        policy = policies.at(context.settings, connection, Door("retry", tenant))
        receipt = retry.retry(connection, tenant, number, asked, policy=policy, idempotency_key=key)
    crash_point("retry.committed")
    _notify(context, receipt.models)
    return receipt, shown(context, tenant, receipt.job_id)


def _pause(context: Context, tenant: int, number: int, paused: bool) -> schemas.Job:
    with context.database.begin(tenant) as connection:
        lifecycle.pause(connection, tenant, number, paused)
        models = [] if paused else queries.models_of(connection, number)
    crash_point("pause.committed")
    _notify(context, models)
    return shown(context, tenant, number)


def _notify(context: Context, models: list[str]) -> None:
    for model in models:  # if it is lost, the workers' timers find the job within seconds
        context.notifier.notify(model)
