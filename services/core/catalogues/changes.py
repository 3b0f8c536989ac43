"""What a run found to differ from the version that it is compared with. Every write of `catalogue_changes`.

The position of a change that is to be rendered is its image's index in the run's job; the others, and those that could
not be submitted, are at positions from ASIDE on. Functions take an open transaction and never commit.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from services.core.db.statements import statement

Kind = Literal["new", "changed", "model", "retried", "broken", "removed"]
Outcome = Literal["done", "failed", "rejected", "removed"]
RENDERED: tuple[Kind, ...] = ("new", "changed", "model", "retried")
REVIEWED: tuple[Kind, ...] = ("changed", "model", "retried")  # they replace a picture
ASIDE = 1 << 30
MOST_CAUSES = 50
_FORGET = statement("changes.forget")("""
DELETE FROM catalogue_changes WHERE run_id = :run_id AND position IN (
  SELECT position FROM catalogue_changes WHERE run_id = :run_id LIMIT :limit)
""")
_ADD = statement("changes.add")("""
INSERT INTO catalogue_changes (run_id, position, item, variant, kind, line, render_key, request, model_revision, code,
  message, redraws)
SELECT :run_id, * FROM unnest(
  CAST(:positions AS integer[]), CAST(:items AS text[]), CAST(:variants AS text[]), CAST(:kinds AS text[]),
  CAST(:lines AS integer[]), CAST(:render_keys AS bytea[]), CAST(:requests AS jsonb[]), CAST(:revisions AS text[]),
  CAST(:codes AS text[]), CAST(:messages AS text[]), CAST(:redraws AS integer[]))
""")
_COLUMNS = (
    "position, item, variant, kind, line, render_key, request, model_revision, outcome, code, message, redraws, "
    "job_id, index"
)
_FROM = f"SELECT {_COLUMNS} FROM catalogue_changes WHERE run_id = :run_id AND position >= :first"  # noqa: S608
_PAGE = statement("changes.page")(f"{_FROM} ORDER BY position LIMIT :limit")
_OF_KIND = statement("changes.of_kind")(f"{_FROM} AND kind = :kind ORDER BY position LIMIT :limit")
_TROUBLED = statement("changes.troubled")(f"{_FROM} AND code IS NOT NULL ORDER BY position LIMIT :limit")
_OF_CODE = statement("changes.of_code")(f"{_FROM} AND code = :code ORDER BY position LIMIT :limit")
_AT = statement("changes.at")(
    f"SELECT {_COLUMNS} FROM unnest(CAST(:positions AS integer[])) AS wanted (place) CROSS JOIN LATERAL "  # noqa: S608
    f"(SELECT {_COLUMNS} FROM catalogue_changes WHERE run_id = :run_id AND position = place OFFSET 0) found "
    "ORDER BY position"
)
_REDRAWN = statement("changes.redrawn")(f"{_FROM} AND job_id IS NOT NULL ORDER BY position LIMIT :limit")
_DRAW_AGAIN = statement("changes.draw_again")("""
UPDATE catalogue_changes c SET redraws = c.redraws + 1, job_id = :job_id, index = again.index,
  request = c.request || jsonb_build_object('seed', again.seed), render_key = again.render_key
FROM unnest(CAST(:positions AS integer[]), CAST(:indexes AS integer[]), CAST(:seeds AS bigint[]),
            CAST(:render_keys AS bytea[])) AS again (position, index, seed, render_key)
WHERE c.run_id = :run_id AND c.position = again.position
""")
_LAST = statement("changes.last")(
    "SELECT max(position) FROM catalogue_changes WHERE run_id = :run_id AND position < :below"
)
_SET_ASIDE = statement("changes.set_aside")("""
UPDATE catalogue_changes c SET position = CAST(:after AS integer) + aside.nth, code = :code, message = :message
FROM unnest(CAST(:positions AS integer[])) WITH ORDINALITY AS aside (position, nth)
WHERE c.run_id = :run_id AND c.position = aside.position
""")
_CLOSE_UP = statement("changes.close_up")("""
UPDATE catalogue_changes c SET position = hole.position
FROM unnest(CAST(:holes AS integer[])) WITH ORDINALITY AS hole (position, nth)
JOIN (SELECT position, row_number() OVER (ORDER BY position) AS nth FROM catalogue_changes
      WHERE run_id = :run_id AND position >= :total AND position < :aside) late USING (nth)
