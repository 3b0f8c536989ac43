"""The review of a run: the changed pictures that wait for a mark, or are drawn again: one by one, and many at once."""

import time
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import pagination, parameters
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.core.catalogues import changes, looks, redrawing, reviewing, unmarked
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.catalogues import Catalogue
from services.core.marks.asked import MARKS, Mark
from services.core.model import ids
from services.core.model.errors import Conflict, InvalidSubmission, NotFound
from services.core.policy import policies
from services.core.policy.refusals import Door
from services.dashboard import access, catalogue_words, forms, rendering
from services.dashboard.pages import catalogue_runs, marking
from services.dashboard.routes import PageRoute
from services.dashboard.words import plural

router = APIRouter(route_class=PageRoute)
REDRAW = "redraw"
_LEFT = {"accepted": "Accept", "rejected": "Reject"}  # for all that are left
_SENTENCES = {
    "accepted": "Every changed picture without a mark takes the place of the one before when the review ends.",
    "rejected": "Every changed picture without a mark is left out: the one before stays, and the next run draws it "
    "with another seed.",
    REDRAW: "Every rejected picture is drawn again with another seed, and this review waits for a mark of the new one.",
}
_DRAWING = ("Redraw the rejected?", "Drawing again", "are being drawn again", "Redraw them")
_NO_ACT = f"There is no such act; there are {', '.join(_SENTENCES)}."
WHICH = (unmarked.NONE, *MARKS)


@router.get("/catalogues/{name}/runs/{run_id}/review")
def show_review(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str, mark: str = "none",
    cursor: str = "",
) -> Any:  # fmt: skip
    """`mark`: which of the changed pictures; those without one are left to do."""
    visitor.require("view")
    if mark not in WHICH:
        raise ApiError(400, "invalid_parameter", f"There is no such mark; there are {', '.join(WHICH)}.")
    listing = f"pages/review/{visitor.tenant}/{run_id}/{mark}"
    after = pagination.decode_cursor(context.settings.secrets, listing, cursor) if cursor else -1
    with context.database.read(visitor.tenant) as connection:
        found, run = catalogue_runs.find(connection, visitor, name, run_id)
        if run.job_id is None:
            raise NotFound("This run has drawn nothing that could be looked at.")
        page = reviewing.page(connection, run, mark, after=after, limit=catalogue_runs.PER_PAGE)
        seen = looks.of_changes(connection, found, run, page.changes)
        is_there = unmarked.has_job(connection, run)
        marked = reviewing.counts(connection, run) if is_there else dict.fromkeys(MARKS, 0)
    more = page.place and pagination.encode_cursor(context.settings.secret, listing, page.place)
    here = f"/catalogues/{name}/runs/{run_id}/review"
    kept = f"?mark={mark}" if mark != unmarked.NONE else ""
    join = "&" if kept else "?"
    return rendering.page(
        request,
        "catalogue_review.html",
        visitor=visitor,
        catalogue=found,
        run=run,
        run_id=run_id,
        pairs=[catalogue_runs.pair(found, run, one, seen) for one in page.changes],
        marked=marked,
        mark=mark,
        to_review=run.counts.get("to_review", 0),
        done=reviewing.done(run, marked, left=len(page.changes) if mark == unmarked.NONE else 0),
        undecided=run.definition.get("publish", {}).get("undecided", "reject"),
        verbs=_LEFT,
        kinds=catalogue_words.KINDS,
        public_job=ids.public_job,
        place=here,
        here=here + kept + (f"{join}{urlencode({'cursor': cursor})}" if cursor else ""),
        first_page=here + kept,
        is_first=not cursor,
        next_page=more and f"{here}{kept}{join}{urlencode({'cursor': more})}",
    )


@router.post("/catalogues/{name}/runs/{run_id}/review/marks")
def mark_one(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str, form: forms.Posted
) -> Any:
    """Marks the picture of a change, or has it drawn again. A script gets the part of a page that shows the mark."""
    visitor.require("operate", "reviewing pictures")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    index, word = form.get("index", ""), form.get("mark", "")
    mark = None if word == REDRAW else _mark(word)
    if not parameters.is_whole(index):
        raise ApiError(422, "invalid_value", "index must be the position of a change.")
    models: list[str] = []
    try:
        with context.database.begin(visitor.tenant) as connection:
            found, run = catalogue_runs.find(connection, visitor, name, run_id)
            if not any(one.kind in changes.REVIEWED for one in changes.at(connection, run.id, [int(index)])):
                raise Conflict("This picture replaces none, so it needs no mark.", "not_reviewed")
            if word == REDRAW:
                policy = policies.at(context.settings, connection, Door("redraw", visitor.tenant))
                models = redrawing.redraw(connection, found, run.id, [int(index)], policy=policy).models
            else:
                reviewing.mark(connection, run, [int(index)], mark)
            image = looks.images(connection, run, changes.at(connection, run.id, [int(index)])).get(int(index))
    except InvalidSubmission:
        raise ApiError(409, "not_done", "There is no picture to mark: it has not been drawn yet.") from None
    _notify(context, models)
    place = f"/catalogues/{name}/runs/{run_id}"
    if "hx-request" not in request.headers:
        return RedirectResponse(rendering.address(request, f"{place}/changes/{index}"), 303)
    return rendering.page(
        request, "catalogue_marking.html", visitor=visitor, position=int(index), image=image,
        action=f"{place}/review/marks",
    )  # fmt: skip


