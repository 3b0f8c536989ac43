"""Webhooks: which there are, what was sent to each with every try, and the acts on them."""

import json
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse

from services.api import pagination
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.errors import SubmissionError
from services.core.model.errors import Conflict, InvalidSubmission, NotFound
from services.core.webhooks import deliveries, endpoints, types
from services.core.webhooks.asked import WebhookChanges, WebhookRequest
from services.dashboard import access, forms, rendering
from services.dashboard.routes import PageRoute

router = APIRouter(route_class=PageRoute)
_PER_PAGE = 50
_STATES = ("pending", "delivered", "failed")
_SCOPES = {
    "test": "operate", "enable": "operate", "disable": "operate", "delete": "operate", "redeliver": "operate",
    "secret": "admin", "rotate": "admin",
}  # fmt: skip


@router.get("/settings/webhooks")
def show_webhooks(request: Request, context: ContextDep, visitor: access.Signed) -> Any:
    visitor.require("view")
    return _listed(request, context, visitor)


@router.post("/settings/webhooks")
def make(request: Request, context: ContextDep, visitor: access.Signed, form: forms.Posted) -> Any:
    """Shows the new webhook with its secret."""
    visitor.require("operate", "making a webhook")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    try:
        asked = _asked(form)
        endpoints.check_url(context.settings, asked.url)
        with context.database.begin(visitor.tenant) as connection:
            made, secret = endpoints.create(connection, context.settings, visitor.tenant, asked)
    except (SubmissionError, InvalidSubmission, Conflict) as error:
        return _listed(request, context, visitor, status=422, form=form, refusal=str(error))
    return _page(request, context, visitor, made.id, secret=secret)


@router.get("/settings/webhooks/{webhook_id}")
def show_webhook(
    request: Request, context: ContextDep, visitor: access.Signed, webhook_id: str, state: str = "", cursor: str = ""
) -> Any:
    visitor.require("view")
    return _page(request, context, visitor, endpoints.parse_id(webhook_id), state=state, cursor=cursor)


@router.get("/settings/webhooks/{webhook_id}/deliveries/{delivery_id}")
def show_delivery(
    request: Request, context: ContextDep, visitor: access.Signed, webhook_id: str, delivery_id: str
) -> Any:
    visitor.require("view")
    number, delivery = endpoints.parse_id(webhook_id), deliveries.parse_id(delivery_id)
    with context.database.read(visitor.tenant) as connection:
        endpoint = endpoints.find(connection, visitor.tenant, number)
        found = deliveries.find(connection, endpoint, delivery)
        tries = deliveries.tries(connection, visitor.tenant, delivery)
    return rendering.page(
        request,
        "delivery.html",
        visitor=visitor,
        endpoint=endpoint,
        id=webhook_id,
        delivery=found,
        delivery_id=delivery_id,
        tries=tries,
        body=json.dumps(json.loads(found.body), indent=2, ensure_ascii=False),
    )


@router.get("/settings/webhooks/{webhook_id}/actions/delete")
def ask_to_delete(request: Request, context: ContextDep, visitor: access.Signed, webhook_id: str) -> Any:
    visitor.require("operate", "deleting a webhook")
    with context.database.read(visitor.tenant) as connection:
        endpoints.find(connection, visitor.tenant, endpoints.parse_id(webhook_id))
    return rendering.page(
        request,
        "confirm.html",
        visitor=visitor,
        title="Delete this webhook?",
        sentence="Nothing more is sent to it, also not what waits, and the log of its deliveries goes.",
        refusal="",
        action=f"/settings/webhooks/{webhook_id}/actions/delete",
        back=f"/settings/webhooks/{webhook_id}",
        button="Delete",
        choice="",
        danger=True,
    )


