"""Search in a job's requests by a text in their prompt or custom_id, a bounded number of requests at a time."""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.jobs.queries import ImageView
from services.core.model.errors import NotFound

SEARCHED = 20_000  # requests of one page, at most

# The collation is that of Unicode: the database's own may know no case of letters beyond ASCII.
_SEARCH = statement("search.page")("""
SELECT max(page.index + page.n) AS reached, count(*) AS requests,
       array_agg(page.index ORDER BY page.index)
         FILTER (WHERE prompt COLLATE pg_c_utf8 ILIKE :pattern OR custom_id COLLATE pg_c_utf8 ILIKE :pattern) AS found
FROM (
  SELECT index, n, prompt, custom_id FROM payloads
  WHERE job_id = :job_id AND index >= :from ORDER BY index LIMIT :searched
) page
""")


@dataclass(frozen=True, slots=True)
class Page:
    """`images`: the first image of each request found. `searched`: the images up to where the page ended, of `total`.
    `reached`: the index at which the next page begins; None if all has been searched."""

    images: list[ImageView]
    searched: int
    total: int
    reached: int | None


def search(connection: Connection, tenant_id: int, job_id: int, text: str, *, start: int, limit: int) -> Page:
    """Searches from the index `start` on, until it has found `limit` requests or searched SEARCHED. Letters match
    whatever their case. Raises NotFound."""
    job = queries.job(connection, tenant_id, job_id)
    if job is None:
        raise NotFound("There is no such job.")
    values = {"job_id": job_id, "from": start, "searched": SEARCHED, "pattern": _pattern(text)}
    row = connection.execute(_SEARCH, values).one()
    total = sum(job.counts.values())
    if row.reached is None:
        return Page([], total, total, None)
    found, reached = row.found or [], row.reached
    if len(found) > limit:
        reached = found[limit]  # the first request of the next page
    images = queries.images_at(connection, job_id, found[:limit])
    return Page(images, min(reached, total), total, None if reached >= total else reached)


def _pattern(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"
