"""What a job renders: its models, sizes and steps, the class that it asks for, and whether anybody can."""

from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.fleet import serving
from services.core.model.specs import Shape

MOST = 20
_MAY_DIFFER = (
    "A worker of an earlier release is up, which may render images of this job in another class than was asked for: "
    "stop it, and compare each image's reproducibility_class."
)
# The first row brings the fleet.
_OF_JOB = statement("shapes.of_job")(f"""
SELECT shapes.*, coalesce(m.name, shapes.model_revision) AS model,
       CASE row_number() OVER (ORDER BY first, m.name) WHEN 1 THEN (
         {serving.LIVE} IN (SELECT s.model_revision FROM segments s WHERE s.job_id = :job_id)) END AS fleet
FROM (
  SELECT {columns.shape("s")}, min(s.id) AS first,
         bool_or(s.open AND s.low <= s.high AND j.state IN ('queued', 'in_progress')) AS waits
  FROM segments s JOIN jobs j ON j.id = s.job_id
  WHERE s.job_id = :job_id
  GROUP BY {columns.shape("s")} ORDER BY min(s.id) LIMIT :most
) shapes
LEFT JOIN LATERAL (SELECT name FROM models WHERE revision = shapes.model_revision ORDER BY name LIMIT 1) m ON true
ORDER BY first, m.name
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class JobShape:
    """`model` is its name, or its revision once that is not the current one any longer. `nobody`: why no worker that is
    up can render what waits of it, and what to do; "" if one can, or if no worker of the model is up at all and any
    will do. `may_differ`: a worker that is up may render what waits of it in another class than was asked for."""

    model: str
    shape: Shape
    nobody: str = ""
    may_differ: bool = False

    @property
    def words(self) -> tuple[object, ...]:
        """What people tell it by."""
        shape = self.shape
        return self.model, shape.width, shape.height, shape.steps, shape.guided, shape.reproducibility_class


def of_job(connection: Connection, job_id: int) -> list[JobShape]:
    """The first MOST shapes of a job that the transaction sees, in its order."""
    rows = connection.execute(_OF_JOB, {"job_id": job_id, "most": MOST}).all()
    live = serving.read(rows[0].fleet) if rows else serving.read(None)
    return [_of(row.model, columns.read_shape(row), live, waits=row.waits) for row in rows]


def unserved(connection: Connection, job_id: int) -> list[str]:
    """A sentence for each of the job's shapes of which images wait that nobody can render, or not all in the class that
    was asked for."""
    found = of_job(connection, job_id)
    nobody = dict.fromkeys(entry.nobody for entry in found if entry.nobody)
    differs = [_MAY_DIFFER] if any(entry.may_differ for entry in found) else []
    return [f"Images of this job wait, and {why}." for why in nobody] + differs


def _of(model: str, shape: Shape, live: serving.Serving, *, waits: bool) -> JobShape:
    is_told = waits and not live.of(shape) and (bool(shape.reproducibility_class) or live.lacks(shape))
    may_differ = waits and bool(shape.reproducibility_class) and live.ignores_classes(shape)
    return JobShape(model, shape, serving.nobody(shape) if is_told else "", may_differ)
