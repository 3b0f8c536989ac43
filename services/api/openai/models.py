"""What can be asked for."""

from typing import Any

from fastapi import APIRouter

from services.api.authentication import Tenant
from services.api.dependencies import Context, ContextDep
from services.api.openai import schemas
from services.api.turns import OpenAIRoute
from services.core.fleet import models
from services.core.fleet.models import Model
from services.core.jobs import queries
from services.core.model.errors import NotFound

router = APIRouter(route_class=OpenAIRoute)


@router.get("/models", response_model=schemas.ModelList)
def list_models(context: ContextDep, tenant: Tenant) -> Any:
    """Every registered model, also without a worker that serves it."""
    return schemas.ModelList(data=listed(context, tenant))


@router.get("/models/{name}", response_model=schemas.Model)
def show_model(context: ContextDep, tenant: Tenant, name: str) -> Any:
    """One model."""
    return named(context, tenant, name)


def listed(context: Context, tenant: int) -> list[schemas.Model]:
    with context.database.begin(tenant) as connection:
        found, workers = models.registry(connection), queries.workers_by_revision(connection)
        served = models.known_classes(connection)
    return [_shown(model, workers, served) for model in found.values()]


def named(context: Context, tenant: int, name: str) -> schemas.Model:
    """Raises NotFound."""
    for model in listed(context, tenant):
        if model.id == name:
            return model
    raise NotFound("There is no such model.")


def _shown(model: Model, workers: dict[str, int], served: dict[str, list[str]]) -> schemas.Model:
    return schemas.Model(
        id=model.name,
        created=schemas.epoch(model.registered_at),
        revision=model.revision,
        sizes=[f"{width}x{height}" for width, height in model.sizes],
        default_size="x".join(map(str, model.default_size)),
        default_num_inference_steps=model.default_steps,
        default_guidance_scale=model.default_guidance_scale,
        max_num_inference_steps=max(model.sizes.values()),
        workers=workers.get(model.revision, 0),
        reproducibility_classes=served.get(model.name, []),
        license=None if model.license is None else schemas.License(**model.license.as_json()),
    )
