"""Deliveries: each is one message for one endpoint, and stays with its tries for thirty days.

A delivery is `pending` until it was answered with 2xx (`delivered`) or no further try follows (`failed`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.model import ids
from services.core.model.errors import NotFound
from services.core.webhooks import endpoints, messages, retries, types
from services.core.webhooks.endpoints import FAILING, GONE, SUBJECT, Endpoint

KEPT_DAYS = 30
_COLUMNS = """d.id, d.endpoint_id, d.seq, d.message_id, d.type, d.body, d.state, d.tries, d.next_at, d.created_at,
  d.finished_at, t.status, t.error"""
_DELIVERY = f"""
SELECT {_COLUMNS} FROM webhook_deliveries d
LEFT JOIN webhook_tries t ON t.delivery_id = d.id AND t.number = d.tries
WHERE d.tenant_id = :tenant_id AND d.endpoint_id = :endpoint_id
"""  # noqa: S608  our own text
_FILTERS = {"state": " AND d.state = :state", "type": " AND d.type = :type"}
_PAGES = {
    tuple(sorted(given)): statement("_".join(["deliveries.page", *sorted(given)]))(
        f"{_DELIVERY}{''.join(_FILTERS[name] for name in given)} AND d.id < :before ORDER BY d.id DESC LIMIT :limit"
    )
    for given in ((), ("state",), ("type",), ("state", "type"))
}
_ONE = statement("deliveries.one")(f"{_DELIVERY} AND d.id = :id")
_TRIES = statement("deliveries.tries")("""
SELECT number, at, milliseconds, status, answer, error FROM webhook_tries
WHERE tenant_id = :tenant_id AND delivery_id = :id ORDER BY number
""")
_AGAIN = statement("deliveries.again")(f"""
WITH moved AS (
  UPDATE webhook_deliveries SET state = 'pending', round = 0, next_at = now(), finished_at = NULL
  WHERE tenant_id = :tenant_id AND endpoint_id = :endpoint_id AND id = :id RETURNING endpoint_id AS id, tenant_id, message_id
)
{log.of_each("moved", "'webhook.redelivered'", subject=SUBJECT, data="jsonb_build_object('message', message_id)")}
""")  # noqa: S608, E501  our own text
_NEW_TEST = statement("deliveries.new_test")(f"""
WITH made AS (
  INSERT INTO webhook_deliveries (id, endpoint_id, tenant_id, message_id, type, body, next_at)
  VALUES (:number, :endpoint_id, :tenant_id, :message_id, :type, :body, now()) RETURNING endpoint_id AS id, tenant_id
)
{log.of_each("made", "'webhook.tested'", subject=SUBJECT)}
""")  # noqa: S608  our own text
_PENDING = statement("deliveries.pending")(
    turns.first_of_each("""
  SELECT e.id FROM webhook_endpoints e
  WHERE e.tenant_id = t.id AND e.state = 'enabled' AND e.not_before <= now()
    AND e.id <> ALL(CAST(:excluding AS bigint[]))
    AND EXISTS (SELECT FROM webhook_deliveries d
                WHERE d.endpoint_id = e.id AND d.state = 'pending' AND d.next_at <= now())
  ORDER BY e.served_at LIMIT :first
""")
)
_DUE = statement("deliveries.due")("""
SELECT d.id, d.message_id, d.type, d.body, d.tries, d.round, d.next_at, e.url, e.secret,
       CASE WHEN e.old_until > now() THEN e.old_secret END AS old_secret
FROM webhook_endpoints e JOIN webhook_deliveries d ON d.endpoint_id = e.id
WHERE e.id = :endpoint_id AND e.state = 'enabled' AND e.not_before <= now()
  AND d.state = 'pending' AND d.next_at <= now()
