"""Webhooks: where messages about what happens are sent, and what became of each."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from services.api import dependencies, openapi, pagination, parameters
from services.api.authentication import Tenant
from services.api.body import json_object
from services.api.dependencies import Context, ContextDep
from services.api.errors import SubmissionError
from services.api.turns import TenantRoute
from services.api.v1.schemas import Moment
from services.core.model.errors import InvalidSubmission
from services.core.webhooks import deliveries, endpoints, messages
from services.core.webhooks.asked import WebhookChanges, WebhookRequest
from services.core.webhooks.deliveries import Delivery, Try
from services.core.webhooks.endpoints import Endpoint

router = APIRouter(route_class=TenantRoute)
DeliveryStatus = Literal["pending", "delivered", "failed"]
StatusFilter = Annotated[DeliveryStatus | None, Query(description="one of pending, delivered, failed")]
TypeFilter = Annotated[str | None, Query(max_length=64, description="a type of message, such as job.completed")]


class Webhook(BaseModel):
    """An endpoint. `reason` says why it is disabled: `by_user`, `gone` (it answered 410) or `failing`. `failures` in a
    row since `failing_since`. Until `old_secret_until` the secret before the last rotation signs too."""

    id: str
    object: Literal["webhook"] = "webhook"
    url: str
    description: str
    events: list[str]
    labels: dict[str, str]
    enabled: bool
    reason: str | None
    failures: int
    failing_since: Moment | None
    old_secret_until: Moment | None
    created_by: str
    created_at: Moment


class WebhookWithSecret(Webhook):
    """The endpoint and the secret with which receivers verify its messages."""

    secret: str


class WebhookList(BaseModel):
    data: list[Webhook]


class WebhookSecret(BaseModel):
    id: str
    object: Literal["webhook.secret"] = "webhook.secret"
    secret: str


class WebhookDeleted(BaseModel):
    id: str
    object: Literal["webhook"] = "webhook"
    deleted: Literal[True] = True


class WebhookDelivery(BaseModel):
    """A message for an endpoint. `message_id` is its header `webhook-id`. `response_status` and `error` are those of
    the last of its `tries`; the next one comes at `next_try_at` at the earliest."""

    id: str
    object: Literal["webhook.delivery"] = "webhook.delivery"
    webhook_id: str
    message_id: str
    type: str
    status: DeliveryStatus
    tries: int
    response_status: int | None
    error: str | None
    next_try_at: Moment | None
    created_at: Moment
    finished_at: Moment | None


class WebhookDeliveryPage(BaseModel):
    data: list[WebhookDelivery]
    next_cursor: str | None


class WebhookTry(BaseModel):
    """One try. `answer` is the beginning of what came back; without an answer `error` says why."""

    number: int
    at: Moment
    milliseconds: int
    response_status: int | None
    answer: str | None
    error: str | None


class WebhookDeliveryDetails(WebhookDelivery):
    """The delivery with the message and every try."""

    message: dict[str, Any]
    log: list[WebhookTry]


class WebhookMessage(BaseModel):
    """What would be sent: `body` is what is signed, with `id` as `webhook-id`."""

    id: str
    type: str
    body: str


class WebhookMessages(BaseModel):
    """Messages of events after a place, and the place `after` which the next ones come."""

    data: list[WebhookMessage]
    after: int


@router.get("/webhooks", response_model=WebhookList)
def list_webhooks(context: ContextDep, tenant: Tenant) -> Any:
    """The tenant's webhooks, the oldest first: twenty at most."""
    with context.database.read(tenant) as connection:
        return WebhookList(data=[Webhook(**_shown(one)) for one in endpoints.listed(connection, tenant)])


@router.post("/webhooks", status_code=201, response_model=WebhookWithSecret, openapi_extra=openapi.body(WebhookRequest))
def create_webhook(context: ContextDep, tenant: Tenant, body: json_object.Small) -> Any:
    """Makes a webhook: from now on, what happens is sent there, signed as Standard Webhooks says. The address must
    lead to public IP addresses, now and at each try. Without `events`, messages say what has come to an end."""
    asked = json_object.parse(WebhookRequest, body, WebhookRequest.ALLOWED)
    _check(context, asked.url)
    with context.database.begin(tenant) as connection:
        found, secret = endpoints.create(connection, context.settings, tenant, asked)
    return WebhookWithSecret(**_shown(found), secret=secret)


