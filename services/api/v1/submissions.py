"""POST /v1/jobs: the event loop receives the body, then one thread checks and records it.

The job is committed, then workers are notified. If the process dies before it answers, the client's retry with the
same Idempotency-Key gets the committed job.
"""

from dataclasses import dataclass
from typing import IO, Any

from fastapi import APIRouter, Request, Response

from services.api import dependencies, openapi, parameters
from services.api.authentication import Tenant
from services.api.body import json_stream, streaming
from services.api.body.streaming import Format
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError, SubmissionError
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.core.crash_points import crash_point
from services.core.fleet import models
from services.core.jobs import drafts, queries, submissions
from services.core.jobs.submission_body import SubmissionBody
from services.core.model import ids, requests
from services.core.model.errors import InvalidSubmission, Problem
from services.core.policy import policies
from services.core.policy.policies import Policy

router = APIRouter(route_class=TenantRoute)


@dataclass(frozen=True, slots=True)
class ReceivedSubmission:
    """One submission, received and not yet parsed. `options` are the query's, for a job that is sent as lines."""

    tenant: int
    form: Format
    spool: IO[bytes]
    key: str | None
    options: dict[str, Any]


@router.post(
    "/jobs",
    status_code=202,
    response_model=schemas.Job,
    responses={201: {"model": schemas.Job, "description": "A draft, which holds no image yet."}},
    openapi_extra={"requestBody": openapi.submission_body(), **openapi.IDEMPOTENT},
)
async def submit_job(
    request: Request,
    response: Response,
    context: ContextDep,
    tenant: Tenant,
    priority: parameters.Priority = None,
    dedupe: parameters.Dedupe = None,
    embed_prompt: parameters.EmbedPrompt = None,
    store: parameters.Store = None,
) -> Any:
    """Submits a job, which is committed with all its images when this answers; or opens a draft, to which images are
    appended in chunks."""
    form = streaming.body_format(request)
    key = streaming.idempotency_key(request)
    given = {
        "priority": priority, "dedupe": parameters.flag(dedupe), "embed_prompt": parameters.flag(embed_prompt),
        "store": store,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    if options and form is Format.JSON:
        name = next(iter(options))
        raise ApiError(422, "unknown_parameter", f"With JSON, {name} is a field of the body.", param=name)
    async with streaming.received(request, context.settings, form) as spool:
        arrival = ReceivedSubmission(tenant, form, spool, key, options)
        receipt, answer = await context.submissions.run(tenant, record, context, arrival)
    if receipt.replayed:
        response.headers["Idempotent-Replayed"] = "true"
    response.headers.update(dependencies.location(context, request, f"/v1/jobs/{answer.id}"))
    if answer.status == "draft":
        response.status_code = 201
    return answer


def record(context: Context, arrival: ReceivedSubmission) -> tuple[submissions.Receipt, schemas.Job]:
    """Records what was received and wakes workers up. Raises SubmissionError."""
    try:
        receipt = (_record_json if arrival.form is Format.JSON else _record_lines)(context, arrival)
    except InvalidSubmission as error:
        raise SubmissionError(error, "index" if arrival.form is Format.JSON else "line") from None
    crash_point("submit.committed")
    for model in receipt.models:  # if it is lost, the workers' timers find the job within seconds
        context.notifier.notify(model)
    crash_point("submit.woken")
    with context.database.read(arrival.tenant) as connection:
        view = queries.job(connection, arrival.tenant, receipt.job_id)
    assert view is not None, "a recorded job can be read"
    return receipt, schemas.job(view)


def _record_lines(context: Context, arrival: ReceivedSubmission) -> submissions.Receipt:
    label = requests.JobOptions.model_validate(arrival.options)
    registry, policy = _ground(context, arrival.tenant)
    with submissions.Submission(
        context.settings, registry, policy=policy, pictures=dependencies.pictures(context, arrival.tenant)
    ) as submission:
        submission.copy_ahead(context.database, arrival.tenant, idempotency_key=arrival.key)
        submissions.read_lines(submission, streaming.lines(arrival.spool))
        return submission.record(context.database, arrival.tenant, label=label, idempotency_key=arrival.key)


def _record_json(context: Context, arrival: ReceivedSubmission) -> submissions.Receipt:
    body = json_stream.read(arrival.spool)
    draft = body.pop("draft", None)
    if draft is True:
        return _open_draft(context, arrival, body)
    order = SubmissionBody.of(body, context.settings.max_images_per_job)
    if draft is not None and draft is not False:
        order.problems.append(Problem("wrong_type", "draft must be true or false.", "draft"))
    label = order.head(requests.JobOptions, body, requests.JobOptions())
    registry, policy = _ground(context, arrival.tenant)
    pictures = dependencies.pictures(context, arrival.tenant)
    with submissions.Submission(
        context.settings, registry, policy=policy, defaults=order.defaults, pictures=pictures
    ) as submission:
        order.fill(submission)
        return submission.record(context.database, arrival.tenant, label=label, idempotency_key=arrival.key)


def _open_draft(context: Context, arrival: ReceivedSubmission, body: dict[str, Any]) -> submissions.Receipt:
    order = SubmissionBody()
    for name in ("images", "matrix", "defaults"):
        if name in body:
            del body[name]
            message = f"A draft is opened without {name}; each chunk may have its own."
            order.problems.append(Problem("invalid_value", message, name))
    label = order.head(requests.JobOptions, body, requests.JobOptions())
    if order.problems:
        raise InvalidSubmission(order.problems)
    job_id = ids.new()
    with context.database.begin(arrival.tenant) as connection:
        known = drafts.open_draft(connection, arrival.tenant, job_id, label, idempotency_key=arrival.key)
    return submissions.Receipt(job_id if known is None else known, frozenset(), replayed=known is not None)


def _ground(context: Context, tenant: int) -> tuple[models.Registry, Policy]:
    with context.database.read(tenant) as connection:
        door = dependencies.door(context, tenant, "job")
        return models.registry(connection), policies.at(context.settings, connection, door)
