"""POST /v1/images/generations: a small job of high priority whose client waits for the images.

The job is committed before the wait begins, so nothing is lost if the wait ends early. With `Prefer: respond-async`,
or with `wait=N` if the images are not done after N seconds, the answer is the job.
"""

import base64
import re
import time
from dataclasses import dataclass
from typing import Any

import anyio
from fastapi import APIRouter, Request
from starlette.responses import Response

from services.api import dependencies
from services.api.authentication import Tenant
from services.api.body import streaming
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError, JsonResponse, envelope
from services.api.openai import bodies, schemas
from services.api.turns import OpenAIRoute
from services.api.v1 import schemas as v1
from services.core.batches import line_format, results
from services.core.batches.line_format import Body
from services.core.batches.results import Stored
from services.core.crash_points import crash_point
from services.core.files.pictures import INSTEAD
from services.core.fleet import models
from services.core.jobs import lifecycle, queries, submissions
from services.core.jobs.inputs import Inputs
from services.core.model import ids, requests
from services.core.model.errors import Conflict, InvalidSubmission, StoreUnavailable, Unavailable
from services.core.policy import policies

router = APIRouter(route_class=OpenAIRoute)
_MIN_PAUSE, _MAX_PAUSE = 0.05, 0.4  # seconds between two polls
_PREFER_WAIT = re.compile(r"wait=([0-9]{1,5})")
_NO_RETRY = {"x-should-retry": "false"}  # OpenAI's client would send it again, and it would be rendered again


@dataclass(frozen=True, slots=True)
class Preference:
    """`asynchronous`: do not wait. `seconds`: wait that long, then answer with the job."""

    asynchronous: bool = False
    seconds: float | None = None


def _schema() -> dict[str, Any]:
    one = requests.ImageRequest.model_json_schema() | {"title": "GenerationRequest"}
    one["properties"].pop("custom_id")
    one["properties"]["n"] = {"type": "integer", "minimum": 1, "maximum": line_format.IMAGES_PER_REQUEST}
    one["properties"]["response_format"] = {"type": "string", "enum": list(line_format.RESPONSE_FORMATS)}
    one["properties"]["user"] = {"type": "string", "maxLength": 512}
    return {"required": True, "content": {"application/json": {"schema": one}}}


PREFER = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "enum": ["respond-async", "wait=10"]},
    "description": "respond-async: answer 202 with the job at once; wait=N: after so many seconds.",
}


@router.post(
    "/images/generations",
    response_model=schemas.Pictures,
    responses={202: {"model": v1.Job}},
    openapi_extra={"requestBody": _schema(), "parameters": [PREFER]},
)
async def generate_images(request: Request, context: ContextDep, tenant: Tenant) -> Any:
    """Renders up to ten images of one prompt and waits for them."""
    key = streaming.idempotency_key(request)
    preference = preferred(request)
    asked = await _asked(request, context)
    body, problems = line_format.read_body(asked, "")
    if problems:
        raise ApiError(400, problems[0].code, problems[0].message, param=problems[0].param)
    if "custom_id" in body.fields:
        raise ApiError(400, "unknown_field", "custom_id belongs to files of requests.", param="custom_id")
    pictures = dependencies.pictures(context, tenant)
    job_id = await context.submissions.run(tenant, submit, context, tenant, body, key, pictures)
    return await answered(request, context, tenant, job_id, body.response_format, preference, key)


async def _asked(request: Request, context: Context) -> dict[str, Any]:
    """The body. Nothing but a picture makes one too long. Raises ApiError."""
    try:
        return await bodies.read_object(request, context.settings, "prompt")
    except ApiError as error:
        if error.code != "body_too_long":
            raise
        message = f"The body is longer than {bodies.LIMIT:,} bytes; {INSTEAD}, or POST it to /v1/images/edits."
        raise ApiError(413, error.code, message) from None


async def answered(
    request: Request, context: Context, tenant: int, job_id: int, response_format: str | None, preference: Preference,
    key: str | None,
) -> Any:  # fmt: skip
    """The pictures of the committed job, or the job; if neither can be read now, where to look for them."""
    try:
        return await _answered(request, context, tenant, job_id, response_format, preference, key)
    except Unavailable as error:
        if key is not None:  # a retry with this key is answered from the same job
            raise
        code = "store_away" if isinstance(error, StoreUnavailable) else "database_away"
        goes_on = f"Its outcome cannot be read now. It goes on: see /v1/jobs/{ids.public_job(job_id)}."
        raise ApiError(503, code, goes_on, headers=_NO_RETRY) from error


