"""The HTTP API as one ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI

from services.api import authentication, errors, health, parameters, readiness
from services.api.admission import Admission
from services.api.authentication import documented
from services.api.dependencies import Context
from services.api.middleware import RequestMiddleware
from services.api.openai import batches, files, generations, models, uploads
from services.api.v1 import (
    deletion,
    drafts,
    estimation,
    events,
    exports,
    image_content,
    job_actions,
    job_requests,
    jobs,
    schemas,
    submissions,
)
from services.core.settings import Settings

_ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": schemas.ErrorBody}, "5XX": {"model": schemas.ErrorBody}}


def create_app(settings: Settings) -> FastAPI:
    """Connects to nothing yet: it starts although servers cannot be reached, and then answers 503."""
    app = FastAPI(
        title="Presswork",
        version=version("presswork"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.context = Context.open(settings)
    app.state.admission = Admission(settings)
    app.state.readiness = readiness.Readiness(app.state.context)
    open_routes = APIRouter(dependencies=[Depends(parameters.reject_unknown)])
    open_routes.include_router(health.router)
    # A request without a valid key learns nothing about parameters: authentication comes first.
    tenants_routes = APIRouter(
        prefix="/v1",
        dependencies=[Depends(documented), Depends(authentication.authenticate), Depends(parameters.reject_unknown)],
        responses=_ERRORS,
    )
    for routes in (
        submissions, estimation, drafts, job_actions, job_requests, jobs, events, files, uploads, batches, generations,
        models, exports, deletion,
    ):  # fmt: skip
        tenants_routes.include_router(routes.router)
    links_routes = APIRouter(
        prefix="/v1", dependencies=[Depends(documented), Depends(parameters.reject_unknown)], responses=_ERRORS
    )
    links_routes.include_router(image_content.router)
    app.include_router(open_routes)
    app.include_router(tenants_routes)
    app.include_router(links_routes)
    app.add_middleware(RequestMiddleware, settings=settings, admission=app.state.admission)
    errors.install(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.context.database.close()
