"""Saved views: a page of the dashboard with its filter, under a name, shared within the tenant.

Functions take the tenant's open transaction and never commit.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.model import ids
from services.core.model.errors import Conflict, NotFound
from services.core.model.view_requests import Page, ViewChanges, ViewRequest

MOST = 200  # of a tenant
_SUBJECT = "'view/' || id"
_NAME = "jsonb_build_object('name', name)"
_LOCK = statement("views.lock")("SELECT pg_advisory_xact_lock(7209418, :tenant_id)")
_COUNT = statement("views.count")("SELECT count(*) FROM views WHERE tenant_id = :tenant_id")
_NEW = statement("views.new")(f"""
WITH made AS (
  INSERT INTO views (id, tenant_id, page, name, query, created_by)
  VALUES (:id, :tenant_id, :page, :name, :query, {log.ACTOR}) RETURNING id, tenant_id, name
)
{log.of_each("made", "'view.saved'", subject=_SUBJECT, data=_NAME)}
""")  # noqa: S608  our own text
_TAKEN = statement("views.taken")("""
SELECT EXISTS (SELECT FROM views WHERE tenant_id = :tenant_id AND page = :page AND name = :name AND id <> :id)
""")
_CHANGE = statement("views.change")(f"""
WITH moved AS (
  UPDATE views SET name = :name, query = :query
  WHERE tenant_id = :tenant_id AND id = :id AND (name, query) <> (:name, :query) RETURNING id, tenant_id, name
)
{log.of_each("moved", "'view.changed'", subject=_SUBJECT, data=_NAME)}
""")  # noqa: S608  our own text
_DELETE = statement("views.delete")(f"""
WITH gone AS (
  DELETE FROM views WHERE tenant_id = :tenant_id AND id = :id RETURNING id, tenant_id, name
)
{log.of_each("gone", "'view.deleted'", subject=_SUBJECT, data=_NAME)}
""")  # noqa: S608  our own text
_LIST = statement("views.list")("""
SELECT v.id, v.page, v.name, v.query, v.created_by, k.name AS created_by_name, v.created_at
FROM views v LEFT JOIN api_keys k ON k.id = CASE WHEN starts_with(v.created_by, 'key/') THEN substr(v.created_by, 5) END
WHERE v.tenant_id = :tenant_id AND v.id = coalesce(:id, v.id) ORDER BY lower(v.name), v.id
""")


@dataclass(frozen=True, slots=True)
class View:
    """`query` is what stands behind the question mark in the page's address."""

    id: int
    page: Page
    name: str
    query: str
    created_by: str
    created_by_name: str | None
    created_at: datetime


def public_id(number: int) -> str:
    return ids.public("view_", number)


def parse_id(public: str) -> int:
    """Raises NotFound."""
    return ids.parse("view_", public, "view")


def listed(connection: Connection, tenant_id: int) -> list[View]:
    """All of the tenant's, by name."""
    return [View(*row) for row in connection.execute(_LIST, {"tenant_id": tenant_id, "id": None})]


def find(connection: Connection, tenant_id: int, number: int) -> View:
    """Raises NotFound."""
    row = connection.execute(_LIST, {"tenant_id": tenant_id, "id": number}).one_or_none()
    if row is None:
        raise NotFound("There is no such view.")
    return View(*row)


def save(connection: Connection, tenant_id: int, asked: ViewRequest) -> View:
    """Raises Conflict: the name is taken, or there are too many."""
    connection.execute(_LOCK, {"tenant_id": tenant_id})
    if int(connection.execute(_COUNT, {"tenant_id": tenant_id}).scalar_one()) >= MOST:
        raise Conflict(f"There are {MOST} views, which is as many as there may be; delete some.", "too_many_views")
    number = ids.new()
    values: dict[str, Any] = {"id": number, "tenant_id": tenant_id, **asked.model_dump()}
    _assert_free(connection, values)
    connection.execute(_NEW, values)
    return find(connection, tenant_id, number)


def change(connection: Connection, tenant_id: int, number: int, asked: ViewChanges) -> View:
    """Raises NotFound, or Conflict: the name is taken."""
    connection.execute(_LOCK, {"tenant_id": tenant_id})
    before = find(connection, tenant_id, number)
    name = before.name if asked.name is None else asked.name
    query = before.query if asked.query is None else asked.query
    values = {"id": number, "tenant_id": tenant_id, "page": before.page, "name": name, "query": query}
    _assert_free(connection, values)
    connection.execute(_CHANGE, values)
    return find(connection, tenant_id, number)


def delete(connection: Connection, tenant_id: int, number: int) -> None:
    """Raises NotFound."""
    if not connection.execute(_DELETE, {"tenant_id": tenant_id, "id": number}).rowcount:
        raise NotFound("There is no such view.")


def _assert_free(connection: Connection, values: dict[str, Any]) -> None:
    if connection.execute(_TAKEN, values).scalar_one():
        raise Conflict("There is another view of that name; give this one another, or delete that one.", "name_taken")
