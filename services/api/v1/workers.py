"""The fleet: its workers, and draining them. The fleet is one for all tenants."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from services.api.authentication import Tenant
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.core.fleet import drains
from services.core.jobs import queries
from services.core.model.errors import NotFound

router = APIRouter(route_class=TenantRoute)


class Worker(BaseModel):
    """A process that renders. A `drained` one takes nothing new. `silent_seconds` is how long it was not heard of;
    `doing` says what takes long."""

    id: str
    object: Literal["worker"] = "worker"
    host: str
    pid: int
    device: str
    model: str
    state: str
    drained: bool
    doing: str
    silent_seconds: float


class WorkerList(BaseModel):
    data: list[Worker]


@router.get("/workers", response_model=WorkerList)
def list_workers(context: ContextDep, tenant: Tenant) -> Any:
    """The workers of the last five minutes, by host."""
    return WorkerList(data=_fleet(context, tenant))


@router.post("/workers/{worker_id}/drain", response_model=Worker)
def drain_worker(context: ContextDep, tenant: Tenant, worker_id: str) -> Any:
    """Drains the worker's device: its workers finish what they hold and claim nothing new, also when they are started
    again, until it is resumed. Repeating this is not an error."""
    # As the system: the fleet belongs to no tenant.
    with context.database.begin_system() as connection:
        drains.drain(connection, worker_id, tenant)
    return _shown(context, tenant, worker_id)


@router.post("/workers/{worker_id}/resume", response_model=Worker)
def resume_worker(context: ContextDep, tenant: Tenant, worker_id: str) -> Any:
    """Lets the workers of a drained device claim again. Repeating this is not an error."""
    # As the system: the fleet belongs to no tenant.
    with context.database.begin_system() as connection:
        drains.resume(connection, worker_id, tenant)
    return _shown(context, tenant, worker_id)


def _fleet(context: Context, tenant: int) -> list[Worker]:
    with context.database.begin(tenant) as connection:
        rows = queries.fleet(connection)
    return [
        Worker(
            id=row.id, host=row.host, pid=row.pid, device=row.device, model=row.model, state=row.state,
            drained=row.drained, doing=row.doing, silent_seconds=round(row.silent, 1),
        )
        for row in rows
    ]  # fmt: skip


def _shown(context: Context, tenant: int, worker_id: str) -> Worker:
    for worker in _fleet(context, tenant):
        if worker.id == worker_id:
            return worker
    raise NotFound("There is no such worker.")
