"""A run's review: which pictures replace others and wait for a mark, and the marks that people set.

A mark is set in a transaction that shares the run's row, so it either counts or is refused because the review has
ended. Functions take the tenant's transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from services.core.catalogues import changes, unmarked
from services.core.catalogues.catalogue_runs import Run
from services.core.catalogues.changes import Change
from services.core.catalogues.unmarked import LOOKED_AT, NONE
from services.core.db.statements import statement
from services.core.marks import marks
from services.core.marks.asked import Mark
from services.core.model.errors import Conflict

_LOCK = statement("reviewing.lock")("SELECT state FROM catalogue_runs WHERE id = :run_id FOR SHARE")


@dataclass(frozen=True, slots=True)
class Page:
    """Changes whose pictures have been drawn. `place`: the position behind which the next page begins; None: this is
    the last. A page may be empty and not the last."""

    changes: list[Change]
    place: int | None


def page(connection: Connection, run: Run, mark: str, *, after: int, limit: int) -> Page:
    """The next changes behind the position `after` whose pictures replace others and have this mark, or none."""
    positions, place = unmarked.following(connection, run, mark, after, limit)
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
    positions, place = unmarked.following(connection, run, NONE, after, most)
    if positions:
        assert run.job_id is not None
        marks.put(connection, run.tenant_id, run.job_id, positions, word)
    return len(positions), place


def done(run: Run, marked: Mapping[Mark, int], *, left: int) -> int:
    """How many of the pictures that waited have a mark, if the job has so many marks by now and at least so many
    pictures are left. Marks of pictures that need none are counted with them: no index tells them apart."""
    since = sum(marked.values()) - run.counts.get("marked_before", 0)
    return max(0, min(since, run.counts.get("to_review", 0) - left))


def _hold(connection: Connection, run: Run) -> None:
    state = connection.execute(_LOCK, {"run_id": run.id}).scalar_one()
    if state != "reviewing":
        raise Conflict(f"The review has ended, and nothing was marked: the run is {state}.", "review_ended")
