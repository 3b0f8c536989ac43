"""API keys of the tenant, for keys that may administer them. A key is shown once, in the answer that creates it."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from services.api import openapi
from services.api.authentication import Caller, Tenant
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.model import scopes
from services.core.model.errors import Conflict
from services.core.model.key_requests import KeyRequest
from services.core.model.scopes import Principal, Scope
from services.core.tenants import api_keys

router = APIRouter(route_class=TenantRoute)


class ApiKey(BaseModel):
    """A key without its secret. `prefix` is how it begins; `last_used_at` may be a minute late. `created_by` is an
    actor, and `created_by_name` its name if it is a key."""

    id: str
    object: Literal["api_key"] = "api_key"
    name: str
    prefix: str
    scopes: list[Scope]
    status: Literal["active", "expired", "revoked"]
    created_at: Moment
    last_used_at: Moment | None
    expires_at: Moment | None
    revoked_at: Moment | None
    created_by: str | None
    created_by_name: str | None


class CreatedApiKey(ApiKey):
    """`key` is the whole key. No answer shows it again."""

    key: str


class ApiKeyList(BaseModel):
    data: list[ApiKey]


@router.get("/keys", response_model=ApiKeyList)
def list_keys(context: ContextDep, tenant: Tenant) -> Any:
    """The tenant's keys, the oldest first, without their secrets."""
    with context.database.read(tenant) as connection:
        found = api_keys.listed(connection, tenant)
    return ApiKeyList(data=[public(key) for key in found])


@router.post("/keys", status_code=201, response_model=CreatedApiKey, openapi_extra=openapi.body(KeyRequest))
def create_key(context: ContextDep, tenant: Tenant, caller: Caller, body: json_object.Small) -> Any:  # noqa: ARG001
    """Creates a key, with no scope that the asking key lacks. The answer shows the key, and no other answer does."""
    key, found = issue(context, caller, json_object.parse(KeyRequest, body, KeyRequest.ALLOWED))
    return CreatedApiKey(**public(found).model_dump(), key=key)


@router.delete("/keys/{key_id}", response_model=ApiKey)
def revoke_key(context: ContextDep, tenant: Tenant, caller: Caller, key_id: str) -> Any:  # noqa: ARG001
    """Revokes a key: the next request with it is refused. Repeating this is not an error. A key does not revoke itself,
    so that there is one left to go on with."""
    return public(revoke(context, caller, key_id))


def issue(
    context: Context, caller: Principal, asked: KeyRequest, tenant: int | None = None
) -> tuple[str, api_keys.Key]:
    """A new key in clear text, and as it is listed: of the caller's tenant, or of another. Raises MissingScope: the
    caller lacks a scope of it."""
    tenant = caller.tenant_id if tenant is None else tenant
    given = caller.scopes if asked.scopes is None else frozenset(map(Scope, asked.scopes))
    for scope in scopes.ALL:
        if scope in given:
            caller.require(scope, "creating a key that has it")
    # As the system: a tenant's transaction can write no key.
    with context.database.begin_system() as connection:
        key = api_keys.issue_key(
            connection, context.settings.secret, tenant, asked.name, given=given,
            expires_seconds=asked.expires_in_seconds,
        )  # fmt: skip
        return key, api_keys.find(connection, tenant, api_keys.id_of(key))


def revoke(context: Context, caller: Principal, key_id: str, tenant: int | None = None) -> api_keys.Key:
    """The key, which is revoked now or was before. Raises NotFound, or Conflict: it is the caller's own."""
    tenant = caller.tenant_id if tenant is None else tenant
    # As the system: a tenant's transaction can write no key.
    with context.database.begin_system() as connection:
        found = api_keys.find(connection, tenant, key_id)
        if key_id == caller.key_id:
            raise Conflict("A key does not revoke itself; ask with another one, or use `presswork keys revoke`.")
        if api_keys.revoke_key(connection, key_id, tenant):
            found = api_keys.find(connection, tenant, key_id)
        return found


def public(key: api_keys.Key) -> ApiKey:
    """The key as answers show it."""
    names = {*ApiKey.model_fields} - {"object", "scopes"}
    return ApiKey(**{name: getattr(key, name) for name in names}, scopes=list(key.scopes))
