"""The pictures of a catalogue's versions. Every write of `catalogue_entries`.

An entry holds from one version until before another, so a version costs as many rows as it changes. The latest entries
are open. A version that is being made changes only what is of later versions than the published one: no reader sees it.
Functions take an open transaction and never commit.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.catalogues.changes import Change
from services.core.db.statements import statement

_IN_VERSION = "from_version <= :version AND (until_version IS NULL OR until_version > :version)"
_COLUMNS = (
    "item, variant, from_version, stale_from, render_key, object_key, sha256, bytes, request, model_revision, "
    "reproducibility_class, rendered_at, job_id, index"
)
_AS_NEW = _COLUMNS.replace("from_version", "CAST(:version AS integer)").replace("stale_from", "CAST(NULL AS integer)")
_PAGE = statement("entries.page")(f"""
SELECT {_COLUMNS} FROM catalogue_entries
WHERE catalogue_id = :catalogue_id AND (item, variant) > (:item, :variant) AND {_IN_VERSION}
ORDER BY item, variant LIMIT :limit
""")  # noqa: S608  our own text
# An entry ends where the next one begins, or before: so of those that began by then, the last one alone may go on.
_LATEST = """(
  SELECT * FROM catalogue_entries
  WHERE catalogue_id = :catalogue_id AND item = {item} AND variant = {variant} AND from_version <= :version
  ORDER BY from_version DESC LIMIT 1
)"""
_ONE = statement("entries.one")(f"""
SELECT {_COLUMNS} FROM {_LATEST.format(item=":item", variant=":variant")} latest WHERE {_IN_VERSION}
""")  # noqa: S608  our own text
_THESE_IN = statement("entries.these")(f"""
SELECT {_COLUMNS} FROM unnest(CAST(:items AS text[]), CAST(:variants AS text[])) AS these (of_item, of_variant)
CROSS JOIN LATERAL {_LATEST.format(item="of_item", variant="of_variant")} latest WHERE {_IN_VERSION}
""")  # noqa: S608  our own text
_COUNT = statement("entries.count")(f"""
SELECT count(*) AS images, coalesce(sum(bytes), 0) AS bytes FROM catalogue_entries
WHERE catalogue_id = :catalogue_id AND {_IN_VERSION}
""")  # noqa: S608  our own text
# A new version begins as its base: what later versions changed is taken back, unless the new one has done so already.
_CLOSE_LATER = statement("entries.close_later")("""
UPDATE catalogue_entries SET until_version = :version
WHERE (catalogue_id, item, variant, from_version) IN (
  SELECT catalogue_id, item, variant, from_version FROM catalogue_entries
  WHERE catalogue_id = :catalogue_id AND until_version IS NULL AND from_version > :base AND from_version < :version
  LIMIT :limit)
""")
_REOPEN = statement("entries.reopen")(f"""
INSERT INTO catalogue_entries (catalogue_id, {_COLUMNS})
SELECT catalogue_id, {_AS_NEW} FROM catalogue_entries old
WHERE catalogue_id = :catalogue_id AND from_version <= :base AND until_version > :base AND until_version <= :version
  AND NOT EXISTS (
    SELECT FROM catalogue_entries open
    WHERE open.catalogue_id = old.catalogue_id AND open.item = old.item AND open.variant = old.variant
      AND open.from_version = :version)
LIMIT :limit
""")  # noqa: S608  our own text
# What is still stale is marked again, in the new version.
_FRESHEN = statement("entries.freshen")(f"""
WITH closed AS (
  UPDATE catalogue_entries SET until_version = :version
  WHERE (catalogue_id, item, variant, from_version) IN (
    SELECT catalogue_id, item, variant, from_version FROM catalogue_entries
    WHERE catalogue_id = :catalogue_id AND until_version IS NULL AND stale_from IS NOT NULL AND from_version < :version
    LIMIT :limit)
  RETURNING *
)
INSERT INTO catalogue_entries (catalogue_id, {_COLUMNS}) SELECT catalogue_id, {_AS_NEW} FROM closed
""")  # noqa: S608  our own text
_THESE = """
FROM unnest(CAST(:items AS text[]), CAST(:variants AS text[])) AS these (item, variant)
WHERE e.catalogue_id = :catalogue_id AND e.item = these.item AND e.variant = these.variant AND e.until_version IS NULL
"""
_CLOSE = statement("entries.close")(
    f"UPDATE catalogue_entries e SET until_version = :version {_THESE} AND e.from_version < :version"  # noqa: S608
)
_DROP_NEW = statement("entries.drop_new")("""
DELETE FROM catalogue_entries e USING unnest(CAST(:items AS text[]), CAST(:variants AS text[])) AS these (item, variant)
WHERE e.catalogue_id = :catalogue_id AND e.item = these.item AND e.variant = these.variant AND e.from_version = :version
""")
_STALE = statement("entries.stale")(
    f"UPDATE catalogue_entries e SET stale_from = :version {_THESE} AND e.stale_from IS NULL"  # noqa: S608
)
_SET = statement("entries.set")("""
INSERT INTO catalogue_entries AS e (catalogue_id, from_version, item, variant, render_key, object_key, sha256, bytes,
  request, model_revision, reproducibility_class, rendered_at, job_id, index)
