"""What people do to a job: each action asks first, says how many images it touches, and then happens once.

An action that came too late says what happened instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import RedirectResponse

from services.api import dependencies, parameters
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.v1 import deletion as deletion_routes
from services.api.v1 import job_actions, jobs
from services.core.deletion import jobs as deletion
from services.core.exports import exports, options, records
from services.core.jobs import failures, lifecycle, retry
from services.core.model import ids, requests
from services.core.model.errors import InvalidSubmission, NotFound
from services.core.model.states import CLAIMABLE_JOB_STATES
from services.core.policy import policies
from services.core.policy.refusals import Door
from services.dashboard import access, forms, reading, rendering
from services.dashboard.reading import Shown
from services.dashboard.routes import PageRoute
from services.dashboard.words import plural, size

router = APIRouter(route_class=PageRoute)
_MOST_FILES = 1000


@dataclass(frozen=True, slots=True)
class Action:
    """`applies`: whether it makes sense now. `run` returns the path to go to, or None for the job's page."""

    word: str
    scope: str
    applies: Callable[[Shown], bool]
    sentence: Callable[[Shown], str]
    run: Callable[[Context, int, Shown, forms.Form], str | None]


def of(job: Shown, visitor: access.Visitor) -> list[tuple[str, str]]:
    """Name and word of each action that applies to the job and that the visitor may do."""
    return [(name, one.word) for name, one in ACTIONS.items() if one.applies(job) and visitor.may(one.scope)]


@router.get("/jobs/{job_id}/actions/{name}")
def ask(
    request: Request,
    context: ContextDep,
    visitor: access.Signed,
    job_id: str,
    name: str,
    cause: str = "",
    index: str = "",
) -> Any:
    """`cause` or `index`: of a retry, which images."""
    action, job = _find(context, visitor, job_id, name)
    sentence, refusal = action.sentence(job), ""
    some = {key: value for key, value in (("cause", cause[:64]), ("index", index[:10])) if value and name == "retry"}
    if some:
        sentence = _retrying_some(context, visitor.tenant, job, **some)
    if name == "delete":
        sentence, refusal = _what_goes(context, visitor.tenant, job)
    is_retry_of_all = name == "retry" and job.counts["cancelled"] and not some
    choice = "priority" if name == "priority" else "cancelled" if is_retry_of_all else ""
    return rendering.page(
        request,
        "confirm.html",
        visitor=visitor,
        job=job,
        title=f"{action.word} {job.name}?",
        sentence=sentence,
        refusal=refusal,
        action=f"/jobs/{job.id}/actions/{name}",
        back=f"/jobs/{job.id}",
        button=action.word,
        choice=choice,
        kept=some,
        danger=name in ("cancel", "delete"),
    )


@router.post("/jobs/{job_id}/actions/export")
def export(request: Request, context: ContextDep, visitor: access.Signed, job_id: str, form: forms.Posted) -> Any:
    """Exports a finished job."""
    visitor.require("submit", "an export")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    number = ids.parse_job(job_id)
    try:
        chosen: dict[str, Any] = {"mark": form["mark"]} if form.get("mark") else {}
        if scores := [one.strip() for one in form.get("scores", "").split(",") if one.strip()]:
            chosen["scores"] = scores
        order = options.parse({"format": form.get("format", "")} | ({"options": chosen} if chosen else {}))
    except InvalidSubmission as error:
        raise ApiError(422, "invalid_value", error.problems[0].message) from None
    base_url = dependencies.base_url(context.settings, request)
    with context.database.begin(visitor.tenant) as connection:
        exports.create(connection, visitor.tenant, number, order, base_url=base_url)
    return RedirectResponse(rendering.address(request, f"/jobs/{job_id}#exports"), 303)


@router.post("/jobs/{job_id}/actions/{name}")
def act(
    request: Request, context: ContextDep, visitor: access.Signed, job_id: str, name: str, form: forms.Posted
) -> Any:
    action, job = _find(context, visitor, job_id, name)
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    place = action.run(context, visitor.tenant, job, form)
    return RedirectResponse(rendering.address(request, place or f"/jobs/{job.id}"), 303)


@router.get("/jobs/{job_id}/exports/{export_id}")
def show_export(request: Request, context: ContextDep, visitor: access.Signed, job_id: str, export_id: str) -> Any:
    """The files of an export, with links that hold for some minutes."""
    visitor.require("view")
    with context.database.read(visitor.tenant) as connection:
        found = records.find(connection, visitor.tenant, records.parse_id(export_id))
        files = records.files(connection, found.id, limit=_MOST_FILES) if found.state == "completed" else []
    seconds = context.settings.url_seconds
    links = [(one, context.store.presign(one.object_key, seconds, one.path.rpartition("/")[2])) for one in files]
    return rendering.page(request, "export.html", visitor=visitor, export=found, job_id=job_id, files=links)


def _find(context: Context, visitor: access.Visitor, job_id: str, name: str) -> tuple[Action, Shown]:
    if name not in ACTIONS:
        raise NotFound("There is no such action.")
    visitor.require(ACTIONS[name].scope, f"{ACTIONS[name].word.lower()} of a job")
    return ACTIONS[name], reading.job(context, visitor.tenant, ids.parse_job(job_id))