@router.get("/catalogues/{name}/runs/{run_id}/review/{word}")
def ask(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str, word: str, after: str = "",
    changed: str = "",
) -> Any:  # fmt: skip
    """Asks whether all that are left get the mark, or all rejected ones are drawn again. With `after`, some have been,
    and the browser goes on."""
    visitor.require("operate", "reviewing pictures")
    if word not in _SENTENCES:
        raise NotFound(_NO_ACT)
    with context.database.read(visitor.tenant) as connection:
        _, run = catalogue_runs.find(connection, visitor, name, run_id)
    _check(run)
    place = f"/catalogues/{name}/runs/{run_id}/review"
    title, goes_on_title, done, button = _DRAWING if word == REDRAW else _marking(word)
    goes_on = parameters.is_index(after) and parameters.is_whole(changed)
    return rendering.page(
        request,
        "mark_all.html",
        visitor=visitor,
        title=goes_on_title if goes_on else title,
        sentence=f"{plural(int(changed), 'picture')} {done} so far; there are more." if goes_on else _SENTENCES[word],
        button="Go on" if goes_on else button,
        danger=word == "rejected",
        goes_on=goes_on,
        after=after,
        changed=changed,
        action=f"{place}/{word}",
        back=place,
    )


@router.post("/catalogues/{name}/runs/{run_id}/review/{word}")
def mark_left(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str, word: str, form: forms.Posted
) -> Any:
    visitor.require("operate", "reviewing pictures")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    if word not in _SENTENCES:
        raise NotFound(_NO_ACT)
    after = form.get("after", "")
    start = int(after) if parameters.is_index(after) else -1
    before = int(form["changed"]) if parameters.is_whole(form.get("changed", "")) else 0
    with context.database.begin(visitor.tenant) as connection:
        found, run = catalogue_runs.find(connection, visitor, name, run_id)
    _check(run)
    if word == REDRAW:
        changed, reached = _redraw_rejected(context, found, run, start)
    else:
        changed, reached = _mark_left(context, visitor.tenant, run, _mark(word), start)
    place = f"/catalogues/{name}/runs/{run_id}/review"
    if reached is not None:
        place += f"/{word}?after={reached}&changed={before + changed}"
    return RedirectResponse(rendering.address(request, place), 303)


def _mark_left(context: Context, tenant: int, run: Run, word: Mark | None, after: int) -> tuple[int, int | None]:
    """How many are marked, and up to which position it came, if its time is over before the end."""
    assert word is not None
    until, changed = time.monotonic() + marking.SLICE_SECONDS, 0
    while True:
        with context.database.begin(tenant) as connection:
            part, place = reviewing.mark_next(connection, run, word, after=after)
        changed += part
        if place is None or time.monotonic() > until:
            return changed, place
        after = place


def _redraw_rejected(context: Context, catalogue: Catalogue, run: Run, after: int) -> tuple[int, int | None]:
    """How many of the rejected pictures behind that position are drawn again, and up to which position it came."""
    with context.database.begin(run.tenant_id) as connection:
        positions, place = unmarked.following(connection, run, "rejected", after, redrawing.AT_ONCE)
        policy = policies.at(context.settings, connection, Door("redraw", run.tenant_id))
        models = redrawing.redraw(connection, catalogue, run.id, positions, policy=policy).models if positions else []
    _notify(context, models)
    return len(positions), place


def _notify(context: Context, models: list[str]) -> None:
    for model in models:  # if it is lost, the workers' timers find the job within seconds
        context.notifier.notify(model)


def _marking(word: str) -> tuple[str, str, str, str]:
    return f"{_LEFT[word]} all that are left?", "Marking", "marked", f"{_LEFT[word]} all"


def _check(run: Run) -> None:
    """Raises Conflict: nothing can be marked any more, or yet."""
    if run.state != "reviewing":
        raise Conflict(f"Nothing waits for a mark: the run is {run.state}.", "review_ended")


def _mark(word: str) -> Mark | None:
    found = next((mark for mark in MARKS if mark == word), None)
    if found is None and word != unmarked.NONE:
        raise NotFound(f"There is no such mark; there are {', '.join(WHICH)}.")
    return found
