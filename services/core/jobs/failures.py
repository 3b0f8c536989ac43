"""Why images failed, by cause: read from folded counts and the deltas that are not folded yet, not from the images."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.jobs import queries
from services.core.model.errors import NotFound

MOST_CAUSES = 50
_NEWEST = "ORDER BY at DESC, index"
_OF_JOB = statement("failures.of_job")(f"""
SELECT code, sum(images) AS images, CAST(:job_id AS bigint) AS job_id, (array_agg(index {_NEWEST}))[1] AS index,
       (array_agg(message {_NEWEST}))[1] AS message, max(at) AS at
FROM (
  SELECT code, images, index, message, at FROM failure_counts WHERE job_id = :job_id
  UNION ALL
  SELECT code, images, index, message, at FROM failure_deltas WHERE job_id = :job_id
) counted
GROUP BY code ORDER BY images DESC, code LIMIT :most
""")  # noqa: S608  our own text
_OF_DAY = statement("failures.of_day")(f"""
SELECT code, sum(images) AS images, (array_agg(job_id {_NEWEST}))[1] AS job_id,
       (array_agg(index {_NEWEST}))[1] AS index, (array_agg(message {_NEWEST}))[1] AS message, max(at) AS at
FROM failure_hours
WHERE tenant_id = :tenant_id AND hour > now() - interval '1 day' AND hour <= now()
GROUP BY code ORDER BY images DESC, code LIMIT :most
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Cause:
    """How many images failed for one cause; the newest reason, when that was, and the image that it was about, which is
    None if its job was deleted."""

    code: str
    images: int
    message: str
    at: datetime
    job_id: int | None
    index: int | None


def of_job(connection: Connection, tenant_id: int, job_id: int) -> list[Cause]:
    """The causes for which images of the job failed, the most frequent first. Raises NotFound: the tenant has no such
    job."""
    if not queries.exists(connection, tenant_id, job_id):
        raise NotFound("There is no such job.")
    return counted(connection, job_id)


def counted(connection: Connection, job_id: int) -> list[Cause]:
    """As `of_job`, of a job that is known to be the tenant's."""
    return _causes(connection.execute(_OF_JOB, {"job_id": job_id, "most": MOST_CAUSES}))


def of_day(connection: Connection, tenant_id: int) -> list[Cause]:
    """The causes of the last 24 hours, of whole hours, in all jobs of the tenant."""
    return _causes(connection.execute(_OF_DAY, {"tenant_id": tenant_id, "most": MOST_CAUSES}))


def _causes(rows: Iterable[Any]) -> list[Cause]:
    return [Cause(row.code, int(row.images), row.message, row.at, row.job_id, row.index) for row in rows]