def _cancelling(job: Shown) -> str:
    waiting, running, done = (job.counts[name] for name in ("queued", "rendering", "done"))
    return (
        f"{plural(waiting, 'image')} that wait will not be rendered, and {plural(running, 'image')} being rendered "
        f"stop at their next step. {plural(done, 'image')} that are done stay. This is final."
    )


def _pausing(job: Shown) -> str:
    waiting, running = job.counts["queued"], job.counts["rendering"]
    return (
        f"None of the {plural(waiting, 'image')} that wait begin until you resume it; {plural(running, 'image')} being "
        "rendered go on."
    )


def _retrying(job: Shown) -> str:
    return f"{plural(job.counts['failed'], 'failed image')} become a new job, with the same seeds and names."


def _retrying_some(context: Context, tenant: int, job: Shown, *, cause: str = "", index: str = "") -> str:
    if index:
        return f"The failed image {index} becomes a new job, with the same seed and name."
    with context.database.read(tenant) as connection:
        causes = {one.code: one.images for one in failures.of_job(connection, tenant, job.view.id)}
    images = plural(causes.get(cause, 0), "image")
    return f"{images} that failed with {cause} become a new job, with the same seeds and names."


def _what_goes(context: Context, tenant: int, job: Shown) -> tuple[str, str]:
    """What deleting takes, and why it is refused now, if it is."""
    with context.database.read(tenant) as connection:
        found = deletion.stored(connection, tenant, job.view.id)
    about = "about " if found.is_estimate else ""
    sentence = (
        f"{plural(found.stored_images, 'stored image')}, {plural(found.exports, 'export')} and "
        f"{plural(found.files, 'output file')} are deleted, {about}{size(found.bytes)}. This is final."
    )
    return sentence, "" if found.refusal is None else str(found.refusal)


def _cancel(context: Context, tenant: int, job: Shown, _form: forms.Form) -> None:
    jobs.cancel_job(context, tenant, job.id)


def _pause(context: Context, tenant: int, job: Shown, _form: forms.Form) -> None:
    job_actions.pause_job(context, tenant, job.id)


def _resume(context: Context, tenant: int, job: Shown, _form: forms.Form) -> None:
    job_actions.resume_job(context, tenant, job.id)


def _prioritize(context: Context, tenant: int, job: Shown, form: forms.Form) -> None:
    if form.get("priority") not in requests.PRIORITIES:
        raise ApiError(422, "invalid_value", "priority must be high, normal or low.")
    with context.database.begin(tenant) as connection:
        lifecycle.change(connection, tenant, job.view.id, priority=requests.PRIORITIES[form["priority"]])


def _retry(context: Context, tenant: int, job: Shown, form: forms.Form) -> str:
    some: dict[str, Any] = {"cause": form["cause"]} if form.get("cause") else {}
    if form.get("index"):
        some = {"indexes": [int(form["index"]) if parameters.is_whole(form["index"]) else -1]}
    try:
        asked = requests.RetryOptions.model_validate(
            {"include_cancelled": form.get("include_cancelled") == "true", **some}
        )
    except ValidationError:
        raise ApiError(422, "invalid_value", "Give the index of a failed image, or the code of a cause.") from None
    with context.database.begin(tenant) as connection:
        policy = policies.at(context.settings, connection, Door("retry", tenant))
        receipt = retry.retry(connection, tenant, job.view.id, asked, policy=policy)
    for model in receipt.models:  # if it is lost, the workers' timers find the job within seconds
        context.notifier.notify(model)
    return f"/jobs/{ids.public_job(receipt.job_id)}"


def _delete(context: Context, tenant: int, job: Shown, _form: forms.Form) -> str:
    deletion_routes.delete_job(context, tenant, job.id)
    return "/jobs"


def _is_claimable(job: Shown) -> bool:
    return job.view.state in CLAIMABLE_JOB_STATES


ACTIONS = {
    "pause": Action("Pause", "operate", lambda job: _is_claimable(job) and not job.view.paused, _pausing, _pause),
    "resume": Action(
        "Resume",
        "operate",
        lambda job: _is_claimable(job) and job.view.paused,
        lambda job: f"{plural(job.counts['queued'], 'image')} that wait are rendered again.",
        _resume,
    ),
    "priority": Action(
        "Priority",
        "operate",
        lambda job: not job.is_final,
        lambda job: f"It holds for {plural(job.counts['queued'], 'image')} that wait.",
        _prioritize,
    ),
    "retry": Action(
        "Retry", "submit", lambda job: job.is_final and bool(job.counts["failed"] or job.counts["cancelled"]),
        _retrying, _retry,
    ),
    "cancel": Action(
        "Cancel", "operate", lambda job: not job.is_final and job.view.state != "cancelling", _cancelling, _cancel
    ),
    "delete": Action("Delete", "operate", lambda job: job.is_final or job.view.state == "draft", lambda _: "", _delete),
}  # fmt: skip
