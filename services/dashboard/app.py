"""Adds the dashboard's pages and files to the web server's application."""

from fastapi import FastAPI

from services.dashboard import files
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
