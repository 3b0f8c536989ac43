"""The action log: the events by which somebody changed something, newest first, each with who did it.

It leaves out what a job or an export merely goes through (`tables.PROGRESS`); every other kind of event is an act.
"""

from dataclasses import dataclass
from itertools import product

from sqlalchemy import Connection, TextClause

from services.core.db import tables
from services.core.db.statements import statement
from services.core.events.queries import Event

_FILTERS = {"actor": "actor = :actor", "verb": "kind = :verb", "job": "subject = :job"}
_COLUMNS = "seq, tenant_id, at, actor, kind, subject, data"
# OFFSET 0: a job has few events, and without it the planner may look for them among all of the tenant's.
_OF_JOB = f"(SELECT {_COLUMNS} FROM events WHERE subject = :job OFFSET 0) events"  # noqa: S608  our own text
NEWEST = 2**63 - 1


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
) -> list[Action]:
    """The tenant's acts with a number below `before`: all, or those of one actor, of one kind, or about one job, by its
    subject."""
    given = {name: value for name, value in (("actor", actor), ("verb", verb), ("job", job)) if value is not None}
    rows = connection.execute(_PAGES[tuple(given)], given | {"tenant_id": tenant_id, "before": before, "limit": limit})
    return [
        Action(Event(row.seq, row.tenant_id, row.at, row.actor, row.kind, row.subject, row.data), row.name)
        for row in rows
    ]
