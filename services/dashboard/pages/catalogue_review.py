"""The review of a run: the changed pictures that wait for a mark: one by one, and all that are left."""

import time
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import pagination, parameters
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.core.catalogues import changes, looks, reviewing, unmarked
from services.core.catalogues.catalogue_runs import Run
from services.core.jobs import queries
from services.core.marks import marks
from services.core.marks.asked import MARKS, Mark
from services.core.model import ids
from services.core.model.errors import Conflict, InvalidSubmission, NotFound
from services.dashboard import access, catalogue_words, forms, rendering
from services.dashboard.pages import catalogue_runs, marking
from services.dashboard.routes import PageRoute
from services.dashboard.words import plural

router = APIRouter(route_class=PageRoute)
_LEFT = {"accepted": "Accept", "rejected": "Reject"}  # for all that are left
_SENTENCES = {
    "accepted": "Every changed picture without a mark takes the place of the one before when the review ends.",
    "rejected": "Every changed picture without a mark is left out: the one before stays, and the next run draws it "
    "with another seed.",
}
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
    with context.database.begin(visitor.tenant) as connection:
        found, run = catalogue_runs.find(connection, visitor, name, run_id)
        if run.job_id is None:
            raise NotFound("This run has drawn nothing that could be looked at.")
        page = reviewing.page(connection, run, mark, after=after, limit=catalogue_runs.PER_PAGE)
        seen = looks.of_changes(connection, found, run, page.changes)
        is_there = unmarked.has_job(connection, run)
        marked = marks.counts(connection, visitor.tenant, run.job_id) if is_there else dict.fromkeys(MARKS, 0)
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
    """Marks the picture of a change. A script gets the part of a page that shows the mark."""
    visitor.require("operate", "reviewing pictures")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    index, word = form.get("index", ""), _mark(form.get("mark", ""))
    if not parameters.is_whole(index):
        raise ApiError(422, "invalid_value", "index must be the position of a change.")
    try:
        with context.database.begin(visitor.tenant) as connection:
            _, run = catalogue_runs.find(connection, visitor, name, run_id)
            if not any(one.kind in changes.REVIEWED for one in changes.at(connection, run.id, [int(index)])):
                raise Conflict("This picture replaces none, so it needs no mark.", "not_reviewed")
            reviewing.mark(connection, run, [int(index)], word)
            image = queries.image(connection, visitor.tenant, run.job_id or 0, int(index))
    except InvalidSubmission as error:
        raise ApiError(409, "not_done", error.problems[0].message) from None
    place = f"/catalogues/{name}/runs/{run_id}"
    if "hx-request" not in request.headers:
        return RedirectResponse(rendering.address(request, f"{place}/changes/{index}"), 303)
    return rendering.page(
        request, "catalogue_marking.html", visitor=visitor, image=image, action=f"{place}/review/marks"
    )


@router.get("/catalogues/{name}/runs/{run_id}/review/{word}")
def ask(
    request: Request, context: ContextDep, visitor: access.Signed, name: str, run_id: str, word: str, after: str = "",
    changed: str = "",
) -> Any:  # fmt: skip
    """Asks whether all that are left get the mark. With `after`, some have it, and the browser goes on."""
    visitor.require("operate", "reviewing pictures")
    if word not in _LEFT:
        raise NotFound("There is no such act; there are accepted and rejected.")
    with context.database.begin(visitor.tenant) as connection:
        _, run = catalogue_runs.find(connection, visitor, name, run_id)
    _check(run)
    place = f"/catalogues/{name}/runs/{run_id}/review"
    goes_on = parameters.is_index(after) and parameters.is_whole(changed)
    return rendering.page(
        request,
        "mark_all.html",
        visitor=visitor,
        title="Marking" if goes_on else f"{_LEFT[word]} all that are left?",
        sentence=f"{plural(int(changed), 'picture')} marked so far; there are more." if goes_on else _SENTENCES[word],
        button="Go on" if goes_on else f"{_LEFT[word]} all",
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
    if word not in _LEFT:
        raise NotFound("There is no such act; there are accepted and rejected.")
    after = form.get("after", "")
    start = int(after) if parameters.is_index(after) else -1
    before = int(form["changed"]) if parameters.is_whole(form.get("changed", "")) else 0
    with context.database.begin(visitor.tenant) as connection:
        _, run = catalogue_runs.find(connection, visitor, name, run_id)
    _check(run)
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


def _check(run: Run) -> None:
    """Raises Conflict: nothing can be marked any more, or yet."""
    if run.state != "reviewing":
        raise Conflict(f"Nothing waits for a mark: the run is {run.state}.", "review_ended")


def _mark(word: str) -> Mark | None:
    found = next((mark for mark in MARKS if mark == word), None)
    if found is None and word != unmarked.NONE:
        raise NotFound(f"There is no such mark; there are {', '.join(WHICH)}.")
    return found
