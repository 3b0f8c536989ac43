"""The action log: who did what to which job, key or worker, and when. Its filters are in the address."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request

from services.api import pagination
from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.core.events import actions, queries
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.tenants import api_keys
from services.dashboard import access, rendering, sentences
from services.dashboard.pages import views
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 100
_LONGEST_ACTOR = 200
_PROGRAMS = ("scheduler",)


@router.get("/settings/log")
def show_log(
    request: Request,
    context: ContextDep,
    visitor: access.Signed,
    who: str = "",
    what: str = "",
    job: str = "",
    first: str = "",
    last: str = "",
    cursor: str = "",
) -> Any:
    visitor.require("view")
    chosen = {"who": who.strip(), "what": what, "job": job.strip(), "first": first, "last": last}
    kept = {name: value for name, value in chosen.items() if value}
    if what and what not in sentences.KINDS:
        raise ApiError(400, "invalid_parameter", "There is no such act; the page lists those there are.")
    about = _subject(chosen["job"])
    since, until = _day("first", first), _day("last", last)
    name = f"pages/log/{visitor.tenant}/{sorted(kept.items())}"
    before = pagination.decode_cursor(context.settings.secrets, name, cursor) if cursor else actions.NEWEST
    with context.database.read(visitor.tenant) as connection:
        keys = api_keys.listed(connection, visitor.tenant)
        found = actions.page(
            connection,
            visitor.tenant,
            before=before,
            limit=_PER_PAGE + 1,
            actor=_actor(chosen["who"], keys),
            verb=what or None,
            job=about,
            since=since,
            until=until and until + timedelta(days=1),
        )
    page = found[:_PER_PAGE]
    more = len(found) > _PER_PAGE and pagination.encode_cursor(context.settings.secret, name, page[-1].event.seq)
    here = "/settings/log" + (f"?{urlencode(kept)}" if kept else "")
    return rendering.page(
        request,
        "action_log.html",
        visitor=visitor,
        acts=[(act, sentences.of(act.event, names_hosts=visitor.principal.sees_hosts)) for act in page],
        chosen=chosen,
        kinds=[(kind, words[0]) for kind, words in sentences.KINDS.items()],
        actors=[(f"key/{key.id}", key.name) for key in keys[::-1]] + [(one, one) for one in _PROGRAMS],
        is_first=not cursor,
        is_filtered=bool(kept),
        menus={"views": views.menu(context, visitor, "log", urlencode(kept))},
        here=here,
        next_page=more and f"/settings/log?{urlencode(kept | {'cursor': more})}",
    )


def _actor(who: str, keys: Sequence[api_keys.Key]) -> str | None:
    """The actor that was meant: itself, or the newest key of that name."""
    if not who:
        return None
    if len(who) > _LONGEST_ACTOR or "\0" in who:
        raise ApiError(400, "invalid_parameter", "Nobody has such a name.")
    named = [key for key in keys if key.name.casefold() == who.casefold()]
    return f"key/{named[-1].id}" if named else who


def _subject(job: str) -> str | None:
    try:
        return queries.job(ids.parse_job(job)) if job else None
    except NotFound:
        raise ApiError(400, "invalid_parameter", "A job's id looks like job_039y879re4x32.") from None


def _day(name: str, given: str) -> datetime | None:
    try:
        return datetime.combine(date.fromisoformat(given), datetime.min.time(), UTC) if given else None
    except ValueError:
        raise ApiError(400, "invalid_parameter", f"{name} must be a day, such as 2026-11-26.") from None