@router.get("/webhook-messages", response_model=WebhookMessages)
def list_webhook_messages(
    context: ContextDep, tenant: Tenant, after: parameters.Seq = None, limit: parameters.Limit = 1000
) -> Any:
    """The messages that a webhook for all events would get: for programs that cannot be reached from here. Without
    `after` there are none, but the place where to begin. `limit` is how many events of all tenants are looked at."""
    with context.database.read(tenant) as connection:
        found, seq = messages.page(connection, tenant, after, limit)
    return WebhookMessages(data=[WebhookMessage(id=one.id, type=one.type, body=one.body) for one in found], after=seq)


@router.get("/webhooks/{webhook_id}", response_model=Webhook)
def show_webhook(context: ContextDep, tenant: Tenant, webhook_id: str) -> Any:
    """One webhook."""
    number = endpoints.parse_id(webhook_id)
    with context.database.read(tenant) as connection:
        return Webhook(**_shown(endpoints.find(connection, tenant, number)))


@router.patch("/webhooks/{webhook_id}", response_model=Webhook, openapi_extra=openapi.body(WebhookChanges))
def change_webhook(context: ContextDep, tenant: Tenant, webhook_id: str, body: json_object.Small) -> Any:
    """Changes a webhook; fields that are left out stay. Enabled again, it gets what waited for it, and what happens
    from now on."""
    number = endpoints.parse_id(webhook_id)
    asked = json_object.parse(WebhookChanges, body, WebhookChanges.ALLOWED)
    with context.database.begin(tenant) as connection:
        endpoints.find(connection, tenant, number)
    if asked.url is not None:
        _check(context, asked.url)
    with context.database.begin(tenant) as connection:
        return Webhook(**_shown(endpoints.change(connection, tenant, number, asked)))


@router.delete("/webhooks/{webhook_id}", response_model=WebhookDeleted)
def delete_webhook(context: ContextDep, tenant: Tenant, webhook_id: str) -> Any:
    """Deletes a webhook with the log of its deliveries. What has not been sent is not sent."""
    with context.database.begin(tenant) as connection:
        endpoints.delete(connection, tenant, endpoints.parse_id(webhook_id))
    return WebhookDeleted(id=webhook_id)


@router.get("/webhooks/{webhook_id}/secret", response_model=WebhookSecret)
def show_webhook_secret(context: ContextDep, tenant: Tenant, webhook_id: str) -> Any:
    """The secret with which receivers verify messages."""
    number = endpoints.parse_id(webhook_id)
    with context.database.begin(tenant) as connection:
        secret = endpoints.secret(connection, context.settings.secrets, tenant, number)
    return WebhookSecret(id=webhook_id, secret=secret)


@router.post("/webhooks/{webhook_id}/rotate", response_model=WebhookWithSecret)
def rotate_webhook_secret(context: ContextDep, tenant: Tenant, webhook_id: str) -> Any:
    """Makes a new secret. For a day messages are signed with the one before, too."""
    number = endpoints.parse_id(webhook_id)
    with context.database.begin(tenant) as connection:
        found, secret = endpoints.rotate(connection, context.settings.secrets, tenant, number)
    return WebhookWithSecret(**_shown(found), secret=secret)


@router.post("/webhooks/{webhook_id}/test", status_code=202, response_model=WebhookDelivery)
def test_webhook(request: Request, response: Response, context: ContextDep, tenant: Tenant, webhook_id: str) -> Any:
    """Sends a message of the type `webhook.test`, whatever the webhook's filters."""
    number = endpoints.parse_id(webhook_id)
    with context.database.begin(tenant) as connection:
        found = deliveries.test(connection, endpoints.find(connection, tenant, number))
    return _sent(context, request, response, found)


