"""Saved views: pages of the dashboard with a filter, under a name, shared within the tenant."""

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from services.api import openapi
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.model.view_requests import Page, ViewChanges, ViewRequest
from services.core.tenants import views

router = APIRouter(route_class=TenantRoute)


class SavedView(BaseModel):
    """`query` is what stands behind the question mark in the address of the page. `created_by` is an actor."""

    id: str
    object: Literal["view"] = "view"
    page: Page
    name: str
    query: str
    created_by: str
    created_by_name: str | None
    created_at: Moment


class SavedViewList(BaseModel):
    data: list[SavedView]


class ViewDeleted(BaseModel):
    id: str
    object: Literal["view"] = "view"
    deleted: Literal[True] = True


@router.get("/views", response_model=SavedViewList)
def list_views(context: ContextDep, tenant: Tenant) -> Any:
    """The tenant's views, by name."""
    with context.database.read(tenant) as connection:
        return SavedViewList(data=[_shown(view) for view in views.listed(connection, tenant)])


@router.post("/views", status_code=201, response_model=SavedView, openapi_extra=openapi.body(ViewRequest))
def save_view(context: ContextDep, tenant: Tenant, body: json_object.Small) -> Any:
    """Saves a view, for everybody of the tenant."""
    asked = json_object.parse(ViewRequest, body, ViewRequest.ALLOWED)
    with context.database.begin(tenant) as connection:
        return _shown(views.save(connection, tenant, asked))


@router.patch("/views/{view_id}", response_model=SavedView, openapi_extra=openapi.body(ViewChanges))
def change_view(context: ContextDep, tenant: Tenant, view_id: str, body: json_object.Small) -> Any:
    """Gives a view another name or another filter."""
    number = views.parse_id(view_id)
    asked = json_object.parse(ViewChanges, body, ViewChanges.ALLOWED)
    with context.database.begin(tenant) as connection:
        return _shown(views.change(connection, tenant, number, asked))


@router.delete("/views/{view_id}", response_model=ViewDeleted)
def delete_view(context: ContextDep, tenant: Tenant, view_id: str) -> Any:
    """Deletes a view."""
    with context.database.begin(tenant) as connection:
        views.delete(connection, tenant, views.parse_id(view_id))
    return ViewDeleted(id=view_id)


def _shown(view: views.View) -> SavedView:
    return SavedView(
        id=views.public_id(view.id),
        page=view.page,
        name=view.name,
        query=view.query,
        created_by=view.created_by,
        created_by_name=view.created_by_name,
        created_at=view.created_at,
    )
