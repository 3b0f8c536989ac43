"""The workers: what each is, what it does and how fast; and draining them. Hosts are shown to those of the
operator's tenant who may operate."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api.dependencies import Context, ContextDep
from services.core.fleet import drains, workers
from services.core.fleet.workers import Worker
from services.core.model.errors import NotFound
from services.dashboard import access, forms, rendering
from services.dashboard.routes import PageRoute
from services.dashboard.words import plural

router = APIRouter(route_class=PageRoute)
_VERBS = {"drain": drains.drain, "resume": drains.resume}


@router.get("/fleet")
def show_fleet(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    fleet = _fleet(context)
    values: dict[str, Any] = {"devices": workers.devices(fleet), "live": [], "others": []}
    if visitor.principal.sees_hosts:
        values |= {"live": [one for one in fleet if one.is_live], "others": [one for one in fleet if not one.is_live]}
    return rendering.page(request, "fleet.html", visitor=visitor, **values)


@router.get("/fleet/{worker_id}/{verb}")
def ask(request: Request, context: ContextDep, visitor: access.Signed, worker_id: str, verb: str) -> Any:
    """Says what draining or resuming the worker's device would do."""
    _require(visitor, verb)
    fleet = _fleet(context)
    worker = _find(fleet, worker_id)
    return rendering.page(
        request,
        "drain.html",
        visitor=visitor,
        worker=worker,
        verb=verb,
        sentence=_draining(worker, fleet) if verb == "drain" else _resuming(worker),
    )


@router.post("/fleet/{worker_id}/{verb}")
def act(
    request: Request, context: ContextDep, visitor: access.Signed, worker_id: str, verb: str, form: forms.Posted
) -> Any:
    _require(visitor, verb)
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    with context.database.begin_system() as connection:  # as the system: the fleet belongs to no tenant
        _VERBS[verb](connection, worker_id, visitor.tenant)
    return RedirectResponse(rendering.address(request, "/fleet"), 303)


def _require(visitor: access.Visitor, verb: str) -> None:
    if verb not in _VERBS:
        raise NotFound("There is no such action.")
    visitor.require("operate", f"{verb} of a worker")
    if not visitor.principal.operator:
        raise NotFound("There is no such worker.")


def _fleet(context: Context) -> list[Worker]:
    with context.database.read_system() as connection:  # as the system: claims are of all tenants
        return workers.listed(connection)


def _find(fleet: list[Worker], worker_id: str) -> Worker:
    for worker in fleet:
        if worker.id == worker_id and worker.is_live and worker.state != "starting":
            return worker
    raise NotFound("There is no such worker that is up: it may have ended meanwhile.")


def _draining(worker: Worker, fleet: list[Worker]) -> str:
    if worker.drained:
        return "It is drained already, and takes nothing new."
    same = [one for one in fleet if (one.host, one.device) == (worker.host, worker.device) and one.is_live]
    others = [
        one
        for one in fleet
        if one.model == worker.model and one.is_live and one not in same and not one.drained and one.state != "sick"
    ]
    held = sum(one.rendering for one in same)
    goes_on = (
        f"{plural(len(others), 'other worker')} of {worker.model} {'goes' if len(others) == 1 else 'go'} on."
        if others
        else f"No other worker serves {worker.model}: its images wait until you resume one."
    )
    finishes = f"It finishes the {plural(held, 'image')} that it holds and" if held else "It"
    return f"{finishes} takes nothing new, also when it is started again, until you resume it. {goes_on}"


def _resuming(worker: Worker) -> str:
    return "It takes work again, within two seconds." if worker.drained else "It is not drained, and takes work."
