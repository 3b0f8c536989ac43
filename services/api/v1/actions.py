"""The action log: who changed what, newest first."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from services.api import pagination, parameters
from services.api.authentication import Caller, Tenant
from services.api.dependencies import ContextDep
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.db import actors
from services.core.events import actions, queries
from services.core.fleet import workers
from services.core.model import ids
from services.core.trail import records

router = APIRouter(route_class=TenantRoute)


class Action(BaseModel):
    """An act. `actor` is a kind and a name, `key/Xk29dQ7a` or `cli/alice`, or a program, such as `scheduler`;
    `actor_name` is the key's name. `subject` is the id of what was acted on, which `subject_type` says."""

    seq: int
    at: Moment
    verb: str
    actor: str
    actor_name: str | None
    subject_type: str
    subject: str
    data: dict[str, int | str]


class ActionPage(BaseModel):
    data: list[Action]
    next_cursor: str | None


@router.get("/actions", response_model=ActionPage)
def list_actions(
    context: ContextDep,
    tenant: Tenant,
    caller: Caller,
    actor: parameters.Actor = None,
    verb: parameters.Verb = None,
    job: parameters.JobFilter = None,
    since: parameters.Moment = None,
    until: parameters.Moment = None,
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """Who changed what: submissions, cancels, deletions, keys and so on, newest first, each with its actor; from
    `since` on and before `until`. What has just happened is listed about a second later."""
    listing = f"actions/{tenant}/{actor}/{verb}/{job}" + ("" if since is until is None else f"/{since}/{until}")
    before = actions.NEWEST if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    about = None if job is None else queries.job(ids.parse_job(job))
    with context.database.read(tenant) as connection:
        found = actions.page(
            connection, tenant, before=before, limit=limit + 1,
            actor=actor, verb=verb, job=about, since=since, until=until,
        )  # fmt: skip
    page = found[:limit]
    more = len(found) > limit
    last = pagination.encode_cursor(context.settings.secret, listing, page[-1].event.seq) if more else None
    names_hosts = caller.sees_hosts
    return ActionPage(data=[_shown(action, names_hosts) for action in page], next_cursor=last)


def _shown(action: actions.Action, names_hosts: bool) -> Action:
    event = action.event
    kind, name = records.subject(event)
    return Action(
        seq=event.seq,
        at=event.at,
        verb=event.kind,
        actor=event.actor if names_hosts else actors.without_host(event.actor),
        actor_name=action.name,
        subject_type=kind,
        subject=name if names_hosts or kind != "device" else workers.without_host(name),
        data=records.data(event),
    )
