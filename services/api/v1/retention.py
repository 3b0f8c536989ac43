"""Retention: for how long jobs keep their prompts, objects and records, and what goes next."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from services.api import openapi
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.model import ids
from services.core.model.retention_changes import RetentionChanges
from services.core.retention import due, rules

router = APIRouter(route_class=TenantRoute)
_MOST = 1_000


class RetentionRule(BaseModel):
    """For how many days after its end a job keeps what; null: for ever. `payloads` are prompts, metadata and input
    pictures, `objects` are images, exports and output files, `records` is everything. A job's own `retention` comes
    first."""

    object: Literal["retention"] = "retention"
    payloads: int | None
    objects: int | None
    records: int | None
    updated_at: Moment | None


class RetentionDue(BaseModel):
    """What of a job goes next, and since when it may. `held_by` says what needs it still."""

    job_id: str
    kind: Literal["payloads", "objects", "records"]
    due_at: Moment
    images: int
    stored_images: int
    held_by: str | None


class RetentionDueList(BaseModel):
    """The thousand that are due first. `more`: there are others."""

    data: list[RetentionDue]
    more: bool


@router.get("/retention", response_model=RetentionRule)
def show_retention(context: ContextDep, tenant: Tenant) -> Any:
    """For how many days after their end the tenant's jobs keep their prompts, objects and records."""
    with context.database.read(tenant) as connection:
        return _shown(rules.read(connection, tenant))


@router.patch("/retention", response_model=RetentionRule, openapi_extra=openapi.body(RetentionChanges))
def change_retention(context: ContextDep, tenant: Tenant, body: json_object.Small) -> Any:
    """Changes the rule. It holds for jobs that have ended already, too; the first things go about a minute later, and
    what is gone cannot be restored. `GET /v1/retention/due` says beforehand what a shorter rule would take."""
    asked = json_object.parse(RetentionChanges, body, RetentionChanges.ALLOWED)
    with context.database.begin(tenant) as connection:
        return _shown(rules.change(connection, tenant, asked.model_dump(exclude_unset=True)))


@router.get("/retention/due", response_model=RetentionDueList)
def list_retention_due(
    context: ContextDep,
    tenant: Tenant,
    within_days: Annotated[int, Query(ge=0, le=rules.MOST_DAYS, description="Also what is due within so many.")] = 0,
) -> Any:
    """What the rules would delete now, or within so many days, the first due first. Deletes nothing."""
    with context.database.read(tenant) as connection:
        found = due.shown(connection, tenant, ahead_days=within_days, limit=_MOST + 1)
    return RetentionDueList(
        data=[
            RetentionDue(
                job_id=ids.public_job(one.job_id),
                kind=one.kind,  # type: ignore[arg-type]
                due_at=one.due_at,
                images=one.images,
                stored_images=one.stored_images,
                held_by=one.reason,
            )
            for one in found[:_MOST]
        ],
        more=len(found) > _MOST,
    )


def _shown(rule: rules.Rule) -> RetentionRule:
    return RetentionRule(payloads=rule.payloads, objects=rule.objects, records=rule.records, updated_at=rule.updated_at)
