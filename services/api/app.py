"""The HTTP API as one ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from functools import cache, partial
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from starlette.routing import BaseRoute

from services.api import authentication, document, errors, health, pages, parameters, public_items, readiness
from services.api.admission import Admission
from services.api.authentication import documented
from services.api.dependencies import Context
from services.api.middleware import RequestMiddleware
from services.api.openai import batches, edits, files, generations, models, uploads
from services.api.v1 import (
    actions,
    audit,
    bulk,
    catalogue_items,
    catalogue_runs,
    catalogue_versions,
    catalogues,
    dataset_content,
    dataset_versions,
    datasets,
    deletion,
    drafts,
    estimation,
    events,
    export_content,
    exports,
    failures,
    fleet,
    image_content,
    job_actions,
    job_rates,
    job_requests,
    jobs,
    keys,
    lanes,
    marks,
    near_duplicates,
    overview,
    policy,
    retention,
    schedules,
    schemas,
    search,
    sign_in_links,
    submissions,
    tenant_deletion,
    tenants,
    usage,
    views,
    webhooks,
    workers,
)
from services.core.settings import Settings

_TENANTS_ROUTES: dict[str | Enum, tuple[Any, ...]] = {  # by tag
    "jobs": (
        bulk,
        submissions,
        estimation,
        jobs,
        job_requests,
        search,
        failures,
        marks,
        near_duplicates,
        events,
        job_actions,
        deletion,
        job_rates,
    ),
    "overview": (overview, usage, views),
    "drafts": (drafts,),
    "exports": (exports,),
    "datasets": (datasets, dataset_versions),
    "schedules": (schedules,),
    "webhooks": (webhooks,),
    "catalogues": (catalogues, catalogue_runs, catalogue_versions, catalogue_items),
    "images": (generations, edits),
    "batches": (batches,),
    "files": (files,),
    "uploads": (uploads,),
    "models": (models,),
    "keys": (keys, sign_in_links, actions, audit),
    "tenants": (tenants, tenant_deletion),
    "policy": (policy,),
    "retention": (retention,),
    "fleet": (workers, lanes, fleet),
}
_ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": schemas.ErrorBody}, "5XX": {"model": schemas.ErrorBody}}


def create_app(settings: Settings) -> FastAPI:
    """Connects to nothing yet: it starts although servers cannot be reached, and then answers 503."""
    app = FastAPI(
        title="Presswork",
        version=version("presswork"),
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=document.operation_id,
        lifespan=_lifespan,
    )
    app.state.context = Context.open(settings)
    app.state.admission = Admission(settings)
    app.state.readiness = readiness.Readiness(app.state.context)
    app.router.routes.extend(_routes())
    app.openapi = partial(document.once, app, settings)  # type: ignore[method-assign]
    app.add_middleware(RequestMiddleware, settings=settings, admission=app.state.admission)
    errors.install(app)
    return app


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """All routes. They know no application, and take longer to build than all the rest: a process does it once."""
    root = APIRouter(generate_unique_id_function=document.operation_id)
    open_routes = APIRouter(dependencies=[Depends(parameters.reject_unknown)])
    open_routes.include_router(health.router, tags=["monitoring"])
    # A request without a valid key learns nothing about parameters: authentication comes first.
    tenants_routes = APIRouter(
        prefix="/v1",
        dependencies=[Depends(documented), Depends(authentication.authenticate), Depends(parameters.reject_unknown)],
        responses=_ERRORS,
    )
    for tag, modules in _TENANTS_ROUTES.items():
        for routes in modules:
            tenants_routes.include_router(routes.router, tags=[tag])
    links_routes = APIRouter(
        prefix="/v1", dependencies=[Depends(documented), Depends(parameters.reject_unknown)], responses=_ERRORS
    )
    links_routes.include_router(image_content.router, tags=["images"])
    links_routes.include_router(export_content.router, tags=["exports"])
    links_routes.include_router(dataset_content.router, tags=["datasets"])
    for router in (tenants_routes, links_routes, open_routes):
        root.include_router(router)
    # Whoever puts an address into a page may add what a program there wants to see in it: nothing more is refused.
    root.include_router(public_items.router, tags=["catalogues"])
    root.include_router(pages.router, include_in_schema=False)
    return tuple(root.routes)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.context.database.close()
