"""Schedules: what is submitted at set times, and what became of it."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from services.api import dependencies, openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object, streaming
from services.api.dependencies import ContextDep
from services.api.errors import ApiError, SubmissionError
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.crash_points import crash_point
from services.core.db.database import Connection
from services.core.jobs import idempotency
from services.core.model import ids
from services.core.model.errors import InvalidSubmission, NotFound
from services.core.schedules import asked as asks
from services.core.schedules import firing, runs, schedules
from services.core.schedules.asked import Misfire, Overlap, ScheduleChanges, ScheduleRequest

router = APIRouter(route_class=TenantRoute)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = datetime(9999, 1, 1, tzinfo=UTC)


class ScheduleRun(BaseModel):
    """What became of one instant. A run is `waiting` for the one before it, `submitting`, `running`, or it has ended as
    its job has, or it was `skipped` or `refused` for a `reason`. `asked_by` is who ran it by hand. `at_risk_since` says
    since when it has been expected to miss its deadline, `missed_at` that it did."""

    id: str
    object: Literal["schedule.run"] = "schedule.run"
    schedule: str
    scheduled_for: Moment
    status: Literal[
        "waiting", "submitting", "running", "completed", "failed", "cancelled", "expired", "skipped", "refused"
    ]
    asked_by: str | None
    job_id: str | None
    reason: str | None
    deadline_at: Moment | None
    at_risk_since: Moment | None
    missed_at: Moment | None
    created_at: Moment
    submitted_at: Moment | None
    finished_at: Moment | None


class Schedule(BaseModel):
    """What is submitted, and when. `next_at` is null while it is paused, and if it fires no more."""

    name: str
    object: Literal["schedule"] = "schedule"
    cron: str | None
    at: Moment | None
    timezone: str
    target: dict[str, Any]
    misfire: Misfire
    misfire_limit: int
    overlap: Overlap
    deadline: str | None
    paused: bool
    next_at: Moment | None
    last_run: ScheduleRun | None
    created_at: Moment
    changed_at: Moment


class SchedulePage(BaseModel):
    data: list[Schedule]
    next_cursor: str | None


class ScheduleTimes(BaseModel):
    """The next instants at which it fires, in UTC; fewer, or none, if it fires no more."""

    object: Literal["schedule.times"] = "schedule.times"
    schedule: str
    timezone: str
    times: list[Moment]


class ScheduleRunPage(BaseModel):
    data: list[ScheduleRun]
    next_cursor: str | None


class ScheduleDeleted(BaseModel):
    name: str
    object: Literal["schedule"] = "schedule"
    deleted: Literal[True] = True


@router.get("/schedules", response_model=SchedulePage)
def list_schedules(
    context: ContextDep, tenant: Tenant, limit: parameters.BatchLimit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The tenant's schedules by name, each with its last run."""
    listing = f"schedules/{tenant}"
    after = "" if cursor is None else pagination.decode_name(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = schedules.page(connection, tenant, after=after, limit=limit + 1)
        data = _shown(connection, tenant, found[:limit])
    more = pagination.encode_name(context.settings.secret, listing, data[-1].name) if len(found) > limit else None
    return SchedulePage(data=data, next_cursor=more)


@router.post("/schedules", status_code=201, response_model=Schedule, openapi_extra=openapi.schedule_body("name"))
def create_schedule(request: Request, context: ContextDep, tenant: Tenant, body: json_object.Small) -> Any:
    """Makes a schedule. Its target is checked as if it were submitted now."""
    asked = json_object.parse(ScheduleRequest, body, asks.ALLOWED)
    if asked.name is None:
        raise ApiError(422, "missing_field", f"name is missing; it must be {asks.ALLOWED['name']}.", param="name")
    return _put(request, context, tenant, asked.name, asked, new=True)


@router.put("/schedules/{schedule}", response_model=Schedule, openapi_extra=openapi.schedule_body())
def put_schedule(request: Request, context: ContextDep, tenant: Tenant, schedule: str, body: json_object.Small) -> Any:
    """Makes the schedule of that name, or makes it this one. Fields that are left out get their defaults. Runs that are
    under way go on."""
    asked = json_object.parse(ScheduleRequest, body, asks.ALLOWED)
    if not asks.is_name(schedule):
        raise NotFound("There is no such schedule.")
    if asked.name not in (None, schedule):
        raise ApiError(422, "invalid_value", "name is another one than in the address.", param="name")
    return _put(request, context, tenant, schedule, asked, new=False)


@router.get("/schedules/{schedule}", response_model=Schedule)
def show_schedule(context: ContextDep, tenant: Tenant, schedule: str) -> Any:
    """One schedule with its last run."""
    with context.database.read(tenant) as connection:
        return _shown(connection, tenant, [schedules.find(connection, tenant, schedule)])[0]


@router.patch("/schedules/{schedule}", response_model=Schedule, openapi_extra=openapi.body(ScheduleChanges))
def change_schedule(context: ContextDep, tenant: Tenant, schedule: str, body: json_object.Small) -> Any:
    """Pauses a schedule, which then does not fire, or resumes it with its next time. Repeating this is not an error."""
    asked = json_object.parse(ScheduleChanges, body, ScheduleChanges.ALLOWED)
    with context.database.begin(tenant) as connection:
        return _shown(connection, tenant, [schedules.pause(connection, tenant, schedule, asked.paused)])[0]


@router.delete("/schedules/{schedule}", response_model=ScheduleDeleted)
def delete_schedule(context: ContextDep, tenant: Tenant, schedule: str) -> Any:
    """Deletes a schedule and the list of its runs. Jobs that it has submitted stay, and go on."""
    with context.database.begin(tenant) as connection:
        schedules.delete(connection, tenant, schedule)
    return ScheduleDeleted(name=schedule)


@router.post("/schedules/{schedule}/run", status_code=202, response_model=ScheduleRun, openapi_extra=openapi.IDEMPOTENT)
def run_schedule(request: Request, response: Response, context: ContextDep, tenant: Tenant, schedule: str) -> Any:
    """Runs a schedule now, beside its times; also while it is paused. The answer comes before its job is submitted."""
    key = streaming.idempotency_key(request)
    with context.database.begin(tenant) as connection:
        found = schedules.lock(connection, tenant, schedule)
        response.headers.update(dependencies.location(context, request, f"/v1/schedules/{found.name}/runs"))
        if key is not None and (known := idempotency.find(connection, tenant, key, "schedule_run")) is not None:
            response.headers["Idempotent-Replayed"] = "true"
            return _run(runs.find(connection, tenant, known), schedule)
        run_id = firing.run_now(connection, found)
        if key is not None:
            digest = idempotency.digest("run_schedule", found.id)
            idempotency.remember(connection, tenant, key, sha256=digest, thing=run_id, kind="schedule_run")
        begun = runs.find(connection, tenant, run_id)
    crash_point("schedule.asked")
    return _run(begun, schedule)


@router.get("/schedules/{schedule}/times", response_model=ScheduleTimes)
def list_schedule_times(context: ContextDep, tenant: Tenant, schedule: str, count: parameters.BatchLimit = 10) -> Any:
    """When it fires next."""
    with context.database.read(tenant) as connection:
        found = schedules.find(connection, tenant, schedule)
        now = schedules.clock(connection)
    return ScheduleTimes(schedule=found.name, timezone=found.timezone, times=found.times(now, count))


@router.get("/schedules/{schedule}/runs", response_model=ScheduleRunPage)
def list_schedule_runs(
    context: ContextDep, tenant: Tenant, schedule: str, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The runs of a schedule, newest first. They are kept for as long as events."""
    with context.database.read(tenant) as connection:
        known = schedules.find(connection, tenant, schedule)
        listing = f"schedule_runs/{tenant}/{known.id}"
        before = _LAST
        if cursor is not None:
            position = pagination.decode_cursor(context.settings.secrets, listing, cursor)
            before = _EPOCH + position * _MICROSECOND
        found = runs.page(connection, tenant, known.id, before=before, limit=limit + 1)
    page = found[:limit]
    more = None
    if len(found) > limit:
        position = (page[-1].instant - _EPOCH) // _MICROSECOND
        more = pagination.encode_cursor(context.settings.secret, listing, position)
    return ScheduleRunPage(data=[_run(run, known.name) for run in page], next_cursor=more)


def _put(
    request: Request, context: dependencies.Context, tenant: int, name: str, asked: ScheduleRequest, *, new: bool
) -> Schedule:
    base_url = dependencies.base_url(context.settings, request)
    try:
        target = schedules.check(context.database, context.settings, tenant, asked.target, base_url)
        with context.database.begin(tenant) as connection:
            found = schedules.put(connection, context.settings, tenant, name, asked, target, base_url, new=new)
            return _shown(connection, tenant, [found])[0]
    except InvalidSubmission as error:
        raise SubmissionError(error, "index") from None


def _shown(connection: Connection, tenant: int, found: list[schedules.Schedule]) -> list[Schedule]:
    last = runs.last_of(connection, tenant, [one.id for one in found], 1)
    return [_schedule(one, last[one.id][0] if last[one.id] else None) for one in found]


def _schedule(found: schedules.Schedule, last: runs.Run | None) -> Schedule:
    return Schedule(
        name=found.name, cron=found.cron, at=found.at, timezone=found.timezone,
        target={found.target_kind: json.loads(found.target)}, misfire=found.misfire, misfire_limit=found.misfire_limit,
        overlap=found.overlap, deadline=found.deadline, paused=found.paused, next_at=found.next_at,
        last_run=None if last is None else _run(last, found.name), created_at=found.created_at,
        changed_at=found.changed_at,
    )  # fmt: skip


def _run(found: runs.Run, schedule: str) -> ScheduleRun:
    return ScheduleRun(
        id=runs.public_id(found.id), schedule=schedule, scheduled_for=found.instant, status=found.state,  # type: ignore[arg-type]
        asked_by=found.asked_by, job_id=None if found.job_id is None else ids.public_job(found.job_id),
        reason=found.reason, deadline_at=found.deadline_at, at_risk_since=found.warned_at, missed_at=found.missed_at,
        created_at=found.created_at, submitted_at=found.submitted_at, finished_at=found.finished_at,
    )  # fmt: skip
