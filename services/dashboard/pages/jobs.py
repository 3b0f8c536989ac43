"""The list of jobs. What is searched stands in the address, so a view can be sent to others."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import pagination
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.core.fleet import models
from services.core.jobs import listing
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.model.states import FINAL_JOB_STATES, JobState
from services.core.tenants import api_keys
from services.dashboard import access, choices, reading, rendering
from services.dashboard.pages import views
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 50
_MOST_TEXT = 600
STATES: dict[str, tuple[str, ...]] = {
    "": (),
    "unfinished": tuple(sorted(set(JobState) - FINAL_JOB_STATES - {JobState.DRAFT})),
    **{state.value: (state.value,) for state in JobState},
}
SORTS = {"newest": "Newest first", "oldest": "Oldest first", "failed_first": "Failed first"}
_FIRST_PART = 1 << 63  # in a cursor: among the jobs with failures


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
    text = q.strip()[:_MOST_TEXT].replace("\0", "")
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
    wanted = listing.Filter(
        _states(status),
        _label(label),
        text,
        _priority(priority),
        chosen["model"],
        chosen["who"],
        _day(since),
        _day(until, after=1),
    )
    order = next((name for name in listing.ORDERS if name == sort), None)
    if order is None:
        raise ApiError(400, "invalid_parameter", f"There is no such order; there are {', '.join(SORTS)}.")
    name = f"pages/jobs/{visitor.tenant}/{chosen}"
    place = _place(pagination.decode_cursor(context.settings.secrets, name, cursor)) if cursor else None
    with context.database.begin(visitor.tenant) as connection:
        page = listing.page(connection, visitor.tenant, wanted, order=order, place=place, limit=_PER_PAGE)
        names = models.names(connection)
        keys = sorted({key.name for key in api_keys.listed(connection, visitor.tenant)})
    more = page.more and pagination.encode_cursor(context.settings.secret, name, _position(page.more))
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
        states=[(name, reading.STATE_WORDS.get(name, name) or "any") for name in STATES],
        sorts=SORTS.items(),
        menus=_menus(context, visitor, kept),
        models=names,
        priorities=reading.PRIORITIES,
        keys=keys,
        here="/jobs" + (f"?{urlencode(kept)}" if kept else ""),
        next_page=more and f"/jobs?{urlencode(kept | {'cursor': more})}",
    )


def _menus(context: Context, visitor: access.Visitor, kept: dict[str, str]) -> dict[str, Any]:
    """What can be done with all that match, and the saved views."""
    asked = {name: value for name, value in kept.items() if name != "sort"}
    query = f"?{urlencode(asked)}" if asked else ""
    saved = views.menu(context, visitor, "jobs", urlencode(kept))
    return {"acts": choices.menu(visitor), "query": query, "views": saved}


def _states(status: str) -> tuple[str, ...]:
    if status not in STATES:
        raise ApiError(400, "invalid_parameter", f"There is no such status; there are {', '.join(STATES)[2:]}.")
    return STATES[status]


def _label(given: str) -> tuple[str, str] | None:
    name, colon, value = given.partition(":")
    if given and not (0 < len(name) <= 64 and colon and "\0" not in given and len(given) <= _MOST_TEXT):
        raise ApiError(400, "invalid_parameter", "A label is a name, a colon and a value, such as run:nightly.")
    return (name, value) if given else None


def _plain(given: str) -> str:
    return given.strip()[:_MOST_TEXT].replace("\0", "")


def _priority(given: str) -> int | None:
    if given and given not in reading.PRIORITIES:
        raise ApiError(
            400, "invalid_parameter", f"There is no such priority; there are {', '.join(reading.PRIORITIES)}."
        )
    return reading.PRIORITIES.index(given) if given else None


def _day(given: str, after: int = 0) -> datetime | None:
    """When the day begins, or one so many days after it."""
    try:
        return datetime.strptime(given, "%Y-%m-%d").replace(tzinfo=UTC) + timedelta(days=after) if given else None
    except (ValueError, OverflowError):
        raise ApiError(400, "invalid_parameter", "A day is a year, a month and a day, such as 2026-11-26.") from None


def _is_job(text: str) -> bool:
    try:
        return bool(ids.parse_job(text))
    except NotFound:
        return False


def _place(position: int) -> listing.Place:
    return listing.Place(position % _FIRST_PART, position >= _FIRST_PART)


def _position(place: listing.Place) -> int:
    return place.job_id + (_FIRST_PART if place.failed else 0)
