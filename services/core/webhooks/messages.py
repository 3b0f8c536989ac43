"""Messages: what is sent of an event. They follow from the event alone, so whoever makes them again makes the same.

A message has the shape of OpenAI's: `{"id", "object": "event", "type", "created_at", "data": {"id", ...}}`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import actors
from services.core.db.statements import statement
from services.core.events import queries
from services.core.events.queries import Event, job_of
from services.core.exports import records
from services.core.files import files, uploads
from services.core.model import ids
from services.core.tenants import tenants, views
from services.core.webhooks import types

_JOBS = statement("messages.jobs")("""
SELECT id, labels, input_file_id IS NOT NULL AS is_batch, problems IS NOT NULL AS is_refused
FROM jobs WHERE id = ANY(CAST(:ids AS bigint[]))
""")
_CURSOR = statement("messages.cursor")("SELECT seq FROM webhook_cursor")
_PUBLIC: dict[str, Callable[[int], str]] = {
    "job": ids.public_job, "export": records.public_id, "file": files.public_id, "upload": uploads.public_id,
    "view": views.public_id, "tenant": tenants.public_id, "policy_term": lambda number: ids.public("term_", number),
    "bulk": lambda number: ids.public("bulk_", number),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Message:
    """`labels` are those of the job that it is about; None: it is about none. `body` is JSON."""

    tenant_id: int
    seq: int
    id: str
    type: str
    body: str
    labels: dict[str, str] | None

    def fits(self, patterns: Sequence[str], labels: dict[str, str]) -> bool:
        """Whether an endpoint with this choice gets it."""
        mine = self.labels or {}
        return types.fits(patterns, self.type) and all(mine.get(name) == value for name, value in labels.items())


def of(connection: Connection, events: Iterable[Event]) -> list[Message]:
    """The messages of these events, in their order."""
    told = [event for event in events if event.tenant_id is not None and types.is_sent(event.kind)]
    numbers = sorted({number for event in told if (number := _job(event)) is not None})
    jobs = {row.id: row for row in connection.execute(_JOBS, {"ids": numbers})} if numbers else {}
    return [message for event in told for message in _of(event, jobs.get(_job(event)))]


def page(connection: Connection, tenant_id: int, after: int | None, most: int) -> tuple[list[Message], int]:
    """The tenant's messages of the next `most` events of all tenants, and the place behind these. Without `after` none,
    and the place of what is the last one now."""
    last = int(connection.execute(_CURSOR).scalar_one())
    if after is None or after >= last:
        return [], last if after is None else min(after, last)
    until = min(after + most, last)
    found = queries.of_tenant(connection, tenant_id, after, most=until - after)
    return of(connection, found), until


def test_body(message_id: str, endpoint: str, at: int) -> str:
    """Of a test message, which is about the endpoint."""
    return _body(message_id, types.TEST, at, {"id": endpoint, "object": "webhook"})


def _of(event: Event, job: Any) -> Iterable[Message]:
    assert event.tenant_id is not None
    labels = None if job is None else dict(job.labels)
    at = int(event.at.timestamp())
    data = _data(event) | ({} if labels is None else {"labels": labels})
    yield _message(event, event.kind, at, data, labels)
    if job is not None and job.is_batch and event.kind in types.BATCH:
        is_failed = event.kind == "job.failed" and job.is_refused
        name = types.BATCH[event.kind] if event.kind != "job.failed" or is_failed else "batch.completed"
        yield _message(event, name, at, {"id": ids.public("batch_", job.id)}, labels)


def _message(event: Event, name: str, at: int, data: dict[str, Any], labels: dict[str, str] | None) -> Message:
    # A database that was restored gives numbers again: the moment makes them differ.
    told = f"{event.seq}\n{event.at.isoformat()}\n{name}"
    message_id = f"evt_{hashlib.sha256(told.encode()).hexdigest()[:32]}"
    return Message(event.tenant_id or 0, event.seq, message_id, name, _body(message_id, name, at, data), labels)


def _body(message_id: str, name: str, at: int, data: dict[str, Any]) -> str:
    whole = {"id": message_id, "object": "event", "type": name, "created_at": at, "data": data}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":"))


def _data(event: Event) -> dict[str, Any]:
    kind, _, name = event.subject.partition("/")
    more = {key: value for key, value in event.data.items() if key not in ("job", "device")}
    if isinstance(event.data.get("job"), int):
        more["job_id"] = ids.public_job(event.data["job"])
    thing = _PUBLIC[kind](int(name)) if kind in _PUBLIC else {"key": f"pw_{name}"}.get(kind, name)
    return {"id": thing, "object": kind, "actor": actors.without_host(event.actor), **more}


def _job(event: Event) -> int | None:
    """The job that it is about, or whose export it is."""
    named = event.data.get("job")
    return job_of(event) if not isinstance(named, int) else named
