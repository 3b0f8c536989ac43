"""The endpoints of a tenant: where messages go, and which. Functions take an open transaction and never commit.

Each act logs an event about `webhook/ID`, with whoever does it as actor.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.fetching import connections
from services.core.fetching.connections import Rules
from services.core.fetching.errors import FetchFailed
from services.core.fetching.targets import Target
from services.core.model import ids
from services.core.model.errors import Conflict, InvalidSubmission, NotFound, Problem
from services.core.settings import Settings
from services.core.webhooks import sealing, signing
from services.core.webhooks.asked import WebhookChanges, WebhookRequest

MOST = 20  # of one tenant
BY_USER = "by_user"
GONE = "gone"  # it answered 410
FAILING = "failing"
_INSTEAD = " While you develop, `presswork webhooks listen` brings messages to a program on your own machine."
_ANSWER_BYTES = 4_096
_SECONDS = 10.0
_LOOKUP_SECONDS = 3.0
SUBJECT = "'webhook/' || id"
_COLUMNS = """id, tenant_id, url, description, events, labels, state, reason, failures, failing_since, old_until,
  created_by, created_at"""
_LOCK_TENANT = statement("endpoints.lock_tenant")("SELECT pg_advisory_xact_lock(7209424, :tenant_id)")
_COUNT = statement("endpoints.count")("SELECT count(*) FROM webhook_endpoints WHERE tenant_id = :tenant_id")
_NEW = statement("endpoints.new")(f"""
WITH made AS (
  INSERT INTO webhook_endpoints (id, tenant_id, url, description, events, labels, secret, created_by)
  VALUES (:id, :tenant_id, :url, :description, CAST(:events AS text[]), CAST(:labels AS jsonb), :secret, {log.ACTOR})
  RETURNING id, tenant_id
)
{log.of_each("made", "'webhook.created'", subject=SUBJECT)}
""")  # noqa: S608  our own text
_ALL = statement("endpoints.all")(
    f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE tenant_id = :tenant_id ORDER BY id"  # noqa: S608  our own text
)
_ONE = statement("endpoints.one")(
    f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE tenant_id = :tenant_id AND id = :id"  # noqa: S608  our own text
)
_LOCK = statement("endpoints.lock")(
    f"SELECT {_COLUMNS} FROM webhook_endpoints WHERE tenant_id = :tenant_id AND id = :id FOR NO KEY UPDATE"  # noqa: S608
)
# Whoever changes an endpoint has done something about it: what waits is tried at once.
_CHANGE = statement("endpoints.change")(f"""
WITH moved AS (
  UPDATE webhook_endpoints SET url = :url, description = :description, events = CAST(:events AS text[]),
    labels = CAST(:labels AS jsonb), state = :state, reason = :reason, failures = 0, failing_since = NULL,
    not_before = now()
  WHERE tenant_id = :tenant_id AND id = :id RETURNING id, tenant_id
)
{log.of_each("moved", "CAST(:kind AS text)", subject=SUBJECT)}
""")  # noqa: S608  our own text
_ROTATE = statement("endpoints.rotate")(f"""
WITH moved AS (
  UPDATE webhook_endpoints SET old_secret = secret, old_until = now() + make_interval(hours => :hours), secret = :secret
  WHERE tenant_id = :tenant_id AND id = :id RETURNING id, tenant_id
)
{log.of_each("moved", "'webhook.secret_rotated'", subject=SUBJECT)}
""")  # noqa: S608  our own text
_SECRET = statement("endpoints.secret")(
    "SELECT secret FROM webhook_endpoints WHERE tenant_id = :tenant_id AND id = :id"
)
_DELETE = statement("endpoints.delete")(f"""
WITH gone AS (
  DELETE FROM webhook_endpoints WHERE tenant_id = :tenant_id AND id = :id RETURNING id, tenant_id
)
{log.of_each("gone", "'webhook.deleted'", subject=SUBJECT)}
""")  # noqa: S608  our own text
_WAKE = statement("endpoints.wake")(
    "UPDATE webhook_endpoints SET not_before = now() WHERE tenant_id = :tenant_id AND id = :id"
)
_SEALED = statement("endpoints.sealed")("SELECT id, secret, old_secret FROM webhook_endpoints ORDER BY id")
_RESEAL = statement("endpoints.reseal")("""
UPDATE webhook_endpoints
SET secret = :new, old_secret = CASE WHEN old_secret IS NOT NULL THEN CAST(:new_old AS bytea) END
WHERE id = :id AND secret = :secret AND old_secret IS NOT DISTINCT FROM :old_secret
""")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`reason` says why it is disabled. `failures` in a row since `failing_since`. Until `old_until` the secret before
    the last rotation signs too."""

    id: int
    tenant_id: int
    url: str
    description: str
    events: list[str]
    labels: dict[str, str]
    state: str
    reason: str | None
    failures: int
    failing_since: datetime | None
    old_until: datetime | None
    created_by: str
    created_at: datetime