SELECT :catalogue_id, :version, item, variant, render_key, object_key, sha256, bytes, request, model_revision,
  reproducibility_class, now(), job_id, index
FROM unnest(CAST(:items AS text[]), CAST(:variants AS text[]), CAST(:render_keys AS bytea[]), CAST(:keys AS text[]),
            CAST(:sums AS bytea[]), CAST(:sizes AS integer[]), CAST(:requests AS jsonb[]), CAST(:revisions AS text[]),
            CAST(:classes AS text[]), CAST(:jobs AS bigint[]), CAST(:indexes AS integer[]))
  AS given (item, variant, render_key, object_key, sha256, bytes, request, model_revision, reproducibility_class,
            job_id, index)
ON CONFLICT (catalogue_id, item, variant, from_version) DO UPDATE SET
  render_key = excluded.render_key, object_key = excluded.object_key, sha256 = excluded.sha256,
  bytes = excluded.bytes,
  request = excluded.request, model_revision = excluded.model_revision, stale_from = NULL, until_version = NULL,
  reproducibility_class = excluded.reproducibility_class, rendered_at = excluded.rendered_at,
  job_id = excluded.job_id, index = excluded.index
""")
# An open entry is of the version to come.
_IN_KEPT = """({0}.until_version IS NULL OR EXISTS (
  SELECT FROM unnest(CAST(:kept AS integer[])) AS kept (version)
  WHERE kept.version >= {0}.from_version AND kept.version < {0}.until_version))"""
_UNUSED = statement("entries.unused")(f"""
SELECT item, variant, from_version, object_key, NOT EXISTS (
  SELECT FROM catalogue_entries other
  WHERE other.catalogue_id = e.catalogue_id AND other.object_key = e.object_key AND {_IN_KEPT.format("other")}
) AS is_last
FROM catalogue_entries e
WHERE catalogue_id = :catalogue_id AND until_version IS NOT NULL AND NOT {_IN_KEPT.format("e")}
ORDER BY until_version LIMIT :limit
""")  # noqa: S608  our own text
_FORGET = statement("entries.forget")("""
DELETE FROM catalogue_entries e
USING unnest(CAST(:items AS text[]), CAST(:variants AS text[]), CAST(:versions AS integer[])) AS o (item, variant, v)
WHERE e.catalogue_id = :catalogue_id AND e.item = o.item AND e.variant = o.variant AND e.from_version = o.v
""")
_FORGET_ALL = statement("entries.forget_all")("""
DELETE FROM catalogue_entries WHERE (catalogue_id, item, variant, from_version) IN (
  SELECT catalogue_id, item, variant, from_version FROM catalogue_entries
  WHERE catalogue_id = :catalogue_id LIMIT :limit)
""")


@dataclass(frozen=True, slots=True)
class Entry:
    """The picture of an item's variant. `from_version`: the version in which it was made. With `stale_from`, the item
    asks for another picture from that version on, which could not be made."""

    item: str
    variant: str
    from_version: int
    stale_from: int | None
    render_key: bytes
    object_key: str
    sha256: bytes
    bytes: int
    request: dict[str, Any]
    model_revision: str
    reproducibility_class: str
    rendered_at: datetime
    job_id: int
    index: int

    def is_stale_in(self, version: int) -> bool:
        return self.stale_from is not None and self.stale_from <= version


@dataclass(frozen=True, slots=True)
class Picture:
    """A change's picture, copied to the catalogue's own key; `job_id` and `index` are its image."""

    change: Change
    object_key: str
    sha256: bytes
    bytes: int
    reproducibility_class: str
    job_id: int
    index: int


@dataclass(frozen=True, slots=True)
class Unused:
    """An entry that no kept version has. `is_last`: none that is kept has its object."""

    item: str
    variant: str
    from_version: int
    object_key: str
    is_last: bool


def page(connection: Connection, catalogue_id: int, version: int, *, after: tuple[str, str], limit: int) -> list[Entry]:
    """The version's entries behind the item and variant `after`, in order (of code points)."""
    rows = connection.execute(_PAGE, _place(catalogue_id, version, after, limit))
    return [_entry(row) for row in rows]


