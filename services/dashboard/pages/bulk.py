"""Acts on every job that matches the filter of the list: asks first, with the number of jobs and images, and shows how
far an act is. The filter is the list's, in the address."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api.body import json_object
from services.api.dependencies import ContextDep
from services.api.errors import ApiError, SubmissionError
from services.api.v1 import bulk as routes
from services.core.bulk import bulk
from services.core.bulk.asked import BulkRequest
from services.core.jobs import job_query
from services.core.model import job_words
from services.core.model.errors import NotFound
from services.dashboard import access, forms, rendering
from services.dashboard.choices import CHOICES, Choice
from services.dashboard.routes import PageRoute
from services.dashboard.words import plural

router = APIRouter(route_class=PageRoute)
_LISTED = 50


@router.get("/bulk/new/{name}")
def ask(
    request: Request,
    context: ContextDep,
    visitor: access.Signed,
    name: str,
) -> Any:
    kept = {key: value for key in job_words.WORDS if (value := request.query_params.get(key, "").strip())}
    choice = _choice(visitor, name)
    asked = _asked(choice, kept, "high")  # which one makes no difference yet
    counted = routes.count(context, visitor.tenant, asked) if choice.verb != "prioritize" else None
    if counted is None:
        highs = [routes.count(context, visitor.tenant, _asked(choice, kept, word)) for word in _WORDS]
        counted = max(highs, key=lambda one: one.jobs)
    jobs = plural(counted.jobs, "job")
    images = f"{plural(counted.images, 'image')} {choice.images}."
    if not counted.is_all:
        jobs, images = f"at least {jobs}", f"At least {images}"
    return rendering.page(
        request,
        "bulk_confirm.html",
        visitor=visitor,
        name=name,
        choice=choice,
        title=f"{choice.word} {jobs}?",
        sentence=images + (" This is final." if choice.is_final else ""),
        jobs=counted.jobs,
        filters={key: kept.get(key, "") for key in job_words.WORDS},
        said=_said(kept),
        here="/jobs" + (f"?{urlencode(kept)}" if kept else ""),
    )


@router.post("/bulk/new/{name}")
def act(request: Request, context: ContextDep, visitor: access.Signed, name: str, form: forms.Posted) -> Any:
    choice = _choice(visitor, name)
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    if missing := [
        key for key in job_words.WORDS if f"of-{key}" not in form
    ]:  # without its filter it would touch every job
        raise ApiError(422, "missing_field", f"The form lacks of-{missing[0]}; open the question again.")
    kept = {key: form[f"of-{key}"] for key in job_words.WORDS}
    found, _ = routes.ask(context, visitor.principal, _asked(choice, kept, form.get("priority", "")))
    return RedirectResponse(rendering.address(request, f"/bulk/{bulk.public_id(found.id)}"), 303)


@router.get("/bulk/{act_id}")
def show(request: Request, context: ContextDep, visitor: access.Signed, act_id: str) -> Any:
    visitor.require("view")
    number = bulk.parse_id(act_id)
    with context.database.read(visitor.tenant) as connection:
        found = bulk.find(connection, visitor.tenant, number)
        others = bulk.listed(connection, visitor.tenant, before=number, limit=_LISTED)
    kept = job_query.said(found.wanted)
    return rendering.page(
        request,
        "bulk.html",
        visitor=visitor,
        act=found,
        act_id=act_id,
        public_id=bulk.public_id,
        others=others,
        title=_title,
        said=_said(kept),
        here="/jobs" + (f"?{urlencode(kept)}" if kept else ""),
        changed=max(0, found.jobs - found.done - found.lost) if found.state == "completed" else 0,
    )


@router.post("/bulk/{act_id}/stop")
def stop(request: Request, context: ContextDep, visitor: access.Signed, act_id: str, form: forms.Posted) -> Any:
    visitor.require("operate", "stopping an act")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    with context.database.begin(visitor.tenant) as connection:
        bulk.stop(connection, visitor.tenant, bulk.parse_id(act_id))
    return RedirectResponse(rendering.address(request, f"/bulk/{act_id}"), 303)


_WORDS = ("high", "normal", "low")


def _choice(visitor: access.Visitor, name: str) -> Choice:
    choice = CHOICES.get(name)
    if choice is None:
        raise NotFound("There is no such act.")
    visitor.require(choice.scope, f"{choice.word.lower()} many jobs".replace(" of many", " many"))
    return choice


def _asked(choice: Choice, given: Mapping[str, str], priority: str) -> BulkRequest:
    """Raises ApiError: the filter or the priority makes no sense."""
    status = given.get("status", "")
    if status not in job_words.STATES:
        raise ApiError(
            400, "invalid_parameter", f"There is no such status; there are {', '.join(job_words.STATES)[2:]}."
        )
    asked: dict[str, Any] = {
        "action": choice.verb,
        "status": list(job_words.STATES[status]) or None,
        "label": given.get("label") or None,
        "text": given.get("q") or None,
        "of_priority": given.get("priority") or None,
        "model": given.get("model") or None,
        "submitted_by": given.get("who") or None,
        "since": given.get("since") or None,
        "until": given.get("until") or None,
        "except_running": choice.except_running,
        "priority": priority if choice.verb == "prioritize" else None,
    }
    try:
        return json_object.parse(BulkRequest, json.dumps(asked).encode(), BulkRequest.ALLOWED)
    except SubmissionError as error:
        raise ApiError(400, "invalid_parameter", str(error)) from None


def _said(kept: dict[str, str]) -> str:
    """The filter in words."""
    words = {
        "status": "in the state {}",
        "label": "with the label {}",
        "q": "with “{}” in a label",
        "model": "rendered by {}",
        "priority": "of priority {}",
        "who": "submitted by {}",
        "since": "submitted since {}",
        "until": "submitted until {}",
    }
    said = [sentence.format(kept[name].replace("_", " ")) for name, sentence in words.items() if name in kept]
    return f"Every job {' and '.join(said)}" if said else "Every job"


def _title(act: bulk.BulkAct) -> str:
    for choice in CHOICES.values():
        if (choice.verb, choice.except_running) == (act.verb, bool(act.options.get("except_running"))):
            word = choice.word + (f" to {act.options['priority']}:" if "priority" in act.options else "")
            return f"{word} {plural(act.jobs, 'job')}".replace(" of to ", " to ")
    return act.verb
