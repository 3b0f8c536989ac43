"""Schedules: which there are, what became of their runs, when they fire in the coming week; and the page of each."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import pagination
from services.api.dependencies import ContextDep
from services.core.events import actions
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.schedules import firing, runs, schedules, zones
from services.core.schedules.runs import Run
from services.core.schedules.schedules import Schedule
from services.dashboard import access, forms, rendering, strips
from services.dashboard.routes import PageRoute
from services.dashboard.strips import Bar

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 50
_RUNS = strips.RUNS
_ACTS = 20
_TIMES = 10
_DAYS = 7
_FREQUENT = 60  # times in a week: from there on a calendar says how often, and not when
_WRITTEN = 2  # times of a day
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Row:
    """A schedule in the list. `week` has a text for each of the coming days; None: it fires too often to say when."""

    schedule: Schedule
    runs: list[Run]
    strip: list[Bar]
    said: str
    week: list[str] | None


@router.get("/schedules")
def show_schedules(request: Request, context: ContextDep, visitor: access.Signed, cursor: str = "") -> Any:
    visitor.require("view")
    name = f"pages/schedules/{visitor.tenant}"
    after = pagination.decode_name(context.settings.secrets, name, cursor) if cursor else ""
    with context.database.read(visitor.tenant) as connection:
        found = schedules.page(connection, visitor.tenant, after=after, limit=_PER_PAGE + 1)
        page, now = found[:_PER_PAGE], schedules.clock(connection)
        last = runs.last_of(connection, visitor.tenant, [one.id for one in page], _RUNS)
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = [today + timedelta(days=number) for number in range(_DAYS)]
    more = len(found) > _PER_PAGE and pagination.encode_name(context.settings.secret, name, page[-1].name)
    return rendering.page(
        request,
        "schedules.html",
        visitor=visitor,
        rows=[_row(one, last[one.id], days, now) for one in page],
        days=days,
        is_first=not cursor,
        here="/schedules" + (f"?cursor={cursor}" if cursor else ""),
        next_page=more and f"/schedules?cursor={more}",
    )


@router.get("/schedules/{name}")
def show_schedule(request: Request, context: ContextDep, visitor: access.Signed, name: str, cursor: str = "") -> Any:
    visitor.require("view")
    listing = f"pages/schedules/{visitor.tenant}/{name}"
    before = _LAST
    if cursor:
        before = _EPOCH + pagination.decode_cursor(context.settings.secrets, listing, cursor) * _MICROSECOND
    with context.database.read(visitor.tenant) as connection:
        schedule = schedules.find(connection, visitor.tenant, name)
        found = runs.page(connection, visitor.tenant, schedule.id, before=before, limit=_RUNS + 1)
        newest = found if not cursor else runs.last_of(connection, visitor.tenant, [schedule.id], _RUNS)[schedule.id]
        acts = actions.page(connection, visitor.tenant, limit=_ACTS, job=f"schedule/{name}")
        now = schedules.clock(connection)
    page, more = found[:_RUNS], None
    zone = zones.zone(schedule.timezone)
    if len(found) > _RUNS:
        position = (page[-1].instant - _EPOCH) // _MICROSECOND
        more = pagination.encode_cursor(context.settings.secret, listing, position)
    return rendering.page(
        request,
        "schedule.html",
        visitor=visitor,
        row=_row(schedule, newest[:_RUNS], [], now),
        schedule=schedule,
        times=[(moment, zones.wall(zone, moment)) for moment in schedule.times(now, _TIMES)],
        target=json.dumps(json.loads(schedule.target), indent=2, ensure_ascii=False),
        runs=page,
        acts=[replace(act.event, actor_name=act.name) for act in acts],
        public_job=ids.public_job,
        is_first=not cursor,
        here=f"/schedules/{name}" + (f"?cursor={cursor}" if cursor else ""),
        next_page=more and f"/schedules/{name}?cursor={more}#runs",
    )


@router.get("/schedules/{name}/actions/delete")
def ask_to_delete(request: Request, context: ContextDep, visitor: access.Signed, name: str) -> Any:
    visitor.require("operate", "deleting a schedule")
    with context.database.read(visitor.tenant) as connection:
        schedules.find(connection, visitor.tenant, name)
    return rendering.page(
        request,
        "confirm.html",
        visitor=visitor,
        title=f"Delete {name}?",
        sentence="It fires no more, and the list of its runs goes. Jobs that it has submitted stay, and go on.",
        refusal="",
        action=f"/schedules/{name}/actions/delete",
        back=f"/schedules/{name}",
        button="Delete",
        choice="",
        danger=True,
    )


@router.post("/schedules/{name}/actions/{verb}")
def act(request: Request, context: ContextDep, visitor: access.Signed, name: str, verb: str, form: forms.Posted) -> Any:
    """Pauses, resumes, runs or deletes it, and goes back to the page that the button is on."""
    if verb not in ("pause", "resume", "run", "delete"):
        raise NotFound("There is no such action.")
    visitor.require("submit" if verb == "run" else "operate", f"to {verb} a schedule")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    with context.database.begin(visitor.tenant) as connection:
        if verb == "run":
            firing.run_now(connection, schedules.lock(connection, visitor.tenant, name))
        elif verb == "delete":
            schedules.delete(connection, visitor.tenant, name)
        else:
            schedules.pause(connection, visitor.tenant, name, verb == "pause")
    back = "/schedules" if verb == "delete" or form.get("from") == "list" else f"/schedules/{name}"
    return RedirectResponse(rendering.address(request, back), 303)


def _row(schedule: Schedule, newest: list[Run], days: list[datetime], now: datetime) -> Row:
    bars = strips.bars([(run.state, run.instant) for run in newest])
    said = strips.said([run.state for run in newest])
    return Row(schedule, newest, bars, said, _week(schedule, days, now))


def _week(schedule: Schedule, days: list[datetime], now: datetime) -> list[str] | None:
    if not days:
        return []
    end = days[-1] + timedelta(days=1)
    times = [moment for moment in schedule.times(now, _FREQUENT + 1) if moment < end]
    if len(times) > _FREQUENT:
        return None
    written = []
    for day in days:
        of_day = [f"{moment.astimezone(UTC):%H:%M}" for moment in times if day <= moment < day + timedelta(days=1)]
        more = f" +{len(of_day) - _WRITTEN}" if len(of_day) > _WRITTEN else ""
        written.append(", ".join(of_day[:_WRITTEN]) + more)
    return written
