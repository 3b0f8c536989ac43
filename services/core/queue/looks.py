"""Looks: which segments a worker may claim images of, best first.

A worker sees only what it is able to render. Near the end of the work it leaves what others will have rendered sooner
(`tail.py`), so a claim may find images and take none. A look reads a bounded number of rows, however many segments wait
that the worker cannot serve (`walks.py`). Functions take an open system transaction.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection

from services.core.db import columns
from services.core.db.statements import statement
from services.core.fleet import abilities
from services.core.fleet.abilities import Abilities
from services.core.model import classes
from services.core.model.specs import Claim, Shape
from services.core.queue import peers, rooms, walks
from services.core.queue.peers import Peer
from services.core.queue.tail import Pace

ABLE = Abilities()  # to render everything but what asks for a class

LANE = 16  # segments that a look reads of a tenant's lane at most

# The order of segments: first the priority class whose turn it is, then the other classes by priority; within a class
# the tenant with the smallest virtual time; within a tenant the oldest job. One index probe per class and tenant. The
# first row brings the fleet, if the end of the work is near: not if a lane has as many segments as are read, since then
# more may wait in it.
_ORDER = "class.priority <> :turn, class.priority, t.virtual_time, s.job_id, s.id"
_CANDIDATES = statement("looks.candidates")(f"""
SELECT s.*, class.priority, t.id AS tenant_id, t.room, t.virtual_time, t.weight,
  CASE WHEN row_number() OVER (ORDER BY {_ORDER}) = 1
  AND NOT bool_or(s.nth = {LANE}) OVER ()
  AND sum(s.high - s.low + 1) OVER () <= ({peers.NEAR}) THEN ({peers.FLEET}) END AS fleet
