"""Deleting a tenant: its keys are revoked and it is marked at once; `tenant_task` deletes all that belongs to it.

The record of the deletion outlives the tenant, and so do its events, which belong to the first tenant. Functions take
an open system transaction and never commit.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.db.turns import Waiting
from services.core.events import log
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound

PREFIX = "tenant_"
SWEPT_SECONDS = 3600.0  # after its end the folders are looked at once more: a task may have been storing
_FIRST = "(SELECT min(id) FROM tenants WHERE operator)"
_FIND = statement("tenants.find")(f"""
SELECT id, name, id = {_FIRST} AS is_first FROM tenants WHERE id = :id OR name = :name
""")  # noqa: S608  our own text
_CONDEMN = statement("tenants.condemn")("SELECT presswork_condemn_tenant(:tenant_id)")
_REQUEST = statement("tenants.request")(f"""
WITH asked AS (
  INSERT INTO tenant_deletions (tenant_id, name, requested_by) VALUES (:tenant_id, :name, {log.ACTOR})
  ON CONFLICT (tenant_id) DO NOTHING RETURNING tenant_id AS gone, name
), logged AS (SELECT {_FIRST} AS tenant_id, gone, name FROM asked)
{
    log.of_each(
        "logged",
        "'tenant.delete_requested'",
        subject="'tenant/' || gone",
        data="jsonb_build_object('name', name, 'keys', CAST(:keys AS integer))",
    )
}
""")  # noqa: S608  our own text
_SHOW = statement("tenants.show_deletion")("""
SELECT d.*, (SELECT count(*) FROM jobs WHERE jobs.tenant_id = d.tenant_id) AS jobs_left
FROM tenant_deletions d WHERE d.tenant_id = :id OR d.name = :name ORDER BY d.id DESC LIMIT 1
""")
_PENDING = statement("tenants.pending")("""
SELECT tenant_id AS id FROM tenant_deletions
WHERE (finished_at IS NULL OR swept_at IS NULL AND finished_at < now() - make_interval(secs => :sweep))
  AND tenant_id <> ALL(CAST(:excluding AS integer[]))
  AND tenant_id <> ALL(CAST(:busy AS integer[]))
ORDER BY random() LIMIT 10
""")
_IS_GONE = statement("tenants.is_gone")("""
SELECT EXISTS (SELECT FROM tenant_deletions WHERE tenant_id = :tenant_id AND finished_at IS NOT NULL)
""")
_SWEPT = statement("tenants.swept")("UPDATE tenant_deletions SET swept_at = now() WHERE tenant_id = :tenant_id")
_ADD = statement("tenants.add")("""
UPDATE tenant_deletions SET images = images + :images, objects = objects + :objects, rows = rows + :rows
WHERE tenant_id = :tenant_id
""")
_EMPTIED = statement("tenants.emptied")(f"""
WITH moved AS (
  UPDATE tenant_deletions SET emptied_at = now() WHERE tenant_id = :tenant_id AND (
    emptied_at IS NULL
    OR (SELECT events.tenant_id FROM events WHERE seq IS NOT NULL ORDER BY seq DESC LIMIT 1) = :tenant_id)
  RETURNING tenant_id AS gone, name
), logged AS (SELECT {_FIRST} AS tenant_id, gone, name FROM moved)
{log.of_each("logged", "'tenant.emptied'", subject="'tenant/' || gone", data="jsonb_build_object('name', name)")}
""")  # noqa: S608  our own text
_FINISH = statement("tenants.finish")(f"""
WITH moved AS (
  UPDATE tenant_deletions SET finished_at = now(), remains = CAST(:remains AS jsonb)
  WHERE tenant_id = :tenant_id AND finished_at IS NULL RETURNING tenant_id AS gone, name, images, objects, rows
), logged AS (SELECT {_FIRST} AS tenant_id, gone, name, images, objects, rows FROM moved)
{
    log.of_each(
        "logged",
        "'tenant.deleted'",
        subject="'tenant/' || gone",
        data="jsonb_build_object('name', name, 'images', images, 'objects', objects, 'rows', rows)",
    )
}
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Deletion:
    """How far it is. `images` are those of its jobs, `objects` those that no job's deletion found, `rows` those of
    other tables; `remains`, at its end, is the number of rows that are left by table."""

    tenant_id: int
    name: str
    requested_at: datetime
    requested_by: str
    jobs_left: int
    images: int
    objects: int
    rows: int
    finished_at: datetime | None
    remains: dict[str, int] | None


