"""Acts on every job that matches a filter: recorded here, done by a background task (`task`), job by job.

Which jobs is decided when it is asked for: one that is submitted later is not touched. Functions take an open
transaction and never commit.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from services.core.bulk import matching, verbs
from services.core.bulk.asked import BulkRequest, Verb
from services.core.bulk.matching import Counted
from services.core.db import turns
from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.jobs import idempotency
from services.core.jobs.listing import Filter
from services.core.model import ids, job_words
from services.core.model.errors import InvalidSubmission, NotFound, Problem
from services.core.model.requests import PRIORITIES

REASONS = 50  # that are kept of the jobs that lost the race
_LATEST_JOB = statement("bulk.latest_job")("SELECT coalesce(max(id), 0) FROM jobs WHERE tenant_id = :tenant_id")
_NEW = statement("bulk.new")(f"""
WITH made AS (
  INSERT INTO bulk_acts (id, tenant_id, actor, verb, filter, options, jobs, images, is_all, last_job)
  VALUES (:id, :tenant_id, {log.ACTOR}, :verb, CAST(:filter AS jsonb), CAST(:options AS jsonb), :jobs, :images, :is_all,
          :last_job)
  RETURNING id, tenant_id, verb, jobs
)
{
    log.of_each(
        "made", "'bulk.requested'", subject="'bulk/' || id", data="jsonb_build_object('action', verb, 'jobs', jobs)"
    )
}
""")  # noqa: S608  our own text
_COLUMNS = """b.id, b.tenant_id, b.actor, b.verb, b.filter, b.options, b.state, b.jobs, b.images, b.is_all, b.last_job,
  b.reached, b.done, b.lost, b.reasons, b.created_at, b.finished_at"""
# For a scheduler, which reads no keys.
_READ = statement("bulk.read")(f"""
SELECT {_COLUMNS}, NULL AS actor_name FROM bulk_acts b WHERE id = :id AND state = 'running'
""")  # noqa: S608  our own text
_SELECT = f"""
SELECT {_COLUMNS}, k.name AS actor_name FROM bulk_acts b
LEFT JOIN api_keys k ON k.id = CASE WHEN starts_with(b.actor, 'key/') THEN substr(b.actor, 5) END
"""  # noqa: S608  our own text
_FIND = statement("bulk.find")(f"{_SELECT} WHERE b.tenant_id = :tenant_id AND b.id = :id")
_LIST = statement("bulk.list")(
    f"{_SELECT} WHERE b.tenant_id = :tenant_id AND b.id < :before ORDER BY b.id DESC LIMIT :limit"
)
_STOP = statement("bulk.stop")(f"""
WITH moved AS (
  UPDATE bulk_acts SET state = 'stopped', finished_at = now()
  WHERE tenant_id = :tenant_id AND id = :id AND state = 'running' RETURNING id, tenant_id, done
)
{log.of_each("moved", "'bulk.stopped'", subject="'bulk/' || id", data="jsonb_build_object('done', done)")}
""")  # noqa: S608  our own text
_PENDING = statement("bulk.pending")(
    turns.first_of_each("""
  SELECT id FROM bulk_acts
  WHERE tenant_id = t.id AND state = 'running' AND id <> ALL(CAST(:excluding AS bigint[])) ORDER BY id LIMIT :first
""")
)

_FORGET = statement("bulk.forget")("""
DELETE FROM bulk_acts WHERE id IN (
  SELECT id FROM bulk_acts
  WHERE id < :before AND state <> 'running' AND finished_at < now() - make_interval(days => :days) LIMIT 10000)
