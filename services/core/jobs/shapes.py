"""What a job renders: its models, sizes and steps."""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db.statements import statement

MOST = 20
_OF_JOB = statement("shapes.of_job")("""
SELECT coalesce(m.name, s.model_revision) AS model, s.model_revision, s.width, s.height, s.steps, s.guided
FROM segments s LEFT JOIN models m ON m.revision = s.model_revision
WHERE s.job_id = :job_id
GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY min(s.id) LIMIT :most
""")


@dataclass(frozen=True, slots=True)
class JobShape:
    """`model` is its name, or its revision once that is not the current one any longer."""

    model: str
    revision: str
    width: int
    height: int
    steps: int
    guided: bool


def of_job(connection: Connection, job_id: int) -> list[JobShape]:
    """The first MOST shapes of a job that the transaction sees, in its order."""
    rows = connection.execute(_OF_JOB, {"job_id": job_id, "most": MOST})
    return [JobShape(row.model, row.model_revision, row.width, row.height, row.steps, row.guided) for row in rows]
