"""Sends what is due to one endpoint, one message after another, under a lease: no two programs send to it at once.

The message is sent first and recorded after. A scheduler that dies in between has sent it, and another sends it again
with the same `webhook-id`, by which receivers tell. So every message arrives at least once.
"""

import logging
import time
from datetime import UTC, datetime
from typing import Any

from services.core.crash_points import crash_point
from services.core.db.leases import Lease
from services.core.fetching.connections import Rules
from services.core.fetching.errors import FetchFailed
from services.core.fetching.post import Answer, post
from services.core.metrics import registry
from services.core.settings import Settings
from services.core.webhooks import deliveries, endpoints, sealing, signing
from services.core.webhooks.deliveries import Try

log = logging.getLogger(__name__)
TURN_SECONDS = 5.0  # then another endpoint has its turn
KEPT_BYTES = 1_024  # of an answer
_UNREADABLE_SECONDS = 60.0
TRIES = registry.counter("presswork_webhook_tries_total")
SECONDS = registry.histogram("presswork_webhook_seconds")
for _outcome in ("delivered", "refused", "unreachable"):
    TRIES.labels(_outcome)


class Sender:
    """Sends by the installation's settings. Safe for many threads."""

    def __init__(self, settings: Settings) -> None:
        self._secrets, self._rules = settings.secrets, endpoints.rules(settings)

    def run(self, endpoint_id: int, lease: Lease) -> None:
        """Sends what is due, for a few seconds at most, and nothing more once the endpoint has failed."""
        over = time.monotonic() + TURN_SECONDS
        with lease.begin() as connection:
            sent = deliveries.due(connection, endpoint_id)
        while sent is not None:
            try:
                secrets = [sealing.opened(self._secrets, token) for token in (sent.secret, sent.old_secret) if token]
            except sealing.SecretUnreadable as error:
                log.error("webhook cannot be signed", extra={"webhook": endpoint_id, "error": str(error)})
                with lease.begin() as connection:
                    deliveries.postpone(connection, endpoint_id, _UNREADABLE_SECONDS)
                return
            found, retry_after = _try(sent, secrets, self._rules)
            crash_point("webhook.sent")
            with lease.begin() as connection:
                deliveries.record(connection, endpoint_id, sent, found, retry_after)
                goes_on = time.monotonic() < over and not lease.stopping.is_set()
                sent = deliveries.due(connection, endpoint_id) if goes_on else None
            crash_point("webhook.recorded")


def _try(sent: Any, secrets: list[str], rules: Rules) -> tuple[Try, str]:
    body = sent.body.encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "presswork-webhooks",
        **signing.headers(secrets, sent.message_id, int(time.time()), body),
    }
    began = time.monotonic()
    answer: Answer | None = None
    error = None
    try:
        answer = post(sent.url, body, headers, rules)
    except FetchFailed as failed:
        error = str(failed)
    seconds = time.monotonic() - began
    status = None if answer is None else answer.status
    if status is not None:
        SECONDS.observe(seconds)
    if status is not None and 300 <= status < 400:
        error = "It redirects, which is not followed; give the webhook the address where it leads."
    # The database takes no NUL in a text.
    text = None if answer is None else answer.beginning[:KEPT_BYTES].decode(errors="replace").replace("\0", "�")
    found = Try(sent.tries + 1, datetime.now(UTC), round(seconds * 1000), status, text, error)
    TRIES.labels("delivered" if found.is_success else "unreachable" if status is None else "refused").inc()
    return found, "" if answer is None else answer.retry_after
