"""What can be asked for."""

from datetime import UTC
from typing import Any

from fastapi import APIRouter

from services.api import openapi
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.openai import schemas
from services.api.turns import OpenAIRoute
from services.core.fleet import models
from services.core.fleet.models import Model
from services.core.jobs import queries
from services.core.model.errors import Conflict, NotFound
from services.core.model.policy_requests import AcceptRequest
from services.core.policy import licenses

router = APIRouter(route_class=OpenAIRoute)


@router.get("/models", response_model=schemas.ModelList)
def list_models(context: ContextDep, tenant: Tenant) -> Any:
    """Every registered model, also without a worker that serves it."""
    return schemas.ModelList(data=listed(context, tenant))


@router.get("/models/{name}", response_model=schemas.Model)
def show_model(context: ContextDep, tenant: Tenant, name: str) -> Any:
    """One model."""
    return named(context, tenant, name)


@router.post(
    "/models/{name}/license/accept",
    response_model=schemas.Model,
    openapi_extra=openapi.body(AcceptRequest, required=False),
)
def accept_license(context: ContextDep, tenant: Tenant, name: str, body: json_object.SmallOrNone) -> Any:
    """Accepts the licence of a model for the tenant, which is recorded with who and when. With the `sha256` of the
    licence that was read, another one is not accepted. Repeating this changes nothing."""
    accept(context, tenant, name, json_object.parse(AcceptRequest, body, AcceptRequest.ALLOWED).sha256)
    return named(context, tenant, name)


def accept(context: Context, tenant: int, name: str, sha256: str | None) -> None:
    """Raises NotFound, or Conflict: the model has no licence, or another than the one that was read."""
    with context.database.begin(tenant) as connection:
        model = models.registry(connection).get(name)
        if model is None:
            raise NotFound("There is no such model.")
        if model.license is None:
            raise Conflict("The model's card names no licence: there is nothing to accept.", "no_license")
        if sha256 is not None and sha256 != model.license.sha256.hex():
            raise Conflict("The model's licence has changed since it was read; read it again.", "license_changed")
        licenses.accept(connection, tenant, model.license)


def listed(context: Context, tenant: int) -> list[schemas.Model]:
    with context.database.read(tenant) as connection:
        found, workers = models.registry(connection), queries.workers_by_revision(connection)
        served, accepted = models.known_classes(connection), licenses.accepted(connection, tenant)
    required = context.settings.require_license_acceptance
    return [_shown(model, workers, served, _license(model, accepted, required)) for model in found.values()]


def named(context: Context, tenant: int, name: str) -> schemas.Model:
    """Raises NotFound."""
    for model in listed(context, tenant):
        if model.id == name:
            return model
    raise NotFound("There is no such model.")


def _license(model: Model, accepted: licenses.Acceptances, required: bool) -> schemas.License | None:
    if model.license is None:
        return None
    found = accepted.of(model.license)
    at = "" if found is None else found.at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return schemas.License(
        **model.license.as_json(),
        sha256=model.license.sha256.hex(),
        accepted=None if found is None else schemas.LicenseAcceptance(by=found.by, by_name=found.by_name, at=at),
        acceptance_required=required,
    )


def _shown(
    model: Model, workers: dict[str, int], served: dict[str, list[str]], found: schemas.License | None
) -> schemas.Model:
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
        license=found,
    )