FROM (VALUES (0), (1), (2)) AS class (priority)
CROSS JOIN ({rooms.TENANTS}) t
{walks.BEGUN}
CROSS JOIN LATERAL (
  SELECT job_id, id, low, high, cap, {", ".join(columns.SHAPE)},
         abs(extract(epoch FROM clock_timestamp() - created_at)) AS age,
         row_number() OVER (ORDER BY job_id, id) AS nth
  FROM ({walks.SEEN}) seen
  WHERE {abilities.SERVED}
  ORDER BY job_id, id LIMIT {LANE}
) s
WHERE NOT EXISTS (SELECT FROM workers JOIN drains USING (host, device) WHERE workers.id = :worker_id)
ORDER BY {_ORDER}
""")  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Candidates:
    """Segments that may have queued images, best first. `age` is that of the first one, in seconds.

    `fleet` are the live workers if little is left, this one among them, which will be free in `free` seconds.
    `spoken_for` is the share of the others' time that goes into what was left to them before. `overdue` are segments,
    by job and id, that were left to others for too long: nothing of what shares their batches is left any longer.
    """

    rows: tuple[Any, ...]
    worker_id: str = ""
    fleet: Mapping[str, Peer] = field(default_factory=dict)
    free: float = 0.0
    spoken_for: float = 0.0
    overdue: Collection[tuple[int, int]] = ()

    @property
    def age(self) -> float:
        return float(self.rows[0].age)

    @property
    def max_waiting(self) -> int:
        """An upper bound of the images queued in the segments that would share a batch."""
        return sum(_span(row) for row in same_shape(self.rows))

    @property
    def waiting(self) -> dict[int, float]:
        """The priority classes of which something may wait, and the age of the oldest of it in seconds."""
        ages: dict[int, float] = {}
        for row in self.rows:
            ages[row.priority] = max(ages.get(row.priority, 0.0), float(row.age))
        return ages

    def in_turn(self, turn: int, uncharged: Mapping[int, float]) -> "Candidates":
        """The same with that class first. `uncharged` is what tenants have cost and the database does not know yet."""

        def place(row: Any) -> tuple[Any, ...]:
            used = row.virtual_time + uncharged.get(row.tenant_id, 0.0) / row.weight
            return row.priority != turn, row.priority, used, row.job_id, row.id

        return replace(self, rows=tuple(sorted(self.rows, key=place)))

    @property
    def segments(self) -> set[tuple[int, int]]:
        """All of them, by job and id."""
        return {_key(row) for row in self.rows}

    @property
    def lanes(self) -> set[walks.Lane]:
        """The priority classes and tenants that they are of."""
        return {(row.priority, row.tenant_id) for row in self.rows}

    @property
    def alike(self) -> list[tuple[int, int]]:
        """The segments that would share a batch, by job and id."""
        return [_key(row) for row in same_shape(self.rows)]

    @property
    def job_ids(self) -> list[int]:
        return sorted({row.job_id for row in same_shape(self.rows)})

    @property
    def others(self) -> "Candidates":
        """The candidates that remain if the first one and those that share its batch have no queued image."""
        same = set(self.alike)
        rest = tuple(row for row in self.rows if _key(row) not in same)
        left = self._left
        share = min(self.max_waiting / left, 1.0) if left else 0.0
        return replace(self, rows=rest, spoken_for=min(self.spoken_for + share, 1.0))

    def batch(self, most: int) -> int:
        """How many images to claim of the first one's shape, where `most` are claimed of any other: a batch of the
        class that was asked for."""
        asked = classes.parse(self.rows[0].reproducibility_class)
        return most if asked is None else min(asked.batch_size, most)

    def seats(self, batch: int, most: int) -> int:
        """How many images to claim, in batches of `batch`, where a claim may hold `most`: no more than wait of the
        class whose turn it is, and near the end of the work at most half of an equal share, so that all end together.
        """
        first = self.rows[0]
        if first.cap is not None:
            return batch
        waiting = sum(_span(row) for row in same_shape(self.rows) if row.priority == first.priority)
        if others := len(self.fleet.keys() - {self.worker_id}):
            waiting = min(waiting, self.max_waiting // (2 * (1 + others)) // batch * batch)
        return max(min(most, -(-waiting // batch) * batch), batch)

    @property
    def shape(self) -> Shape:
        """That of the first one."""
        return columns.read_shape(self.rows[0])

    @property
    def pace(self) -> Pace | None:
        """How this worker renders the first one; None: nothing like it was measured, or much is left to render."""
        return peers.own_pace(self.fleet, self.worker_id, columns.read_shape(self.rows[0]), self.free)

    @property
    def leaves(self) -> int:
        """How many of the first images of its shape are left to other workers, which end them sooner. Suspects are
        not: it takes two devices to tell what is at fault."""
        return int(self._left * (1 - self.spoken_for))

    def left(self, claim: Claim | None) -> list[tuple[int, int]]:
        """The segments, by job and id, that this claim left to others: those in front of what it took of, or all."""
        if not self.leaves:
            return []
        return self.alike if claim is None else self.alike[: -len(self.behind)]

    @property
    def behind(self) -> list[Any]:
        """The segments that would share a batch and do not lie wholly within what is left to others."""
        waiting, leave = same_shape(self.rows), self.leaves
        upto = accumulate(_span(row) for row in waiting)
        return [row for row, images in zip(waiting, upto, strict=True) if images > leave]

    @property
    def patience(self) -> float:
        """For how many seconds it leaves them: others should have taken them by when it would have rendered them."""
        return peers.PATIENCE + (self.pace.end if self.pace is not None else 0.0)

    @property
    def _left(self) -> int:
        first = self.rows[0]
        if first.cap is not None or not set(self.alike).isdisjoint(self.overdue):
            return 0
        return peers.left(self.fleet, self.pace, self.worker_id, columns.read_shape(first), self.age)


def candidates(
    connection: Connection,
    model_revision: str,
    turn: int,
    worker_id: str,
    able: Abilities = ABLE,
    *,
    free: float = 0.0,
    overdue: Collection[tuple[int, int]] = (),
    after: walks.After | None = None,
) -> Candidates:
    """The open segments of that revision that the worker is able to render; none if it is drained. `turn` is the
    priority class that comes first: 0, 1 or 2. `free`: in how many seconds the worker has rendered what it holds.
    `overdue`: see Candidates. `after`: where the look begins in lanes whose first segments it cannot serve."""
    values = {
        "revision": model_revision, "turn": turn, "worker_id": worker_id, **able.values(), **walks.values(after or {})
    }  # fmt: skip
    rows = tuple(connection.execute(_CANDIDATES, values))
    fleet = peers.read(model_revision, rows[0].fleet) if rows else {}
    return Candidates(rows, worker_id, fleet, free, overdue=overdue)


def same_shape(rows: Sequence[Any]) -> list[Any]:
    """The first segment and those that may share its batch: of its shape, and none with quarantined images."""
    first = rows[0]
    if first.cap is not None:
        return [first]
    shape = columns.read_shape(first)
    return [row for row in rows if row.cap is None and columns.read_shape(row) == shape]


def _key(row: Any) -> tuple[int, int]:
    return row.job_id, row.id


def _span(row: Any) -> int:
    """An upper bound of the images queued in a segment."""
    return int(row.high - row.low + 1)