""")


@dataclass(frozen=True, slots=True)
class BulkAct:
    """`state` is running, completed or stopped. Of `jobs` that were counted, it is `done` to some; `lost` were refused,
    with `reasons` for the first of them. `is_all` False: there are more than were counted."""

    id: int
    tenant_id: int
    actor: str
    actor_name: str | None
    verb: Verb
    wanted: Filter
    options: dict[str, Any]
    state: str
    jobs: int
    images: int
    is_all: bool
    last_job: int
    reached: int
    done: int
    lost: int
    reasons: list[dict[str, Any]]
    created_at: datetime
    finished_at: datetime | None


def public_id(number: int) -> str:
    return ids.public("bulk_", number)


def parse_id(public: str) -> int:
    """Raises NotFound."""
    return ids.parse("bulk_", public, "act")


def wanted(asked: BulkRequest) -> Filter:
    label = asked.label.partition(":") if asked.label is not None else None
    return Filter(
        tuple(asked.status or ()),
        (label[0], label[2]) if label else None,
        asked.text or "",
        PRIORITIES[asked.of_priority] if asked.of_priority else None,
        asked.model or "",
        asked.submitted_by or "",
        job_words.moment(asked.since, is_end=False) if asked.since else None,
        job_words.moment(asked.until, is_end=True) if asked.until else None,
    )


def options(asked: BulkRequest) -> dict[str, Any]:
    """Those of the verb. Raises InvalidSubmission: an option belongs to another one."""
    given = {
        "except_running": asked.except_running or None,
        "include_cancelled": asked.include_cancelled or None,
        "priority": asked.priority,
    }
    found = {name: value for name, value in given.items() if value is not None}
    takes = {"cancel": "except_running", "retry": "include_cancelled", "prioritize": "priority"}.get(asked.action)
    for name in found:
        if name != takes:
            raise _wrong(name, f"{name} does not belong to the action {asked.action}; leave it out.")
    if asked.action == "prioritize" and asked.priority is None:
        raise _wrong("priority", "priority is missing; the action prioritize takes high, normal or low.")
    return found


def _wrong(param: str, message: str) -> InvalidSubmission:
    return InvalidSubmission([Problem("invalid_value", message, param)])


def count(connection: Connection, tenant_id: int, asked: BulkRequest) -> Counted:
    """What it would touch now. Raises InvalidSubmission."""
    return _count(connection, tenant_id, asked)[0]


def create(
    connection: Connection, tenant_id: int, asked: BulkRequest, *, idempotency_key: str | None = None
) -> tuple[BulkAct, bool]:
    """Takes the tenant's transaction. Returns the act, and whether this Idempotency-Key had already made it.

    Raises:
        InvalidSubmission: an option belongs to another action.
        IdempotencyConflict, IdempotencyGone, IdempotencyBusy: the key was used for another request or for what is
            forgotten, or is in use right now.
    """
    number = ids.new()
    if idempotency_key is not None:
        digest = idempotency.digest("bulk", asked.model_dump())
        known = idempotency.remember(connection, tenant_id, idempotency_key, sha256=digest, thing=number, kind="bulk")
        if known is not None:
            return find(connection, tenant_id, known), True
    counted, last_job = _count(connection, tenant_id, asked)
    values = {
        "id": number, "tenant_id": tenant_id, "verb": asked.action, "options": json.dumps(options(asked)),
        "filter": json.dumps(asdict(wanted(asked)), default=str), "last_job": last_job, **asdict(counted),
    }  # fmt: skip
    connection.execute(_NEW, values)
    return find(connection, tenant_id, number), False


def find(connection: Connection, tenant_id: int, number: int) -> BulkAct:
    """Raises NotFound."""
    row = connection.execute(_FIND, {"tenant_id": tenant_id, "id": number}).one_or_none()
    if row is None:
        raise NotFound("There is no such act.")
    return act_of(row)


def running(connection: Connection, number: int) -> BulkAct | None:
    """The act, unless it has ended. Takes the system's transaction."""
    row = connection.execute(_READ, {"id": number}).one_or_none()
    return None if row is None else act_of(row)


def listed(connection: Connection, tenant_id: int, *, before: int, limit: int) -> list[BulkAct]:
    """The newest first."""
    return [
        act_of(row) for row in connection.execute(_LIST, {"tenant_id": tenant_id, "before": before, "limit": limit})
    ]


def stop(connection: Connection, tenant_id: int, number: int) -> BulkAct:
    """What was done stays done. A second call is not an error. Raises NotFound."""
    connection.execute(_STOP, {"tenant_id": tenant_id, "id": number})
    return find(connection, tenant_id, number)


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Those that are not through, a few of each tenant."""
    return turns.waiting(connection, _PENDING, excluding, busy)


def forget(connection: Connection, days: int) -> int:
    """Deletes acts that ended so long ago, 10,000 at a time; an id says when one was asked for. Returns how many."""
    before = ids.floor(datetime.now(UTC) - timedelta(days=days - 1))
    return connection.execute(_FORGET, {"before": before, "days": days}).rowcount


def act_of(row: Any) -> BulkAct:
    values = {name: value for name, value in row._mapping.items() if name != "filter"}  # noqa: SLF001  a row's own name
    kept = row.filter
    label = kept["label"] and tuple(kept["label"])
    times: dict[str, Any] = {name: datetime.fromisoformat(kept[name]) for name in ("since", "until") if kept.get(name)}
    more = {name: kept[name] for name in ("priority", "model", "who") if name in kept}
    return BulkAct(wanted=Filter(tuple(kept["states"]), label, kept["text"], **more, **times), **values)


def _count(connection: Connection, tenant_id: int, asked: BulkRequest) -> tuple[Counted, int]:
    given = options(asked)
    last_job = int(connection.execute(_LATEST_JOB, {"tenant_id": tenant_id}).scalar_one())
    act = verbs.act(asked.action, given)
    return matching.count(connection, tenant_id, wanted(asked), act, given, last_job), last_job
