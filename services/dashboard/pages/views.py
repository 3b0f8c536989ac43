"""Saved views: the menu of a list page saves its filter under a name; here they are renamed and deleted."""

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError, SubmissionError
from services.core.model.view_requests import Page, ViewChanges, ViewRequest
from services.core.tenants import views
from services.dashboard import access, forms, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
PATHS: dict[Page, str] = {"jobs": "/jobs", "images": "/images", "log": "/settings/log"}
_WORDS: dict[Page, str] = {"jobs": "Jobs", "images": "Images", "log": "Action log"}


def path(view: views.View) -> str:
    return PATHS[view.page] + (f"?{view.query}" if view.query else "")


def menu(context: Context, visitor: access.Visitor, page: Page, query: str, *, of: str = "") -> dict[str, Any]:
    """What a list page shows of them: those whose filter begins with `of`. `query` is the page's own filter, without
    where a page of it begins."""
    with context.database.read(visitor.tenant) as connection:
        listed = views.listed(connection, visitor.tenant)
    found = [view for view in listed if view.page == page and (view.query + "&").startswith(of)]
    return {"page": page, "query": query, "views": [(view.name, path(view), view.query == query) for view in found]}


@router.get("/settings/views")
def show_views(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    with context.database.read(visitor.tenant) as connection:
        found = views.listed(connection, visitor.tenant)
    shown = [(view, views.public_id(view.id), path(view), _WORDS[view.page]) for view in found]
    return rendering.page(request, "views.html", visitor=visitor, views=shown)


@router.post("/settings/views")
def save(request: Request, context: ContextDep, visitor: access.Signed, form: forms.Posted) -> Any:
    visitor.require("operate", "saving a view")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    given = {name: form.get(name, "").strip() for name in ("page", "name", "query")}
    asked = _parsed(ViewRequest, given)
    with context.database.begin(visitor.tenant) as connection:
        saved = views.save(connection, visitor.tenant, asked)
    return RedirectResponse(rendering.address(request, path(saved)), 303)


@router.post("/settings/views/{view_id}/{act}")
def change(
    request: Request, context: ContextDep, visitor: access.Signed, view_id: str, act: str, form: forms.Posted
) -> Any:
    visitor.require("operate", "changing a view")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    number = views.parse_id(view_id)
    with context.database.begin(visitor.tenant) as connection:
        if act == "delete":
            views.delete(connection, visitor.tenant, number)
        else:
            asked = _parsed(ViewChanges, {"name": form.get("name", "").strip()})
            views.change(connection, visitor.tenant, number, asked)
    return RedirectResponse(rendering.address(request, "/settings/views"), 303)


def _parsed(model: Any, given: dict[str, str]) -> Any:
    try:
        return json_object.parse(model, json.dumps(given).encode(), model.ALLOWED)
    except SubmissionError as error:
        raise ApiError(422, "invalid_value", str(error)) from None
