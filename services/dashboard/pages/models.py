"""The models that can be asked for: sizes, steps, and what their licences forbid, as GET /v1/models says it."""

from typing import Any

from fastapi import APIRouter, Request

from services.api.dependencies import ContextDep
from services.api.openai import models
from services.dashboard import access, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)


@router.get("/settings/models")
def show_models(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    found = sorted(models.listed(context, visitor.tenant), key=lambda model: model.id)
    return rendering.page(request, "models.html", visitor=visitor, models=found, default=context.settings.model)


@router.get("/settings/models/{name:path}")
def show_model(request: Request, context: ContextDep, visitor: access.Signed, name: str) -> Any:
    visitor.require("view")
    found = models.named(context, visitor.tenant, name)
    return rendering.page(request, "model.html", visitor=visitor, model=found, default=context.settings.model)
