"""Tenants, for administrators of the operator's tenant: making and changing them, and their keys.

Any other tenant's administrator sees its own tenant here and no other.
"""

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel

from services.api import openapi, pagination, parameters
from services.api.authentication import Caller, Tenant
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1 import keys
from services.api.v1.keys import ApiKey, ApiKeyList, CreatedApiKey
from services.api.v1.schemas import Moment
from services.core.model.errors import NotFound, NotOperator
from services.core.model.key_requests import KeyRequest
from services.core.model.scopes import Principal
from services.core.model.tenant_requests import TenantChanges, TenantRequest
from services.core.tenants import api_keys, tenants, usage

router = APIRouter(route_class=TenantRoute)
TenantId = Annotated[str, Path(description="a tenant's id, tenant_..., or its name")]


class TenantQuotas(BaseModel):
    """Null is no limit. `device_seconds_per_day` count from 00:00 UTC."""

    images_queued: int | None
    images_in_flight: int | None
    requests_per_second: float | None
    bytes_stored: int | None
    bytes_spooled: int | None
    device_seconds_per_day: float | None


class TenantShown(BaseModel):
    """`operator`: the first tenant, whose administrators administer all. A suspended tenant takes no new work, and
    none of its images is rendered."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: str
    weight: float
    state: Literal["active", "suspended"]
    operator: bool
    quotas: TenantQuotas
    created_at: Moment


class TenantUsage(BaseModel):
    """What the tenant uses now. Images that were claimed or cancelled in the last seconds may still count as queued."""

    images_queued: int
    images_in_flight: int
    bytes_stored: int
    bytes_spooled: int
    device_seconds_today: float


class TenantDetails(TenantShown):
    usage: TenantUsage


class TenantPage(BaseModel):
    data: list[TenantShown]
    next_cursor: str | None


@router.get("/tenants", response_model=TenantPage)
def list_tenants(
    context: ContextDep,
    tenant: Tenant,
    caller: Caller,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The tenants in the order in which they were made; for another tenant's key, its own."""
    listing = f"tenants/{tenant}"
    after = 0 if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    # As the system: of the operator's tenant they are listed for it alone.
    with context.database.read_system() as connection:
        only = None if caller.operator else tenant
        found = tenants.listed(connection, after=after, limit=limit + 1, only=only)
    page = found[:limit]
    more = pagination.encode_cursor(context.settings.secret, listing, page[-1].id) if len(found) > limit else None
    return TenantPage(data=[TenantShown(**_shown(one)) for one in page], next_cursor=more)


@router.post("/tenants", status_code=201, response_model=TenantDetails, openapi_extra=openapi.body(TenantRequest))
def create_tenant(context: ContextDep, tenant: Tenant, caller: Caller, body: json_object.Small) -> Any:  # noqa: ARG001
    """Makes a tenant, which has no key yet."""
    asked = json_object.parse(TenantRequest, body, TenantRequest.ALLOWED)
    _assert_operator(caller)
    # As the system: a tenant's transaction can write no tenant.
    with context.database.begin_system() as connection:
        made = tenants.create(connection, asked)
        return _details(connection, made)


@router.get("/tenants/{tenant_id}", response_model=TenantDetails)
def show_tenant(context: ContextDep, tenant: Tenant, caller: Caller, tenant_id: TenantId) -> Any:  # noqa: ARG001
    """One tenant with its quotas and what it uses of them."""
    # As the system: which tenant it is, the caller's or any, is looked up first.
    with context.database.read_system() as connection:
        return _details(connection, _found(connection, caller, tenant_id))


@router.patch("/tenants/{tenant_id}", response_model=TenantDetails, openapi_extra=openapi.body(TenantChanges))
def change_tenant(
    context: ContextDep,
    tenant: Tenant,  # noqa: ARG001
    caller: Caller,
    tenant_id: TenantId,
    body: json_object.Small,
) -> Any:
    """Changes a tenant's name, weight, state or quotas. A limit that is lowered refuses what is new, and nothing that
    is there."""
    asked = json_object.parse(TenantChanges, body, TenantChanges.ALLOWED)
    # As the system: a tenant's transaction can write no tenant.
    with context.database.begin_system() as connection:
        found = _found(connection, caller, tenant_id)
        _assert_operator(caller)
        return _details(connection, tenants.change(connection, found.id, asked))


@router.get("/tenants/{tenant_id}/keys", response_model=ApiKeyList)
def list_tenant_keys(context: ContextDep, tenant: Tenant, caller: Caller, tenant_id: TenantId) -> Any:  # noqa: ARG001
    """The tenant's keys, the oldest first, without their secrets."""
    # As the system: the operator's key sees another tenant's.
    with context.database.read_system() as connection:
        found = _found(connection, caller, tenant_id)
        return ApiKeyList(data=[keys.public(key) for key in api_keys.listed(connection, found.id)])


@router.post(
    "/tenants/{tenant_id}/keys", status_code=201, response_model=CreatedApiKey, openapi_extra=openapi.body(KeyRequest)
)
def create_tenant_key(
    context: ContextDep,
    tenant: Tenant,  # noqa: ARG001
    caller: Caller,
    tenant_id: TenantId,
    body: json_object.Small,
) -> Any:
    """Creates a key of the tenant, with no scope that the asking key lacks. To rotate a key, create the new one,
    use it, and revoke the old one: both hold until then."""
    asked = json_object.parse(KeyRequest, body, KeyRequest.ALLOWED)
    key, made = keys.issue(context, caller, asked, _number(context, caller, tenant_id))
    return CreatedApiKey(**keys.public(made).model_dump(), key=key)


@router.delete("/tenants/{tenant_id}/keys/{key_id}", response_model=ApiKey)
def revoke_tenant_key(
    context: ContextDep,
    tenant: Tenant,  # noqa: ARG001
    caller: Caller,
    tenant_id: TenantId,
    key_id: str,
) -> Any:
    """Revokes a key of the tenant: the next request with it is refused. Repeating this is not an error."""
    return keys.public(keys.revoke(context, caller, key_id, _number(context, caller, tenant_id)))


def _number(context: Context, caller: Principal, asked: str) -> int:
    # As the system: which tenant it is, the caller's or any, is looked up first.
    with context.database.read_system() as connection:
        return _found(connection, caller, asked).id


def _found(connection: Any, caller: Principal, asked: str) -> tenants.Tenant:
    """Raises NotFound: there is none, or the caller may not know of it."""
    found = tenants.find(connection, asked)
    if found.id != caller.tenant_id and not caller.operator:
        raise NotFound("There is no such tenant.")
    return found


def _assert_operator(caller: Principal) -> None:
    if not caller.operator:
        raise NotOperator


def _details(connection: Any, found: tenants.Tenant) -> TenantDetails:
    return TenantDetails(**_shown(found), usage=TenantUsage(**asdict(usage.of_tenant(connection, found.id))))


def _shown(found: tenants.Tenant) -> dict[str, Any]:
    return {
        "id": tenants.public_id(found.id),
        "name": found.name,
        "weight": round(found.weight, 6),
        "state": found.state,
        "operator": found.operator,
        "quotas": TenantQuotas(**asdict(found.quotas)),
        "created_at": found.created_at,
    }
