"""Previews the requests of a matrix and estimates what a job would cost. Nothing is recorded."""

from typing import IO, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from services.api import openapi
from services.api.authentication import Tenant
from services.api.body import json_object, json_stream, streaming
from services.api.dependencies import Context, ContextDep
from services.api.errors import SubmissionError
from services.api.turns import TenantRoute
from services.core.fleet import models
from services.core.jobs import estimates, submissions
from services.core.jobs.estimates import Interval, WorkTally
from services.core.jobs.submission_body import SubmissionBody
from services.core.model import requests, strict_json
from services.core.model.errors import InvalidSubmission, Problem

router = APIRouter(route_class=TenantRoute)
FIRST = 10
_SHAPES_RULE = (
    f"a list of 1 to {submissions.MAX_SHAPES} objects with images, and model, size, steps and guidance if need be"
)


class Preview(BaseModel):
    """The numbers of requests and images of a matrix, and the first requests as they would be submitted."""

    object: Literal["preview"] = "preview"
    requests: int
    images: int
    first: list[dict[str, Any]]


class Seconds(BaseModel):
    low: float
    expected: float
    high: float


class ShapeEstimate(BaseModel):
    """`measured` says what `seconds_per_image` comes from: this shape, or another one of the model. Null: not known."""

    model: str
    size: str
    num_inference_steps: int
    guided: bool
    first_step: int
    images: int
    workers: int
    seconds_per_image: float | None
    measured: Literal["this shape", "another shape"] | None


class Estimate(BaseModel):
    """`ahead`: queued images that are rendered first. `served`: live workers serve every shape. Seconds are null if
    nothing was measured; `seconds_to_finish` also if no worker is live."""

    object: Literal["estimate"] = "estimate"
    requests: int | None
    images: int
    ahead: int
    accelerator_seconds: Seconds | None
    seconds_to_finish: Seconds | None
    served: bool
    workers: int
    shapes: list[ShapeEstimate]


@router.post("/jobs/preview", response_model=Preview, openapi_extra={"requestBody": openapi.matrix_body()})
async def preview_job(request: Request, context: ContextDep, tenant: Tenant) -> Any:
    """Counts the requests and images of a matrix and shows the first ten requests, without submitting it."""
    return await _read(request, context, tenant, preview)


@router.post(
    "/jobs/estimate",
    response_model=Estimate,
    openapi_extra={"requestBody": openapi.estimate_body(requests.EstimateShape, submissions.MAX_SHAPES)},
)
async def estimate_job(request: Request, context: ContextDep, tenant: Tenant) -> Any:
    """Estimates the accelerator-seconds of a job, and the time until it would finish if it were submitted now."""
    return await _read(request, context, tenant, estimate)


async def _read(request: Request, context: Context, tenant: int, answer: Any) -> Any:
    json_object.require_json(request)
    async with streaming.received(request, context.settings, streaming.Format.JSON) as spool:
        try:
            return await context.submissions.run(tenant, answer, context, tenant, spool)
        except InvalidSubmission as error:
            raise SubmissionError(error, "index") from None


def preview(context: Context, tenant: int, spool: IO[bytes]) -> Preview:
    """Raises InvalidSubmission."""
    body = json_stream.read(spool, "matrix")
    if "matrix" not in body:
        raise InvalidSubmission([Problem("missing_field", "matrix is missing: it is what can be previewed.", "matrix")])
    order = SubmissionBody.of(body, context.settings.max_images_per_job)
    order.head(requests.JobOptions, body, requests.JobOptions())
    with context.database.read(tenant) as connection:
        registry = models.registry(connection)
    first: list[dict[str, Any]] = []
    with WorkTally(context.settings, registry, defaults=order.defaults) as tally:
        for problem in order.problems:
            tally.refuse(problem)
        if order.matrix is not None:
            for index, value in zip(range(FIRST), order.matrix.requests(), strict=False):
                first.append({name: given for name, given in (order.defaults | value).items() if given is not None})
                tally.add(index, value)
        tally.close()
    assert order.matrix is not None
    return Preview(requests=order.matrix.combinations, images=order.matrix.images, first=first)


def estimate(context: Context, tenant: int, spool: IO[bytes]) -> Estimate:
    """Raises InvalidSubmission."""
    body = json_stream.read(spool)
    shapes = body.pop("shapes", None) if "images" not in body and "matrix" not in body else None
    order = SubmissionBody() if shapes is not None else SubmissionBody.of(body, context.settings.max_images_per_job)
    label = order.head(requests.JobOptions, body, requests.JobOptions())
    with context.database.read(tenant) as connection:
        registry = models.registry(connection)
    with WorkTally(context.settings, registry, defaults=order.defaults) as tally:
        order.fill(tally) if shapes is None else _count_shapes(tally, order, shapes)
        tally.close()
    return estimated(context, tally, label.priority, counted=None if shapes is not None else tally.requests)


def estimated(context: Context, tally: WorkTally, priority: str, *, counted: int | None) -> Estimate:
    """The estimate of what was tallied. `counted`: of so many requests."""
    # As the system: the queued images of every tenant are ahead of this job.
    with context.database.read_system() as connection:
        found = estimates.estimate(connection, tally.counts, requests.PRIORITIES[priority])
    return Estimate(
        requests=counted,
        images=found.images,
        ahead=found.ahead,
        accelerator_seconds=_seconds(found.accelerator_seconds),
        seconds_to_finish=_seconds(found.seconds_to_finish),
        served=found.served,
        workers=found.workers,
        shapes=[_shape(entry) for entry in found.shapes],
    )


def _count_shapes(tally: WorkTally, order: SubmissionBody, shapes: object) -> None:
    for problem in order.problems:
        tally.refuse(problem)
    if not isinstance(shapes, list) or not 1 <= len(shapes) <= submissions.MAX_SHAPES:
        shown = strict_json.describe(shapes)
        tally.refuse(Problem("invalid_value", f"shapes is {shown}; it must be {_SHAPES_RULE}.", "shapes"))
        return
    for place, value in enumerate(shapes):
        tally.add_shape(place, value)


def _seconds(span: Interval | None) -> Seconds | None:
    if span is None:
        return None
    return Seconds(low=round(span.low, 3), expected=round(span.expected, 3), high=round(span.high, 3))


def _shape(entry: estimates.ShapeEstimate) -> ShapeEstimate:
    rate = entry.rate
    return ShapeEstimate(
        model=entry.model,
        size=f"{entry.shape.width}x{entry.shape.height}",
        num_inference_steps=entry.shape.steps,
        guided=entry.shape.guided,
        first_step=entry.shape.first_step,
        images=entry.images,
        workers=entry.workers,
        seconds_per_image=None if rate is None else rate.seconds,
        measured=None if rate is None else "this shape" if rate.same else "another shape",
    )
