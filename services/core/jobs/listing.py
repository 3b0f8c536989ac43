"""Pages of a tenant's jobs by state, time, label, text, priority, model and who submitted them, in an order.

No index knows more than states and times: one page looks at a bounded number of jobs, and says where it stopped. The
counts of the jobs that it found are exact.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import Connection, TextClause

from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.jobs.queries import JobView
from services.core.model import ids

LOOKED_AT = 10_000
Order = Literal["newest", "oldest", "failed_first"]
ORDERS: tuple[Order, ...] = get_args(Order)
_PAST_THE_NEWEST = 2**63 - 1

_IN_TIME = "id >= :since AND id < :until"  # an id says when it was made
_ANY = """
SELECT id, labels, priority FROM jobs WHERE tenant_id = :tenant_id AND id {than} :place AND {in_time}
ORDER BY id {way} LIMIT :most
"""
# Each state by its index.
_IN_STATES = """
SELECT mine.* FROM unnest(CAST(:states AS text[])) AS wanted (state) CROSS JOIN LATERAL (
  SELECT id, labels, priority FROM jobs
  WHERE jobs.state = wanted.state AND tenant_id = :tenant_id AND id {than} :place AND {in_time}
  ORDER BY id {way} LIMIT :most
) mine ORDER BY mine.id {way} LIMIT :most
"""
_HAS_FAILURES = "EXISTS (SELECT FROM job_counts c WHERE c.job_id = looked_at.id AND c.failed > 0)"
OF_MODEL = """EXISTS (
        SELECT FROM segments s LEFT JOIN models m ON m.revision = s.model_revision
        WHERE s.job_id = looked_at.id AND coalesce(m.name, s.model_revision) = :model)"""
# Who submitted it is in the event of its submission: a key, by its name or its id.
BY_WHOM = """EXISTS (
        SELECT FROM events e WHERE e.subject = 'job/' || looked_at.id AND e.tenant_id = :tenant_id
          AND e.kind = 'job.created' AND e.actor = ANY(ARRAY(
            SELECT 'key/' || k.id FROM api_keys k WHERE k.tenant_id = :tenant_id AND :who IN (k.name, k.id))))"""
_PAGE = """
WITH looked_at AS MATERIALIZED ({jobs})
SELECT ARRAY(
    SELECT id FROM looked_at
    WHERE labels @> CAST(:labels AS jsonb)
      AND (:text = '' OR EXISTS (
        SELECT FROM jsonb_each_text(labels) WHERE strpos(lower(key || ':' || value), lower(:text)) > 0))
      AND (CAST(:priority AS smallint) IS NULL OR priority = :priority)
      AND (:model = '' OR {of_model})
      AND (:who = '' OR {by_whom})
      AND (CAST(:failed AS boolean) IS NULL OR :failed = {has_failures})
    ORDER BY id {way} LIMIT :limit
  ) AS ids, count(*) AS looked_at, CASE WHEN count(*) = :most THEN {last}(id) END AS reached
FROM looked_at
"""


def _page(name: str, jobs: str, than: str, way: str, last: str) -> TextClause:
    text = _PAGE.format(
        jobs=jobs.format(than=than, way=way, in_time=_IN_TIME),
        has_failures=_HAS_FAILURES,
        of_model=OF_MODEL,
        by_whom=BY_WHOM,
        way=way,
        last=last,
    )
    return statement(f"listing.{name}")(text)


_NEWEST = _page("newest", _ANY, "<", "DESC", "min")
_OLDEST = _page("oldest", _ANY, ">", "ASC", "max")
_NEWEST_IN_STATES = _page("newest_in_states", _IN_STATES, "<", "DESC", "min")
_OLDEST_IN_STATES = _page("oldest_in_states", _IN_STATES, ">", "ASC", "max")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs: all, or those in one of these states, with that label, with that text in a label, of that priority,
    that render with that model, that a key of that name or id submitted, made in the time from `since` to `until`."""

    states: tuple[str, ...] = ()
    label: tuple[str, str] | None = None
    text: str = ""
    priority: int | None = None
    model: str = ""
    who: str = ""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_search(self) -> bool:
        """Whether jobs must be looked at that may not be among those wanted."""
        return bool(self.label or self.text or self.priority is not None or self.model or self.who)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page goes on: behind a job. `failed`: it is among those with failures, which come first, not behind."""

    job_id: int
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """`looked_at` jobs were searched for it; `more`, if there may be others."""

    jobs: list[JobView]
    looked_at: int
    more: Place | None


def page(
    connection: Connection, tenant_id: int, wanted: Filter, *, order: Order, place: Place | None, limit: int
) -> Page:
    """Up to `limit` jobs from `place` on. Takes the tenant's transaction."""
    behind = None if place is None else place.job_id
    if order != "failed_first":
        return _part(connection, tenant_id, wanted, order, behind, limit, failed=None)
    if place is not None and not place.failed:
        return _part(connection, tenant_id, wanted, "newest", behind, limit, failed=False)
    first = _part(connection, tenant_id, wanted, "newest", behind, limit, failed=True)
    if first.more is not None:
        return first
    left = limit - len(first.jobs)
    if not left:
        return Page(first.jobs, first.looked_at, Place(_PAST_THE_NEWEST))
    rest = _part(connection, tenant_id, wanted, "newest", None, left, failed=False)
    return Page(first.jobs + rest.jobs, max(first.looked_at, rest.looked_at), rest.more)


def _part(
    connection: Connection,
    tenant_id: int,
    wanted: Filter,
    order: Order,
    behind: int | None,
    limit: int,
    *,
    failed: bool | None,
) -> Page:
    """A page of those with failures, of those without, or, with `failed` None, of both."""
    is_search = wanted.is_search or failed is not None
    backwards = order == "oldest"
    since, until = bounds(wanted)
    values: dict[str, Any] = {
        "tenant_id": tenant_id,
        "states": list(wanted.states),
        "priority": wanted.priority,
        "since": since,
        "until": until,
        "failed": failed,
        "place": behind if behind is not None else -1 if backwards else _PAST_THE_NEWEST,
        "limit": limit + 1,
        "most": LOOKED_AT if is_search else limit + 1,
        **searched(wanted),
    }
    by_any, by_state = (_OLDEST, _OLDEST_IN_STATES) if backwards else (_NEWEST, _NEWEST_IN_STATES)
    row = connection.execute(by_state if wanted.states else by_any, values).one()
    ids = list(row.ids)
    views = {view.id: view for view in queries.these_jobs(connection, tenant_id, ids[:limit])}
    last = ids[limit - 1] if len(ids) > limit else row.reached if is_search else None
    more = None if last is None else Place(last, failed=failed is True)
    return Page([views[job_id] for job_id in ids[:limit] if job_id in views], row.looked_at, more)


def searched(wanted: Filter) -> dict[str, str]:
    """The values of the conditions that no index knows."""
    labels = json.dumps(dict([wanted.label] if wanted.label else []))
    return {"labels": labels, "text": wanted.text, "model": wanted.model, "who": wanted.who}


def bounds(wanted: Filter) -> tuple[int, int]:
    """The smallest id that a wanted job may have, and the first that is too large."""
    first = 0 if wanted.since is None else _bound(wanted.since)
    return first, _PAST_THE_NEWEST if wanted.until is None else _bound(wanted.until)


def _bound(moment: datetime) -> int:
    """The smallest id of that moment, of those that a job may have."""
    return min(max(ids.floor(moment), 0), _PAST_THE_NEWEST)
