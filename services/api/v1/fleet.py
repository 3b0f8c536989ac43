"""What a fleet is scaled by: the work that waits for a model."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel

from services.api.authentication import Caller, Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.core.jobs import backlog

router = APIRouter(route_class=TenantRoute)
Model = Annotated[str, Query(min_length=1, max_length=200, description="a model's name of 1 to 200 characters")]
SecondsPerImage = Annotated[
    float,
    Query(gt=0, le=86_400, allow_inf_nan=False, description="seconds an image takes: a number above 0 and up to 86400"),
]


class Backlog(BaseModel):
    """The images that workers may claim for a model now, those that they render, and the
    `accelerator_seconds` that both take on one accelerator. `registered`: a worker has published the model; if not, it
    counts as one image, so that an autoscaler starts its first worker."""

    object: Literal["backlog"] = "backlog"
    model: str
    registered: bool
    queued: int
    rendering: int
    accelerator_seconds: float


@router.get("/fleet/backlog", response_model=Backlog)
def show_backlog(
    context: ContextDep,
    tenant: Tenant,
    caller: Caller,
    model: Model,
    seconds_per_image: SecondsPerImage = 10.0,
) -> Any:
    """The work that waits for a model's current revision and is being rendered: of all tenants for a key of the
    operator's tenant, of this one for any other. An autoscaler divides `accelerator_seconds` by how many seconds of
    work one worker should have; zero means that no worker is needed. `seconds_per_image` is used until the model has
    been measured."""
    # As the system: what waits and is rendered is read for all tenants.
    with context.database.read_system() as connection:
        found = backlog.backlog(connection, model, seconds_per_image, tenant_id=None if caller.operator else tenant)
    return Backlog(
        model=model,
        registered=found.registered,
        queued=found.queued,
        rendering=found.rendering,
        accelerator_seconds=round(found.accelerator_seconds, 3),
    )
