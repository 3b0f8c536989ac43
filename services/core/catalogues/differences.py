"""Where the pictures of two versions of a catalogue differ, in order of item and variant.

What differs between two versions began or ended with one of the versions in between. The first such rows of each of
these are read, by an index in the order that is wanted: as many as may be read in all. What is behind the last row of a
version that may have more is for the next page. If the versions are so far apart that not even one row of each may be
read, all items are looked at in order, a bounded number a page.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.catalogues import entries
from services.core.catalogues.entries import Entry
from services.core.db.statements import statement

ROWS = 450  # that one look reads, if it is for a page of less than half as many
_COUNTED = ROWS // 2 - 1
_OF_ONE = """(
    SELECT {0} AS of_version, {1} AS ended, item, variant FROM catalogue_entries
    WHERE catalogue_id = :catalogue_id AND {0} = version AND (item, variant) > (:item, :variant)
    ORDER BY item, variant LIMIT :each)"""
_BETWEEN = statement("differences.between")(f"""
SELECT of_version, ended, item, variant
FROM generate_series(CAST(:low AS integer) + 1, CAST(:high AS integer)) AS version CROSS JOIN LATERAL (
  {_OF_ONE.format("from_version", "false")} UNION ALL {_OF_ONE.format("until_version", "true")}
) touched
""")  # noqa: S608  our own text
_NEXT = statement("differences.next")("""
SELECT item, variant FROM catalogue_entries WHERE catalogue_id = :catalogue_id AND (item, variant) > (:item, :variant)
ORDER BY item, variant LIMIT :each
""")
Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """An item's variant with another picture in one version than in another; None: that version has none."""

    item: str
    variant: str
    before: Entry | None
    after: Entry | None


def page(
    connection: Connection, catalogue_id: int, before: int, after: int, *, behind: Place, limit: int
) -> tuple[list[Difference], Place | None]:
    """Where the pictures of two kept versions differ, behind the item and variant `behind`, in order, `limit` at most;
    and where to go on, if there may be more. Each look reads a bounded number of rows, so a page may be short, or
    empty, and not the last. What has the same bytes in both is left out."""
    looked_at, reached = _places(connection, catalogue_id, before, after, behind, limit)
    old, new = (entries.these(connection, catalogue_id, version, looked_at) for version in (before, after))
    found = [Difference(*place, old.get(place), new.get(place)) for place in looked_at]
    differing = [one for one in found if _sum(one.before) != _sum(one.after)]
    if len(differing) > limit:
        reached = (differing[limit - 1].item, differing[limit - 1].variant)
    return differing[:limit], reached


def count(connection: Connection, catalogue_id: int, before: int, after: int) -> tuple[int, bool]:
    """At how many items and variants two versions differ, and whether these are all: it looks at a bounded number."""
    found, reached = page(connection, catalogue_id, before, after, behind=("", ""), limit=_COUNTED)
    return len(found), reached is None


def _places(
    connection: Connection, catalogue_id: int, before: int, after: int, behind: Place, limit: int
) -> tuple[list[Place], Place | None]:
    """The next items and variants that may differ, and the last one, if there may be more behind it."""
    each = min(limit + 1, _of_each(max(ROWS, 2 * (limit + 1)), before, after))
    low, high = sorted((before, after))
    asked = {"catalogue_id": catalogue_id, "item": behind[0], "variant": behind[1], "low": low, "high": high}
    if each == 0:
        rows = connection.execute(_NEXT, asked | {"each": ROWS}).all()
        found = sorted({(row.item, row.variant) for row in rows})
        return found, found[-1] if len(rows) == ROWS else None
    streams: dict[tuple[int, bool], list[Place]] = {}
    for row in connection.execute(_BETWEEN, asked | {"each": each}):
        streams.setdefault((row.of_version, row.ended), []).append((row.item, row.variant))
    full = [max(places) for places in streams.values() if len(places) == each]
    touched = sorted({place for places in streams.values() for place in places})
    found = [place for place in touched if not full or place <= min(full)]
    return found[:limit], found[limit - 1] if len(found) > limit else found[-1] if full else None


def _of_each(rows: int, before: int, after: int) -> int:
    """How many rows are read of each version in between, of those that began with it and of those that ended, so that
    all are not more than `rows`. 0: not even one."""
    return rows // (2 * max(1, abs(after - before)))


def _sum(entry: Entry | None) -> bytes | None:
    return None if entry is None else entry.sha256
