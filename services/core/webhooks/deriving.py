"""Deliveries are derived from the log of events. In one transaction the cursor moves and the deliveries of what lies
behind it are made, so no event is lost and none is sent that did not happen.

The order of reading matters: the last number first, then the endpoints. An event with a number was committed before,
and an endpoint that was made before the event is seen.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import queries
from services.core.model import ids
from services.core.webhooks import messages
from services.core.webhooks.messages import Message

MOST = 5_000
_CURSOR = statement("deriving.cursor")("SELECT seq FROM webhook_cursor FOR UPDATE SKIP LOCKED")
_LAST = statement("deriving.last")("SELECT coalesce(max(seq), 0) FROM events")
_ENDPOINTS = statement("deriving.endpoints")("""
SELECT id, tenant_id, events, labels FROM webhook_endpoints WHERE state = 'enabled' ORDER BY id FOR KEY SHARE
""")
_MOVE = statement("deriving.move")("UPDATE webhook_cursor SET seq = :seq")
_NEW = statement("deriving.new")("""
INSERT INTO webhook_deliveries (id, endpoint_id, tenant_id, seq, message_id, type, body, next_at)
SELECT *, now() FROM unnest(
  CAST(:ids AS bigint[]), CAST(:endpoints AS bigint[]), CAST(:tenants AS integer[]), CAST(:seqs AS bigint[]),
  CAST(:messages AS text[]), CAST(:types AS text[]), CAST(:bodies AS text[])
)
ON CONFLICT (endpoint_id, message_id) DO NOTHING
""")


def derive(connection: Connection, most: int = MOST) -> int:
    """Makes the deliveries of up to `most` events of all tenants; returns how many deliveries."""
    cursor = connection.execute(_CURSOR).scalar_one_or_none()
    if cursor is None:  # another transaction is at it
        return 0
    last = int(connection.execute(_LAST).scalar_one())
    if last <= cursor:
        return 0
    endpoints = connection.execute(_ENDPOINTS).all()
    until = min(last, cursor + most) if endpoints else last
    made = 0
    if endpoints:
        tenants = {row.tenant_id for row in endpoints}
        found = queries.between(connection, cursor, until, sorted(tenants))
        made = _make(connection, messages.of(connection, found), endpoints)
    connection.execute(_MOVE, {"seq": until})
    return made


def _make(connection: Connection, found: Sequence[Message], endpoints: Sequence[Any]) -> int:
    pairs = [
        (endpoint, message)
        for message in found
        for endpoint in endpoints
        if endpoint.tenant_id == message.tenant_id and message.fits(endpoint.events, endpoint.labels)
    ]
    if not pairs:
        return 0
    values = {
        "ids": sorted(ids.new() for _ in pairs),  # in the order of the events
        "endpoints": [endpoint.id for endpoint, _ in pairs],
        "tenants": [message.tenant_id for _, message in pairs],
        "seqs": [message.seq for _, message in pairs],
        "messages": [message.id for _, message in pairs],
        "types": [message.type for _, message in pairs],
        "bodies": [message.body for _, message in pairs],
    }
    return connection.execute(_NEW, values).rowcount