ORDER BY d.next_at, d.id LIMIT 1
""")
# What was asked for again while the try went on, is due since then: the try is logged, and decides nothing.
_RECORD = statement("deliveries.record")("""
WITH moved AS (
  UPDATE webhook_deliveries SET tries = tries + 1,
    round = CASE WHEN next_at = :due_at THEN round + 1 ELSE round END,
    state = CASE WHEN next_at = :due_at THEN CAST(:state AS text) ELSE state END,
    next_at = CASE WHEN next_at = :due_at THEN now() + make_interval(secs => :pause) ELSE next_at END,
    finished_at = CASE WHEN next_at = :due_at AND CAST(:state AS text) <> 'pending' THEN now() END
  WHERE id = :id AND tries = :tries AND state = 'pending' RETURNING id, tenant_id, tries
)
INSERT INTO webhook_tries (delivery_id, number, tenant_id, at, milliseconds, status, answer, error)
SELECT id, tries, tenant_id, now() - make_interval(secs => :milliseconds / 1000.0), :milliseconds, :status, :answer,
       :error FROM moved
""")
_WELL = statement("deliveries.well")("""
UPDATE webhook_endpoints SET failures = 0, failing_since = NULL, served_at = now() WHERE id = :id
""")
_ILL = statement("deliveries.ill")(f"""
WITH moved AS (
  UPDATE webhook_endpoints SET
    failures = failures + 1, failing_since = coalesce(failing_since, now()), served_at = now(),
    not_before = now() + make_interval(secs => :rest),
    state = CASE WHEN CAST(:gone AS boolean) OR failing_since < now() - make_interval(days => :days)
            THEN 'disabled' ELSE state END,
    reason = CASE WHEN CAST(:gone AS boolean) THEN '{GONE}'
             WHEN failing_since < now() - make_interval(days => :days) THEN '{FAILING}' ELSE reason END
  WHERE id = :id AND state = 'enabled' RETURNING id, tenant_id, state, reason
), disabled AS (SELECT * FROM moved WHERE state = 'disabled')
{log.of_each("disabled", "'webhook.disabled'", subject=SUBJECT, data="jsonb_build_object('reason', reason)")}
""")  # noqa: S608  our own text
_FAILURES = statement("deliveries.failures")("SELECT failures FROM webhook_endpoints WHERE id = :id")
_REST = statement("deliveries.rest")("""
UPDATE webhook_endpoints SET not_before = now() + make_interval(secs => :rest), served_at = now() WHERE id = :id
""")
_FORGET = statement("deliveries.forget")("""
DELETE FROM webhook_deliveries WHERE id IN (
  SELECT id FROM webhook_deliveries WHERE id < :before ORDER BY id LIMIT :limit
)
""")


@dataclass(frozen=True, slots=True)
class Delivery:
    """`status` and `error` are those of the last try; `next_at` is when the next one comes at the earliest."""

    id: int
    endpoint_id: int
    seq: int | None
    message_id: str
    type: str
    body: str
    state: str
    tries: int
    next_at: datetime | None
    created_at: datetime
    finished_at: datetime | None
    status: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Try:
    """`status` is that of the answer, and `answer` its first bytes; without one, `error` says why."""

    number: int
    at: datetime
    milliseconds: int
    status: int | None
    answer: str | None
    error: str | None

    @property
    def is_success(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def public_id(number: int) -> str:
    return ids.public("whd_", number)


def parse_id(public: str) -> int:
    """Raises NotFound."""
    return ids.parse("whd_", public, "delivery")


def page(
    connection: Connection, endpoint: Endpoint, *, before: int | None, limit: int, state: str | None = None,
    type: str | None = None,  # noqa: A002  the field's own name
) -> list[Delivery]:  # fmt: skip
    """The newest deliveries with an id below `before`, of one state, of one type, or all."""
    given = {name: value for name, value in (("state", state), ("type", type)) if value is not None}
    values = _of(endpoint) | given | {"before": ids.LIMIT - 1 if before is None else before, "limit": limit}
    return [Delivery(*row) for row in connection.execute(_PAGES[tuple(sorted(given))], values)]


def find(connection: Connection, endpoint: Endpoint, number: int) -> Delivery:
    """Raises NotFound."""
    row = connection.execute(_ONE, _of(endpoint) | {"id": number}).one_or_none()
    if row is None:
        raise NotFound("There is no such delivery.")
    return Delivery(*row)


def tries(connection: Connection, tenant_id: int, number: int) -> list[Try]:
    """The tries of a delivery, the first one first."""
    return [Try(*row) for row in connection.execute(_TRIES, {"tenant_id": tenant_id, "id": number})]


def redeliver(connection: Connection, endpoint: Endpoint, number: int) -> Delivery:
    """Sends the same message again, at once, whatever became of it. Raises NotFound or Conflict."""
    endpoints.assert_enabled(endpoint)
    if not connection.execute(_AGAIN, _of(endpoint) | {"id": number}).rowcount:
        raise NotFound("There is no such delivery.")
    endpoints.wake(connection, endpoint)
    return find(connection, endpoint, number)


def test(connection: Connection, endpoint: Endpoint) -> Delivery:
    """Sends a message of the type `webhook.test`. Raises Conflict."""
    endpoints.assert_enabled(endpoint)
    number = ids.new()
    message_id = ids.public("evt_test_", number)
    body = messages.test_body(message_id, endpoints.public_id(endpoint.id), int(time.time()))
    values = {"number": number, "message_id": message_id, "type": types.TEST, "body": body}
    connection.execute(_NEW_TEST, _of(endpoint) | values)
    endpoints.wake(connection, endpoint)
    return find(connection, endpoint, number)


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Endpoints for which a delivery is due, a few of each tenant: whose turn was longest ago first."""
    return turns.waiting(connection, _PENDING, excluding, busy)


