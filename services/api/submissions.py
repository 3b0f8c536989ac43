"""POST /v1/jobs: the body is received by the event loop, then checked and recorded by one thread.

Commit, then ring. If the process dies between the commit and the answer, the client's retry with the same
Idempotency-Key is answered with the job that stands.
"""

from dataclasses import dataclass
from typing import IO, Any

import anyio
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from services.api import bodies, schemas
from services.api.auth import Tenant
from services.api.bodies import Format
from services.api.context import Context, Here
from services.api.errors import Refused, RefusedSubmission
from services.api.queries import Priority
from services.core import intake, models, requests, strict_json, views
from services.core.errors import InvalidSubmission, Problem

router = APIRouter()
_HEADERS = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "Names this submission: sent again with the same body, it answers with the job that it made.",
}
_MOST_BRACKETS = 500_000  # each is an object or a list in memory, many times as large as its text
_UNREADABLE = {"invalid_encoding", "invalid_json"}  # codes of a body that is no JSON at all


@dataclass(frozen=True, slots=True)
class Order:
    """One submission, received and not yet read."""

    tenant: int
    form: Format
    spool: IO[bytes]
    key: str | None
    priority: str | None


@router.post(
    "/jobs",
    status_code=202,
    response_model=schemas.Job,
    openapi_extra={"requestBody": schemas.submission_body(), "parameters": [_HEADERS]},
)
async def submit(request: Request, response: Response, here: Here, tenant: Tenant, priority: Priority = None) -> Any:
    """Submits a job: committed, with all its images, when this answers."""
    form = bodies.body_format(request)
    key = bodies.idempotency_key(request)
    if priority is not None and form is Format.JSON:
        raise Refused(422, "unknown_parameter", "With JSON, priority is a field of the body.", param="priority")
    async with bodies.received(request, here.settings, form) as spool:
        order = Order(tenant, form, spool, key, priority)
        replayed, answer = await anyio.to_thread.run_sync(_record, here, order, limiter=here.submissions)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return answer


def _record(here: Context, order: Order) -> tuple[bool, schemas.Job]:
    with here.database.begin() as connection:
        catalogue = models.catalogue(connection)
    try:
        receipt = (_record_json if order.form is Format.JSON else _record_lines)(here, order, catalogue)
    except InvalidSubmission as error:
        raise RefusedSubmission(error, "index" if order.form is Format.JSON else "line") from None
    for model in receipt.models:  # lost with this process: the workers' timers find the job within seconds
        here.bell.ring(model)
    with here.database.begin(order.tenant) as connection:
        view = views.job(connection, order.tenant, receipt.job_id)
    assert view is not None, "a recorded job can be read"
    return receipt.replayed, schemas.job(view)


def _record_lines(here: Context, order: Order, catalogue: dict[str, models.Model]) -> intake.Receipt:
    label = requests.Label.model_validate({"priority": order.priority} if order.priority else {})
    with intake.Submission(here.settings, catalogue) as submission:
        intake.read_lines(submission, bodies.lines(order.spool))
        return submission.record(here.database, order.tenant, label=label, idempotency_key=order.key)


def _record_json(here: Context, order: Order, catalogue: dict[str, models.Model]) -> intake.Receipt:
    head = _read_json(order.spool.read())
    found: list[Problem] = []
    images = head.pop("images", None)
    if not isinstance(images, list) or not images:
        found.append(_wrong("images", images))
        images = []
    defaults = head.pop("defaults", {})
    if not isinstance(defaults, dict):
        found.append(_wrong("defaults", defaults))
        defaults = {}
    label = requests.Label()
    try:
        label = requests.Label.model_validate(head)
    except ValidationError as error:
        found += requests.problems(error, head)
    with intake.Submission(here.settings, catalogue, defaults=defaults) as submission:
        for problem in found:
            submission.refuse(problem)
        for index, value in enumerate(images):
            if submission.hopeless:
                break
            submission.add(index, value, f"images[{index}].")
        return submission.record(here.database, order.tenant, label=label, idempotency_key=order.key)


def _read_json(body: bytes) -> dict[str, Any]:
    if body.startswith(b"\xef\xbb\xbf"):
        raise Refused(400, "invalid_encoding", "The body begins with a byte order mark; send UTF-8 without one.")
    if body.count(b"{") + body.count(b"[") > _MOST_BRACKETS:
        raise Refused(413, "body_too_long", "The list is too long for JSON; send one request a line, as NDJSON.")
    try:
        value = strict_json.loads(body)
    except strict_json.BadJson as error:
        # An empty body is no broken text, there is just nothing in it.
        status = 400 if error.code in _UNREADABLE and body.strip() else 422
        raise Refused(status, error.code, str(error)) from None
    if not isinstance(value, dict):
        shown = strict_json.describe(value)
        raise Refused(422, "wrong_type", f"The body is {shown}; it must be an object with the field images.")
    return value


def _wrong(field: str, found: object) -> Problem:
    code = "missing_field" if found is None else "invalid_value" if found == [] else "wrong_type"
    shown = "missing" if found is None else "empty" if found == [] else strict_json.describe(found)
    return Problem(code, f"{field} is {shown}; it must be {requests.ALLOWED[field]}.", field)
