"""Acts on every job that matches a filter: what they would touch, asking for one, how far it is, and stopping it."""

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from services.api import dependencies, openapi, pagination, parameters
from services.api.authentication import Caller, Tenant
from services.api.body import json_object, streaming
from services.api.dependencies import Context, ContextDep
from services.api.errors import SubmissionError
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.bulk import bulk
from services.core.bulk.asked import BulkRequest, Verb
from services.core.bulk.bulk import BulkAct
from services.core.bulk.matching import Counted
from services.core.crash_points import crash_point
from services.core.model.errors import InvalidSubmission
from services.core.model.scopes import Principal, Scope

router = APIRouter(route_class=TenantRoute)
_NEWEST = 2**63 - 1


class JobsActionPreview(BaseModel):
    """How many jobs an act would touch now, and how many of their images. `is_all` false: there are more than these."""

    jobs: int
    images: int
    is_all: bool


class LostRace(BaseModel):
    """A job to which it could not be done, because it had changed meanwhile, and why."""

    job_id: str
    message: str


class JobsAction(BaseModel):
    """An act on many jobs. Of `jobs` that matched when it was asked for, it is done to `done`; `lost` were refused,
    with reasons for the first of them."""

    id: str
    object: Literal["jobs.action"] = "jobs.action"
    action: Verb
    status: Literal["running", "completed", "stopped"]
    actor: str
    jobs: int
    images: int
    is_all: bool
    done: int
    lost: int
    reasons: list[LostRace]
    created_at: Moment
    finished_at: Moment | None


class JobsActionPage(BaseModel):
    data: list[JobsAction]
    next_cursor: str | None


@router.get("/jobs/actions", response_model=JobsActionPage)
def list_jobs_actions(
    context: ContextDep, tenant: Tenant, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The acts on many jobs, newest first."""
    listing = f"bulk/{tenant}"
    before = _NEWEST if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = bulk.listed(connection, tenant, before=before, limit=limit + 1)
    page = found[:limit]
    more = pagination.encode_cursor(context.settings.secret, listing, page[-1].id) if len(found) > limit else None
    return JobsActionPage(data=[_shown(act) for act in page], next_cursor=more)


@router.post("/jobs/actions/preview", response_model=JobsActionPreview, openapi_extra=openapi.body(BulkRequest))
def preview_jobs_action(context: ContextDep, tenant: Tenant, body: json_object.Small) -> Any:
    """How many jobs and images an act would touch now. Changes nothing."""
    counted = count(context, tenant, json_object.parse(BulkRequest, body, BulkRequest.ALLOWED))
    return JobsActionPreview(jobs=counted.jobs, images=counted.images, is_all=counted.is_all)


@router.post(
    "/jobs/actions",
    status_code=202,
    response_model=JobsAction,
    openapi_extra=openapi.body(BulkRequest) | openapi.IDEMPOTENT,
)
def act_on_jobs(
    request: Request,
    response: Response,
    context: ContextDep,
    tenant: Tenant,  # noqa: ARG001  the events' actor
    caller: Caller,
    body: json_object.Small,
) -> Any:
    """Cancels, pauses, resumes, retries, prioritizes or deletes every job that matches now, one after the other, in the
    background. Each job's events name who asked. `retry` needs the scope `submit` too."""
    key = streaming.idempotency_key(request)
    act, replayed = ask(context, caller, json_object.parse(BulkRequest, body, BulkRequest.ALLOWED), key)
    crash_point("bulk.asked")
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    answer = _shown(act)
    response.headers.update(dependencies.location(context, request, f"/v1/jobs/actions/{answer.id}"))
    return answer


@router.get("/jobs/actions/{action_id}", response_model=JobsAction)
def show_jobs_action(context: ContextDep, tenant: Tenant, action_id: str) -> Any:
    """How far an act is."""
    with context.database.read(tenant) as connection:
        return _shown(bulk.find(connection, tenant, bulk.parse_id(action_id)))


@router.post("/jobs/actions/{action_id}/stop", response_model=JobsAction)
def stop_jobs_action(context: ContextDep, tenant: Tenant, action_id: str) -> Any:
    """Stops an act; what it has done stays done. Repeating this is not an error."""
    with context.database.begin(tenant) as connection:
        return _shown(bulk.stop(connection, tenant, bulk.parse_id(action_id)))


def count(context: Context, tenant: int, asked: BulkRequest) -> Counted:
    """Raises SubmissionError."""
    try:
        with context.database.read(tenant) as connection:
            return bulk.count(connection, tenant, asked)
    except InvalidSubmission as error:
        raise SubmissionError(error, "index") from None


def ask(
    context: Context, caller: Principal, asked: BulkRequest, idempotency_key: str | None = None
) -> tuple[BulkAct, bool]:
    """Records the act; schedulers do it. Returns it, and whether the key had already made it. Raises SubmissionError,
    or MissingScope."""
    caller.require(Scope.SUBMIT if asked.action == "retry" else Scope.OPERATE, f"the action {asked.action}")
    try:
        with context.database.begin(caller.tenant_id) as connection:
            return bulk.create(connection, caller.tenant_id, asked, idempotency_key=idempotency_key)
    except InvalidSubmission as error:
        raise SubmissionError(error, "index") from None


def _shown(act: BulkAct) -> JobsAction:
    return JobsAction(
        id=bulk.public_id(act.id),
        action=act.verb,
        status=act.state,  # type: ignore[arg-type]
        actor=act.actor,
        jobs=act.jobs,
        images=act.images,
        is_all=act.is_all,
        done=act.done,
        lost=act.lost,
        reasons=[LostRace(job_id=reason["job"], message=reason["message"]) for reason in act.reasons],
        created_at=act.created_at,
        finished_at=act.finished_at,
    )
