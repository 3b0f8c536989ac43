"""Seals the audit trail: each range of a tenant's events gets one row, with the hash at its end.

It goes by `seq`, as webhooks do: numbers are given in order after the commit, so nothing is added behind the cursor.
One transaction reads what is behind the cursor, inserts the ranges and moves the cursor: each event is sealed once.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from services.core.db import tables
from services.core.db.statements import statement
from services.core.events.queries import Event
from services.core.model import audit_chain
from services.core.trail import records

MOST = 5_000  # numbers that one transaction looks at
LONGEST = 200  # events of a range
_CURSOR = statement("sealing.cursor")("SELECT sealed_seq FROM audit_cursor FOR UPDATE SKIP LOCKED")
_LAST = statement("sealing.last")("SELECT coalesce(max(seq), 0) FROM events")
_NEXT = statement("sealing.next")(f"""
SELECT seq, tenant_id, at, actor, kind, subject, data FROM events e WHERE seq > :after AND seq <= :until
  AND {tables.TRAIL} AND (tenant_id IS NULL OR EXISTS (
    SELECT FROM tenants t WHERE t.id = e.tenant_id AND t.deleted_at IS NULL))
ORDER BY seq
""")  # noqa: S608  our own text
_HEADS = statement("sealing.heads")("""
SELECT asked.tenant_id, s.next, s.hash FROM unnest(CAST(:tenants AS integer[])) AS asked (tenant_id)
CROSS JOIN LATERAL (
  SELECT first + cardinality(seqs) AS next, hash, id FROM audit_seals WHERE tenant_id = asked.tenant_id
  ORDER BY id DESC LIMIT 1
) s
UNION ALL
(SELECT NULL, first + cardinality(seqs), hash FROM audit_seals WHERE tenant_id IS NULL ORDER BY id DESC LIMIT 1)
""")
_NEW = statement("sealing.new")("""
INSERT INTO audit_seals (tenant_id, first, seqs, from_at, to_at, previous, hash)
VALUES (:tenant_id, :first, CAST(:seqs AS bigint[]), :from_at, :to_at, :previous, :hash)
""")
_MOVE = statement("sealing.move")("UPDATE audit_cursor SET sealed_seq = :seq")
_FORGET = statement("sealing.forget")("SELECT presswork_forget_trail(:days, :limit)")


def seal(connection: Connection, most: int = MOST) -> int:
    """Seals the trail among the next `most` numbers; returns how many numbers it went on by."""
    cursor = connection.execute(_CURSOR).scalar_one_or_none()
    if cursor is None:  # another transaction is at it
        return 0
    until = min(int(connection.execute(_LAST).scalar_one()), cursor + most)
    if until <= cursor:
        return 0
    rows = connection.execute(_NEXT, {"after": cursor, "until": until})
    found: dict[int | None, list[Event]] = {}
    for row in rows:
        event = Event(row.seq, row.tenant_id, row.at, row.actor, row.kind, row.subject, row.data)
        found.setdefault(event.tenant_id, []).append(event)
    if found:
        asked = {"tenants": [tenant for tenant in found if tenant is not None]}
        heads = {row.tenant_id: (row.next, row.hash) for row in connection.execute(_HEADS, asked)}
        ranges = [
            one
            for tenant, events in found.items()
            for one in _ranges(events, *heads.get(tenant, (1, audit_chain.GENESIS)))
        ]
        connection.execute(_NEW, ranges)
    connection.execute(_MOVE, {"seq": until})
    return int(until - cursor)


def forget(connection: Connection, days: int, limit: int = 200) -> int:
    """Deletes the events of up to `limit` ranges all of whose events are more than `days` old, the oldest first;
    returns how many. Their seals stay."""
    return int(connection.execute(_FORGET, {"days": days, "limit": limit}).scalar_one())


def _ranges(events: Sequence[Event], place: int, hashed: bytes) -> list[dict[str, Any]]:
    made = []
    for start in range(0, len(events), LONGEST):
        some, previous = events[start : start + LONGEST], hashed
        for number, event in enumerate(some, place):
            hashed = audit_chain.link(hashed, records.record(event, number))
        made.append({
            "tenant_id": some[0].tenant_id, "first": place, "seqs": [event.seq for event in some],
            "from_at": min(event.at for event in some), "to_at": max(event.at for event in some),
            "previous": previous, "hash": hashed,
        })  # fmt: skip
        place += len(some)
    return made
