"""The records of the audit trail: what is shown and hashed of an event (`model/audit_chain.py`).

Sealed hashes stay for years, so the form of a record never changes: a test has examples.
"""

from collections.abc import Callable
from datetime import UTC
from typing import Any

from services.core.bulk import bulk
from services.core.events.queries import Event
from services.core.exports import records
from services.core.files import files, uploads
from services.core.model import ids
from services.core.policy import terms
from services.core.tenants import tenants, views
from services.core.webhooks import endpoints

_PUBLIC: dict[str, Callable[[int], str]] = {
    "job": ids.public_job,
    "export": records.public_id,
    "file": files.public_id,
    "upload": uploads.public_id,
    "bulk": bulk.public_id,
    "view": views.public_id,
    "tenant": tenants.public_id,
    "webhook": endpoints.public_id,
    "policy_term": terms.public_id,
}


def subject(event: Event) -> tuple[str, str]:
    """What was acted on: its type, and its id as users know it."""
    kind, _, name = event.subject.partition("/")
    return kind, _PUBLIC[kind](int(name)) if kind in _PUBLIC else name


def data(event: Event) -> dict[str, Any]:
    """The event's data, with a job's id as users know it, and without what is null."""
    return {
        field: ids.public_job(value) if field == "job" else value
        for field, value in event.data.items()
        if value is not None  # such as the version before the first one that was published
    }


def record(event: Event, place: int) -> dict[str, Any]:
    """The event at that place, from 1, of its tenant's chain."""
    kind, name = subject(event)
    return {
        "tenant": None if event.tenant_id is None else tenants.public_id(event.tenant_id),
        "n": place,
        "seq": event.seq,
        "at": event.at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "actor": event.actor,
        "event": event.kind,
        "subject_type": kind,
        "subject": name,
        "data": data(event),
    }
