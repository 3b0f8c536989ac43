"""The list of jobs. What is searched stands in the address, so a view can be sent to others."""

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import pagination
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.core.fleet import models
from services.core.jobs import job_query, listing
from services.core.model import ids, job_words
from services.core.model.errors import NotFound
from services.core.tenants import api_keys
from services.dashboard import access, choices, commands, reading, rendering
from services.dashboard.pages import views
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 50
_SPANS = {"the last hour": "1h", "day": "1d", "week": "7d"}
SORTS = {"newest": "Newest first", "oldest": "Oldest first", "failed_first": "Failed first"}


@router.get("/jobs")
def show_jobs(
    request: Request,
    context: ContextDep,
    visitor: access.Signed,
    q: str = "",
    status: str = "",
    label: str = "",
    model: str = "",
    priority: str = "",
    who: str = "",
    since: str = "",
    until: str = "",
    sort: str = "newest",
    cursor: str = "",
) -> Any:
    visitor.require("view")
    text = _plain(q)
    if _is_job(text):
        return RedirectResponse(rendering.address(request, f"/jobs/{text}"), 303)
    chosen = {
        "q": text,
        "status": status,
        "label": label,
        "model": _plain(model),
        "priority": priority,
        "who": _plain(who),
        "since": since,
        "until": until,
        "sort": sort,
    }
    try:
        wanted, order = job_query.understood(chosen)
    except job_query.NotUnderstood as error:
        raise ApiError(400, "invalid_parameter", str(error)) from None
    name = f"pages/jobs/{visitor.tenant}/{chosen}"
    place = pagination.decode_job_place(context.settings.secrets, name, cursor) if cursor else None
    with context.database.read(visitor.tenant) as connection:
        page = listing.page(connection, visitor.tenant, wanted, order=order, place=place, limit=_PER_PAGE)
        names = models.names(connection)
        keys = sorted({key.name for key in api_keys.listed(connection, visitor.tenant)})
    more = page.more and pagination.encode_job_place(context.settings.secret, name, page.more)
    kept = {key: value for key, value in chosen.items() if value and (key, value) != ("sort", "newest")}
    return rendering.page(
        request,
        "jobs.html",
        visitor=visitor,
        jobs=reading.shown(context, page.jobs),
        looked_at=page.looked_at,
        is_search=wanted.is_search,
        is_filtered=wanted != listing.Filter(),
        has_more_filters=bool(model or priority or who or since or until),
        is_first=place is None,
        chosen=chosen,
        states=[(name, reading.STATE_WORDS.get(name, name) or "any") for name in job_words.STATES],
        sorts=SORTS.items(),
        menus=_menus(context, visitor, kept),
        models=names,
        priorities=reading.PRIORITIES,
        keys=keys,
        here="/jobs" + (f"?{urlencode(kept)}" if kept else ""),
        next_page=more and f"/jobs?{urlencode(kept | {'cursor': more})}",
        command=commands.ls(kept),
        spans=[(word, span, f"/jobs?{urlencode(kept | {'since': span})}") for word, span in _SPANS.items()],
    )


def _menus(context: Context, visitor: access.Visitor, kept: dict[str, str]) -> dict[str, Any]:
    """What can be done with all that match, and the saved views."""
    asked = {name: value for name, value in kept.items() if name != "sort"}
    query = f"?{urlencode(asked)}" if asked else ""
    saved = views.menu(context, visitor, "jobs", urlencode(kept))
    return {"acts": choices.menu(visitor), "query": query, "views": saved}


def _plain(given: str) -> str:
    return given.strip()[: job_words.MOST_TEXT].replace("\0", "")


def _is_job(text: str) -> bool:
    try:
        return bool(ids.parse_job(text))
    except NotFound:
        return False
