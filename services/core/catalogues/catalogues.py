"""Catalogues: a tenant's named sources of items, each with the version that readers see. Every write of their table.

The definition is stored as it was checked. Whoever publishes a version moves one number, `published`, so a reader sees
the whole of one version or the whole of another. Functions take an open transaction and never commit.
"""

import json
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.catalogues.definition import NAME
from services.core.db.statements import statement
from services.core.events import log
from services.core.model import ids, strict_json
from services.core.model.errors import NotFound
from services.core.storage import keys

_SUBJECT = "'catalogue/' || name"
_COLUMNS = (
    "id, tenant_id, name, public_id, definition, file_id, version, published, announced, created_at, updated_at, "
    "moved_at, tidy_from"
)
_KIND = "CASE WHEN EXISTS (SELECT FROM before) THEN 'catalogue.changed' ELSE 'catalogue.created' END"
# A definition that says the same is no change.
_PUT = statement("catalogues.put")(f"""
WITH before AS MATERIALIZED (
  SELECT id FROM catalogues WHERE tenant_id = :tenant_id AND name = :name AND deleted_at IS NULL
), put AS (
  INSERT INTO catalogues AS c (id, tenant_id, name, public_id, definition)
  VALUES (:id, :tenant_id, :name, :public_id, CAST(:definition AS jsonb))
  ON CONFLICT (tenant_id, name) WHERE deleted_at IS NULL DO UPDATE
    SET definition = excluded.definition, updated_at = now(),
      tidy_from = CASE WHEN c.published IS NULL THEN c.tidy_from ELSE now() END
    WHERE c.definition <> excluded.definition
  RETURNING tenant_id, name
)
{log.of_each("put", _KIND, subject=_SUBJECT)}
""")  # noqa: S608  our own text
_OWN = "tenant_id = :tenant_id AND deleted_at IS NULL"
_FIND = statement("catalogues.find")(f"SELECT {_COLUMNS} FROM catalogues WHERE {_OWN} AND name = :name")  # noqa: S608
_LOCK = statement("catalogues.lock")(f"{_FIND.text} FOR NO KEY UPDATE")
_PUBLIC = statement("catalogues.public")(
    f"SELECT {_COLUMNS} FROM catalogues WHERE public_id = :public_id AND deleted_at IS NULL"  # noqa: S608
)
_READ = statement("catalogues.read")(f"SELECT {_COLUMNS}, deleted_at FROM catalogues WHERE id = :id")  # noqa: S608
_PAGE = statement("catalogues.page")(
    f"SELECT {_COLUMNS} FROM catalogues WHERE {_OWN} AND name > :after ORDER BY name LIMIT :limit"  # noqa: S608
)
_SET_FILE = statement("catalogues.set_file")(f"""
WITH moved AS (
  UPDATE catalogues SET file_id = :file_id, updated_at = now() WHERE {_OWN} AND name = :name RETURNING tenant_id, name
)
{log.of_each("moved", "'catalogue.uploaded'", subject=_SUBJECT)}
""")  # noqa: S608  our own text
_BEGIN_VERSION = statement("catalogues.begin_version")(
    "UPDATE catalogues SET version = version + 1 WHERE id = :id RETURNING version"
)
_PUBLISH = statement("catalogues.publish")(f"""
WITH moved AS (
  UPDATE catalogues SET published = :version, tidy_from = now(),
    moved_at = greatest(clock_timestamp(), date_trunc('second', moved_at) + interval '1 second')
  WHERE id = :id AND published IS DISTINCT FROM :version RETURNING tenant_id, name
)
{
    log.of_each(
        "moved",
        "'catalogue.published'",
        subject=_SUBJECT,
        data="jsonb_build_object('version', CAST(:version AS integer), 'before', CAST(:before AS integer))",
    )
}
""")  # noqa: S608  our own text
_DOUBT = statement("catalogues.doubt")(
    "UPDATE catalogues SET announced = NULL, tidy_from = now() WHERE id = :id RETURNING tidy_from"
)
_ANNOUNCED = statement("catalogues.announced")(
    "UPDATE catalogues SET announced = :version WHERE id = :id AND tidy_from = :began"
)
# A catalogue of which nothing is published yet has no pointer, and is tidy, too.
_TIDIED = statement("catalogues.tidied")("""
UPDATE catalogues SET tidy_from = CASE WHEN :moved THEN now() + make_interval(secs => :look_again)
    WHEN tidy_from > now() THEN tidy_from END
WHERE id = :id AND tidy_from = :began AND announced IS NOT DISTINCT FROM published
""")
_TIDY = statement("catalogues.tidy")("UPDATE catalogues SET tidy_from = now() WHERE id = :id")
_FORGET = statement("catalogues.forget")("""
UPDATE catalogues SET tidy_from = NULL, definition = '{}' WHERE id = :id AND deleted_at IS NOT NULL
""")
_LOOK_AGAIN_SECONDS = 900  # after the pointer moved
_REMOVE = statement("catalogues.remove")(f"""
WITH moved AS (
  UPDATE catalogues SET deleted_at = now(), tidy_from = now() WHERE {_OWN} AND name = :name RETURNING tenant_id, name
)
{log.of_each("moved", "'catalogue.deleted'", subject=_SUBJECT)}
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A catalogue. `version` is the highest that a run has begun, `published` the one that readers see, if any,
    `announced` the one that the pointer in the store names. `moved_at`: when another version was published last; each
    time is in a later second than the one before. `tidy_from`: when the background task is to tidy it; every reason to
    do so sets another time."""

    id: int
    tenant_id: int
    name: str
    public_id: str
    definition: dict[str, Any]
    file_id: int | None
    version: int
    published: int | None
    announced: int | None
    created_at: datetime
    updated_at: datetime
    moved_at: datetime | None
    tidy_from: datetime | None

    @property
    def folder(self) -> str:
        """Where its objects lie in the store."""
        return f"catalogues/{self.tenant_id}/{ids.public('', self.id)}/"

    @property
    def thumbnails(self) -> str:
        """Where small pictures of its objects lie in the store."""
        return keys.thumbnail_folder(self.tenant_id, self._thumbnails)

    def thumbnail_of(self, object_key: str) -> str:
        """The name of an object's small picture."""
        return keys.catalogue_thumbnail_name(self.tenant_id, self._thumbnails, object_key)

    @property
    def _thumbnails(self) -> str:
        return ids.public("catalogue_", self.id)


def put(connection: Connection, tenant_id: int, name: str, definition: dict[str, Any]) -> Catalogue:
    """Makes the catalogue, or gives it another definition. Its pictures stay until a run makes others."""
    values = {"id": ids.new(), "tenant_id": tenant_id, "name": name, "public_id": secrets.token_urlsafe(12)}
    connection.execute(_PUT, values | {"definition": json.dumps(definition)})
    return find(connection, tenant_id, name)


def exists(connection: Connection, tenant_id: int, name: str) -> bool:
    return connection.execute(_FIND, {"tenant_id": tenant_id, "name": name}).one_or_none() is not None


def find(connection: Connection, tenant_id: int, name: str, *, lock: bool = False) -> Catalogue:
    """The tenant's catalogue of that name. Raises NotFound."""
    if not NAME.fullmatch(name):
        raise NotFound(f"There is no catalogue {strict_json.describe(name)}.")
    row = connection.execute(_LOCK if lock else _FIND, {"tenant_id": tenant_id, "name": name}).one_or_none()
    if row is None:
        raise NotFound(f"There is no catalogue {name}.")
    return Catalogue(*row)


def of_public_id(connection: Connection, public_id: str) -> Catalogue:
    """Any tenant's catalogue, in a transaction of the system. Raises NotFound."""
    row = connection.execute(_PUBLIC, {"public_id": public_id}).one_or_none()
    if row is None:
        raise NotFound("There is no such catalogue.")
    return Catalogue(*row)


def read(connection: Connection, catalogue_id: int) -> tuple[Catalogue, bool]:
    """The catalogue, and whether it is deleted."""
    *row, deleted_at = connection.execute(_READ, {"id": catalogue_id}).one()
    return Catalogue(*row), deleted_at is not None


def page(connection: Connection, tenant_id: int, *, after: str, limit: int) -> list[Catalogue]:
    """The tenant's catalogues with a name behind `after`, in order."""
    rows = connection.execute(_PAGE, {"tenant_id": tenant_id, "after": after, "limit": limit})
    return [Catalogue(*row) for row in rows]


def set_file(connection: Connection, tenant_id: int, name: str, file_id: int) -> None:
    """From now on, runs read this uploaded file. Raises NotFound."""
    if not connection.execute(_SET_FILE, {"tenant_id": tenant_id, "name": name, "file_id": file_id}).rowcount:
        raise NotFound(f"There is no catalogue {name}.")


def remove(connection: Connection, tenant_id: int, name: str) -> None:
    """Deletes the catalogue with its versions and pictures; a background task drops them. Raises NotFound."""
    if not connection.execute(_REMOVE, {"tenant_id": tenant_id, "name": name}).rowcount:
        raise NotFound(f"There is no catalogue {name}.")


def begin_version(connection: Connection, catalogue_id: int) -> int:
    """The number of a new version."""
    return int(connection.execute(_BEGIN_VERSION, {"id": catalogue_id}).scalar_one())


def publish(connection: Connection, catalogue: Catalogue, version: int) -> None:
    """Readers see that version from this commit on. A second call is not an error."""
    connection.execute(_PUBLISH, {"id": catalogue.id, "version": version, "before": catalogue.published})


def want_tidying(connection: Connection, catalogue_id: int) -> None:
    """The background task is to look for what no kept version needs."""
    connection.execute(_TIDY, {"id": catalogue_id})


def forget(connection: Connection, catalogue_id: int) -> None:
    """Of a deleted catalogue nothing is left but its row, which its runs name."""
    connection.execute(_FORGET, {"id": catalogue_id})


def doubt_announced(connection: Connection, catalogue_id: int) -> datetime:
    """Nobody knows which version the pointer in the store names: it is about to move, or may have moved back. The
    background task is to move it. Returns the new `tidy_from`."""
    began: datetime = connection.execute(_DOUBT, {"id": catalogue_id}).scalar_one()
    return began


def record_announced(connection: Connection, catalogue_id: int, version: int, began: datetime) -> None:
    """The pointer in the store names that version, unless there has been a doubt since the tidying `began`, the
    `tidy_from` of then."""
    connection.execute(_ANNOUNCED, {"id": catalogue_id, "version": version, "began": began})


def end_tidying(connection: Connection, catalogue_id: int, began: datetime | None, *, moved: bool) -> None:
    """The catalogue is tidy, unless there has been another reason to tidy it since the tidying `began`. If the pointer
    has `moved`, it is looked at again a quarter of an hour later."""
    values = {"id": catalogue_id, "began": began, "moved": moved, "look_again": _LOOK_AGAIN_SECONDS}
    connection.execute(_TIDIED, values)