WHERE c.run_id = :run_id AND c.position = late.position
""")
_CAUSES = statement("changes.causes")("""
SELECT code, count(*) AS changes FROM catalogue_changes WHERE run_id = :run_id AND code IS NOT NULL
GROUP BY code ORDER BY changes DESC, code LIMIT :limit
""")
# Each code is found by the one before it: only rows that are shown are read.
_EXAMPLES = statement("changes.examples")(f"""
WITH RECURSIVE codes AS (
  (SELECT code, 1 AS nth FROM catalogue_changes WHERE run_id = :run_id AND code IS NOT NULL ORDER BY code LIMIT 1)
  UNION ALL
  SELECT (SELECT code FROM catalogue_changes c WHERE run_id = :run_id AND c.code > codes.code ORDER BY code LIMIT 1),
         nth + 1
  FROM codes WHERE code IS NOT NULL AND nth < :most
)
SELECT {_COLUMNS} FROM (SELECT code AS of_code FROM codes WHERE code IS NOT NULL) found CROSS JOIN LATERAL (
  SELECT {_COLUMNS} FROM catalogue_changes WHERE run_id = :run_id AND code = of_code ORDER BY position LIMIT :each
) example ORDER BY code, position
""")  # noqa: S608  our own text
_SETTLE = statement("changes.settle")("""
UPDATE catalogue_changes c SET outcome = s.outcome, code = coalesce(s.code, c.code),
  message = coalesce(s.message, c.message)
FROM unnest(CAST(:positions AS integer[]), CAST(:outcomes AS text[]), CAST(:codes AS text[]),
            CAST(:messages AS text[])) AS s (position, outcome, code, message)
WHERE c.run_id = :run_id AND c.position = s.position
""")
_OUTCOMES = statement("changes.outcomes")(
    "SELECT outcome, count(*) AS changes FROM catalogue_changes WHERE run_id = :run_id GROUP BY outcome"
)

_SHAPES = statement("changes.shapes")("""
SELECT request->>'model' AS model, request->>'size' AS size,
  CAST(request->>'num_inference_steps' AS integer) AS num_inference_steps,
  CAST(request->>'guidance_scale' AS double precision) AS guidance_scale, count(*) AS images
FROM catalogue_changes WHERE run_id = :run_id AND position < :aside
GROUP BY 1, 2, 3, 4 ORDER BY images DESC LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class Change:
    """One picture that differs: an item's variant. `line` is the item's line in the source, `request` and
    `render_key` what is rendered. `code` and `message` say why there is none. `redraws`: how often its seed was
    exchanged, in this run or before; `job_id` and `index`: its image, if a review has drawn it again."""

    item: str
    variant: str
    kind: Kind
    line: int | None = None
    render_key: bytes | None = None
    request: dict[str, Any] | None = None
    model_revision: str | None = None
    code: str | None = None
    message: str | None = None
    position: int = -1
    outcome: Outcome | None = None
    redraws: int = 0
    job_id: int | None = None
    index: int | None = None

    def image(self, job_id: int | None) -> tuple[int, int] | None:
        """The job and the index of its image, in a run with that job. None: it is not rendered."""
        if self.job_id is not None and self.index is not None:
            return self.job_id, self.index
        return None if job_id is None or self.position >= ASIDE else (job_id, self.position)


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of the change at a position."""

    position: int
    outcome: Outcome
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """The change at a position is to be drawn with another seed, which gives that render key."""

    position: int
    seed: int
    render_key: bytes


def forget(connection: Connection, run_id: int, *, most: int) -> bool:
    """Deletes up to `most` changes of a run whose plan is made again. Returns whether there may be more."""
    return connection.execute(_FORGET, {"run_id": run_id, "limit": most}).rowcount == most


def add(connection: Connection, run_id: int, first: int, changes: Sequence[Change]) -> None:
    """Records the changes from the position `first` on."""
    values = {
        "positions": list(range(first, first + len(changes))),
        "items": [change.item for change in changes],
        "variants": [change.variant for change in changes],
        "kinds": [change.kind for change in changes],
        "lines": [change.line for change in changes],
        "render_keys": [change.render_key for change in changes],
        "requests": [None if change.request is None else json.dumps(change.request) for change in changes],
        "revisions": [change.model_revision for change in changes],
        "codes": [change.code for change in changes],
        "messages": [change.message for change in changes],
        "redraws": [change.redraws for change in changes],
    }
    connection.execute(_ADD, values | {"run_id": run_id})


def page(
    connection: Connection, run_id: int, *, first: int, limit: int, kind: Kind | None = None, troubled: bool = False,
    code: str | None = None,
) -> list[Change]:  # fmt: skip
    """The changes from the position `first` on: all, those of one kind, those of which something went wrong, or those
    with one code."""
    query = _TROUBLED if troubled else _OF_CODE if code is not None else _PAGE if kind is None else _OF_KIND
    rows = connection.execute(query, {"run_id": run_id, "first": first, "limit": limit, "kind": kind, "code": code})
    return [_change(row) for row in rows]


def at(connection: Connection, run_id: int, positions: Sequence[int]) -> list[Change]:
    """The changes at these positions, in order."""
    return [_change(row) for row in connection.execute(_AT, {"run_id": run_id, "positions": list(positions)})]


def redrawn(connection: Connection, run_id: int, *, first: int, limit: int) -> list[Change]:
    """The changes from the position `first` on that the run's review has drawn again."""
    values = {"run_id": run_id, "first": first, "limit": limit}
    return [_change(row) for row in connection.execute(_REDRAWN, values)]


