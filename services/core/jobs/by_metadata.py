"""A job's images by their metadata, in order of their indexes.

No index knows metadata, so a page looks at a bounded number of requests and says where it stopped.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.jobs.image_pages import Page
from services.core.model.errors import NotFound
from services.core.model.metadata_filters import Condition
from services.core.model.states import ImageState

LOOKED_AT = 20_000  # requests or images, for one page
_REQUESTS = statement("by_metadata.requests")(f"""
WITH next AS MATERIALIZED (
  SELECT index, n, metadata FROM payloads
  WHERE job_id = :job_id AND index >= (
    SELECT coalesce(max(index), 0) FROM payloads WHERE job_id = :job_id AND index <= :after + 1)
  ORDER BY index LIMIT :most
)
SELECT ARRAY(
    SELECT ARRAY[index, n] FROM next WHERE {columns.fits_metadata("next.metadata")} ORDER BY index LIMIT :limit
  ) AS found, count(*) AS looked_at, max(index + n) - 1 AS reached
FROM next
""")  # noqa: S608  our own text
_IN_STATE = statement("by_metadata.in_state")("""
SELECT index FROM images
WHERE job_id = :job_id AND index = ANY(CAST(:indexes AS integer[]))
  AND (CAST(:state AS smallint) IS NULL OR state = :state)
ORDER BY index
""")


def page(
    connection: Connection,
    tenant_id: int,
    job_id: int,
    wanted: Sequence[Condition],
    *,
    state: ImageState | None,
    after: int,
    limit: int,
) -> Page:
    """Up to `limit` images behind the index `after`. Raises NotFound."""
    if not queries.exists(connection, tenant_id, job_id):
        raise NotFound("There is no such job.")
    values: dict[str, Any] = {"job_id": job_id, "after": after, "limit": limit + 1, "most": LOOKED_AT}
    row = connection.execute(_REQUESTS, values | columns.metadata_values(wanted)).one()
    reached = row.reached if row.looked_at == LOOKED_AT or len(row.found) > limit else None
    indexes: list[int] = []
    for first, n in row.found:
        if len(indexes) >= LOOKED_AT:
            break
        indexes += range(max(first, after + 1), first + n)
        if len(row.found) > limit:
            reached = first + n - 1
    if len(indexes) >= LOOKED_AT:
        reached = indexes[-1]
    asked = {"job_id": job_id, "indexes": indexes, "state": None if state is None else int(state)}
    fitting = list(connection.execute(_IN_STATE, asked).scalars())
    if len(fitting) > limit:
        reached = fitting[limit - 1]
    return Page(queries.images_at(connection, job_id, fitting[:limit]), reached)