def find(connection: Connection, catalogue_id: int, version: int, item: str, variant: str) -> Entry | None:
    """The version's picture of an item's variant."""
    values = {"catalogue_id": catalogue_id, "version": version, "item": item, "variant": variant}
    row = connection.execute(_ONE, values).one_or_none()
    return None if row is None else _entry(row)


def these(
    connection: Connection, catalogue_id: int, version: int, wanted: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Entry]:
    """The version's pictures of these items and variants, of those that it has."""
    values = {
        "catalogue_id": catalogue_id, "version": version, "items": [item for item, _ in wanted],
        "variants": [variant for _, variant in wanted],
    }  # fmt: skip
    found = (_entry(row) for row in connection.execute(_THESE_IN, values))
    return {(entry.item, entry.variant): entry for entry in found}


def count(connection: Connection, catalogue_id: int, version: int) -> tuple[int, int]:
    """How many pictures the version has, and their bytes."""
    row = connection.execute(_COUNT, {"catalogue_id": catalogue_id, "version": version}).one()
    return int(row.images), int(row.bytes)


def begin_as(connection: Connection, catalogue_id: int, *, base: int, version: int, most: int) -> bool:
    """Makes the entries of a new version those of `base`, a part at a time. Returns whether more is left."""
    values = {"catalogue_id": catalogue_id, "base": base, "version": version, "limit": most}
    done = [connection.execute(step, values).rowcount for step in (_CLOSE_LATER, _REOPEN, _FRESHEN)]
    return most in done


def replace(connection: Connection, catalogue_id: int, version: int, pictures: Sequence[Picture]) -> None:
    """From this version on, these changes have these pictures. A second call is not an error."""
    _close(connection, catalogue_id, version, [picture.change for picture in pictures])
    values = _these(catalogue_id, version, [picture.change for picture in pictures]) | {
        "render_keys": [picture.change.render_key for picture in pictures],
        "keys": [picture.object_key for picture in pictures],
        "sums": [picture.sha256 for picture in pictures],
        "sizes": [picture.bytes for picture in pictures],
        "requests": [json.dumps(picture.change.request) for picture in pictures],
        "revisions": [picture.change.model_revision for picture in pictures],
        "classes": [picture.reproducibility_class for picture in pictures],
        "jobs": [picture.job_id for picture in pictures],
        "indexes": [picture.index for picture in pictures],
    }
    connection.execute(_SET, values)


def remove(connection: Connection, catalogue_id: int, version: int, changes: Sequence[Change]) -> None:
    """From this version on, there are no pictures of these."""
    _close(connection, catalogue_id, version, changes)
    connection.execute(_DROP_NEW, _these(catalogue_id, version, changes))


def keep_stale(connection: Connection, catalogue_id: int, version: int, changes: Sequence[Change]) -> None:
    """These keep the pictures that they have, if any, which are stale from this version on."""
    connection.execute(_STALE, _these(catalogue_id, version, changes))


def unused(connection: Connection, catalogue_id: int, kept: Sequence[int], *, limit: int) -> list[Unused]:
    """Entries that none of the kept versions has."""
    values = {"catalogue_id": catalogue_id, "kept": list(kept), "limit": limit}
    return [Unused(*row) for row in connection.execute(_UNUSED, values)]


def forget(connection: Connection, catalogue_id: int, gone: Sequence[Unused]) -> None:
    values = {
        "catalogue_id": catalogue_id, "items": [one.item for one in gone], "variants": [one.variant for one in gone],
        "versions": [one.from_version for one in gone],
    }  # fmt: skip
    connection.execute(_FORGET, values)


def forget_all(connection: Connection, catalogue_id: int, *, most: int) -> bool:
    """Deletes up to `most` entries of a deleted catalogue. Returns whether there may be more."""
    return connection.execute(_FORGET_ALL, {"catalogue_id": catalogue_id, "limit": most}).rowcount == most


def _close(connection: Connection, catalogue_id: int, version: int, changes: Sequence[Change]) -> None:
    connection.execute(_CLOSE, _these(catalogue_id, version, changes))


def _these(catalogue_id: int, version: int, changes: Sequence[Change]) -> dict[str, Any]:
    return {
        "catalogue_id": catalogue_id, "version": version, "items": [change.item for change in changes],
        "variants": [change.variant for change in changes],
    }  # fmt: skip


def _place(catalogue_id: int, version: int, after: tuple[str, str], limit: int) -> dict[str, Any]:
    return {
        "catalogue_id": catalogue_id, "version": version, "item": after[0], "variant": after[1], "limit": limit,
    }  # fmt: skip


def _entry(row: Any) -> Entry:
    return Entry(
        row.item, row.variant, row.from_version, row.stale_from, bytes(row.render_key), row.object_key,
        bytes(row.sha256), row.bytes, row.request, row.model_revision, row.reproducibility_class, row.rendered_at,
        row.job_id, row.index,
    )  # fmt: skip
