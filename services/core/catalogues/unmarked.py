"""Which of a run's changed pictures have no mark, or a certain one; read for people and schedulers.

No index knows which changes have no mark: a look reads a bounded number. Functions take an open transaction.
"""

from sqlalchemy import Connection

from services.core.catalogues import changes
from services.core.catalogues.catalogue_runs import Run
from services.core.db.statements import statement

NONE = "none"  # the mark of those that have none
LOOKED_AT = 5_000  # changes, in one look
_FOLLOWING = statement("unmarked.following")("""
SELECT count(*) AS looked_at, max(position) AS reached,
       (array_agg(position ORDER BY position) FILTER (WHERE is_wanted))[1 : CAST(:limit AS integer)] AS found
FROM (
  SELECT position, CASE
    WHEN is_redrawn AND NOT EXISTS (SELECT FROM jobs WHERE id = of_job AND deleted_at IS NULL OFFSET 0) THEN false
    WHEN EXISTS (SELECT FROM results WHERE job_id = of_job AND index = of_index OFFSET 0) THEN coalesce(
      (SELECT mark FROM marks WHERE job_id = of_job AND index = of_index OFFSET 0), 'none') = :mark
    ELSE :awaited AND is_redrawn AND EXISTS (SELECT FROM jobs WHERE id = of_job AND finished_at IS NULL OFFSET 0)
  END AS is_wanted
  FROM (
    SELECT position, coalesce(job_id, :job_id) AS of_job, coalesce(index, position) AS of_index,
           job_id IS NOT NULL AS is_redrawn
    FROM unnest(CAST(:kinds AS text[])) AS wanted (of_kind) CROSS JOIN LATERAL (
      SELECT position, job_id, index FROM catalogue_changes
      WHERE run_id = :run_id AND kind = of_kind AND position > :after ORDER BY position LIMIT :most
    ) one ORDER BY position LIMIT :most
  ) next
) looked
""")
_HAS_JOB = statement("unmarked.has_job")("SELECT EXISTS (SELECT FROM jobs WHERE id = :job_id AND deleted_at IS NULL)")


def first(connection: Connection, run: Run) -> int | None:
    """A picture that waits for a mark, or is being drawn again: the one for which the run waits, or the next behind it,
    or else the first. None: all have one, or the job was deleted."""
    if not has_job(connection, run):
        return None
    for after in (run.position - 2, -1) if run.position else (-1,):
        place: int | None = after
        while place is not None:
            found, place = following(connection, run, NONE, place, 1, awaited=True)
            if found:
                return found[0]
    return None


def has_job(connection: Connection, run: Run) -> bool:
    """Whether the run's job is there, so that its pictures can be looked at."""
    return bool(connection.execute(_HAS_JOB, {"job_id": run.job_id}).scalar_one())


def following(
    connection: Connection, run: Run, mark: str, after: int, limit: int, *, awaited: bool = False
) -> tuple[list[int], int | None]:
    """The next so many drawn pictures behind the position `after` that replace others and have this mark, or none; and
    where to go on, if there may be more. With `awaited`, those that are being drawn again have none, too."""
    asked = {
        "run_id": run.id, "job_id": run.job_id, "mark": mark, "kinds": list(changes.REVIEWED), "after": after,
        "limit": limit + 1, "most": LOOKED_AT, "awaited": awaited and mark == NONE,
    }  # fmt: skip
    row = connection.execute(_FOLLOWING, asked).one()
    found: list[int] = row.found or []
    if len(found) > limit:
        return found[:limit], found[limit - 1]
    return found, row.reached if row.looked_at == LOOKED_AT else None
