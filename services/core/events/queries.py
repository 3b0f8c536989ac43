"""Reads events by `seq`. A reader that has read up to a number has every event below it: none is added there later."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement

_AFTER = statement("queries.after")("""
SELECT seq, tenant_id, at, actor, kind, subject, data FROM events WHERE seq > :seq ORDER BY seq LIMIT :limit
""")
_OF_TENANT = statement("queries.of_tenant")("""
SELECT seq, tenant_id, at, actor, kind, subject, data FROM events
WHERE seq > :seq AND seq <= :seq + :most AND tenant_id = :tenant_id ORDER BY seq
""")
_BETWEEN = statement("queries.between")("""
SELECT seq, tenant_id, at, actor, kind, subject, data FROM events
WHERE seq > :after AND seq <= :until AND tenant_id = ANY(CAST(:tenants AS integer[])) ORDER BY seq
""")
_OF_SUBJECT = statement("queries.of_subject")("""
SELECT seq, tenant_id, at, actor, kind, subject, data,
       (SELECT name FROM api_keys k WHERE starts_with(actor, 'key/') AND k.id = substr(actor, 5)) AS actor_name
FROM events
WHERE subject = :subject AND tenant_id = :tenant_id AND seq > :seq ORDER BY seq LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Event:
    """One committed event. `tenant_id` is None for an event of the system. `actor_name` is the name of the key that was
    its actor, where it was asked for."""

    seq: int
    tenant_id: int | None
    at: datetime
    actor: str
    kind: str
    subject: str
    data: dict[str, Any]
    actor_name: str | None = None


def after(connection: Connection, seq: int, *, limit: int = 1_000) -> list[Event]:
    """Events of all tenants with a number above `seq`, in order."""
    return _events(connection.execute(_AFTER, {"seq": seq, "limit": limit}))


def of_tenant(connection: Connection, tenant_id: int, seq: int, *, most: int) -> list[Event]:
    """The tenant's events among the next `most` of all tenants with a number above `seq`, in order."""
    return _events(connection.execute(_OF_TENANT, {"tenant_id": tenant_id, "seq": seq, "most": most}))


def between(connection: Connection, after: int, until: int, tenants: Iterable[int]) -> list[Event]:
    """Those tenants' events with a number above `after` and up to `until`, in order."""
    return _events(connection.execute(_BETWEEN, {"after": after, "until": until, "tenants": list(tenants)}))


def of_subject(
    connection: Connection, tenant_id: int, subject: str, *, after_seq: int = 0, limit: int = 1_000
) -> list[Event]:
    """The tenant's events about that subject with a number above `after_seq`, in order, with the names of keys."""
    values = {"subject": subject, "tenant_id": tenant_id, "seq": after_seq, "limit": limit}
    return [
        Event(row.seq, row.tenant_id, row.at, row.actor, row.kind, row.subject, row.data, row.actor_name)
        for row in connection.execute(_OF_SUBJECT, values)
    ]


def job(job_id: int) -> str:
    """The subject under which a job's events are logged."""
    return f"job/{job_id}"


def job_of(event: Event) -> int | None:
    """The job that an event is about, if it is about one."""
    kind, _, number = event.subject.partition("/")
    return int(number) if kind == "job" else None


def _events(rows: Iterable[Any]) -> list[Event]:
    return [Event(row.seq, row.tenant_id, row.at, row.actor, row.kind, row.subject, row.data) for row in rows]