def public_id(number: int) -> str:
    return ids.public("whe_", number)


def parse_id(public: str) -> int:
    """Raises NotFound."""
    return ids.parse("whe_", public, "webhook")


def rules(settings: Settings) -> Rules:
    """Where messages may go, and how much of an answer is read, in how many seconds."""
    return Rules(
        settings.webhook_networks, settings.webhook_http, max_bytes=_ANSWER_BYTES, seconds=_SECONDS,
        setting="PRESSWORK_WEBHOOK_NETWORKS",
    )  # fmt: skip


def check_url(settings: Settings, url: str) -> None:
    """Refuses an address that messages cannot go to. Takes as long as its name takes to resolve: call it outside of a
    transaction. What it leads to is checked again at each try. Raises InvalidSubmission."""
    try:
        target = Target.parse(url, http=settings.webhook_http)
        own = urlsplit(settings.public_url)
        if own.hostname and target.host.lower() == own.hostname.lower():
            raise FetchFailed("forbidden_address", "The address is this server's own; name that of another program.")
        connections.assert_allowed(target, rules(settings), _LOOKUP_SECONDS)
    except FetchFailed as error:
        is_near = error.code == "forbidden_address" or url.startswith("http://")
        raise InvalidSubmission(
            [Problem(error.code, f"url is refused: {error}{_INSTEAD if is_near else ''}", "url")]
        ) from None


def create(connection: Connection, settings: Settings, tenant_id: int, asked: WebhookRequest) -> tuple[Endpoint, str]:
    """The endpoint and its secret. Raises Conflict: there are too many."""
    connection.execute(_LOCK_TENANT, {"tenant_id": tenant_id})
    if int(connection.execute(_COUNT, {"tenant_id": tenant_id}).scalar_one()) >= MOST:
        raise Conflict(f"There are {MOST} webhooks, which is as many as there may be; delete one.", "too_many_webhooks")
    number, secret = ids.new(), signing.new()
    values: dict[str, Any] = {
        "id": number, "tenant_id": tenant_id, "url": asked.url, "description": asked.description,
        "events": asked.events, "labels": json.dumps(asked.labels), "secret": sealing.sealed(settings.secrets, secret),
    }  # fmt: skip
    connection.execute(_NEW, values)
    return find(connection, tenant_id, number), secret


def listed(connection: Connection, tenant_id: int) -> list[Endpoint]:
    """All of the tenant's, the oldest first."""
    return [Endpoint(*row) for row in connection.execute(_ALL, {"tenant_id": tenant_id})]


def find(connection: Connection, tenant_id: int, number: int) -> Endpoint:
    """Raises NotFound."""
    return _existing(connection.execute(_ONE, {"tenant_id": tenant_id, "id": number}).one_or_none())


