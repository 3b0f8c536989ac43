"""Batches of the OpenAI-shaped API: jobs made from a file. A 2xx means that file and job are committed."""

import hashlib
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from services.api import dependencies, parameters
from services.api.authentication import Tenant
from services.api.body import streaming
from services.api.dependencies import Context, ContextDep
from services.api.errors import ApiError
from services.api.openai import bodies, schemas
from services.api.openai.bodies import Document
from services.api.openai.uploads import EXPIRES_AFTER, ExpiresAfter
from services.api.turns import OpenAIRoute
from services.core.batches import batch_jobs, line_format
from services.core.crash_points import crash_point
from services.core.db.database import Connection
from services.core.files import files
from services.core.jobs import idempotency, lifecycle
from services.core.model import ids, requests
from services.core.model.errors import Conflict, NotFound
from services.core.queue import segments

router = APIRouter(route_class=OpenAIRoute)
_TEXT = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$"


class NewBatch(Document):
    """`priority`, `dedupe`, `embed_prompt` and `store` are Presswork's; OpenAI's API has the others."""

    input_file_id: Annotated[str, Field(max_length=40, description="the id of an uploaded file")]
    endpoint: Annotated[Literal["/v1/images/generations"], Field(description=f'"{line_format.ENDPOINT}"')]
    completion_window: Annotated[
        str, Field(max_length=8, description='hours or days, such as "24h" or "7d", up to 30 days')
    ]
    metadata: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=64, pattern=_TEXT)],
            Annotated[str, Field(max_length=512, pattern=_TEXT)],
        ]
        | None,
        Field(max_length=16, description=requests.ALLOWED["labels"]),
    ] = None
    output_expires_after: Annotated[ExpiresAfter | None, Field(description=EXPIRES_AFTER)] = None
    priority: Annotated[Literal["high", "normal", "low"], Field(description=requests.ALLOWED["priority"])] = "normal"
    dedupe: Annotated[bool, Field(description="true or false")] = False
    embed_prompt: Annotated[bool, Field(description="true or false")] = False
    store: Annotated[requests.Store, Field(description=requests.ALLOWED["store"])] = "objects"


@router.post("/batches", response_model=schemas.Batch, openapi_extra={"requestBody": bodies.schema(NewBatch)})
async def create_batch(request: Request, context: ContextDep, tenant: Tenant) -> Any:
    """Makes a job from an uploaded file. The file is read and checked after this answers."""
    key = streaming.idempotency_key(request)
    asked = await bodies.read(request, context.settings, NewBatch)
    base_url = dependencies.base_url(context.settings, request)
    return await context.requests.run(tenant, _create, context, tenant, asked, key, base_url)


@router.get("/batches", response_model=schemas.BatchList)
def list_batches(
    context: ContextDep, tenant: Tenant, limit: parameters.BatchLimit = 20, after: parameters.AfterId = None
) -> Any:
    """The tenant's batches, newest first."""
    before = parameters.after_id(after, schemas.parse_batch_id)
    with context.database.read(tenant) as connection:
        found = batch_jobs.page(connection, tenant, before=before, limit=limit + 1)
    data = [schemas.batch(entry) for entry in found[:limit]]
    return schemas.BatchList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


@router.get("/batches/{batch_id}", response_model=schemas.Batch)
def show_batch(context: ContextDep, tenant: Tenant, batch_id: str) -> Any:
    """One batch with its counts."""
    return _show(context, tenant, schemas.parse_batch_id(batch_id))


@router.post("/batches/{batch_id}/cancel", response_model=schemas.Batch)
def cancel_batch(context: ContextDep, tenant: Tenant, batch_id: str) -> Any:
    """Nothing more of the batch is rendered; finished images are kept and listed. Repeating this is not an error."""
    number = schemas.parse_batch_id(batch_id)
    _show(context, tenant, number)
    try:
        with context.database.begin(tenant) as connection:
            lifecycle.cancel(connection, tenant, number)
    except Conflict as error:
        raise ApiError(409, "job_finished", str(error), headers={"x-should-retry": "false"}) from None
    crash_point("batch.cancelled")
    # Cancels the images of a small job at once; what is left is for the periodic task.
    with context.database.begin(tenant) as connection:
        segments.sweep(connection, number)
    return _show(context, tenant, number)


def _show(context: Context, tenant: int, number: int) -> schemas.Batch:
    with context.database.read(tenant) as connection:
        found = batch_jobs.find(connection, tenant, number)
    if found is None:
        raise NotFound("There is no such batch.")
    return schemas.batch(found)


def _create(context: Context, tenant: int, asked: NewBatch, key: str | None, base_url: str) -> schemas.Batch:
    job_id = ids.new()
    window = _seconds(asked.completion_window)
    with context.database.begin(tenant) as connection:
        if key is not None:
            later = {"store"} if asked.store == "objects" else set()  # keys of before hold
            canonical = json.dumps(asked.model_dump(exclude=later), sort_keys=True).encode()
            known = idempotency.remember(
                connection, tenant, key, sha256=hashlib.sha256(canonical).digest(), thing=job_id, kind="batch"
            )
            if known is not None:
                found = batch_jobs.find(connection, tenant, known)
                assert found is not None, "the batch of a remembered key can be read"
                return schemas.batch(found)
        expires = asked.output_expires_after
        batch_jobs.create(
            connection,
            tenant,
            job_id=job_id,
            input_file_id=_input(connection, tenant, asked.input_file_id),
            priority=requests.PRIORITIES[asked.priority],
            labels=asked.metadata or {},
            dedupe=asked.dedupe,
            embed_prompt=asked.embed_prompt,
            in_shards=asked.store == "shards",
            completion_window=asked.completion_window,
            window_seconds=window,
            output_expires_seconds=None if expires is None else expires.seconds,
            base_url=base_url,
        )
        found = batch_jobs.find(connection, tenant, job_id)
    crash_point("batch.created")
    assert found is not None, "a recorded job can be read"
    return schemas.batch(found)


def _input(connection: Connection, tenant: int, public: str) -> int:
    try:
        file = files.find(connection, tenant, files.parse_id(public))
    except NotFound:
        raise ApiError(400, "invalid_value", "There is no such file; upload it first.", param="input_file_id") from None
    if file.purpose != "batch":
        raise ApiError(
            400, "invalid_value", 'The file is not an input file; its purpose must be "batch".', param="input_file_id"
        )
    return file.id


def _seconds(window: str) -> int:
    seconds = batch_jobs.window_seconds(window)
    if seconds is None:
        allowed = NewBatch.model_fields["completion_window"].description
        shown = json.dumps(window)
        raise ApiError(
            400, "invalid_value", f"completion_window is {shown}; it must be {allowed}.", param="completion_window"
        )
    return seconds
