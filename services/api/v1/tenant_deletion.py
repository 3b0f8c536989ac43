"""Deletes a tenant with all that belongs to it, for the operator's administrators, and says how far that is."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from services.api.authentication import Caller, Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.api.v1.tenants import TenantId
from services.core.deletion import tenants
from services.core.model.errors import NotFound
from services.core.model.scopes import Principal

router = APIRouter(route_class=TenantRoute)


class TenantDeletion(BaseModel):
    """How far the deletion of a tenant is: `images` of its jobs, `objects` that no job's deletion found and `rows` of
    other tables are counted as they go. At its end `remains` is what is left, rows by table: nothing, {}."""

    object: Literal["tenant.deletion"] = "tenant.deletion"
    tenant: str
    requested_at: Moment
    requested_by: str
    jobs_left: int
    images: int
    objects: int
    rows: int
    finished_at: Moment | None
    remains: dict[str, int] | None


@router.delete("/tenants/{tenant_id}", status_code=202, response_model=TenantDeletion)
def delete_tenant(
    context: ContextDep,
    tenant: Tenant,  # noqa: ARG001
    caller: Caller,
    tenant_id: TenantId,
    confirm: Annotated[str, Query(max_length=200, description="The tenant's name, once more.")],
) -> Any:
    """Deletes a tenant with its keys, jobs, images, files, catalogues, datasets and events. Its keys are revoked when
    this answers; the rest goes in the background. Takes a key of the operator's tenant. It cannot be undone."""
    _assert_may(caller)
    with context.database.begin_system() as connection:  # a tenant's transaction does not see another tenant
        return _shown(tenants.delete(connection, tenant_id, confirm))


@router.get("/tenants/{tenant_id}/deletion", response_model=TenantDeletion)
def show_tenant_deletion(context: ContextDep, tenant: Tenant, caller: Caller, tenant_id: TenantId) -> Any:  # noqa: ARG001
    """How far the deletion of a tenant is, and at its end what remains. Takes a key of the operator's tenant."""
    _assert_may(caller)
    with context.database.read_system() as connection:  # it outlives the tenant
        return _shown(tenants.show(connection, tenant_id))


def _assert_may(caller: Principal) -> None:
    """To others every tenant is one that there is not."""
    if not caller.operator:
        raise NotFound("There is no such tenant.")


def _shown(found: tenants.Deletion) -> TenantDeletion:
    return TenantDeletion(
        tenant=found.name,
        **{
            name: getattr(found, name)
            for name in ("requested_at", "requested_by", "jobs_left", "images", "objects", "rows", "finished_at",
                         "remains")
        },
    )  # fmt: skip
