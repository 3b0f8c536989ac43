"""Pages of a job's images for those who look at them: failed first, of one state, of one cause, or with one mark.

Each reads as many rows as it shows. Images without a mark are the exception: no index knows them, so a page looks at a
bounded number of done images and says where it stopped.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.jobs.queries import ImageView
from services.core.marks.asked import MARKS
from services.core.model.errors import NotFound
from services.core.model.states import ImageState

UNMARKED = "none"
WHICH = (*MARKS, UNMARKED)
LOOKED_AT = 20_000  # done images, for a page of those without a mark
_AMONG_OTHERS = 1 << 32  # in a place: all failed images were listed before
_UNMARKED = statement("image_pages.unmarked")("""
SELECT count(*) AS looked_at, max(index) AS reached,
       (array_agg(index ORDER BY index) FILTER (WHERE free))[1 : CAST(:limit AS integer)] AS found
FROM (
  SELECT index, NOT EXISTS (
    SELECT FROM marks WHERE marks.job_id = results.job_id AND marks.index = results.index OFFSET 0) AS free
  FROM results WHERE job_id = :job_id AND index > :after ORDER BY index LIMIT :most
) next
""")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which images: all, failed first; or those of a state, that failed for a cause, or with a mark (UNMARKED: the done
    ones without). A cause and a mark each say which state they are about, so only one of the three is set."""

    state: ImageState | None = None
    cause: str | None = None
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """`place`: where the next page begins; None: this is the last."""

    images: list[ImageView]
    place: int | None


def page(connection: Connection, tenant_id: int, job_id: int, wanted: Filter, *, place: int | None, limit: int) -> Page:
    """Up to `limit` images from `place` on. Raises NotFound."""
    after = -1 if place is None else place % _AMONG_OTHERS
    if wanted.mark == UNMARKED:
        return _unmarked(connection, tenant_id, job_id, after, limit)
    most = limit + 1
    if wanted.cause is not None:
        found = queries.images_of_cause(connection, tenant_id, job_id, wanted.cause, after=after, limit=most)
    elif wanted.mark is not None:
        found = queries.images_marked(connection, tenant_id, job_id, wanted.mark, after=after, limit=most)
    elif wanted.state is not None:
        found = queries.images(connection, tenant_id, job_id, state=wanted.state, after=after, limit=most)
    else:
        failed = place is None or place < _AMONG_OTHERS
        found = queries.images_failed_first(connection, tenant_id, job_id, failed=failed, after=after, limit=most)
    if found is None:
        raise NotFound("There is no such job.")
    images = found[:limit]
    if len(found) <= limit:
        return Page(images, None)
    is_among_others = wanted == Filter() and images[-1].state is not ImageState.FAILED
    return Page(images, images[-1].index + (_AMONG_OTHERS if is_among_others else 0))


def _unmarked(connection: Connection, tenant_id: int, job_id: int, after: int, limit: int) -> Page:
    if not queries.exists(connection, tenant_id, job_id):
        raise NotFound("There is no such job.")
    values = {"job_id": job_id, "after": after, "limit": limit, "most": LOOKED_AT}
    row = connection.execute(_UNMARKED, values).one()
    found = row.found or []
    images = queries.images_at(connection, job_id, found)
    if len(found) == limit:
        return Page(images, found[-1])
    return Page(images, row.reached if row.looked_at == LOOKED_AT else None)
