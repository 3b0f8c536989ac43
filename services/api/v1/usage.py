"""What a tenant uses, beside its quotas."""

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from services.api.authentication import Tenant
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1.tenants import TenantQuotas, TenantUsage
from services.core.tenants import usage

router = APIRouter(route_class=TenantRoute)


class Usage(BaseModel):
    """The tenant's own usage and quotas; a quota of null is no limit."""

    object: Literal["usage"] = "usage"
    tenant: str
    state: Literal["active", "suspended"]
    usage: TenantUsage
    quotas: TenantQuotas


@router.get("/usage", response_model=Usage)
def show_usage(context: ContextDep, tenant: Tenant) -> Any:
    """What the tenant uses, and the quotas that limit it."""
    return show_usage_of(context, tenant)


def show_usage_of(context: Context, tenant: int) -> Usage:
    """The tenant's usage and quotas."""
    # As the system: a claim may hold images of several tenants, so no tenant's transaction sees one.
    with context.database.read_system() as connection:
        found = usage.against_quotas(connection, tenant)
    return Usage(
        tenant=found.name,
        state=found.state,  # type: ignore[arg-type]
        usage=TenantUsage(**asdict(found.usage)),
        quotas=TenantQuotas(**asdict(found.quotas)),
    )
