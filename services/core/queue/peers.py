"""Who else renders what waits: live workers of a revision as they stand in the database, for the rule of the tail.

A worker counts for as long as it can be trusted to take what is left to it: it was heard of a moment ago, it is not
drained or sick, its rate was measured, and it holds claims that it is not late with, or has just run out of work.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.core.fleet import drains
from services.core.fleet.abilities import Abilities, reported
from services.core.model.specs import Shape
from services.core.queue import tail
from services.core.queue.tail import Pace

LOOK_SECONDS = 2.0  # how often a worker without work looks for some
MOST_EACH = 2_000  # images that are left to a worker at most
PATIENCE = 6.0  # seconds: how long others wait for a worker that does not do what it should

MOST_PEERS = 32  # a larger fleet is not read, and nothing is left to anybody in it

# For the statement that looks for candidates, which knows :revision. The fleet is not read while so much waits that
# nobody could leave it; it has one row of rates a device and shape.
_LIVE = f"""
  WHERE seen_at BETWEEN now() - make_interval(secs => {PATIENCE}) AND now() + make_interval(secs => {PATIENCE})
    AND model_revision = :revision AND state IN ('ready', 'busy') AND {drains.NOT_DRAINED}
"""
NEAR = f"SELECT CASE WHEN count(*) <= {MOST_PEERS} THEN count(*) * {MOST_EACH} ELSE 0 END FROM workers {_LIVE}"  # noqa: S608  our own text
FLEET = f"""
SELECT json_agg(json_build_object(
  'id', w.id, 'able', {reported("w")},
  'idle', abs(extract(epoch FROM clock_timestamp() - coalesce(w.busy_at, w.started_at))), 'held', held.claims,
  'free', extract(epoch FROM held.free_at - clock_timestamp()),
  'rates', (SELECT json_agg(json_build_array(r.width, r.height, r.steps, r.guided, r.seconds_per_image)) FROM (
      SELECT width, height, steps, guided, seconds_per_image FROM render_rates
      WHERE render_rates.device = w.host || ' ' || w.device AND render_rates.model_revision = :revision LIMIT 64) r)))
FROM (
  SELECT id, host, device, report, busy_at, started_at FROM workers {_LIVE}
  ORDER BY id LIMIT {MOST_PEERS}
) w
CROSS JOIN LATERAL (
  SELECT count(*) AS claims, max(free_at) AS free_at FROM claims
  WHERE worker_id = w.id AND state = 'open' AND expires_at > now()
) held
"""  # noqa: S608  our own text


@dataclass(frozen=True, slots=True)
class Peer:
    """A worker. `free`: seconds until it has rendered what it holds, below 0 if it should have; None: not known.
    `rates`: seconds an image, measured."""

    id: str
    able: Abilities
    idle: float
    held: int
    free: float | None
    rates: Mapping[Shape, float]

    def pace(self, shape: Shape, free: float) -> Pace | None:
        """None: it does not serve the shape, or nothing like it was measured."""
        batch = self.able.batch_of(shape) if self.able.serves(shape) else 0
        if not batch or not self.rates:
            return None
        near = shape.timed.nearest(self.rates)
        return Pace(free, batch * self.rates[near] * shape.timed.work / near.work, batch)

    def pace_here(self, shape: Shape, age: float) -> Pace | None:
        """None also if it cannot be trusted to take what has waited for `age` seconds."""
        if not self.held:
            return self.pace(shape, LOOK_SECONDS) if min(self.idle, age) < PATIENCE else None
        pace = None if self.free is None else self.pace(shape, max(self.free, 0.0))
        return None if pace is None or self.free is None or -self.free > pace.seconds + PATIENCE else pace


def read(revision: str, rows: Sequence[Mapping[str, Any]] | None) -> dict[str, Peer]:
    """What FLEET found, by the workers' ids."""
    return {
        row["id"]: Peer(
            row["id"], Abilities.read(row["able"]), float(row["idle"]), row["held"],
            None if row["free"] is None else float(row["free"]),
            {Shape(revision, *shape): seconds for *shape, seconds in row["rates"] or () if seconds > 0},
        )
        for row in rows or ()
    }  # fmt: skip


def own_pace(fleet: Mapping[str, Peer], worker_id: str, shape: Shape, free: float) -> Pace | None:
    """How that worker itself renders the shape; it knows best when it will be free."""
    own = fleet.get(worker_id)
    return None if own is None else own.pace(shape, free)


def left(fleet: Mapping[str, Peer], own: Pace | None, worker_id: str, shape: Shape, age: float) -> int:
    """How many images of that shape the worker leaves to the others. Who was not measured yet leaves none."""
    if own is None:
        return 0
    others = (peer.pace_here(shape, age) for peer in fleet.values() if peer.id != worker_id)
    return tail.left(own, (pace for pace in others if pace is not None))
