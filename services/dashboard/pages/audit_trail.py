"""The audit trail as a file, as `presswork audit export` writes it."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from services.api.dependencies import Context, ContextDep
from services.api.v1 import audit
from services.core.model import audit_chain, file_names
from services.core.model.scopes import Principal
from services.core.trail.reading import Asked, Page, Place
from services.dashboard import access
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_AT_ONCE = 1_000


@router.get("/settings/log/trail.jsonl")
async def save_trail(context: ContextDep, visitor: access.Signed) -> Any:
    """Sent as it is read, so that years of acts take no memory."""
    visitor.require("admin", "the audit trail")
    first = await _read(context, visitor.principal, None)
    headers = {"Content-Disposition": file_names.attachment("audit-trail.jsonl"), "Cache-Control": "no-store"}
    lines = _lines(context, visitor.principal, first)
    return StreamingResponse(lines, headers=headers, media_type=audit.Lines.media_type)


async def _lines(context: Context, caller: Principal, page: Page) -> AsyncIterator[bytes]:
    summary = audit_chain.Summary()
    yield audit_chain.canonical(audit_chain.heading(is_filtered=False)) + b"\n"
    while True:
        for line in page.lines:
            summary.add(line)
        yield b"".join(audit_chain.canonical(line) + b"\n" for line in page.lines)
        if page.more is None:
            break
        page = await _read(context, caller, page.more)
    summary.end(page.chains)
    yield audit_chain.canonical(summary.line()) + b"\n"


async def _read(context: Context, caller: Principal, place: Place | None) -> Page:
    asked = Asked(caller.tenant_id)
    return await context.requests.run(caller.tenant_id, audit.page, context, caller, asked, place, _AT_ONCE)
