"""The action log: the events by which somebody changed something, newest first, each with who did it.

It leaves out what a job or an export merely goes through (`tables.PROGRESS`); every other kind of event is an act.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Any

from sqlalchemy import Connection, TextClause

from services.core.db import tables
from services.core.db.statements import statement
from services.core.events.queries import Event

_FILTERS = {
    "actor": "actor = :actor",
    "verb": "kind = :verb",
    "job": "subject = :job",
    "since": "seq >= :first AND at >= :since",
    "until": "seq < :past AND at < :until",
}
_COLUMNS = "seq, tenant_id, at, actor, kind, subject, data"
# OFFSET 0: a job has few events, and without it the planner may look for them among all of the tenant's.
_OF_JOB = f"(SELECT {_COLUMNS} FROM events WHERE subject = :job OFFSET 0) events"  # noqa: S608  our own text
NEWEST = 2**63 - 1
_LONGEST_TRANSACTION = timedelta(hours=1)


def _page(given: tuple[str, ...]) -> TextClause:
    """With the filters written out, so that the planner takes the index of one."""
    source = _OF_JOB if "job" in given else "events"
    also = "".join(f" AND {_FILTERS[name]}" for name in given)
    return statement("_".join(["actions.page", *given]))(f"""
SELECT e.seq, e.tenant_id, e.at, e.actor, e.kind, e.subject, e.data, k.name FROM (
  SELECT {_COLUMNS} FROM {source}
  WHERE tenant_id = :tenant_id AND seq < :before AND {tables.ACTS}{also} ORDER BY seq DESC LIMIT :limit
) e LEFT JOIN api_keys k ON k.id = CASE WHEN starts_with(e.actor, 'key/') THEN substr(e.actor, 5) END
ORDER BY e.seq DESC
""")  # noqa: S608  our own text


_PAGES = {
    given: _page(given)
    for chosen in product((False, True), repeat=len(_FILTERS))
    for given in [tuple(name for name, wanted in zip(_FILTERS, chosen, strict=True) if wanted)]
}
# Numbers grow with time, but for transactions that took long: a binary search reads one row a step, and needs no index
# by time, which every event would have to pay for.
_MINE = f"FROM events WHERE tenant_id = :tenant_id AND {tables.ACTS}"
_NUMBER_AT = statement("actions.number_at")(f"""
WITH RECURSIVE looking (low, high) AS (
  SELECT (SELECT seq {_MINE} AND seq IS NOT NULL ORDER BY seq LIMIT 1),
         (SELECT seq + 1 {_MINE} AND seq IS NOT NULL ORDER BY seq DESC LIMIT 1)
  UNION ALL
  SELECT CASE WHEN e.at < :moment THEN e.seq + 1 ELSE low END, CASE WHEN e.at < :moment THEN high ELSE middle END
  FROM looking CROSS JOIN LATERAL (SELECT (low + high) / 2 AS middle) m
  CROSS JOIN LATERAL (SELECT seq, at {_MINE} AND seq >= middle ORDER BY seq LIMIT 1) e
  WHERE low < high
)
SELECT coalesce(max(low), 0) FROM looking
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Action:
    """An act. `name` is the actor's, if it is a key."""

    event: Event
    name: str | None


def page(
    connection: Connection,
    tenant_id: int,
    *,
    before: int = NEWEST,
    limit: int,
    actor: str | None = None,
    verb: str | None = None,
    job: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[Action]:
    """The tenant's acts with a number below `before`: all, or those of one actor, of one kind, about one job (by its
    subject), or of a time."""
    filters = {"actor": actor, "verb": verb, "job": job, "since": since, "until": until}
    given: dict[str, Any] = {name: value for name, value in filters.items() if value is not None}
    values = given | {"tenant_id": tenant_id, "before": before, "limit": limit}
    if since is not None:
        values["first"] = _number_at(connection, tenant_id, since - _LONGEST_TRANSACTION)
    if until is not None:
        values["past"] = _number_at(connection, tenant_id, until + _LONGEST_TRANSACTION)
    rows = connection.execute(_PAGES[tuple(given)], values)
    return [
        Action(Event(row.seq, row.tenant_id, row.at, row.actor, row.kind, row.subject, row.data), row.name)
        for row in rows
    ]


def _number_at(connection: Connection, tenant_id: int, moment: datetime) -> int:
    """About the number of the tenant's first act from that moment on."""
    return int(connection.execute(_NUMBER_AT, {"tenant_id": tenant_id, "moment": moment}).scalar_one())
