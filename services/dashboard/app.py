"""Adds the dashboard's pages and files to the web server's application."""

import inspect
from contextlib import suppress
from functools import cache
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from services.dashboard import access, files, rendering
from services.dashboard.pages import (
    action_log,
    actions,
    audit_trail,
    bulk,
    catalogue_diff,
    catalogue_pictures,
    catalogue_review,
    catalogue_runs,
    catalogues,
    dataset_version,
    datasets,
    duplicates,
    find,
    fleet,
    gallery,
    image,
    job,
    jobs,
    lanes,
    live,
    marking,
    models,
    overview,
    pictures,
    provider_sign_in,
    requests,
    schedules,
    settings,
    sign_in,
    storage,
    submit,
    submit_pictures,
    usage,
    views,
    webhooks,
)

_PAGES = (
    files,
    sign_in,
    provider_sign_in,
    overview,
    jobs,
    job,
    actions,
    pictures,
    fleet,
    lanes,
    live,
    submit,
    submit_pictures,
    settings,
    models,
    usage,
    storage,
    action_log,
    audit_trail,
    gallery,
    image,
    marking,
    bulk,
    catalogue_diff,
    catalogue_pictures,
    catalogue_review,
    catalogue_runs,
    catalogues,
    dataset_version,
    datasets,
    find,
    duplicates,
    views,
    webhooks,
    requests,
    schedules,
)


def install(app: FastAPI) -> None:
    app.router.routes.extend(_routes())
    answer: Any = app.exception_handlers[HTTPException]

    async def answered(request: Request, error: Any) -> Any:
        """Whoever looks for a page that there is not gets one that says so, in the usual frame if signed in."""
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")
        if error.status_code != 404 or not wants_page:
            answered = answer(request, error)
            return await answered if inspect.isawaitable(answered) else answered
        context = request.app.state.context
        with suppress(Exception):  # a frame is not worth an error: the database may be away
            request.state.visitor = await context.requests.run(None, access.find, context, request)
        return rendering.trouble(request, 404, "Not here", "There is nothing at this address.")

    app.add_exception_handler(HTTPException, answered)


@cache
def _routes() -> tuple[BaseRoute, ...]:
    """All routes of pages, built once in a process."""
    root = APIRouter()
    for page in _PAGES:
        root.include_router(page.router, include_in_schema=False)
    return tuple(root.routes)
