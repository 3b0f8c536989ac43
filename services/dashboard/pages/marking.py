"""Marking pictures: one, or all that match a filter, after a question that says how many these are."""

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import parameters
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.core.jobs import queries
from services.core.marks import marks
from services.core.marks.asked import MARKS, Mark
from services.core.model import ids
from services.core.model.errors import InvalidSubmission, NotFound
from services.dashboard import access, forms, reading, rendering
from services.dashboard.choice import Choice, Chosen
from services.dashboard.routes import PageRoute
from services.dashboard.words import plural

router = APIRouter(route_class=PageRoute)
SLICE_SECONDS = 5.0  # of marking before the browser is answered, and asks to go on
VERBS = {"accepted": "Accept", "rejected": "Reject", "starred": "Star", "none": "Clear"}
_BECOME = {"none": "lose their mark"}


@router.post("/jobs/{job_id}/marks")
def mark_one(request: Request, context: ContextDep, visitor: access.Signed, job_id: str, form: forms.Posted) -> Any:
    """Marks the image of an index. A script gets the part of a page that shows the mark."""
    visitor.require("operate", "marking pictures")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    number, index, mark = ids.parse_job(job_id), form.get("index", ""), _mark(form.get("mark", ""))
    if not parameters.is_whole(index):
        raise ApiError(422, "invalid_value", "index must be that of an image.")
    try:
        with context.database.begin(visitor.tenant) as connection:
            marks.put(connection, visitor.tenant, number, [int(index)], mark)
            image = queries.image(connection, visitor.tenant, number, int(index))
    except InvalidSubmission as error:
        raise ApiError(409, "not_done", error.problems[0].message) from None
    if "hx-request" not in request.headers:
        return RedirectResponse(rendering.address(request, f"/jobs/{job_id}/images/{index}"), 303)
    return rendering.page(request, "marking.html", visitor=visitor, job_id=job_id, image=image)


@router.get("/jobs/{job_id}/marks/{word}")
def ask(
    request: Request,
    context: ContextDep,
    visitor: access.Signed,
    job_id: str,
    word: str,
    chosen: Chosen,
    after: str = "",
    changed: str = "",
) -> Any:
    """Asks whether all that match get the mark. With `after`, some have it, and the browser goes on."""
    visitor.require("operate", "marking pictures")
    _mark(word)
    job = reading.job(context, visitor.tenant, ids.parse_job(job_id))
    with context.database.read(visitor.tenant) as connection:
        count = chosen.marked(job.counts, marks.counts(connection, visitor.tenant, job.view.id))
    if count is None:
        raise ApiError(422, "invalid_parameter", "Only done images can be marked; choose them by state or mark.")
    if parameters.is_whole(after) and parameters.is_whole(changed):
        title, sentence = "Marking", f"{plural(int(changed), 'image')} marked so far; there are more to look at."
    else:
        title, sentence = f"{VERBS[word]} {plural(count, 'image')}?", _sentence(count, chosen, word)
    return rendering.page(
        request,
        "mark_all.html",
        visitor=visitor,
        job=job,
        title=title,
        sentence=sentence,
        button="Go on" if after else VERBS[word],
        danger=word == "rejected",
        goes_on=bool(after),
        after=after,
        changed=changed,
        action=f"/jobs/{job.id}/marks/{word}{chosen.query}",
        back=f"/jobs/{job.id}/images{chosen.query}",
    )


@router.post("/jobs/{job_id}/marks/{word}")
def mark_all(
    request: Request,
    context: ContextDep,
    visitor: access.Signed,
    job_id: str,
    word: str,
    chosen: Chosen,
    form: forms.Posted,
) -> Any:
    visitor.require("operate", "marking pictures")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    mark, number = _mark(word), ids.parse_job(job_id)
    if not chosen.is_of_done:
        raise ApiError(422, "invalid_parameter", "Only done images can be marked; choose them by state or mark.")
    after = form.get("after", "")
    start = int(after) if parameters.is_index(after) else -1
    before = int(form["changed"]) if parameters.is_whole(form.get("changed", "")) else 0
    changed, reached = _put(context, visitor.tenant, number, mark, chosen.mark or None, start)
    place = f"/jobs/{job_id}/images{chosen.query}"
    if reached is not None:
        rest = f"after={reached}&changed={before + changed}"
        place = f"/jobs/{job_id}/marks/{word}{chosen.query}{'&' if chosen.query else '?'}{rest}"
    return RedirectResponse(rendering.address(request, place), 303)


def _put(
    context: Context, tenant: int, number: int, mark: Mark | None, which: str | None, after: int
) -> tuple[int, int | None]:
    """How many marks are new, and up to which index it came, if its time is over before the end."""
    until, changed = time.monotonic() + SLICE_SECONDS, 0
    while True:
        with context.database.begin(tenant) as connection:
            part = marks.put_matching(connection, tenant, number, mark, after=after, which=which)
        changed += part.changed
        if part.reached is None or time.monotonic() > until:
            return changed, part.reached
        after = part.reached


def _mark(word: str) -> Mark | None:
    found = next((mark for mark in MARKS if mark == word), None)
    if found is None and word != "none":
        raise NotFound(f"There is no such mark; there are {', '.join(VERBS)}.")
    return found


def _sentence(count: int, chosen: Choice, word: str) -> str:
    which = chosen.words or "done"
    become = _BECOME.get(word, f"become {word}")
    replaced = " Marks that they have now are replaced." if word != "none" and chosen.mark != "none" else ""
    return f"{plural(count, f'{which} image')} {become}.{replaced}"