@router.get("/webhooks/{webhook_id}/deliveries", response_model=WebhookDeliveryPage)
def list_deliveries(
    context: ContextDep,
    tenant: Tenant,
    webhook_id: str,
    status: StatusFilter = None,
    type: TypeFilter = None,  # noqa: A002  the parameter's own name
    limit: parameters.Limit = 100,
    cursor: parameters.Cursor = None,
) -> Any:
    """The deliveries of a webhook, newest first, of one status, of one type, or all. They are kept for thirty days."""
    number = endpoints.parse_id(webhook_id)
    listing = f"deliveries/{tenant}/{number}/{status}/{type}"
    before = None if cursor is None else pagination.decode_cursor(context.settings.secrets, listing, cursor)
    if type is not None and "\0" in type:  # which no text of the database holds
        return WebhookDeliveryPage(data=[], next_cursor=None)
    with context.database.read(tenant) as connection:
        endpoint = endpoints.find(connection, tenant, number)
        found = deliveries.page(connection, endpoint, before=before, limit=limit + 1, state=status, type=type)
    page = found[:limit]
    more = len(found) > limit
    return WebhookDeliveryPage(
        data=[WebhookDelivery(**_delivery(one)) for one in page],
        next_cursor=pagination.encode_cursor(context.settings.secret, listing, page[-1].id) if more else None,
    )


@router.get("/webhooks/{webhook_id}/deliveries/{delivery_id}", response_model=WebhookDeliveryDetails)
def show_delivery(context: ContextDep, tenant: Tenant, webhook_id: str, delivery_id: str) -> Any:
    """One delivery with its message and every try."""
    number, delivery = endpoints.parse_id(webhook_id), deliveries.parse_id(delivery_id)
    with context.database.read(tenant) as connection:
        found = deliveries.find(connection, endpoints.find(connection, tenant, number), delivery)
        tries = deliveries.tries(connection, tenant, delivery)
    return WebhookDeliveryDetails(
        **_delivery(found), message=json.loads(found.body), log=[_try(one) for one in tries]
    )  # fmt: skip


@router.post(
    "/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202, response_model=WebhookDelivery
)
def redeliver(
    request: Request, response: Response, context: ContextDep, tenant: Tenant, webhook_id: str, delivery_id: str
) -> Any:
    """Sends the same message again, at once, with the same `webhook-id`, whatever became of it."""
    number, delivery = endpoints.parse_id(webhook_id), deliveries.parse_id(delivery_id)
    with context.database.begin(tenant) as connection:
        found = deliveries.redeliver(connection, endpoints.find(connection, tenant, number), delivery)
    return _sent(context, request, response, found)


def _check(context: Context, url: str) -> None:
    try:
        endpoints.check_url(context.settings, url)
    except InvalidSubmission as error:
        raise SubmissionError(error, "index") from None


def _sent(context: Context, request: Request, response: Response, found: Delivery) -> WebhookDelivery:
    shown = WebhookDelivery(**_delivery(found))
    place = f"/v1/webhooks/{shown.webhook_id}/deliveries/{shown.id}"
    response.headers.update(dependencies.location(context, request, place))
    return shown


def _shown(found: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoints.public_id(found.id), "url": found.url, "description": found.description,
        "events": found.events, "labels": found.labels, "enabled": found.state == "enabled", "reason": found.reason,
        "failures": found.failures, "failing_since": found.failing_since, "old_secret_until": found.old_until,
        "created_by": found.created_by, "created_at": found.created_at,
    }  # fmt: skip


def _delivery(found: Delivery) -> dict[str, Any]:
    return {
        "id": deliveries.public_id(found.id), "webhook_id": endpoints.public_id(found.endpoint_id),
        "message_id": found.message_id, "type": found.type, "status": found.state, "tries": found.tries,
        "response_status": found.status, "error": found.error, "next_try_at": found.next_at,
        "created_at": found.created_at, "finished_at": found.finished_at,
    }  # fmt: skip


def _try(found: Try) -> WebhookTry:
    return WebhookTry(
        number=found.number, at=found.at, milliseconds=found.milliseconds, response_status=found.status,
        answer=found.answer, error=found.error,
    )  # fmt: skip
