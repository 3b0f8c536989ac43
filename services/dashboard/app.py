"""Adds the dashboard's pages and files to the web server's application."""

from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from services.dashboard import files, rendering
from services.dashboard.pages import (
    action_log,
    actions,
    bulk,
    catalogue_diff,
    catalogue_pictures,
    catalogue_review,
    catalogue_runs,
    catalogues,
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
    overview,
    pictures,
    provider_sign_in,
    requests,
    schedules,
    settings,
    sign_in,
    submit,
    views,
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
    settings,
    action_log,
    gallery,
    image,
    marking,
    bulk,
    catalogue_diff,
    catalogue_pictures,
    catalogue_review,
    catalogue_runs,
    catalogues,
    find,
    duplicates,
    views,
    requests,
    schedules,
    catalogues,
    catalogue_diff,
    catalogue_runs,
    catalogue_review,
    catalogue_pictures,
)


def install(app: FastAPI) -> None:
    for page in _PAGES:
        app.include_router(page.router, include_in_schema=False)
    answer: Any = app.exception_handlers[HTTPException]

    def answered(request: Request, error: Any) -> Any:
        """Whoever looks for a page that there is not gets one that says so."""
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")
        if error.status_code == 404 and wants_page:
            return rendering.trouble(request, 404, "Not here", "There is nothing at this address.")
        return answer(request, error)

    app.add_exception_handler(HTTPException, answered)