async def _answered(
    request: Request, context: Context, tenant: int, job_id: int, response_format: str | None, preference: Preference,
    key: str | None,
) -> Any:  # fmt: skip
    """The pictures of the committed job, or the job."""
    place = dependencies.location(context, request, f"/v1/jobs/{ids.public_job(job_id)}")
    if preference.asynchronous:
        headers = place | {"Preference-Applied": "respond-async"}
        return await context.requests.run(tenant, _job, context, tenant, job_id, headers, patient=True)
    limit = context.settings.wait_seconds if preference.seconds is None else preference.seconds
    if not await _wait(request, context, tenant, job_id, limit, give_up=key is None):
        if preference.seconds is not None:
            headers = place | {"Preference-Applied": f"wait={preference.seconds:g}"}
            return await context.requests.run(tenant, _job, context, tenant, job_id, headers, patient=True)
        raise ApiError(
            504, "still_rendering",
            f"It is not done after {limit:g} s. It goes on: see /v1/jobs/{ids.public_job(job_id)}.",
            headers=_NO_RETRY | place,
        )  # fmt: skip
    base_url = dependencies.base_url(context.settings, request)
    return await context.transfers.run(
        tenant, _answer, context, tenant, job_id, response_format, base_url, patient=True
    )


def preferred(request: Request) -> Preference:
    """The Prefer header. RFC 7240: unknown preferences are ignored."""
    words = [word.strip().lower() for value in request.headers.getlist("prefer") for word in value.split(",")]
    waits = [int(found[1]) for word in words if (found := _PREFER_WAIT.fullmatch(word))]
    return Preference("respond-async" in words and not waits, min(waits) if waits else None)


def submit(context: Context, tenant: int, body: Body, key: str | None, pictures: Inputs) -> int:
    """Records the request as a job of its own; returns the job's id. Raises ApiError."""
    with context.database.read(tenant) as connection:
        registry = models.registry(connection)
        policy = policies.at(context.settings, connection, dependencies.door(context, tenant, "image"))
    with submissions.Submission(context.settings, registry, policy=policy, pictures=pictures) as submission:
        submission.add(0, body.fields)
        try:
            receipt = submission.record(
                context.database, tenant, label=requests.JobOptions(priority="high"), idempotency_key=key
            )
        except InvalidSubmission as error:
            first = error.problems[0]
            raise ApiError(400, line_format.error_code(first.code), first.message, param=first.param) from None
    crash_point("image.submitted")
    for model in receipt.models:
        context.notifier.notify(model)
    return receipt.job_id


async def _wait(request: Request, context: Context, tenant: int, job_id: int, limit: float, *, give_up: bool) -> bool:
    """Whether all images are final before the limit. With `give_up`, the job is cancelled if the client disconnects."""
    deadline, pause = time.monotonic() + limit, _MIN_PAUSE
    while True:
        if await context.polls.run(tenant, _is_over, context, tenant, job_id, patient=True):
            return True
        if time.monotonic() + pause > deadline:
            return False
        await anyio.sleep(pause)
        pause = min(pause * 1.3, _MAX_PAUSE)
        if give_up and await request.is_disconnected():
            await context.requests.run(tenant, _cancel, context, tenant, job_id, patient=True)
            return False


def _is_over(context: Context, tenant: int, job_id: int) -> bool:
    with context.database.read(tenant) as connection:
        view = queries.job(connection, tenant, job_id)
    assert view is not None, "a recorded job can be read"
    return view.counts["queued"] + view.counts["rendering"] == 0


def _cancel(context: Context, tenant: int, job_id: int) -> None:
    try:
        with context.database.begin(tenant) as connection:
            lifecycle.cancel(connection, tenant, job_id)
    except Conflict:  # the job finished first
        return


def _job(context: Context, tenant: int, job_id: int, headers: dict[str, str]) -> Response:
    with context.database.read(tenant) as connection:
        view = queries.job(connection, tenant, job_id)
    assert view is not None, "a recorded job can be read"
    return JsonResponse(v1.job(view).model_dump(mode="json"), 202, headers)


def _answer(context: Context, tenant: int, job_id: int, response_format: str | None, base_url: str) -> Any:
    with context.database.read(tenant) as connection:
        request = results.page(connection, job_id, limit=1)[0]
    data = [_picture(context, job_id, image, response_format, base_url) for image in request.stored]
    if not request.is_done:
        return _failed(job_id, request, data)
    first = request.stored[0]
    return schemas.Pictures(
        created=schemas.epoch(first.finished_at),
        data=data,
        output_format=first.payload.output_format,
        size=f"{first.width}x{first.height}",
    )


def _failed(job_id: int, request: results.Request, data: list[schemas.Picture]) -> Response:
    """The answer if an image failed: its error, and the images that succeeded."""
    code, message = request.failure or ("cancelled", "The job was cancelled before it was done.")
    done = f"{len(data)} of {request.payload.n} images are done"
    sentence = f"{message} ({done}; the job is {ids.public_job(job_id)}.)"
    return envelope(500, code, sentence, headers=_NO_RETRY, data=[picture.model_dump() for picture in data])


def _picture(
    context: Context, job_id: int, image: Stored, response_format: str | None, base_url: str
) -> schemas.Picture:
    """Without a response_format the entry has both: some clients read the url, others the bytes."""
    entry = line_format.entry(image, job_id, base_url, context.settings.secret)
    if response_format == "b64_json":
        entry["url"] = None
    if response_format != "url":
        entry["b64_json"] = base64.b64encode(context.store.read(image.object_key)).decode()
    return schemas.Picture(**entry)