def due(connection: Connection, endpoint_id: int) -> Any:
    """What is sent next: a row with the delivery, and the endpoint's address and secrets. None: nothing now."""
    return connection.execute(_DUE, {"endpoint_id": endpoint_id}).one_or_none()


def record(connection: Connection, endpoint_id: int, sent: Any, found: Try, retry_after: str = "") -> None:
    """What became of a try of `sent`, a row of `due`. What was deleted or asked for again meanwhile stays as it is."""
    if found.is_success:
        _write(connection, sent, found, "delivered", None)
        connection.execute(_WELL, {"id": endpoint_id})
        return
    gone = found.status == 410
    asked = retries.asked_for(retry_after, datetime.now(UTC)) if found.status in (429, 503) else 0.0
    pause = None if gone else retries.pause(sent.round + 1)
    if pause is not None:
        pause = max(pause, asked)
    _write(connection, sent, found, "failed" if pause is None else "pending", pause)
    failures = connection.execute(_FAILURES, {"id": endpoint_id}).scalar_one_or_none() or 0
    rest = max(retries.rest(failures), asked)
    connection.execute(
        _ILL, {"id": endpoint_id, "gone": gone, "days": retries.DISABLED_AFTER_DAYS, "rest": rest}
    )  # fmt: skip


def postpone(connection: Connection, endpoint_id: int, seconds: float) -> None:
    """Nothing is sent to the endpoint for so long, and no try is counted."""
    connection.execute(_REST, {"id": endpoint_id, "rest": seconds})


def forget(connection: Connection, days: int = KEPT_DAYS, limit: int = 5_000) -> int:
    """Deletes deliveries that were made more than `days` ago, up to `limit` per call; returns how many."""
    before = ids.floor(datetime.now(UTC) - timedelta(days=days))
    return connection.execute(_FORGET, {"before": before, "limit": limit}).rowcount


def _write(connection: Connection, sent: Any, found: Try, state: str, pause: float | None) -> None:
    values = {
        "id": sent.id, "tries": sent.tries, "due_at": sent.next_at, "state": state, "pause": pause,
        "milliseconds": found.milliseconds, "status": found.status, "answer": found.answer, "error": found.error,
    }  # fmt: skip
    connection.execute(_RECORD, values)


def _of(endpoint: Endpoint) -> dict[str, Any]:
    return {"tenant_id": endpoint.tenant_id, "endpoint_id": endpoint.id}
