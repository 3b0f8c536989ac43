"""Drafts: a job of any size, appended in chunks and then finalized. A chunk is safe to send again, by its number."""

from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, BeforeValidator

from services.api import openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object, streaming
from services.api.body.streaming import Format
from services.api.body.submission_body import Order
from services.api.dependencies import Context, Here
from services.api.errors import Refused, RefusedSubmission
from services.api.v1 import schemas
from services.api.v1.jobs import shown
from services.core.fleet import models
from services.core.jobs import drafts, submissions
from services.core.model import ids, requests
from services.core.model.errors import InvalidSubmission
from services.core.settings import Settings

router = APIRouter()
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
    """A chunk as it was committed. `sha256` is of what its requests say, whatever their white space."""

    object: Literal["job.chunk"] = "job.chunk"
    number: int
    requests: int
    images: int
    sha256: str


class Appended(Chunk):
    """`replayed`: it had been committed before, and nothing was done now."""

    replayed: bool


class ChunkPage(BaseModel):
    data: list[Chunk]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Arrival:
    """One chunk, received and not yet read."""

    tenant: int
    job_id: int
    number: int
    form: Format
    spool: IO[bytes]


@router.put(
    "/jobs/{job_id}/chunks/{number}", response_model=Appended, openapi_extra={"requestBody": openapi.chunk_body()}
)
async def append_chunk(request: Request, here: Here, tenant: Tenant, job_id: str, number: Number) -> Any:
    """Appends requests to a draft, one chunk after the other. The same chunk again is answered as at first."""
    form = streaming.body_format(request)
    async with streaming.received(request, here.settings, form) as spool:
        arrival = Arrival(tenant, ids.parse_job(job_id), number, form, spool)
        return await anyio.to_thread.run_sync(_append, here, arrival, limiter=here.submissions)


@router.get("/jobs/{job_id}/chunks", response_model=ChunkPage)
def list_chunks(
    here: Here, tenant: Tenant, job_id: str, limit: parameters.Limit = 100, cursor: parameters.Cursor = None
) -> Any:
    """The chunks that were appended, by their numbers: whoever appends goes on from here after a crash."""
    number = ids.parse_job(job_id)
    listing = f"chunks/{tenant}/{number}"
    after = -1 if cursor is None else pagination.unseal(here.settings.secret, listing, cursor)
    with here.database.begin(tenant) as connection:
        found = drafts.chunks(connection, tenant, number, after=after, limit=limit + 1)
    page = found[:limit]
    more = pagination.seal(here.settings.secret, listing, page[-1].number) if len(found) > limit else None
    return ChunkPage(data=[Chunk(**_fields(chunk)) for chunk in page], next_cursor=more)


@router.post(
    "/jobs/{job_id}/finalize",
    status_code=202,
    response_model=schemas.Job,
    responses={200: {"model": schemas.Job, "description": "It had been finalized before."}},
    openapi_extra=openapi.body(requests.Finalize),
)
def finalize_draft(response: Response, here: Here, tenant: Tenant, job_id: str, body: json_object.Small) -> Any:
    """Queues a draft, whole: its chunks are numbered from 0 without a gap, and no custom_id stands twice."""
    number = ids.parse_job(job_id)
    asked = json_object.parse(requests.Finalize, body, requests.Finalize.ALLOWED)
    try:
        with here.database.begin(tenant) as connection:
            images = drafts.inspect(connection, tenant, number, asked)
    except InvalidSubmission as error:
        raise RefusedSubmission(error, "chunk") from None
    if images is None:
        response.status_code = 200
        return shown(here, tenant, number)
    with here.database.begin(tenant) as connection:
        names = drafts.finalize(connection, tenant, number, images)
    for model in names:  # lost with this process: the workers' timers find the job within seconds
        here.bell.ring(model)
    return shown(here, tenant, number)


def _append(here: Context, arrival: Arrival) -> Appended:
    with here.database.begin(arrival.tenant) as connection:
        ground = drafts.ground(connection, arrival.tenant, arrival.job_id, arrival.number)
        catalogue = models.catalogue(connection)
    order = _read(arrival, here.settings) if arrival.form is Format.JSON else Order()
    with submissions.Submission(
        here.settings,
        catalogue,
        defaults=order.defaults,
        ground=ground,
        most_images=here.settings.max_images_per_draft,
        most_here=here.settings.max_images_per_job,
    ) as submission:
        if arrival.form is Format.JSON:
            order.fill(submission)
        else:
            submissions.read_lines(submission, streaming.lines(arrival.spool))
        try:
            with here.database.begin(arrival.tenant) as connection:
                chunk, replayed = drafts.append(connection, arrival.tenant, submission, arrival.number)
        except InvalidSubmission as error:
            raise RefusedSubmission(error, "index" if arrival.form is Format.JSON else "line") from None
    return Appended(**_fields(chunk), replayed=replayed)


def _read(arrival: Arrival, settings: Settings) -> Order:
    body = json_object.read(arrival.spool.read())
    if "matrix" in body:
        raise Refused(422, "unknown_field", "A chunk takes images; a matrix is submitted as a job.", param="matrix")
    order = Order.of(body, settings.max_images_per_job)
    order.head(requests.Bare, body, requests.Bare())
    return order


def _fields(chunk: drafts.Chunk) -> dict[str, Any]:
    return {"number": chunk.number, "requests": chunk.requests, "images": chunk.images, "sha256": chunk.sha256}
