"""Marks: what people say of a job's pictures. A done image has one mark at most: accepted, rejected or starred.

Whoever sets a mark is named with it, and when. To set the same mark again changes nothing, not even that. Functions
take the tenant's open transaction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from services.core.db.statements import statement
from services.core.events import log
from services.core.marks.asked import AT_ONCE, MARKS, Mark
from services.core.model.errors import InvalidSubmission, NotFound, Problem

Packed = bytes  # one byte an image
_NAMED = 20  # unknown images that an error names

# Held until the commit, so that the counts stay right; and by the row's lock nobody deletes the job meanwhile.
_LOCK = statement("marks.lock")("""
SELECT pg_advisory_xact_lock(7209416, hashint8(id)) FROM jobs WHERE id = :job_id AND tenant_id = :tenant_id FOR SHARE
""")
_NOT_DONE = statement("marks.not_done")("""
SELECT wanted.index FROM unnest(CAST(:indexes AS integer[])) AS wanted (index)
WHERE NOT EXISTS (SELECT FROM results WHERE results.job_id = :job_id AND results.index = wanted.index)
ORDER BY wanted.index
""")
_MATCHING = statement("marks.matching")("""
SELECT r.index FROM results r
LEFT JOIN LATERAL (SELECT mark FROM marks WHERE marks.job_id = r.job_id AND marks.index = r.index OFFSET 0) m ON true
WHERE r.job_id = :job_id AND r.index > :after AND r.index <= :last
  AND (CAST(:which AS text) IS NULL OR coalesce(m.mark, 'none') = :which)
  AND (CAST(:flagged AS boolean) IS NULL OR coalesce(r.flagged, false) = :flagged)
ORDER BY r.index
""")
# The index of the last of the next so many done images.
_LAST = statement("marks.last")("""
SELECT max(index) FROM (
  SELECT index FROM results WHERE job_id = :job_id AND index > :after ORDER BY index LIMIT :limit
) next
""")
_SAME = "SELECT index, mark FROM marks WHERE job_id = :job_id AND index = ANY(CAST(:indexes AS integer[]))"
_COUNTED = f"""
INSERT INTO mark_counts AS c (job_id, {", ".join(MARKS)})
SELECT :job_id, {", ".join(f"coalesce(sum(n) FILTER (WHERE mark = '{mark}'), 0)" for mark in MARKS)} FROM moved
ON CONFLICT (job_id) DO UPDATE SET {", ".join(f"{mark} = c.{mark} + excluded.{mark}" for mark in MARKS)}
"""  # noqa: S608  our own text
_PUT = statement("marks.put")(f"""
WITH before AS MATERIALIZED (
  {_SAME}
), put AS (
  INSERT INTO marks (job_id, index, mark, actor)
  SELECT :job_id, index, CAST(:mark AS text), {log.ACTOR}
  FROM unnest(CAST(:indexes AS integer[])) AS index ORDER BY index
  ON CONFLICT (job_id, index) DO UPDATE SET mark = excluded.mark, actor = excluded.actor, at = now()
  WHERE marks.mark <> excluded.mark
  RETURNING index, mark
), moved AS (
  SELECT mark, 1 AS n FROM put UNION ALL SELECT before.mark, -1 FROM before JOIN put USING (index)
), counted AS (
  {_COUNTED}
)
SELECT count(*) FROM put
""")  # noqa: S608  our own text
_REMOVE = statement("marks.remove")(f"""
WITH gone AS (
  DELETE FROM marks WHERE job_id = :job_id AND index = ANY(CAST(:indexes AS integer[])) RETURNING index, mark
), moved AS (
  SELECT mark, -1 AS n FROM gone
), counted AS (
  {_COUNTED}
)
SELECT count(*) FROM gone
""")  # noqa: S608  our own text
_COUNTS = statement("marks.counts")(f"""
SELECT {", ".join(f"coalesce(max(c.{mark}), 0) AS {mark}" for mark in MARKS)}, count(j.id) AS jobs
FROM jobs j LEFT JOIN mark_counts c ON c.job_id = j.id WHERE j.id = :job_id AND j.tenant_id = :tenant_id
""")  # noqa: S608  our own text
_LISTED = "SELECT index, mark, actor, at FROM marks WHERE job_id = :job_id AND index > :after"
_ALL = statement("marks.all")(f"{_LISTED} ORDER BY index LIMIT :limit")
_OF_ONE_KIND = statement("marks.of_one_kind")(f"{_LISTED} AND mark = :mark ORDER BY index LIMIT :limit")

_BETWEEN = statement("marks.between")("""
SELECT index, mark FROM marks WHERE job_id = :job_id AND index >= :first AND index < :past
""")


@dataclass(frozen=True, slots=True)
class Marked:
    """One image's mark, who set it (as `db/actors.py` names them) and when."""

    index: int
    mark: Mark
    actor: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Changed:
    """How many images `matched`, and how many marks `changed`. `reached`: the last index that was looked at, if there
    may be more behind it."""

    matched: int
    changed: int
    reached: int | None = None


