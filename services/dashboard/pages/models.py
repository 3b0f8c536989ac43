"""The models that can be asked for: sizes, steps, and what their licences forbid, as GET /v1/models says it."""

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse

from services.api.dependencies import ContextDep
from services.api.openai import models
from services.dashboard import access, forms, rendering
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


@router.post("/settings/models/{name:path}/license/accept")
def accept_license(request: Request, context: ContextDep, visitor: access.Signed, name: str, form: forms.Posted) -> Any:
    visitor.require("admin", "accepting a licence")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    models.accept(context, visitor.tenant, name, form.get("sha256"))
    return RedirectResponse(rendering.address(request, f"/settings/models/{quote(name)}"), 303)
