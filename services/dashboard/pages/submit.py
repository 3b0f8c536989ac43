"""Submitting by hand: a prompt, a template with what varies in it, or a file. What was filled in is shown as the job it
would be before it is one, and a form that is sent twice makes one job."""

import io
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from services.api import dependencies
from services.api.body import multipart, streaming
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError, SubmissionError
from services.api.v1 import estimation
from services.api.v1 import submissions as submission_routes
from services.api.v1.estimation import Estimate
from services.core.fleet import models
from services.core.items.errors import Unreadable, WrongOption
from services.core.jobs import inputs, submissions
from services.core.jobs.estimates import WorkTally
from services.core.model import ids, requests
from services.core.model.errors import (
    IdempotencyBusy,
    IdempotencyConflict,
    IdempotencyGone,
    InvalidSubmission,
    Problem,
    QuotaExceeded,
    SettingsError,
)
from services.core.policy import policies
from services.dashboard import access, asked, commands, forms, rendering, uploaded
from services.dashboard.access import Visitor
from services.dashboard.asked import Asked
from services.dashboard.routes import PageRoute
from services.dashboard.uploaded import Upload

router = APIRouter(route_class=PageRoute)
PROBLEMS_SHOWN = 20
_PICTURES_SHOWN = 4
_MOST_BYTES = 1 << 20
_MOST_FIELDS = 24
_SELDOM = (
    "model", "num_inference_steps", "guidance_scale", "output_format", "output_compression",
    "reproducibility_class", "dedupe", "embed_prompt", "in_shards",
    *asked.READING,
)  # fmt: skip
_AGAIN = "This form has made a job before, of other content. Send it once more to make another one."


@dataclass(frozen=True, slots=True)
class Received:
    """A form, and the file that came with it."""

    form: forms.Form
    file: multipart.Form | None = None

    @property
    def name(self) -> str:
        return self.file.filename if self.file is not None and self.file.size else ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the page says of a form: its problems, or the job that it would make."""

    problems: list[Problem] = field(default_factory=list)
    more: bool = False
    unit: str = "Line"
    counted: Estimate | None = None
    first: list[dict[str, Any]] = field(default_factory=list)
    how: str = ""
    same: list[tuple[str, str]] = field(default_factory=list)
    redrawn: list[str] = field(default_factory=list)


@router.get("/submit")
def show_form(
    request: Request, context: ContextDep, visitor: access.Signed, kind: str = "prompt", image: str = ""
) -> Any:  # fmt: skip
    visitor.require("submit", "submitting")
    if kind not in asked.KINDS:
        raise ApiError(400, "invalid_parameter", f"There is no such form; there are {', '.join(asked.KINDS)}.")
    return page(request, visitor, registry(context, visitor.tenant), {"kind": kind, "image": image})


@router.post("/submit/preview")
async def preview(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    """Checks what was filled in and counts it; records nothing."""
    visitor.require("submit", "submitting")
    async with _received(request, context) as received:
        base = dependencies.base_url(context.settings, request)
        look = partial(_look, context, visitor.tenant, received, base)
        found, outcome = await context.submissions.run(visitor.tenant, look)
    return page(request, visitor, found, received.form, outcome)


@router.post("/submit")
async def submit(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    """Makes the job, as POST /v1/jobs does."""
    visitor.require("submit", "submitting")
    async with _received(request, context) as received:
        record = partial(_record, context, visitor.tenant, received)
        found, job, outcome = await context.submissions.run(visitor.tenant, record)
    if job:
        return RedirectResponse(rendering.address(request, f"/jobs/{job}"), 303)
    return page(request, visitor, found, received.form, outcome, status=422)


@asynccontextmanager
async def _received(request: Request, context: Context) -> AsyncIterator[Received]:
    """The form, with its file on this machine's disk. Raises ApiError."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with multipart.received(request, "file", context.settings.max_body_bytes, _MOST_FIELDS) as found:
            forms.check(found.fields, request.cookies.get(access.COOKIE, ""))
            yield Received(found.fields, found)
        return
    form = await forms.read(request, _MOST_BYTES)
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    yield Received(form)


def _look(context: Context, tenant: int, received: Received, base: str) -> tuple[models.Registry, Outcome]:
    known = registry(context, tenant)
    try:
        order = asked.read(received.form)
        if order.kind == "file":
            found = _look_at_file(context, known, order, received)
        else:
            found = _look_at(context, tenant, order)
        redrawn = _pictures(context, tenant, order)
    except InvalidSubmission as error:
        return known, _refused(error, received)
    except SubmissionError as error:
        return known, _refused(InvalidSubmission(error.problems, more=error.more), received)
    return known, replace(found, same=commands.same(base, order, received.name), redrawn=redrawn)


def _pictures(context: Context, tenant: int, order: Asked) -> list[str]:
    """The first pictures that are redrawn. Raises InvalidSubmission: there is no such picture."""
    names = list(dict.fromkeys(order.pictures))
    found = dependencies.pictures(context, tenant).find(names)
    missing = [name for name in names if name not in found]
    if missing:
        problems = [Problem("image_not_found", f'image is "{name}"; it {inputs.MISSING}.', "image") for name in missing]
        raise InvalidSubmission(problems)
    return names[:_PICTURES_SHOWN]


def _look_at(context: Context, tenant: int, order: Asked) -> Outcome:
    body = _spooled(order)
    first = estimation.preview(context, tenant, body).first if order.matrix is not None else []
    return Outcome(counted=estimation.estimate(context, tenant, body), first=first)


