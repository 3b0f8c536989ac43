"""A run's review: which pictures replace others and wait for a mark, and the marks that people set.

A mark is set in a transaction that shares the run's row, so it either counts or is refused because the review has
ended. No index knows which changes have no mark: a page looks at a bounded number. Functions take the tenant's
transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.catalogues import changes
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.changes import Change
from services.core.db.statements import statement
from services.core.marks import marks
from services.core.marks.marks import Mark
from services.core.model.errors import Conflict

UNMARKED = "none"
LOOKED_AT = marks.AT_ONCE  # changes, for a page of those with a mark or without
_LOCK = statement("reviewing.lock")("SELECT state FROM catalogue_runs WHERE id = :run_id FOR SHARE")
_NEXT = statement("reviewing.next")("""
SELECT count(*) AS looked_at, max(position) AS reached,
       (array_agg(position ORDER BY position) FILTER (WHERE is_wanted))[1 : CAST(:limit AS integer)] AS found
FROM (
  SELECT position, EXISTS (SELECT FROM results WHERE job_id = :job_id AND index = position OFFSET 0) AND coalesce(
    (SELECT mark FROM marks WHERE job_id = :job_id AND index = position OFFSET 0), 'none') = :mark AS is_wanted
  FROM (
    SELECT position FROM unnest(CAST(:kinds AS text[])) AS wanted (of_kind) CROSS JOIN LATERAL (
      SELECT position FROM catalogue_changes
      WHERE run_id = :run_id AND kind = of_kind AND position > :after ORDER BY position LIMIT :most
    ) one ORDER BY position LIMIT :most
  ) next
) looked
""")


@dataclass(frozen=True, slots=True)
class Page:
    """Changes whose pictures have been drawn. `place`: the position behind which the next page begins; None: this is
    the last. A page may be empty and not the last."""

    changes: list[Change]
    place: int | None


def page(connection: Connection, run: Run, mark: str, *, after: int, limit: int) -> Page:
    """The next changes behind the position `after` whose pictures replace others and have this mark, or none."""
    positions, place = _next(connection, run, mark, after, limit)
    return Page(changes.at(connection, run.id, positions), place)


def mark(connection: Connection, run: Run, positions: Sequence[int], word: Mark | None) -> int:
    """Sets the mark of these pictures, or removes it (None). Returns how many marks are new.

    Raises:
        Conflict: the review has ended (`review_ended`).
        InvalidSubmission: one is no picture that has been drawn.
    """
    _hold(connection, run)
    assert run.job_id is not None
    return marks.put(connection, run.tenant_id, run.job_id, positions, word).changed


def mark_next(
    connection: Connection, run: Run, word: Mark, *, after: int, most: int = LOOKED_AT
) -> tuple[int, int | None]:
    """Sets the mark of the next pictures that have none. Returns how many these are, and the position to go on from, if
    there may be more. Raises as `mark`."""
    _hold(connection, run)
    positions, place = _next(connection, run, UNMARKED, after, most)
    if positions:
        assert run.job_id is not None
        marks.put(connection, run.tenant_id, run.job_id, positions, word)
    return len(positions), place


def _next(connection: Connection, run: Run, mark: str, after: int, limit: int) -> tuple[list[int], int | None]:
    asked = {
        "run_id": run.id, "job_id": run.job_id, "mark": mark, "kinds": list(changes.REVIEWED), "after": after,
        "limit": limit + 1, "most": LOOKED_AT,
    }  # fmt: skip
    row = connection.execute(_NEXT, asked).one()
    found: list[int] = row.found or []
    if len(found) > limit:
        return found[:limit], found[limit - 1]
    return found, row.reached if row.looked_at == LOOKED_AT else None


def _hold(connection: Connection, run: Run) -> None:
    state = connection.execute(_LOCK, {"run_id": run.id}).scalar_one()
    if state != "reviewing":
        raise Conflict(f"The review has ended, and nothing was marked: the run is {state}.", "review_ended")