def put(connection: Connection, tenant_id: int, job_id: int, indexes: Iterable[int], mark: Mark | None) -> Changed:
    """Sets the mark of these images, or removes it (None).

    Raises:
        NotFound: the tenant has no such job.
        InvalidSubmission: some are no done images of the job; it names them, and nothing was changed.
    """
    _lock(connection, tenant_id, job_id)
    wanted = sorted(set(indexes))
    missing = list(connection.execute(_NOT_DONE, {"job_id": job_id, "indexes": wanted}).scalars())
    if missing:
        problems = [
            Problem("not_done", f"The job has no done image {index}.", "indexes", index) for index in missing[:_NAMED]
        ]
        raise InvalidSubmission(problems, more=len(missing) > _NAMED)
    return Changed(len(wanted), _set(connection, job_id, wanted, mark))


def put_matching(
    connection: Connection, tenant_id: int, job_id: int, mark: Mark | None, *, after: int = -1,
    which: str | None = None, flagged: bool | None = None, most: int = AT_ONCE,
) -> Changed:  # fmt: skip
    """Sets the mark of the done images that match, among the next `most` behind `after`: call it again from `reached`.
    `which` is the mark that they have now, or none; `flagged` what the model's checker said. Raises NotFound."""
    _lock(connection, tenant_id, job_id)
    last = connection.execute(_LAST, {"job_id": job_id, "after": after, "limit": most}).scalar_one()
    if last is None:
        return Changed(0, 0)
    values = {"job_id": job_id, "after": after, "last": last, "which": which, "flagged": flagged}
    matching = list(connection.execute(_MATCHING, values).scalars())
    more = connection.execute(_LAST, {"job_id": job_id, "after": last, "limit": 1}).scalar_one() is not None
    return Changed(len(matching), _set(connection, job_id, matching, mark), last if more else None)


def listed(
    connection: Connection, tenant_id: int, job_id: int, *, mark: Mark | None, after: int, limit: int
) -> tuple[dict[Mark, int], list[Marked]]:
    """How many images have each mark; and the marks behind the index `after`, all or of one kind. Raises NotFound."""
    counted = counts(connection, tenant_id, job_id)
    values = {"job_id": job_id, "after": after, "limit": limit, "mark": mark}
    rows = connection.execute(_ALL if mark is None else _OF_ONE_KIND, values)
    return counted, [Marked(*row) for row in rows]


def counts(connection: Connection, tenant_id: int, job_id: int) -> dict[Mark, int]:
    """How many images have each mark. Raises NotFound."""
    counted = connection.execute(_COUNTS, {"job_id": job_id, "tenant_id": tenant_id}).one()
    if not counted.jobs:
        raise NotFound("There is no such job.")
    return {name: getattr(counted, name) for name in MARKS}


def packed(connection: Connection, job_id: int, first: int, past: int) -> Packed:
    """The marks of the images from `first` to `past`, without it."""
    found = bytearray(past - first)
    for index, mark in connection.execute(_BETWEEN, {"job_id": job_id, "first": first, "past": past}):
        found[index - first] = 1 + MARKS.index(mark)
    return bytes(found)


def unpacked(marks: Packed, index: int) -> Mark | None:
    """The mark of the image at that index of all."""
    return MARKS[marks[index] - 1] if marks[index] else None


def _lock(connection: Connection, tenant_id: int, job_id: int) -> None:
    if connection.execute(_LOCK, {"job_id": job_id, "tenant_id": tenant_id}).first() is None:
        raise NotFound("There is no such job.")


def _set(connection: Connection, job_id: int, indexes: Sequence[int], mark: Mark | None) -> int:
    values: dict[str, Any] = {"job_id": job_id, "indexes": list(indexes), "mark": mark}
    changed = int(connection.execute(_REMOVE if mark is None else _PUT, values).scalar_one())
    if changed:
        log.append_of_job(connection, "job.marked", job_id, {"mark": mark or "none", "images": changed})
    return changed
