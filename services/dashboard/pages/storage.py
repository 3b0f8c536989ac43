"""Storage: for how long jobs keep what, what goes in the next 30 days, and what the auditor found of the store."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request

from services.api.dependencies import Context, ContextDep
from services.core.auditing import audits, mark
from services.core.auditing.audits import Audit
from services.core.db.database import Connection
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.retention import due, rules
from services.core.retention.due import Due
from services.dashboard import access, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_AHEAD_DAYS = 30
_MOST = 1_000
_SHOWN = 20
KINDS = {
    "payloads": ("Prompts", "prompts, metadata and input pictures"),
    "objects": ("Images", "images, small pictures, exports and output files"),
    "records": ("Everything", "the job itself, with all of it"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of thing: the rule, and how much of it goes. `days` is None: for ever."""

    title: str
    what: str
    days: int | None
    jobs: int
    images: int


@dataclass(frozen=True, slots=True)
class Audited:
    """The last audit, when the next one begins, and why no orphan would be deleted; None: nobody asked for one, it is
    not known, they would be."""

    last: Audit | None
    next_at: datetime | None
    refusal: str | None


@router.get("/settings/storage")
def show(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    with context.database.read(visitor.tenant) as connection:
        rule = rules.read(connection, visitor.tenant)
        found = due.shown(connection, visitor.tenant, ahead_days=_AHEAD_DAYS, limit=_MOST + 1)
    kinds = [_kind(name, getattr(rule, name), found[:_MOST]) for name in KINDS]
    rows = [(ids.public_job(one.job_id), KINDS[one.kind][0].lower(), one) for one in found[:_SHOWN]]
    return rendering.page(
        request, "storage.html", visitor=visitor, kinds=kinds, rows=rows, ahead=_AHEAD_DAYS, jobs=len(found),
        more=len(found) > _MOST, audited=_audited(context) if visitor.principal.operator else None,
    )  # fmt: skip


def _kind(name: str, days: int | None, found: list[Due]) -> Kind:
    title, what = KINDS[name]
    own = [one for one in found if one.kind == name]
    return Kind(title, what, days, len(own), sum(one.stored_images for one in own))


def _audited(context: Context) -> Audited:
    with context.database.read_system() as connection:  # the store is the installation's, not a tenant's
        last, refusal = _last(connection), mark.last_refusal(connection)
    days = context.settings.audit_days
    next_at = last.finished_at + timedelta(days=days) if days and last and last.finished_at else None
    return Audited(last, next_at, refusal)


def _last(connection: Connection) -> Audit | None:
    try:
        return audits.show(connection)
    except NotFound:
        return None
