"""The audit trail: administrative acts as they were sealed, a page of lines at a time."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from services.api import pagination, parameters
from services.api.authentication import Caller, Tenant
from services.api.dependencies import Context, ContextDep
from services.api.turns import TenantRoute
from services.core.model import audit_chain
from services.core.model.errors import NotFound, NotOperator
from services.core.model.scopes import Principal
from services.core.tenants import tenants
from services.core.trail import reading
from services.core.trail.reading import Asked, Page, Place

router = APIRouter(route_class=TenantRoute)


class Lines(Response):
    media_type = "application/x-ndjson"


@router.get("/audit", response_class=Lines, responses={200: {"content": {Lines.media_type: {"schema": {}}}}})
def read_audit(
    context: ContextDep,
    tenant: Tenant,  # noqa: ARG001
    caller: Caller,
    whose: parameters.Whose = None,
    since: parameters.Moment = None,
    until: parameters.Moment = None,
    actor: parameters.Actor = None,
    event: parameters.Verb = None,
    limit: parameters.Limit = 1000,
    cursor: parameters.Cursor = None,
) -> Any:
    """The audit trail, the oldest first: who issued keys, changed rules, cancelled and deleted, one JSON object a
    line. It has its place `n` in the chain of its tenant, and `hash`, the sha256 over the hash before (`previous`) and
    the rest of the line. Lines come in sealed ranges, so there may be some more than `limit`, and some of before
    `since` and after `until`. What happened within the last seconds is not sealed yet. A line with `fault` says that a
    range no longer is what was sealed. The last line of a page has `next_cursor`; that of the last page also has
    `chains`, which says where each tenant's chain ends, with its hash, whatever was asked for."""
    listing = f"audit/{caller.tenant_id}/{whose}/{since}/{until}/{actor}/{event}"
    place = None
    if cursor is not None:
        place = Place(*map(int, pagination.decode_name(context.settings.secrets, listing, cursor).split()))
    found = page(context, caller, Asked(_number(context, caller, whose), since, until, actor, event), place, limit)
    last: dict[str, Any] = {"next_cursor": None, "chains": found.chains}
    if found.more is not None:
        name = f"{found.more.after} {found.more.last}"
        last = {"next_cursor": pagination.encode_name(context.settings.secret, listing, name)}
    return Lines(b"".join(audit_chain.canonical(line) + b"\n" for line in (*found.lines, last)))


def page(context: Context, caller: Principal, asked: Asked, place: Place | None, limit: int) -> Page:
    if asked.tenant_id == caller.tenant_id:
        with context.database.read(caller.tenant_id) as connection:
            return reading.page(connection, asked, place, limit=limit)
    # As the system: the operator's administrators read every tenant's trail, and the system's.
    with context.database.read_system() as connection:
        return reading.page(connection, asked, place, limit=limit)


def _number(context: Context, caller: Principal, whose: str | None) -> int | None:
    """Whose trail it is; None: everybody's. Raises NotFound and NotOperator."""
    if whose is None:
        return caller.tenant_id
    if whose == audit_chain.EVERY:
        if not caller.operator:
            raise NotOperator("The trail of all tenants takes a key of the operator's tenant.")
        return None
    # As the system: which tenant it is, the caller's or any, is looked up first.
    with context.database.read_system() as connection:
        found = tenants.find(connection, whose)
    if found.id != caller.tenant_id and not caller.operator:
        raise NotFound("There is no such tenant.")
    return found.id
