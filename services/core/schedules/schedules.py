"""The schedules of a tenant: what is submitted at set times. Functions take an open transaction and never commit.

A name is a schedule's id for people. Each act logs an event about `schedule/NAME`, with whoever does it as actor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.database import Database
from services.core.db.statements import statement
from services.core.events import log
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound
from services.core.schedules import asked as asks
from services.core.schedules import targets
from services.core.schedules.asked import Misfire, Overlap, Rule, ScheduleRequest
from services.core.schedules.targets import Checked
from services.core.settings import Settings

MOST = 1_000  # of one tenant
_SUBJECT = "'schedule/' || name"
_COLUMNS = """id, tenant_id, name, cron, at, timezone, target_kind, target, misfire, misfire_limit, overlap, deadline,
  paused, next_at, created_at, changed_at"""
_NOW = statement("schedules.now")("SELECT now()")
_LOCK_TENANT = statement("schedules.lock_tenant")("SELECT pg_advisory_xact_lock(7209420, :tenant_id)")
_COUNT = statement("schedules.count")("SELECT count(*) FROM schedules WHERE tenant_id = :tenant_id")
_PUT = statement("schedules.put")(f"""
WITH made AS (
  INSERT INTO schedules (id, tenant_id, name, cron, at, timezone, target_kind, target, base_url, misfire,
                         misfire_limit, overlap, deadline, paused, next_at)
  VALUES (:id, :tenant_id, :name, :cron, :at, :timezone, :target_kind, :target, :base_url, :misfire, :misfire_limit,
          :overlap, :deadline, :paused, :next_at)
  ON CONFLICT (tenant_id, name) DO UPDATE SET
    cron = excluded.cron, at = excluded.at, timezone = excluded.timezone, target_kind = excluded.target_kind,
    target = excluded.target, base_url = excluded.base_url, misfire = excluded.misfire,
    misfire_limit = excluded.misfire_limit, overlap = excluded.overlap, deadline = excluded.deadline,
    paused = excluded.paused, next_at = excluded.next_at, changed_at = now()
  RETURNING id, tenant_id, name, id = :id AS is_new
)
{log.of_each("made", "CASE WHEN is_new THEN 'schedule.created' ELSE 'schedule.changed' END", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_FIND = statement("schedules.find")(
    f"SELECT {_COLUMNS} FROM schedules WHERE tenant_id = :tenant_id AND name = :name"  # noqa: S608  our own text
)
_LOCK = statement("schedules.lock")(
    f"SELECT {_COLUMNS} FROM schedules WHERE tenant_id = :tenant_id AND name = :name FOR NO KEY UPDATE"  # noqa: S608
)
_PAGE = statement("schedules.page")(f"""
SELECT {_COLUMNS} FROM schedules WHERE tenant_id = :tenant_id AND name > :after ORDER BY name LIMIT :limit
""")  # noqa: S608  our own text
_NAMED = statement("schedules.named")(
    f"SELECT {_COLUMNS} FROM schedules WHERE tenant_id = :tenant_id AND name = ANY(CAST(:names AS text[]))"  # noqa: S608
)
_PAUSE = statement("schedules.pause")(f"""
WITH moved AS (
  UPDATE schedules SET paused = :paused, next_at = :next_at, changed_at = now()
  WHERE id = :id AND paused <> :paused RETURNING tenant_id, name, paused
)
{log.of_each("moved", "CASE WHEN paused THEN 'schedule.paused' ELSE 'schedule.resumed' END", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_DELETE = statement("schedules.delete")(f"""
WITH gone AS (DELETE FROM schedules WHERE tenant_id = :tenant_id AND name = :name RETURNING tenant_id, name)
{log.of_each("gone", "'schedule.deleted'", subject=_SUBJECT)}
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Schedule:
    """`target` is JSON. `next_at` is None while it is paused, and if it fires no more."""

    id: int
    tenant_id: int
    name: str
    cron: str | None
    at: datetime | None
    timezone: str
    target_kind: str
    target: str
    misfire: Misfire
    misfire_limit: int
    overlap: Overlap
    deadline: str | None
    paused: bool
    next_at: datetime | None
    created_at: datetime
    changed_at: datetime

    @property
    def rule(self) -> Rule:
        return Rule.stored(self)

    def times(self, now: datetime, most: int) -> list[datetime]:
        """The next instants at which it fires. None while it is paused."""
        found = [] if self.next_at is None else [self.next_at]
        while found and len(found) < most and (moment := self.rule.next(max(now, found[-1]))) is not None:
            found.append(moment)
        return found


def check(
    database: Database, settings: Settings, tenant_id: int, target: dict[str, Any], base_url: str
) -> Checked:  # fmt: skip
    """What a schedule is to submit, checked before the transaction that makes it: a content policy may take its time.
    Raises InvalidSubmission, and PolicyUnavailable."""
    with database.begin(tenant_id) as connection:
        ground = targets.ground(connection, settings, tenant_id, base_url, {}, lambda: database.begin(tenant_id))
    return targets.check(ground, target)


def put(
    connection: Connection, settings: Settings, tenant_id: int, name: str, asked: ScheduleRequest, target: Checked,
    base_url: str, *, new: bool = False,
) -> Schedule:  # fmt: skip
    """Makes the schedule of that name, or makes it this one. With `new` there must be none. `target` is what `check`
    made of that of `asked`.

    Raises:
        InvalidSubmission: says what is wrong with it; nothing is changed.
        Conflict: there is one, or there are too many.
    """
    connection.execute(_LOCK_TENANT, {"tenant_id": tenant_id})
    known = _one(connection, _LOCK, tenant_id, name)
    if known is not None and new:
        raise Conflict(f"There is a schedule {name} already; change it with PUT.", "schedule_exists")
    if known is None and connection.execute(_COUNT, {"tenant_id": tenant_id}).scalar_one() >= MOST:
        raise Conflict(f"There are {MOST:,} schedules already; delete one first.", "too_many_schedules")
    now = clock(connection)
    rule = asks.rule(asked, now, settings.schedule_seconds, None if known is None else known.at)
    targets.find(connection, tenant_id, target)
    values: dict[str, Any] = {
        "id": ids.new(), "tenant_id": tenant_id, "name": name, "at": rule.at, "timezone": asked.timezone,
        "cron": None if rule.cron is None else rule.cron.expression, "target_kind": target.kind, "target": target.text,
        "base_url": base_url, "misfire": asked.misfire, "misfire_limit": asked.misfire_limit, "overlap": asked.overlap,
        "deadline": asked.deadline, "paused": asked.paused, "next_at": None if asked.paused else rule.next(now),
    }  # fmt: skip
    connection.execute(_PUT, values)
    return find(connection, tenant_id, name)


def find(connection: Connection, tenant_id: int, name: str) -> Schedule:
    """Raises NotFound."""
    return _existing(_one(connection, _FIND, tenant_id, name))


def lock(connection: Connection, tenant_id: int, name: str) -> Schedule:
    """The same, which until the end of the transaction nobody changes, and which does not fire. Raises NotFound."""
    return _existing(_one(connection, _LOCK, tenant_id, name))


def page(connection: Connection, tenant_id: int, *, after: str = "", limit: int) -> list[Schedule]:
    """The schedules with a name behind `after`, by name."""
    values = {"tenant_id": tenant_id, "after": after, "limit": limit}
    return [Schedule(*row) for row in connection.execute(_PAGE, values)]


def named(connection: Connection, tenant_id: int, names: Sequence[str]) -> dict[str, Schedule]:
    """The schedules of these names, of those that there are."""
    rows = connection.execute(_NAMED, {"tenant_id": tenant_id, "names": list(names)})
    return {found.name: found for found in (Schedule(*row) for row in rows)}


def pause(connection: Connection, tenant_id: int, name: str, paused: bool) -> Schedule:
    """A paused schedule does not fire; resumed, it goes on with its next time. A second call is not an error.

    Raises:
        NotFound: there is no such schedule.
        Conflict: it is to be resumed, and its only time is past.
    """
    known = lock(connection, tenant_id, name)
    next_at = None if paused else known.rule.next(clock(connection))
    if known.paused and not paused and next_at is None:
        raise Conflict("The time of the schedule is past; give it another one, or run it now.", "never_fires")
    connection.execute(_PAUSE, {"id": known.id, "paused": paused, "next_at": next_at})
    return find(connection, tenant_id, name)


def delete(connection: Connection, tenant_id: int, name: str) -> None:
    """Deletes the schedule and the rows of its runs; the jobs stay, and go on. Raises NotFound."""
    find(connection, tenant_id, name)
    if not connection.execute(_DELETE, {"tenant_id": tenant_id, "name": name}).rowcount:
        raise NotFound("There is no such schedule.")


def clock(connection: Connection) -> datetime:
    """The database's clock is the clock."""
    found: datetime = connection.execute(_NOW).scalar_one()
    return found


def _one(connection: Connection, query: Any, tenant_id: int, name: str) -> Schedule | None:
    if not asks.is_name(name):  # it may hold what no text of the database does
        return None
    row = connection.execute(query, {"tenant_id": tenant_id, "name": name}).one_or_none()
    return None if row is None else Schedule(*row)


def _existing(found: Schedule | None) -> Schedule:
    if found is None:
        raise NotFound("There is no such schedule.")
    return found
