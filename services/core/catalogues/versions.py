"""The versions of catalogues: which are whole, with their manifests. Every write of `catalogue_versions`.

Functions take an open transaction and never commit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.catalogues.catalogues import Catalogue
from services.core.db.statements import statement
from services.core.model.errors import NotFound

_COLUMNS = "version, run_id, images, bytes, manifests, created_at"
_ADD = statement("versions.add")("""
INSERT INTO catalogue_versions (catalogue_id, version, run_id, images, bytes, manifests)
VALUES (:catalogue_id, :version, :run_id, :images, :bytes, CAST(:manifests AS jsonb))
ON CONFLICT (catalogue_id, version) DO NOTHING
""")
_ALL = statement("versions.all")(
    f"SELECT {_COLUMNS} FROM catalogue_versions WHERE catalogue_id = :catalogue_id ORDER BY version DESC"  # noqa: S608
)
_PAGE = statement("versions.page")(
    f"SELECT {_COLUMNS} FROM catalogue_versions WHERE catalogue_id = :catalogue_id AND version < :before "  # noqa: S608
    "ORDER BY version DESC LIMIT :limit"
)
_EACH = statement("versions.each")(f"""
SELECT catalogue_id, {_COLUMNS} FROM unnest(CAST(:catalogue_ids AS bigint[]), CAST(:versions AS integer[]))
  AS wanted (of_catalogue, of_version) CROSS JOIN LATERAL (
  SELECT catalogue_id, {_COLUMNS} FROM catalogue_versions
  WHERE catalogue_id = of_catalogue AND version = of_version OFFSET 0) found
""")  # noqa: S608  our own text
_ONE = statement("versions.one")(
    f"SELECT {_COLUMNS} FROM catalogue_versions WHERE catalogue_id = :catalogue_id AND version = :version"  # noqa: S608
)
_FORGET = statement("versions.forget")(
    "DELETE FROM catalogue_versions WHERE catalogue_id = :catalogue_id AND version = ANY(CAST(:versions AS integer[]))"
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A file that lists a version's pictures."""

    object_key: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Version:
    """A version that is whole, whether it is published or not. `manifests`: by format, jsonl or parquet."""

    version: int
    run_id: int
    images: int
    bytes: int
    manifests: dict[str, Manifest]
    created_at: datetime


def add(
    connection: Connection, catalogue_id: int, version: int, run_id: int, *, images: int, size: int,
    manifests: dict[str, Manifest],
) -> None:  # fmt: skip
    """Records that a version is whole."""
    files = {name: [one.object_key, one.sha256, one.bytes] for name, one in manifests.items()}
    values = {"catalogue_id": catalogue_id, "version": version, "run_id": run_id, "images": images, "bytes": size}
    connection.execute(_ADD, values | {"manifests": json.dumps(files)})


def listed(connection: Connection, catalogue_id: int) -> list[Version]:
    """The catalogue's kept versions, the newest first."""
    return [_version(row) for row in connection.execute(_ALL, {"catalogue_id": catalogue_id})]


def page(connection: Connection, catalogue_id: int, *, before: int, limit: int) -> list[Version]:
    """The newest kept versions below `before`."""
    rows = connection.execute(_PAGE, {"catalogue_id": catalogue_id, "before": before, "limit": limit})
    return [_version(row) for row in rows]


def each(connection: Connection, wanted: Mapping[int, int]) -> dict[int, Version]:
    """Of each catalogue the version of that number, if it is kept."""
    values = {"catalogue_ids": list(wanted), "versions": list(wanted.values())}
    return {row.catalogue_id: _version(row) for row in connection.execute(_EACH, values)}


def among(connection: Connection, catalogue_id: int, numbers: Sequence[int]) -> frozenset[int]:
    """Those of these versions of a catalogue that are kept."""
    values = {"catalogue_ids": [catalogue_id] * len(numbers), "versions": list(numbers)}
    return frozenset(row.version for row in connection.execute(_EACH, values))


def find(connection: Connection, catalogue_id: int, version: int) -> Version:
    """A kept version. Raises NotFound."""
    row = connection.execute(_ONE, {"catalogue_id": catalogue_id, "version": version}).one_or_none()
    if row is None:
        raise NotFound(f"There is no version {version}; `versions` lists those that are kept.")
    return _version(row)


def meant(connection: Connection, catalogue: Catalogue, version: int | None) -> int:
    """The kept version of that number; None means the published one. Raises NotFound."""
    if version is not None:
        return find(connection, catalogue.id, version).version
    if catalogue.published is None:
        raise NotFound(f"No version of the catalogue {catalogue.name} is published yet.")
    return catalogue.published


def forget(connection: Connection, catalogue_id: int, gone: Sequence[Version]) -> None:
    connection.execute(_FORGET, {"catalogue_id": catalogue_id, "versions": [one.version for one in gone]})


def _version(row: Any) -> Version:
    files = {name: Manifest(*file) for name, file in row.manifests.items()}
    return Version(row.version, row.run_id, row.images, row.bytes, files, row.created_at)