def _look_at_file(context: Context, known: models.Registry, order: Asked, received: Received) -> Outcome:
    label = _label(order)
    with WorkTally(context.settings, known, defaults={}) as tally:
        upload = _read(context, order, received, tally)
        tally.close()
    counted = estimation.estimated(context, tally, label.priority, counted=tally.requests)
    return Outcome(counted=counted, first=upload.first(), how=upload.how)


def _record(context: Context, tenant: int, received: Received) -> tuple[models.Registry, str, Outcome]:
    """The job's id; or none, and what is wrong."""
    known = registry(context, tenant)
    once = received.form.get("once", "")
    key = f"form-{once}" if once.isascii() and once.isalnum() and len(once) <= 64 else None
    try:
        order = asked.read(received.form)
        if order.kind == "file":
            return known, _record_file(context, tenant, known, order, received, key), Outcome()
        spool = _spooled(order)
        arrival = submission_routes.ReceivedSubmission(tenant, streaming.Format.JSON, spool, key, {})
        return known, submission_routes.record(context, arrival)[1].id, Outcome()
    except InvalidSubmission as error:
        return known, "", _refused(error, received)
    except SubmissionError as error:
        return known, "", _refused(InvalidSubmission(error.problems, more=error.more), received)
    except QuotaExceeded as error:
        return known, "", Outcome([Problem("quota_exceeded", str(error))])
    except (IdempotencyConflict, IdempotencyGone):
        return known, "", Outcome([Problem("idempotency_key_reused", _AGAIN)])
    except IdempotencyBusy as error:
        raise ApiError(409, "idempotency_key_in_use", str(error)) from None


def _record_file(
    context: Context, tenant: int, known: models.Registry, order: Asked, received: Received, key: str | None
) -> str:
    label = _label(order)
    pictures = dependencies.pictures(context, tenant)
    with context.database.read(tenant) as connection:
        policy = policies.at(context.settings, connection, dependencies.door(context, tenant, "job"))
    with submissions.Submission(context.settings, known, policy=policy, pictures=pictures) as submission:
        _read(context, order, received, submission)
        receipt = submission.record(context.database, tenant, label=label, idempotency_key=key)
    for model in receipt.models:  # if it is lost, the workers' timers find the job within seconds
        context.notifier.notify(model)
    return ids.public_job(receipt.job_id)


def _read(context: Context, order: Asked, received: Received, submission: submissions.Submission) -> Upload:
    """Adds the file's rows. Raises InvalidSubmission with one problem if it cannot be read."""
    if received.file is None or not received.name:
        raise InvalidSubmission([Problem("missing_field", "Choose a file, or drop it here.", "file")])
    if problems := _problems(requests.Defaults, order.fields):
        raise InvalidSubmission(problems)
    try:
        upload = Upload(received.name, received.file.file, order, context.settings.max_images_per_job)
        upload.fill(submission)
    except (Unreadable, WrongOption, SettingsError) as error:
        raise InvalidSubmission([Problem("unreadable", uploaded.said(str(error)))]) from None
    return upload


def _label(order: Asked) -> requests.JobOptions:
    if problems := _problems(requests.JobOptions, order.options):
        raise InvalidSubmission(problems)
    return requests.JobOptions.model_validate(order.options)


def _problems(model: Any, fields: dict[str, Any]) -> list[Problem]:
    try:
        model.model_validate(fields)
    except ValueError as error:
        return requests.problems(error, fields)  # type: ignore[arg-type]
    return []


def _spooled(order: Asked) -> io.BytesIO:
    return io.BytesIO(json.dumps(order.body).encode())


def _refused(error: InvalidSubmission, received: Received) -> Outcome:
    """The first problems, without the paths that only a body in JSON has."""
    is_file = received.form.get("kind") == "file"
    shown = [
        replace(
            one,
            message=one.message.replace("images[0].", "").replace("defaults.", ""),
            line=one.line if is_file else None,
        )
        for one in error.problems[:PROBLEMS_SHOWN]
    ]
    more = error.more or len(error.problems) > PROBLEMS_SHOWN
    return Outcome(shown, more, "Row" if uploaded.is_binary(received.name) else "Line")


def registry(context: Context, tenant: int) -> models.Registry:
    with context.database.read(tenant) as connection:
        found = models.registry(connection)
        found.classes = models.known_classes(connection)
    return found


def page(
    request: Request,
    visitor: Visitor,
    known: models.Registry,
    form: forms.Form,
    outcome: Outcome | None = None,
    status: int = 200,
) -> Response:
    kind = form["kind"] if form.get("kind") in asked.KINDS else "prompt"
    sizes = sorted({size for model in known.values() for size in model.sizes}, key=lambda size: size[0] * size[1])
    return rendering.page(
        request,
        "submit.html",
        status=status,
        visitor=visitor,
        kind=kind,
        kinds=asked.KINDS.items(),
        form=form,
        outcome=outcome,
        registry=known,
        default=request.app.state.context.settings.model,
        classes=[one for served in known.classes.values() for one in served],
        sizes=[f"{width}x{height}" for width, height in sizes],
        is_open=any(form.get(name) for name in _SELDOM),
        redraws=any(model.redraws for model in known.values()),
        once=secrets.token_hex(16) if status != 200 else form.get("once") or secrets.token_hex(16),
    )
