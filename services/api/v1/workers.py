"""The fleet: its workers, and draining them. The fleet is one for all tenants."""

from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from services.api.authentication import Caller, Tenant
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.fleet import drains, workers
from services.core.model.errors import NotFound
from services.core.model.scopes import Principal

router = APIRouter(route_class=TenantRoute)
SHOWN_SECONDS = 300


class WorkerBatch(BaseModel):
    """The batch being rendered: `images` in `of` slots, and how many of its `steps` are done."""

    images: int
    of: int
    size: str
    step: int
    steps: int


class WorkerMemory(BaseModel):
    """In bytes: of the device, or of the process and the machine where the device has none of its own."""

    used: int
    total: int


class WorkerRate(BaseModel):
    """`seconds` an image of that size takes in a full batch, as the worker's device measured it."""

    size: str
    num_inference_steps: int
    guided: bool
    seconds: float


class ScorerTrouble(BaseModel):
    """A scorer that `failed` images since the worker started, or for which `late` ones did not wait. `why` the last
    one failed; `off`: the worker leaves it out until it starts again."""

    name: str
    failed: int
    late: int
    why: str
    off: bool


class Worker(BaseModel):
    """A process that renders. A `drained` one takes nothing new. `silent_seconds` is how long it was not heard of;
    `doing` says what takes long. `rate`: images a second in the last minute. `batch_fill`: the share of the last
    minute's batches that held images. `reproducibility_class` is that of its largest batches, and
    `reproducibility_classes` are those that a job may ask for: one for each of its `batch_sizes`. `busy_at`: when it
    last rendered. Null: not known. `scorers` are those that did not score every image."""

    id: str
    object: Literal["worker"] = "worker"
    host: str
    pid: int
    device: str
    device_kind: str
    model: str
    revision: str
    state: str
    drained: bool
    doing: str
    silent_seconds: float
    reproducibility_class: str
    reproducibility_classes: list[str]
    sizes: list[str]
    batch_sizes: list[int]
    rates: list[WorkerRate]
    rendering: int
    rate: float
    batch: WorkerBatch | None
    batch_fill: float | None
    memory: WorkerMemory | None
    busy_at: Moment | None
    scorers: list[ScorerTrouble]


class WorkerDevices(BaseModel):
    """How many live workers with that device and model are in each state; `rate`: their images a second."""

    device: str
    model: str
    busy: int
    idle: int
    drained: int
    sick: int
    starting: int
    rate: float


class WorkerList(BaseModel):
    """`data` names hosts and is empty but for keys of the operator's tenant with the scope `operate`; `devices` counts
    live workers for all."""

    data: list[Worker]
    devices: list[WorkerDevices]


@router.get("/workers", response_model=WorkerList)
def list_workers(context: ContextDep, tenant: Tenant, caller: Caller) -> Any:  # noqa: ARG001  whose turn it is
    """The workers of the last five minutes, by host, for a key of the operator's tenant that may operate them; and the
    devices that are live."""
    fleet = _fleet(context)
    shown = [_worker(worker) for worker in fleet] if caller.sees_hosts else []
    return WorkerList(data=shown, devices=[WorkerDevices(**asdict(kind)) for kind in workers.devices(fleet)])


@router.post("/workers/{worker_id}/drain", response_model=Worker)
def drain_worker(context: ContextDep, tenant: Tenant, caller: Caller, worker_id: str) -> Any:
    """Drains the worker's device: its workers finish what they hold and claim nothing new, also when they are started
    again, until it is resumed. Repeating this is not an error."""
    _assert_operator(caller)
    # As the system: the fleet belongs to no tenant.
    with context.database.begin_system() as connection:
        drains.drain(connection, worker_id, tenant)
    return _shown(context, worker_id)


@router.post("/workers/{worker_id}/resume", response_model=Worker)
def resume_worker(context: ContextDep, tenant: Tenant, caller: Caller, worker_id: str) -> Any:
    """Lets the workers of a drained device claim again. Repeating this is not an error."""
    _assert_operator(caller)
    # As the system: the fleet belongs to no tenant.
    with context.database.begin_system() as connection:
        drains.resume(connection, worker_id, tenant)
    return _shown(context, worker_id)


def _assert_operator(caller: Principal) -> None:
    """The fleet is the operator's: no other tenant sees a worker. Raises NotFound."""
    if not caller.operator:
        raise NotFound("There is no such worker.")


def _fleet(context: Context) -> list[workers.Worker]:
    # As the system: what a worker holds is of all tenants.
    with context.database.read_system() as connection:
        return [worker for worker in workers.listed(connection) if worker.silent <= SHOWN_SECONDS]


def _worker(worker: workers.Worker) -> Worker:
    return Worker(
        id=worker.id,
        host=worker.host,
        pid=worker.pid,
        device=worker.device,
        device_kind=worker.device_kind,
        model=worker.model,
        revision=worker.revision,
        state=worker.state,
        drained=worker.drained,
        doing=worker.doing,
        silent_seconds=round(worker.silent, 1),
        reproducibility_class=worker.reproducibility_class,
        reproducibility_classes=worker.classes,
        sizes=list(worker.sizes),
        batch_sizes=worker.batch_sizes,
        rates=[
            WorkerRate(size=one.size, num_inference_steps=one.steps, guided=one.guided, seconds=round(one.seconds, 6))
            for one in worker.measured
        ],
        rendering=worker.rendering,
        rate=round(worker.rate, 3),
        batch=None if worker.batch is None else WorkerBatch(**asdict(worker.batch)),
        batch_fill=worker.fill,
        memory=None if worker.memory is None else WorkerMemory(used=worker.memory[0], total=worker.memory[1]),
        busy_at=worker.busy_at,
        scorers=[ScorerTrouble(**asdict(one)) for one in worker.scorers],
    )


def _shown(context: Context, worker_id: str) -> Worker:
    for worker in _fleet(context):
        if worker.id == worker_id:
            return _worker(worker)
    raise NotFound("There is no such worker.")
