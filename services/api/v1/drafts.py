"""Drafts: jobs of any size, sent in numbered chunks and then finalized. A chunk may be sent again safely."""

from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, BeforeValidator

from services.api import dependencies, openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object, json_stream, streaming
from services.api.body.streaming import Format
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError, SubmissionError
from services.api.turns import TenantRoute
from services.api.v1 import schemas
from services.api.v1.jobs import shown
from services.core.crash_points import crash_point
from services.core.fleet import models
from services.core.jobs import drafts, submissions
from services.core.jobs.submission_body import SubmissionBody
from services.core.model import ids, requests
from services.core.model.errors import InvalidSubmission
from services.core.policy import policies
from services.core.policy.refusals import Door
from services.core.settings import Settings

router = APIRouter(route_class=TenantRoute)
Number = Annotated[
    int,
    BeforeValidator(parameters.whole),
    Path(
        ge=0,
        lt=requests.CHUNKS_PER_DRAFT,
        description="a whole number from 0 to 999999",
        json_schema_extra={"minimum": 0, "maximum": requests.CHUNKS_PER_DRAFT - 1},
    ),
]


class Chunk(BaseModel):
    """A committed chunk. `sha256` is of its requests in canonical form, so it does not depend on white space."""

    object: Literal["job.chunk"] = "job.chunk"
    number: int
    requests: int
    images: int
    sha256: str


class Appended(Chunk):
    """`replayed`: the chunk was committed by an earlier call, and this one changed nothing."""

    replayed: bool


class ChunkPage(BaseModel):
    data: list[Chunk]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class ReceivedChunk:
    """One chunk, received and not yet parsed."""

    tenant: int
    job_id: int
    number: int
    form: Format
    spool: IO[bytes]


@router.put(
    "/jobs/{job_id}/chunks/{number}", response_model=Appended, openapi_extra={"requestBody": openapi.chunk_body()}
)
async def append_chunk(request: Request, context: ContextDep, tenant: Tenant, job_id: str, number: Number) -> Any:
    """Appends a chunk of requests to a draft. The same chunk, sent again, gets the same answer."""
    form = streaming.body_format(request)
    async with streaming.received(request, context.settings, form) as spool:
        arrival = ReceivedChunk(tenant, ids.parse_job(job_id), number, form, spool)
        return await context.submissions.run(tenant, _append, context, arrival)


@router.get("/jobs/{job_id}/chunks", response_model=ChunkPage)
def list_chunks(
    context: ContextDep, tenant: Tenant, job_id: str, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The chunks of a draft by number: a client that crashed reads here where to go on."""
    number = ids.parse_job(job_id)
    listing = f"chunks/{tenant}/{number}"
    after = -1 if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    with context.database.read(tenant) as connection:
        found = drafts.chunks(connection, tenant, number, after=after, limit=limit + 1)
    page = found[:limit]
    more = pagination.encode_cursor(context.settings.secret, listing, page[-1].number) if len(found) > limit else None
    return ChunkPage(data=[Chunk(**_fields(chunk)) for chunk in page], next_cursor=more)


@router.post(
    "/jobs/{job_id}/finalize",
    status_code=202,
    response_model=schemas.Job,
    responses={200: {"model": schemas.Job, "description": "It was finalized by an earlier call."}},
    openapi_extra=openapi.body(requests.FinalizeRequest),
)
async def finalize_draft(
    request: Request, response: Response, context: ContextDep, tenant: Tenant, job_id: str, body: json_object.Small
) -> Any:
    """Queues a draft. Its chunks must be numbered from 0 without a gap, and each custom_id be used once."""
    number = ids.parse_job(job_id)
    asked = json_object.parse(requests.FinalizeRequest, body, requests.FinalizeRequest.ALLOWED)
    fresh, answer = await context.submissions.run(tenant, _finalize, context, tenant, number, asked)
    response.headers.update(dependencies.location(context, request, f"/v1/jobs/{answer.id}"))
    if not fresh:
        response.status_code = 200
    return answer


def _finalize(context: Context, tenant: int, number: int, asked: requests.FinalizeRequest) -> tuple[bool, schemas.Job]:
    """Whether this call finalized the draft, and the job."""
    try:
        with context.database.begin(tenant) as connection:
            images = drafts.inspect(connection, tenant, number, asked)
    except InvalidSubmission as error:
        raise SubmissionError(error, "chunk") from None
    if images is None:
        return False, shown(context, tenant, number)
    with context.database.begin(tenant) as connection:
        names = drafts.finalize(connection, tenant, number, images)
    crash_point("draft.finalized")
    for model in names:  # if it is lost, the workers' timers find the job within seconds
        context.notifier.notify(model)
    return True, shown(context, tenant, number)


def _append(context: Context, arrival: ReceivedChunk) -> Appended:
    with context.database.begin(arrival.tenant) as connection:
        existing = drafts.existing(connection, arrival.tenant, arrival.job_id, arrival.number)
        registry = models.registry(connection)
        policy = policies.at(context.settings, connection, Door("draft", arrival.tenant))
    order = _read(arrival, context.settings) if arrival.form is Format.JSON else SubmissionBody()
    with submissions.Submission(
        context.settings,
        registry,
        policy=policy,
        defaults=order.defaults,
        existing=existing,
        max_images=context.settings.max_images_per_draft,
        max_here=context.settings.max_images_per_job,
        pictures=dependencies.pictures(context, arrival.tenant),
    ) as submission:
        if arrival.form is Format.JSON:
            order.fill(submission)
        else:
            submissions.read_lines(submission, streaming.lines(arrival.spool))
        submission.screen()  # which may take as long as a policy takes
        try:
            with context.database.begin(arrival.tenant) as connection:
                chunk, replayed = drafts.append(connection, arrival.tenant, submission, arrival.number)
        except InvalidSubmission as error:
            raise SubmissionError(error, "index" if arrival.form is Format.JSON else "line") from None
    crash_point("chunk.committed")
    return Appended(**_fields(chunk), replayed=replayed)


def _read(arrival: ReceivedChunk, settings: Settings) -> SubmissionBody:
    body = json_stream.read(arrival.spool)
    if "matrix" in body:
        raise ApiError(422, "unknown_field", "A chunk takes images; a matrix is submitted as a job.", param="matrix")
    order = SubmissionBody.of(body, settings.max_images_per_job)
    order.head(requests.NoOptions, body, requests.NoOptions())
    return order


def _fields(chunk: drafts.Chunk) -> dict[str, Any]:
    return {"number": chunk.number, "requests": chunk.requests, "images": chunk.images, "sha256": chunk.sha256}