@router.post("/settings/webhooks/{webhook_id}/actions/{verb}")
def act(
    request: Request, context: ContextDep, visitor: access.Signed, webhook_id: str, verb: str, form: forms.Posted
) -> Any:
    """Tests, enables, disables, rotates or deletes it, shows its secret, or sends a message again."""
    if verb not in _SCOPES:
        raise NotFound("There is no such action.")
    visitor.require(_SCOPES[verb], f"to {verb} a webhook")
    forms.check(form, request.cookies.get(access.COOKIE, ""))
    number, settings, tenant = endpoints.parse_id(webhook_id), context.settings, visitor.tenant
    back, secret, refusal = f"/settings/webhooks/{webhook_id}", "", ""
    try:
        with context.database.begin(tenant) as connection:
            endpoint = endpoints.find(connection, tenant, number)
            match verb:
                case "test":
                    deliveries.test(connection, endpoint)
                case "redeliver":
                    delivery = form.get("delivery", "")
                    deliveries.redeliver(connection, endpoint, deliveries.parse_id(delivery))
                    back += f"/deliveries/{delivery}"
                case "secret":
                    secret = endpoints.secret(connection, settings.secrets, tenant, number)
                case "rotate":
                    _, secret = endpoints.rotate(connection, settings.secrets, tenant, number)
                case "delete":
                    endpoints.delete(connection, tenant, number)
                    back = "/settings/webhooks"
                case _:
                    endpoints.change(connection, tenant, number, WebhookChanges(enabled=verb == "enable"))
    except Conflict as error:
        refusal = str(error)
    if secret or refusal:
        return _page(request, context, visitor, number, secret=secret, refusal=refusal)
    return RedirectResponse(rendering.address(request, back), 303)


def _asked(form: forms.Form) -> WebhookRequest:
    """The form as a request. Raises SubmissionError."""
    given: dict[str, Any] = {"url": form.get("url", "").strip(), "description": form.get("description", "").strip()}
    if events := form.get("events", "").replace(",", " ").split():
        given["events"] = events
    pairs = [pair.partition("=") for pair in form.get("labels", "").split(",") if pair.strip()]
    given["labels"] = {name.strip(): value.strip() for name, _, value in pairs}
    return json_object.parse(WebhookRequest, json.dumps(given).encode(), WebhookRequest.ALLOWED)


def _listed(
    request: Request, context: Context, visitor: access.Visitor, *, status: int = 200, form: forms.Form | None = None,
    refusal: str = "",
) -> Any:  # fmt: skip
    with context.database.read(visitor.tenant) as connection:
        found = endpoints.listed(connection, visitor.tenant)
    return rendering.page(
        request,
        "webhooks.html",
        visitor=visitor,
        status=status,
        webhooks=[(endpoints.public_id(one.id), one) for one in found],
        most=endpoints.MOST,
        usual=" ".join(types.USUAL),
        types=types.TYPES,
        given=form or {},
        refusal=refusal,
    )


def _page(
    request: Request, context: Context, visitor: access.Visitor, number: int, *, state: str = "", cursor: str = "",
    secret: str = "", refusal: str = "",
) -> Any:  # fmt: skip
    chosen = state if state in _STATES else None
    listing = f"pages/webhooks/{visitor.tenant}/{number}/{chosen}"
    before = pagination.decode_cursor(context.settings.secrets, listing, cursor) if cursor else None
    with context.database.read(visitor.tenant) as connection:
        endpoint = endpoints.find(connection, visitor.tenant, number)
        found = deliveries.page(connection, endpoint, before=before, limit=_PER_PAGE + 1, state=chosen)
    page, more = found[:_PER_PAGE], None
    if len(found) > _PER_PAGE:
        more = pagination.encode_cursor(context.settings.secret, listing, page[-1].id)
    public, of_state = endpoints.public_id(number), f"state={chosen}&" if chosen else ""
    return rendering.page(
        request,
        "webhook.html",
        visitor=visitor,
        status=409 if refusal else 200,
        id=public,
        endpoint=endpoint,
        deliveries=[(deliveries.public_id(one.id), one) for one in page],
        states=_STATES,
        chosen=chosen,
        secret=secret,
        refusal=refusal,
        is_first=not cursor,
        next_page=more and f"/settings/webhooks/{public}?{of_state}cursor={more}",
    )