def delete(connection: Connection, asked: str, confirm: str) -> Deletion:
    """Revokes the tenant's keys and marks it; from this commit on its requests are refused, and what is submitted at
    this moment is deleted with it. A second call is not an error. The transaction must be the system's.

    Raises:
        NotFound: there is no such tenant.
        Conflict: it is the first one, which administers the others, or `confirm` is not its name.
    """
    row = connection.execute(_FIND, _asked(asked)).one_or_none()
    if row is None:
        raise NotFound("There is no such tenant.")
    if row.is_first:
        raise Conflict("The operator's tenant administers the others and cannot be deleted.", "operator")
    if confirm != row.name:
        raise Conflict(f"confirm is {confirm[:80]!r}; it must be the tenant's name, {row.name}.", "not_confirmed")
    keys = connection.execute(_CONDEMN, {"tenant_id": row.id}).scalar_one()
    connection.execute(_REQUEST, {"tenant_id": row.id, "name": row.name, "keys": keys})
    return show(connection, row.name)


def show(connection: Connection, asked: str) -> Deletion:
    """The last deletion of a tenant of that id or name. Raises NotFound."""
    row = connection.execute(_SHOW, _asked(asked)).one_or_none()
    if row is None:
        raise NotFound("No tenant of that name is being deleted, or was.")
    return Deletion(
        row.tenant_id, row.name, row.requested_at, row.requested_by, row.jobs_left, row.images, row.objects, row.rows,
        row.finished_at, row.remains,
    )  # fmt: skip


def pending(connection: Connection, excluding: Sequence[int] = (), busy: Sequence[int] = ()) -> list[Waiting]:
    """Tenants of which something is left, and those that are gone for an hour, whose folders are looked at again."""
    values = {"excluding": list(excluding), "busy": list(busy), "sweep": SWEPT_SECONDS}
    rows = connection.execute(_PENDING, values)
    return [Waiting(row.id, row.id) for row in rows]


def add(connection: Connection, tenant_id: int, *, images: int = 0, objects: int = 0, rows: int = 0) -> None:
    """Counts what was deleted."""
    connection.execute(_ADD, {"tenant_id": tenant_id, "images": images, "objects": objects, "rows": rows})


def emptied(connection: Connection, tenant_id: int) -> None:
    """Only its keys and events are left. The event of that is newer than any of the tenant's own, of which the
    newest numbered one would stay: so it is logged again if something came after it."""
    connection.execute(_EMPTIED, {"tenant_id": tenant_id})


def is_gone(connection: Connection, tenant_id: int) -> bool:
    return bool(connection.execute(_IS_GONE, {"tenant_id": tenant_id}).scalar_one())


def swept(connection: Connection, tenant_id: int) -> None:
    """Its folders were looked at once more."""
    connection.execute(_SWEPT, {"tenant_id": tenant_id})


def finish(connection: Connection, tenant_id: int, remains: dict[str, int]) -> None:
    connection.execute(_FINISH, {"tenant_id": tenant_id, "remains": json.dumps(remains)})


def _asked(word: str) -> dict[str, Any]:
    """A public id, or a name."""
    number = None
    if word.startswith(PREFIX):
        number = ids.parse(PREFIX, word, "tenant")
        if number >= 2**31:
            raise NotFound("There is no such tenant.")
    return {"id": number, "name": word}
