"""A job's images by their scores: in the order of one score, those that are in every range.

A page reads as many rows as it shows. No index knows ranges of other scores together with the order: if they are asked
for too, it looks at a bounded number of images and says where it stopped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.jobs.queries import ImageView
from services.core.model.errors import NotFound
from services.core.model.scores import Range, Wanted

LOOKED_AT = 20_000  # scored images, for a page with ranges of several scores
Place = tuple[float, int]  # a score and an index
_MOST = 2**31 - 1
_BEGIN: Place = (-math.inf, -1)
_END: Place = (math.inf, _MOST)

# Both plans that Postgres may make of it, also the one for any values, begin at :value and :index. All results are
# looked for at once, not one by one: in every other week's partition that takes one look.
_PAGE = """
WITH next AS MATERIALIZED (
  SELECT value, index, row_number() OVER () AS place FROM (
    SELECT value, index FROM image_scores
    WHERE job_id = :job_id AND name = :name AND value {until} :end
      AND (value, index) {after} (CAST(:value AS double precision), CAST(:index AS integer))
    ORDER BY value {way}, index {way} LIMIT :most
  ) one
), fitting AS MATERIALIZED (
  SELECT index FROM results WHERE job_id = :job_id AND index = ANY(ARRAY(SELECT index FROM next)) AND {in_ranges}
)
SELECT value, index, place, fits FROM (
  SELECT *, cardinality(CAST(:names AS text[])) = 0 OR index IN (SELECT index FROM fitting) AS fits FROM next
) looked
WHERE fits OR place = :most ORDER BY place LIMIT :limit
"""
_ASCENDING, _DESCENDING = (
    statement(f"scored.{name}")(
        _PAGE.format(way=way, after=after, until=until, in_ranges=columns.in_ranges("results.scores"))
    )
    for name, way, after, until in (("ascending", "ASC", ">", "<="), ("descending", "DESC", "<", ">="))
)
# From name to name by the index, however many images there are.
_NAMES = statement("scored.names")("""
WITH RECURSIVE names AS (
  (SELECT name FROM image_scores WHERE job_id = :job_id ORDER BY name LIMIT 1)
  UNION ALL
  SELECT (SELECT name FROM image_scores s WHERE job_id = :job_id AND s.name > names.name ORDER BY s.name LIMIT 1)
  FROM names WHERE name IS NOT NULL
)
SELECT name FROM names WHERE name IS NOT NULL
""")


@dataclass(frozen=True, slots=True)
class Page:
    """`place`: behind which the next page begins; None: this is the last. It may hold fewer images than were asked
    for."""

    images: list[ImageView]
    place: Place | None


def page(
    connection: Connection, tenant_id: int, job_id: int, wanted: Wanted, *, after: Place | None, limit: int
) -> Page:
    """Up to `limit` images behind `after`. Raises NotFound."""
    if not queries.exists(connection, tenant_id, job_id):
        raise NotFound("There is no such job.")
    own = next((one for one in wanted.ranges if one.name == wanted.order.name), Range(wanted.order.name))
    others = [one for one in wanted.ranges if one is not own]
    most = LOOKED_AT if others else limit + 1
    if wanted.order.descending:
        ordered, begin, end = _DESCENDING, min(after or _END, (own.high, _MOST)), own.low
    else:
        ordered, begin, end = _ASCENDING, max(after or _BEGIN, (own.low, -1)), own.high
    values: dict[str, Any] = {
        "job_id": job_id, "name": own.name, "value": begin[0], "index": begin[1], "end": end, "most": most,
        "limit": limit + 1,
    }  # fmt: skip
    rows: Sequence[Any] = connection.execute(ordered, values | columns.ranges(others)).all()
    is_more = len(rows) > limit or bool(rows and rows[-1].place == most)
    rows = rows[:limit]
    images = _in_this_order(connection, job_id, [row.index for row in rows if row.fits])
    return Page(images, (rows[-1].value, rows[-1].index) if is_more else None)


def names(connection: Connection, job_id: int) -> list[str]:
    """The names of the scores that images of the job have, in order."""
    return list(connection.execute(_NAMES, {"job_id": job_id}).scalars())


def _in_this_order(connection: Connection, job_id: int, indexes: Sequence[int]) -> list[ImageView]:
    found = {image.index: image for image in queries.images_at(connection, job_id, indexes)}
    return [found[index] for index in indexes if index in found]
