"""Retention rules: for how many days after its end a job keeps its payloads, its objects and its records.

A tenant has one rule; a job's submission may say otherwise, kind by kind. Without either, everything is kept. Functions
take an open transaction and never commit.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.model.errors import PressworkError

KINDS = ("payloads", "objects", "records")  # what is erased first, as a rule, comes first
MOST_DAYS = 36_500
COLUMN = {"payloads": "payload_days", "objects": "object_days", "records": "record_days"}
_READ = statement("rules.read")("""
SELECT payload_days, object_days, record_days, updated_at FROM retention_rules WHERE tenant_id = :tenant_id
""")
_SET = statement("rules.set")(f"""
WITH made AS (
  INSERT INTO retention_rules AS r (tenant_id, payload_days, object_days, record_days)
  VALUES (:tenant_id, :payloads, :objects, :records)
  ON CONFLICT (tenant_id) DO UPDATE SET {
    ", ".join(
        f"{column} = CASE WHEN '{kind}' = ANY(CAST(:changed AS text[])) THEN excluded.{column} ELSE r.{column} END"
        for kind, column in COLUMN.items()
    )
}, updated_at = now()
  RETURNING r.tenant_id, payload_days, object_days, record_days
)
{
    log.of_each(
        "made",
        "'retention.changed'",
        subject="'retention/' || tenant_id",
        data="jsonb_strip_nulls(jsonb_build_object("
        "'payloads', payload_days, 'objects', object_days, 'records', record_days))",
    )
}
""")  # noqa: S608  our own text


class InvalidRule(PressworkError):
    """A number of days that no rule may have."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Days by kind; None: for ever. `updated_at` is None if nobody has set a rule."""

    payloads: int | None = None
    objects: int | None = None
    records: int | None = None
    updated_at: datetime | None = None


def read(connection: Connection, tenant_id: int) -> Rule:
    """The tenant's rule; the default one keeps everything."""
    row = connection.execute(_READ, {"tenant_id": tenant_id}).one_or_none()
    return Rule() if row is None else Rule(row.payload_days, row.object_days, row.record_days, row.updated_at)


def change(connection: Connection, tenant_id: int, changes: dict[str, int | None]) -> Rule:
    """Changes the kinds that are named, and leaves the others to who changes them at the same time. Returns the rule.
    Raises InvalidRule."""
    for kind, days in changes.items():
        if days is not None and not 0 <= days <= MOST_DAYS:
            raise InvalidRule(f"{kind} is {days} days; it must be from 0 to {MOST_DAYS}, or null for ever.")
    values = dict.fromkeys(KINDS) | changes
    connection.execute(_SET, {**values, "tenant_id": tenant_id, "changed": list(changes)})
    return read(connection, tenant_id)


def days(kind: str) -> str:
    """How many days a job `j` keeps that kind, in SQL, with its tenant's rule as `r`; null: for ever."""
    return f"CASE WHEN j.retention ? '{kind}' THEN (j.retention->>'{kind}')::integer ELSE r.{COLUMN[kind]} END"
