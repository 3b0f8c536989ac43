"""A job's requests as a file, by which it can be submitted again."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from services.api.dependencies import Context, ContextDep
from services.core.jobs import queries, resubmission
from services.core.jobs.resubmission import Rendered
from services.core.model import file_names, ids
from services.core.model.errors import NotFound
from services.dashboard import access, again
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_AT_ONCE = 1_000


@router.get("/jobs/{job_id}/requests.jsonl")
async def save_requests(context: ContextDep, visitor: access.Signed, job_id: str) -> Any:
    """Sent as it is read, so that a job of a million requests takes no memory."""
    visitor.require("view")
    number = ids.parse_job(job_id)
    first = await context.requests.run(visitor.tenant, _read, context, visitor.tenant, number, -1)
    headers = {"Content-Disposition": file_names.attachment(again.file_name(number)), "Cache-Control": "no-store"}
    return StreamingResponse(
        _lines(context, visitor.tenant, number, first), headers=headers, media_type="application/x-ndjson"
    )


async def _lines(context: Context, tenant: int, number: int, page: list[Rendered]) -> AsyncIterator[bytes]:
    while page:
        yield again.lines(page)
        page = await context.requests.run(tenant, _read, context, tenant, number, page[-1].payload.index)


def _read(context: Context, tenant: int, number: int, after: int) -> list[Rendered]:
    with context.database.read(tenant) as connection:
        if not queries.exists(connection, tenant, number):
            raise NotFound(f"There is no job {ids.public_job(number)}.")
        return resubmission.page(connection, number, after=after, limit=_AT_ONCE)
