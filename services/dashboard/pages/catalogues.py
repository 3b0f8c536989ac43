"""Catalogues: which there are and what needs a person; the page of each; running one, and rolling one back."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import pagination, parameters
from services.api.dependencies import ContextDep
from services.api.errors import ApiError
from services.core.catalogues import catalogue_runs as runs
from services.core.catalogues import catalogues as core
from services.core.catalogues import destinations, differences, needs, publishing, versions
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.catalogues.definition import Definition
from services.core.catalogues.versions import Version
from services.core.model.errors import NotFound
from services.core.schedules import of_catalogues, schedules, zones
from services.core.schedules.schedules import Schedule
from services.dashboard import access, catalogue_words, forms, rendering, strips
from services.dashboard.routes import PageRoute
from services.dashboard.words import plural

router = APIRouter(route_class=PageRoute)
NEWEST = 2**63 - 1
_PER_PAGE = 30
_VERSIONS = 15
_TIMES = 10
_LAST_VERSION = 2**31 - 1
_RUNS = ("run", "plan", "accept")  # the last one also removes more items than removed_limit allows


@dataclass(frozen=True, slots=True)
class Row:
    """A catalogue in the list. `current` is the version that readers see, `made_by` the run that made it, `need` what a
    person has to do, if anything."""

    catalogue: Catalogue
    run: Run | None
    current: Version | None
    made_by: Run | None
    schedule: Schedule | None
    need: str


@router.get("/catalogues")
def show_catalogues(request: Request, context: ContextDep, visitor: access.Signed, cursor: str = "") -> Any:
    visitor.require("view")
    listing = f"pages/catalogues/{visitor.tenant}"
    after = pagination.decode_name(context.settings.secrets, listing, cursor) if cursor else ""
    with context.database.read(visitor.tenant) as connection:
        found = core.page(connection, visitor.tenant, after=after, limit=_PER_PAGE + 1)
        page = found[:_PER_PAGE]
        newest = runs.newest_of(connection, [one.id for one in page])
        current = versions.each(connection, {one.id: one.published for one in page if one.published})
        made_by = runs.these(connection, [one.run_id for one in current.values()])
        names = {of_catalogues.name_of(one.name): one.id for one in page}
        fires = schedules.named(connection, visitor.tenant, list(names))
        now = schedules.clock(connection)
    scheduled = {names[name]: one for name, one in fires.items()}
    more = len(found) > _PER_PAGE and pagination.encode_name(context.settings.secret, listing, page[-1].name)
    return rendering.page(
        request,
        "catalogues.html",
        visitor=visitor,
        rows=[
            Row(one, run, version, made_by.get(version.run_id) if version else None, scheduled.get(one.id),
                catalogue_words.need(run) if run and needs.is_needed(run, one.published) else "")
            for one in page
            for run, version in [(newest.get(one.id), current.get(one.id))]
        ],
        public_id=runs.public_id,
        age=lambda moment: (now - moment).total_seconds(),
        is_first=not cursor,
        here="/catalogues" + (f"?cursor={cursor}" if cursor else ""),
        next_page=more and f"/catalogues?cursor={more}",
    )  # fmt: skip


@router.get("/catalogues/{name}")
def show_catalogue(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, cursor: str = "", below: str = ""
) -> Any:
    """`cursor`: of the runs; `below`: the versions below that number."""
    visitor.require("view")
    listing = f"pages/catalogues/{visitor.tenant}/{name}"
    before = pagination.decode_cursor(context.settings.secrets, listing, cursor) if cursor else NEWEST
    highest = int(below) if parameters.is_whole(below, digits=9) else _LAST_VERSION
    with context.database.read(visitor.tenant) as connection:
        found = core.find(connection, visitor.tenant, name)
        past = runs.page(connection, found.id, before=before, limit=strips.RUNS + 1)
        newest = past if not cursor else runs.page(connection, found.id, before=NEWEST, limit=strips.RUNS)
        kept = versions.page(connection, found.id, before=highest, limit=_VERSIONS + 1)
        current = versions.each(connection, {found.id: found.published}).get(found.id) if found.published else None
        shown = [*kept[:_VERSIONS], *([current] if current else [])]
        made_by = runs.these(connection, sorted({one.run_id for one in shown}))
        schedule = schedules.named(connection, visitor.tenant, [of_catalogues.name_of(name)])
        copied = None if cursor else destinations.find(connection, found.id)
        now = schedules.clock(connection)
    last = next((run for run in newest if not run.plan_only), None)
    fires = next(iter(schedule.values()), None)
    page = past[: strips.RUNS]
    more = None
    if len(past) > strips.RUNS:
        more = pagination.encode_cursor(context.settings.secret, listing, page[-1].id)
    return rendering.page(
        request,
        "catalogue.html",
        visitor=visitor,
        catalogue=found,
        definition=_definition(found),
        written=json.dumps(found.definition, indent=2, ensure_ascii=False),
        last=last,
        need=catalogue_words.need(last) if last and needs.is_needed(last, found.published) else "",
        current=current,
        made_by=made_by,
        age=lambda moment: (now - moment).total_seconds(),
        strip=strips.bars([(run.state, run.created_at) for run in newest]),
        said=strips.said([run.state for run in newest[: strips.RUNS]]),
        schedule=fires,
        copied=copied,
        times=_times(fires, now),
        versions=kept[:_VERSIONS],
        older=kept[_VERSIONS - 1].version if len(kept) > _VERSIONS else None,
        is_newest=highest == _LAST_VERSION,
        runs=page,
        words=catalogue_words,
        public_id=runs.public_id,
        is_first=not cursor and not below,
        here=f"/catalogues/{name}",
        next_page=more and f"/catalogues/{name}?cursor={more}#runs",
    )


@router.get("/catalogues/{name}/actions/publish")
def ask_to_publish(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, version: str = ""
) -> Any:  # fmt: skip
    """Asks whether another kept version takes the place of the published one, and says what that changes."""
    visitor.require("operate", "publishing a version")
    number = _version(version)
    with context.database.read(visitor.tenant) as connection:
        found = core.find(connection, visitor.tenant, name)
        chosen = versions.find(connection, found.id, number)
        now = versions.each(connection, {found.id: found.published}).get(found.id) if found.published else None
        changed, is_all = (0, True)
        if now is not None:
            changed, is_all = differences.count(connection, found.id, now.version, number)
    is_older = now is not None and number < now.version
    return rendering.page(
        request,
        "confirm.html",
        visitor=visitor,
        title=f"{'Roll back to' if is_older else 'Publish'} version {number}?",
        sentence=_what_changes(chosen, now, changed, is_all=is_all),
        refusal="Readers see this version already." if now is not None and now.version == number else "",
        action=f"/catalogues/{name}/actions/publish",
        kept={"version": str(number)},
        back=f"/catalogues/{name}",
        button="Roll back" if is_older else "Publish",
        choice="",
        danger=is_older,
    )


@router.post("/catalogues/{name}/actions/{verb}")
def act(request: Request, context: ContextDep, visitor: access.Signed, name: str, verb: str, form: forms.Posted) -> Any:
    """Begins a run and goes to its page, or publishes a version."""
    if verb not in (*_RUNS, "publish"):
        raise NotFound("There is no such action.")
    visitor.require("operate" if verb == "publish" else "submit", f"to {verb} a catalogue")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    back = f"/catalogues/{name}"
    with context.database.begin(visitor.tenant) as connection:
        if verb == "publish":
            publishing.publish(connection, visitor.tenant, name, _version(form.get("version", "")))
        else:
            run_id = runs.begin(
                connection, core.find(connection, visitor.tenant, name), plan_only=verb == "plan",
                accept_removed=verb == "accept",
            )  # fmt: skip
            back += f"/runs/{runs.public_id(run_id)}"
    return RedirectResponse(rendering.address(request, back), 303)


def _version(given: str) -> int:
    if not parameters.is_whole(given, digits=9):
        raise ApiError(422, "invalid_parameter", "version must be the number of a kept version.")
    return int(given)


def _definition(catalogue: Catalogue) -> Definition | None:
    """None: it is of a newer release, and is shown as it is written."""
    try:
        return Definition.model_validate(catalogue.definition)
    except ValueError:
        return None


def _times(schedule: Schedule | None, now: datetime) -> list[tuple[datetime, datetime]]:
    if schedule is None:
        return []
    zone = zones.zone(schedule.timezone)
    return [(moment, zones.wall(zone, moment)) for moment in schedule.times(now, _TIMES)]


def _what_changes(chosen: Version, now: Version | None, changed: int, *, is_all: bool) -> str:
    if now is None:
        return f"Readers will see its {plural(chosen.images, 'picture')}; so far they see none."
    differ = f"{'' if is_all else 'at least '}{plural(changed, 'picture')} {'differs' if changed == 1 else 'differ'}"
    if not changed:
        differ = "no picture differs" if is_all else "pictures may differ"
    return (
        f"It takes the place of version {now.version} at once: {differ}, and "
        f"readers will see {plural(chosen.images, 'picture')} instead of {now.images:,}. Version {now.version} is kept."
    )
