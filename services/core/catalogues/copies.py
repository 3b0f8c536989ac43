"""The objects of the places that versions are copied to: which picture each is. Every write of `catalogue_copies`.

A row is written before its object, and goes after it, so no object is there without one; of an object that is being
deleted it says that it is not there. Functions take an open transaction and never commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.catalogues.destinations import Destination
from services.core.db.statements import statement

_COLUMNS = "name, item, variant, rule, sha256, is_there"
_AT = "catalogue_id = :catalogue_id AND place = :place"
_OF_ITEMS = statement("copies.of_items")(f"""
SELECT {_COLUMNS} FROM unnest(CAST(:items AS text[]), CAST(:variants AS text[])) AS these (of_item, of_variant)
JOIN LATERAL (
  SELECT {_COLUMNS} FROM catalogue_copies WHERE {_AT} AND item = of_item AND variant = of_variant AND rule = :rule
  OFFSET 0
) copy ON true
""")  # noqa: S608  our own text
_NAMED = statement("copies.named")(
    f"SELECT {_COLUMNS} FROM catalogue_copies WHERE {_AT} AND name = ANY(CAST(:names AS text[]))"  # noqa: S608
)
_PAGE = statement("copies.page")(
    f"SELECT {_COLUMNS} FROM catalogue_copies WHERE {_AT} AND name > :after ORDER BY name LIMIT :limit"  # noqa: S608
)
_WAITING = statement("copies.waiting")(f"""
SELECT {_COLUMNS} FROM catalogue_copies WHERE {_AT} AND NOT is_there AND name > :after ORDER BY name LIMIT :limit
""")  # noqa: S608  our own text
_PUT = statement("copies.put")("""
INSERT INTO catalogue_copies AS c (catalogue_id, place, name, item, variant, rule, sha256)
SELECT :catalogue_id, :place, name, item, variant, :rule, sha256
FROM unnest(CAST(:names AS text[]), CAST(:items AS text[]), CAST(:variants AS text[]), CAST(:sums AS bytea[]))
  AS given (name, item, variant, sha256)
ON CONFLICT (catalogue_id, place, name) DO UPDATE SET item = excluded.item, variant = excluded.variant,
  rule = excluded.rule, sha256 = excluded.sha256, is_there = c.is_there AND c.sha256 = excluded.sha256
""")
_ARE_THERE = statement("copies.are_there")(f"""
UPDATE catalogue_copies SET is_there = :is_there
WHERE {_AT} AND name = ANY(CAST(:names AS text[])) AND is_there <> :is_there
""")  # noqa: S608  our own text
_POINT = statement("copies.point")(f"""
UPDATE catalogue_copies SET is_there = (name = :name) WHERE {_AT} AND item = '' AND is_there <> (name = :name)
""")  # noqa: S608  our own text
_FORGET = statement("copies.forget")(
    f"DELETE FROM catalogue_copies WHERE {_AT} AND name = ANY(CAST(:names AS text[]))"  # noqa: S608
)
_FORGET_ALL = statement("copies.forget_all")("""
DELETE FROM catalogue_copies WHERE (catalogue_id, place, name) IN (
  SELECT catalogue_id, place, name FROM catalogue_copies WHERE catalogue_id = :catalogue_id LIMIT :limit)
""")


@dataclass(frozen=True, slots=True)
class Copy:
    """An object of a place by its name, and the picture that it is. Until it `is_there`, the picture that it is to
    become: the place may have nothing of that name, or what had it before."""

    name: str
    item: str
    variant: str
    rule: bytes
    sha256: bytes
    is_there: bool = False

    @property
    def is_manifest(self) -> bool:
        return not self.item


def of_items(
    connection: Connection, at: Destination, wanted: Sequence[tuple[str, str]]
) -> dict[tuple[str, str, bytes], Copy]:
    """What is named by the destination's rule for these items and variants, also by the pictures' sha256."""
    values = _place(at) | {
        "rule": at.rule, "items": [item for item, _ in wanted], "variants": [variant for _, variant in wanted],
    }  # fmt: skip
    found = (_copy(row) for row in connection.execute(_OF_ITEMS, values))
    return {(one.item, one.variant, one.sha256): one for one in found}


def named(connection: Connection, at: Destination, names: Sequence[str]) -> dict[str, Copy]:
    rows = connection.execute(_NAMED, _place(at) | {"names": list(names)})
    return {row.name: _copy(row) for row in rows}


def page(connection: Connection, at: Destination, *, after: str, limit: int) -> list[Copy]:
    """The objects of the place behind the name `after`, in order."""
    return [_copy(row) for row in connection.execute(_PAGE, _place(at) | {"after": after, "limit": limit})]


def waiting(connection: Connection, at: Destination, *, after: str, limit: int) -> list[Copy]:
    """The same of those that are not there yet."""
    return [_copy(row) for row in connection.execute(_WAITING, _place(at) | {"after": after, "limit": limit})]


def put(connection: Connection, at: Destination, given: Sequence[Copy]) -> None:
    """These are to be there. What is there with the same bytes stays as it is."""
    values = _place(at) | {
        "rule": at.rule, "names": [one.name for one in given], "items": [one.item for one in given],
        "variants": [one.variant for one in given], "sums": [one.sha256 for one in given],
    }  # fmt: skip
    connection.execute(_PUT, values)


def are_there(connection: Connection, at: Destination, names: Sequence[str]) -> None:
    connection.execute(_ARE_THERE, _place(at) | {"names": list(names), "is_there": True})


def are_going(connection: Connection, at: Destination, names: Sequence[str]) -> None:
    """Nobody counts on these any more. Commit it before the first of them is deleted."""
    connection.execute(_ARE_THERE, _place(at) | {"names": list(names), "is_there": False})


def point(connection: Connection, at: Destination, manifest: str) -> None:
    """The pointer leads to that manifest, and to no other."""
    connection.execute(_POINT, _place(at) | {"name": manifest})


def forget(connection: Connection, at: Destination, names: Sequence[str]) -> None:
    connection.execute(_FORGET, _place(at) | {"names": list(names)})


def forget_all(connection: Connection, catalogue_id: int, *, most: int) -> bool:
    """Deletes up to `most` rows of a deleted catalogue. Returns whether there may be more."""
    return connection.execute(_FORGET_ALL, {"catalogue_id": catalogue_id, "limit": most}).rowcount == most


def _place(at: Destination) -> dict[str, Any]:
    return {"catalogue_id": at.catalogue_id, "place": at.place}


def _copy(row: Any) -> Copy:
    return Copy(row.name, row.item, row.variant, bytes(row.rule), bytes(row.sha256), row.is_there)