def change(connection: Connection, tenant_id: int, number: int, asked: WebhookChanges) -> Endpoint:
    """Changes what is given. What waits is tried at once, and the endpoint counts as one that has not failed.

    Raises NotFound.
    """
    before = _existing(connection.execute(_LOCK, {"tenant_id": tenant_id, "id": number}).one_or_none())
    given = asked.model_dump(exclude_none=True)
    enabled = given.pop("enabled", before.state == "enabled")
    after: dict[str, Any] = {
        "url": before.url, "description": before.description, "events": before.events, "labels": before.labels, **given
    }  # fmt: skip
    state = "enabled" if enabled else "disabled"
    moved = "webhook.enabled" if enabled else "webhook.disabled"
    kind = "webhook.changed" if state == before.state else moved
    reason = None if enabled else before.reason or BY_USER
    if kind == "webhook.changed" and all(getattr(before, name) == value for name, value in after.items()):
        return before
    values = after | {"labels": json.dumps(after["labels"]), "state": state, "reason": reason, "kind": kind}
    connection.execute(_CHANGE, values | {"tenant_id": tenant_id, "id": number})
    return find(connection, tenant_id, number)


def delete(connection: Connection, tenant_id: int, number: int) -> None:
    """With its deliveries; what has not been sent is not sent. Raises NotFound."""
    if not connection.execute(_DELETE, {"tenant_id": tenant_id, "id": number}).rowcount:
        raise NotFound("There is no such webhook.")


def secret(connection: Connection, accepted: Sequence[str], tenant_id: int, number: int) -> str:
    """The secret, for whoever asks; that it was shown is an event. Raises NotFound or SecretUnreadable."""
    token = connection.execute(_SECRET, {"tenant_id": tenant_id, "id": number}).scalar_one_or_none()
    if token is None:
        raise NotFound("There is no such webhook.")
    log.append(connection, "webhook.secret_shown", f"webhook/{number}", tenant_id=tenant_id)
    return sealing.opened(accepted, token)


def rotate(connection: Connection, accepted: Sequence[str], tenant_id: int, number: int) -> tuple[Endpoint, str]:
    """A new secret. The one before signs too for a day; the one before that no longer does. Raises NotFound."""
    made = signing.new()
    values = {"tenant_id": tenant_id, "id": number, "hours": signing.OVERLAP_HOURS}
    if not connection.execute(_ROTATE, values | {"secret": sealing.sealed(accepted, made)}).rowcount:
        raise NotFound("There is no such webhook.")
    return find(connection, tenant_id, number), made


def assert_enabled(endpoint: Endpoint) -> None:
    """Raises Conflict."""
    if endpoint.state != "enabled":
        raise Conflict("The webhook is disabled; enable it first.", "webhook_disabled")


def wake(connection: Connection, endpoint: Endpoint) -> None:
    """Lets it be tried at once, although it has just failed."""
    connection.execute(_WAKE, {"tenant_id": endpoint.tenant_id, "id": endpoint.id})


def reseal(connection: Connection, accepted: Sequence[str]) -> int:
    """Encrypts under the first of the installation's secrets what is encrypted under another; returns how many."""
    if len(accepted) < 2:
        return 0
    count = 0
    for row in connection.execute(_SEALED).all():
        tokens = [token for token in (row.secret, row.old_secret) if token is not None]
        if all(sealing.is_current(accepted, token) for token in tokens):
            continue
        try:
            new = [sealing.sealed(accepted, sealing.opened(accepted, token)) for token in tokens]
        except sealing.SecretUnreadable:
            continue
        values = {"id": row.id, "secret": row.secret, "old_secret": row.old_secret, "new": new[0], "new_old": new[-1]}
        count += connection.execute(_RESEAL, values).rowcount
    return count


def _existing(row: Any) -> Endpoint:
    if row is None:
        raise NotFound("There is no such webhook.")
    return Endpoint(*row)
