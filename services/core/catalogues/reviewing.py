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
from services.core.marks.asked import MARKS, Mark
from services.core.model.errors import Conflict

_LOCK = statement("reviewing.lock")("SELECT state FROM catalogue_runs WHERE id = :run_id FOR SHARE")
_COUNTS = statement("reviewing.counts")(f"""
SELECT {", ".join(f"coalesce(sum({mark}), 0) AS {mark}" for mark in MARKS)}
FROM mark_counts WHERE job_id = ANY(CAST(:job_ids AS bigint[]))
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Page:
    """Changes whose pictures have been drawn, or are being drawn again. `place`: the position behind which the next
    page begins; None: this is the last. A page may be empty and not the last."""

    changes: list[Change]
    place: int | None


def page(connection: Connection, run: Run, mark: str, *, after: int, limit: int) -> Page:
    """The next changes behind the position `after` whose pictures replace others and have this mark, or none, as those
    have that are being drawn again."""
    positions, place = unmarked.following(connection, run, mark, after, limit, awaited=True)
    return Page(changes.at(connection, run.id, positions), place)


def mark(connection: Connection, run: Run, positions: Sequence[int], word: Mark | None) -> int:
    """Sets the mark of these pictures, or removes it (None). Returns how many marks are new.

    Raises:
        Conflict: the review has ended (`review_ended`).
        InvalidSubmission: one is no picture that has been drawn.
    """
    _hold(connection, run)
    return _put(connection, run, positions, word)


def mark_next(
    connection: Connection, run: Run, word: Mark, *, after: int, most: int = LOOKED_AT
) -> tuple[int, int | None]:
    """Sets the mark of the next pictures that have none. Returns how many these are, and the position to go on from, if
    there may be more. Raises as `mark`."""
    _hold(connection, run)
    positions, place = unmarked.following(connection, run, NONE, after, most)
    _put(connection, run, positions, word)
    return len(positions), place


def counts(connection: Connection, run: Run) -> dict[Mark, int]:
    """How many images of the run's jobs have each mark, those that were drawn again among them."""
    row = connection.execute(_COUNTS, {"job_ids": [run.job_id, *run.redraw_jobs]}).one()
    return {mark: int(getattr(row, mark)) for mark in MARKS}


def done(run: Run, marked: Mapping[Mark, int], *, left: int) -> int:
    """How many of the pictures that waited have a mark, if the run's jobs have so many marks and at least so many
    pictures are left. Marks of pictures that need none are counted with them: no index tells them apart."""
    since = sum(marked.values()) - run.counts.get("marked_before", 0) - run.counts.get("superseded", 0)
    return max(0, min(since, run.counts.get("to_review", 0) - left))


def _put(connection: Connection, run: Run, positions: Sequence[int], word: Mark | None) -> int:
    images: dict[int, list[int]] = {}
    for place in (one.image(run.job_id) for one in changes.at(connection, run.id, positions)):
        if place is not None:
            images.setdefault(place[0], []).append(place[1])
    return sum(marks.put(connection, run.tenant_id, job, images[job], word).changed for job in sorted(images))


def _hold(connection: Connection, run: Run) -> None:
    state = connection.execute(_LOCK, {"run_id": run.id}).scalar_one()
    if state != "reviewing":
        raise Conflict(f"The review has ended, and nothing was marked: the run is {state}.", "review_ended")
