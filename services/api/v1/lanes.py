"""Lanes: what waits, by shape, priority and tenant, and who can serve it."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from services.api.authentication import Caller, Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.core.jobs import lanes
from services.core.model import requests
from services.core.model.scopes import Scope

router = APIRouter(route_class=TenantRoute)
_PRIORITIES = {number: name for name, number in requests.PRIORITIES.items()}


class LaneDevices(BaseModel):
    """So many live workers with that device serve the lane."""

    device: str
    workers: int


class Lane(BaseModel):
    """Images that wait and may share a batch. `exact` is false if a job mixes shapes and was begun: what is left is
    then divided in proportion. `prompt_chunks`: more than 1 for prompts that are longer than the text encoder reads at
    once, if the model reads them. `reproducibility_class`: the one that was asked for, null if any will do; `devices`
    are then those of workers that render in it. `oldest_seconds`: how long the oldest of its jobs has been there.
    Seconds are null if nothing like it was measured; `seconds`, until all are done if nothing else is rendered, also if
    no live worker serves it."""

    object: Literal["lane"] = "lane"
    model: str
    size: str
    num_inference_steps: int
    guided: bool
    prompt_chunks: int
    first_step: int
    reproducibility_class: str | None
    priority: Literal["high", "normal", "low"]
    tenant: str
    images: int
    exact: bool
    jobs: int
    oldest_seconds: float
    devices: list[LaneDevices]
    device_seconds: float | None
    seconds: float | None


class LaneList(BaseModel):
    """The lanes by priority, then by how long they have waited. `more`: there are jobs that were not looked at, so that
    the numbers are the least."""

    data: list[Lane]
    more: bool


@router.get("/lanes", response_model=LaneList)
def list_lanes(context: ContextDep, tenant: Tenant, caller: Caller) -> Any:
    """What waits to be rendered, without paused jobs: of this tenant, or of all for a key of the operator's tenant with
    the scope `admin`."""
    # As the system: what waits stands in one index for all tenants.
    with context.database.read_system() as connection:
        found = lanes.waiting(connection, tenant, all_tenants=caller.operator and Scope.ADMIN in caller.scopes)
    return LaneList(data=[_shown(lane) for lane in found.lanes], more=found.more)


def _shown(lane: lanes.Lane) -> Lane:
    return Lane(
        model=lane.model,
        size=f"{lane.shape.width}x{lane.shape.height}",
        num_inference_steps=lane.shape.steps,
        guided=lane.shape.guided,
        prompt_chunks=lane.shape.prompt_chunks,
        first_step=lane.shape.first_step,
        reproducibility_class=lane.shape.reproducibility_class or None,
        priority=_PRIORITIES[lane.priority],  # type: ignore[arg-type]
        tenant=lane.tenant,
        images=lane.images,
        exact=lane.exact,
        jobs=lane.jobs,
        oldest_seconds=round(lane.oldest_seconds, 1),
        devices=[LaneDevices(device=kind, workers=count) for kind, count in lane.devices.items()],
        device_seconds=None if lane.device_seconds is None else round(lane.device_seconds, 3),
        seconds=None if lane.seconds is None else round(lane.seconds, 3),
    )
