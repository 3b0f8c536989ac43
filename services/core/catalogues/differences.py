"""Where the pictures of two versions of a catalogue differ, in order of item and variant.

What differs between two versions began or ended with one of the versions in between: the first such rows of each of
these are read, by an index in the order that is wanted. So the further two versions are apart, the fewer rows of each
are read, but LEAST at least.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.catalogues import entries
from services.core.catalogues.entries import Entry
from services.core.db.statements import statement

LEAST = 10  # rows of each version in between that are read, of those that began with it and of those that ended
MOST_ROWS = 450  # that counting the differences reads, unless LEAST makes more
PAGE_ROWS = 2_002  # that a page reads, unless LEAST makes more: 1,000 differences of neighbours
_OF_ONE = """(
    SELECT item, variant FROM catalogue_entries
    WHERE catalogue_id = :catalogue_id AND {0} = version AND (item, variant) > (:item, :variant)
    ORDER BY item, variant LIMIT :limit)"""
_TOUCHED = f"""
SELECT DISTINCT item, variant FROM generate_series(CAST(:low AS integer) + 1, CAST(:high AS integer)) AS version
CROSS JOIN LATERAL (
  {_OF_ONE.format("from_version")} UNION ALL {_OF_ONE.format("until_version")}
) touched ORDER BY item, variant LIMIT :limit
"""  # noqa: S608  our own text
_BETWEEN = statement("differences.between")(_TOUCHED)
_COUNT = statement("differences.count")(f"SELECT count(*) FROM ({_TOUCHED}) touched")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Difference:
    """An item's variant with another picture in one version than in another; None: that version has none."""

    item: str
    variant: str
    before: Entry | None
    after: Entry | None


def page(
    connection: Connection, catalogue_id: int, before: int, after: int, *, behind: tuple[str, str], limit: int
) -> tuple[list[Difference], tuple[str, str] | None]:
    """Where the pictures of two kept versions differ, behind the item and variant `behind`, in order; and where to go
    on, if there may be more. `limit` are looked at, or fewer if the versions are far apart; what has the same bytes in
    both is left out."""
    limit = min(limit, _of_each(PAGE_ROWS, before, after) - 1)
    touched = connection.execute(_BETWEEN, _asked(catalogue_id, before, after, behind, limit + 1)).all()
    looked_at = [(row.item, row.variant) for row in touched[:limit]]
    old, new = (entries.these(connection, catalogue_id, version, looked_at) for version in (before, after))
    found = [Difference(*place, old.get(place), new.get(place)) for place in looked_at]
    reached = looked_at[-1] if len(touched) > limit else None
    return [one for one in found if _sum(one.before) != _sum(one.after)], reached


def count(connection: Connection, catalogue_id: int, before: int, after: int) -> tuple[int, bool]:
    """At how many items and variants something began or ended between two versions, and whether these are all: it looks
    at a bounded number. Those that have the same bytes again are among them."""
    limit = _of_each(MOST_ROWS, before, after)
    asked = _asked(catalogue_id, before, after, ("", ""), limit)
    found = int(connection.execute(_COUNT, asked).scalar_one())
    return found, found < limit


def _of_each(rows: int, before: int, after: int) -> int:
    """How many rows of each version in between are read, so that all are not more than `rows`, but LEAST at least."""
    return max(LEAST, rows // (2 * max(1, abs(after - before))))


def _asked(catalogue_id: int, before: int, after: int, behind: tuple[str, str], limit: int) -> dict[str, Any]:
    low, high = sorted((before, after))
    return {
        "catalogue_id": catalogue_id, "item": behind[0], "variant": behind[1], "limit": limit, "low": low, "high": high,
    }  # fmt: skip


def _sum(entry: Entry | None) -> bytes | None:
    return None if entry is None else entry.sha256