def draw_again(connection: Connection, run_id: int, job_id: int, again: Sequence[Again]) -> None:
    """From now on, these changes are the images of that job, in this order."""
    values = {
        "run_id": run_id, "job_id": job_id, "indexes": list(range(len(again))),
        "positions": [one.position for one in again], "seeds": [one.seed for one in again],
        "render_keys": [one.render_key for one in again],
    }  # fmt: skip
    connection.execute(_DRAW_AGAIN, values)


def set_aside(connection: Connection, run_id: int, positions: Sequence[int], code: str, message: str) -> None:
    """These changes, which were to be rendered, are not, for this reason. The last ones take their places: the
    positions of those that are rendered stay without a gap."""
    total = connection.execute(_LAST, {"run_id": run_id, "below": ASIDE}).scalar_one() + 1 - len(positions)
    last = connection.execute(_LAST, {"run_id": run_id, "below": 2 * ASIDE - 1}).scalar_one()
    values = {"run_id": run_id, "positions": list(positions), "after": max(last, ASIDE - 1)}
    connection.execute(_SET_ASIDE, values | {"code": code, "message": message})
    holes = [position for position in positions if position < total]
    connection.execute(_CLOSE_UP, {"run_id": run_id, "holes": holes, "total": total, "aside": ASIDE})


def causes(connection: Connection, run_id: int) -> dict[str, int]:
    """How many changes have which code, the most frequent codes first. It reads all that have one."""
    rows = connection.execute(_CAUSES, {"run_id": run_id, "limit": MOST_CAUSES})
    return {row.code: row.changes for row in rows}


def examples(connection: Connection, run_id: int, each: int) -> dict[str, list[Change]]:
    """The first changes with each code, of MOST_CAUSES codes at most."""
    found: dict[str, list[Change]] = {}
    for row in connection.execute(_EXAMPLES, {"run_id": run_id, "each": each, "most": MOST_CAUSES}):
        found.setdefault(row.code, []).append(_change(row))
    return found


def settle(connection: Connection, run_id: int, settled: Iterable[Settled]) -> None:
    """Records what came of these changes."""
    given = list(settled)
    values = {
        "positions": [one.position for one in given],
        "outcomes": [one.outcome for one in given],
        "codes": [one.code for one in given],
        "messages": [one.message for one in given],
    }
    connection.execute(_SETTLE, values | {"run_id": run_id})


def outcomes(connection: Connection, run_id: int) -> dict[str, int]:
    """How many changes of a run came to what."""
    return {row.outcome: row.changes for row in connection.execute(_OUTCOMES, {"run_id": run_id}) if row.outcome}


def shapes(connection: Connection, run_id: int, *, limit: int) -> list[dict[str, Any]]:
    """How many pictures of which model, size, steps and guidance a run renders, the most frequent first."""
    rows = connection.execute(_SHAPES, {"run_id": run_id, "aside": ASIDE, "limit": limit}).mappings()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _change(row: Any) -> Change:
    return Change(
        item=row.item, variant=row.variant, kind=row.kind, line=row.line,
        render_key=None if row.render_key is None else bytes(row.render_key), request=row.request,
        model_revision=row.model_revision, code=row.code,
        message=row.message, position=row.position, outcome=row.outcome, redraws=row.redraws, job_id=row.job_id,
        index=row.index,
    )  # fmt: skip
