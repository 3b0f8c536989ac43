"""Webhooks: where messages are sent, what became of each, and messages for programs that cannot be reached."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from presswork_client.answers import (
    Webhook,
    WebhookDeleted,
    WebhookDelivery,
    WebhookDeliveryDetails,
    WebhookMessages,
    WebhookSecret,
    WebhookWithSecret,
)
from presswork_client.transport import Transport


class Webhooks:
    """The webhooks of a server: `client.webhooks`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> "list[Webhook]":
        """All of them, the oldest first."""
        found: list[Webhook] = self._transport.call("GET", "/v1/webhooks")["data"]
        return found

    def create(self, url: str, **fields: Any) -> WebhookWithSecret:
        """Makes one. `fields`: events, labels, description. The answer has the secret for receivers."""
        found: WebhookWithSecret = self._transport.call("POST", "/v1/webhooks", json={"url": url, **fields})
        return found

    def show(self, webhook: str) -> Webhook:
        found: Webhook = self._transport.call("GET", f"/v1/webhooks/{_id(webhook)}")
        return found

    def change(self, webhook: str, **fields: Any) -> Webhook:
        """Changes what is given: url, events, labels, description, enabled."""
        found: Webhook = self._transport.call("PATCH", f"/v1/webhooks/{_id(webhook)}", json=fields)
        return found

    def delete(self, webhook: str) -> WebhookDeleted:
        """Deletes it with the log of its deliveries."""
        found: WebhookDeleted = self._transport.call("DELETE", f"/v1/webhooks/{_id(webhook)}")
        return found

    def secret(self, webhook: str) -> WebhookSecret:
        found: WebhookSecret = self._transport.call("GET", f"/v1/webhooks/{_id(webhook)}/secret")
        return found

    def rotate(self, webhook: str) -> WebhookWithSecret:
        """Makes a new secret; the one before signs too for a day."""
        found: WebhookWithSecret = self._transport.call("POST", f"/v1/webhooks/{_id(webhook)}/rotate")
        return found

    def test(self, webhook: str) -> WebhookDelivery:
        """Sends a message of the type `webhook.test`."""
        found: WebhookDelivery = self._transport.call("POST", f"/v1/webhooks/{_id(webhook)}/test")
        return found

    def deliveries(self, webhook: str, *, page: int = 1000, **filters: Any) -> Iterator[WebhookDelivery]:
        """Its deliveries, newest first, page by page. `filters`: status, type."""
        return self._transport.pages(f"/v1/webhooks/{_id(webhook)}/deliveries", filters, page)

    def delivery(self, webhook: str, delivery: str) -> WebhookDeliveryDetails:
        """One delivery with its message and every try."""
        path = f"/v1/webhooks/{_id(webhook)}/deliveries/{_id(delivery)}"
        found: WebhookDeliveryDetails = self._transport.call("GET", path)
        return found

    def redeliver(self, webhook: str, delivery: str) -> WebhookDelivery:
        """Sends the same message again."""
        path = f"/v1/webhooks/{_id(webhook)}/deliveries/{_id(delivery)}/redeliver"
        found: WebhookDelivery = self._transport.call("POST", path)
        return found

    def messages(self, after: int | None = None, limit: int = 1000) -> WebhookMessages:
        """What a webhook for all events would have got after that place. Without one, the place where to begin."""
        asked = {"limit": limit} | ({} if after is None else {"after": after})
        found: WebhookMessages = self._transport.call("GET", "/v1/webhook-messages", params=asked)
        return found


def _id(given: str) -> str:
    return quote(given, safe="")
