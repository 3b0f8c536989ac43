"""Workers: seen while they start, registered when their pipeline has passed its canary, and seen with every heartbeat.

A worker's id belongs to one process and is never reused. Functions take an open transaction.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from services.core.db.statements import statement

RATE_SECONDS = 60
LIVE_SECONDS = 15.0  # a worker that was not seen for longer is silent

_REGISTER = statement("workers.register")("""
INSERT INTO workers (id, host, pid, device, model, model_revision, state)
VALUES (:id, :host, :pid, :device, :model, :model_revision, :state)
ON CONFLICT (id) DO UPDATE SET device = excluded.device, model = excluded.model,
  model_revision = excluded.model_revision, state = excluded.state, doing = '', seen_at = now()
""")
_STARTS = statement("workers.starts")("""
INSERT INTO workers (id, host, pid, device, model, model_revision, state, doing)
VALUES (:id, :host, :pid, '', '', '', 'starting', :doing)
ON CONFLICT (id) DO UPDATE SET doing = excluded.doing, seen_at = now()
""")
_STARTING = statement("workers.starting")("""
SELECT doing FROM workers
WHERE state = 'starting' AND seen_at BETWEEN now() - interval '15 seconds' AND now() + interval '15 seconds'
ORDER BY started_at, id
""")
_BEAT = statement("workers.beat")("UPDATE workers SET seen_at = now(), state = :state, doing = :doing WHERE id = :id")

_SEEN = statement("workers.seen")("""
SELECT EXISTS (SELECT FROM workers
               WHERE host = :host AND state NOT IN ('starting', 'crashed')
                 AND seen_at BETWEEN now() - interval '10 seconds' AND now() + interval '10 seconds')
""")
_LISTED = statement("workers.listed")("""
SELECT w.id, w.host, w.pid, w.device, w.model, w.state, w.doing, w.started_at, w.seen_at,
       abs(extract(epoch FROM now() - w.seen_at))::double precision AS silent,
       coalesce(held.images, 0) AS rendering, held.step, coalesce(ended.images, 0) AS images,
       EXISTS (SELECT FROM drains d WHERE d.host = w.host AND d.device = w.device) AS drained
FROM workers w
LEFT JOIN LATERAL (
  SELECT sum(images) AS images, max(step) AS step FROM claims WHERE worker_id = w.id AND state = 'open'
) held ON true
LEFT JOIN (
  SELECT worker_id, sum(images) AS images FROM claims
  WHERE state = 'settled' AND ended_at > now() - make_interval(secs => :seconds) GROUP BY worker_id
) ended ON ended.worker_id = w.id
ORDER BY array_position(ARRAY['crashed','sick','starting','busy','ready','stopped'], w.state), w.host, w.device, w.pid
LIMIT :most
""")
_FORGET = statement("workers.forget")("DELETE FROM workers WHERE seen_at < now() - interval '1 day'")


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that was seen during the last day, `silent` seconds ago. It holds `rendering` images, at that step of
    the newest batch, and settled `rate` images a second during the last minute. `drained`: it takes nothing new."""

    id: str
    host: str
    pid: int
    device: str
    model: str
    state: str
    doing: str
    started_at: datetime
    seen_at: datetime
    silent: float
    rendering: int
    step: int | None
    rate: float
    drained: bool


def listed(connection: Connection) -> list[Worker]:
    """Every worker, those that are in trouble first. Takes a system transaction: claims are of all tenants."""
    rows = connection.execute(_LISTED, {"seconds": RATE_SECONDS, "most": 1000})
    return [
        Worker(
            id=row.id,
            host=row.host,
            pid=row.pid,
            device=row.device,
            model=row.model,
            state=row.state,
            doing=row.doing,
            started_at=row.started_at,
            seen_at=row.seen_at,
            silent=row.silent,
            rendering=row.rendering,
            step=row.step,
            rate=row.images / RATE_SECONDS,
            drained=row.drained,
        )
        for row in rows
    ]


def seen(connection: Connection, host: str) -> bool:
    """Whether a worker of that host was seen in the last ten seconds."""
    return bool(connection.execute(_SEEN, {"host": host}).scalar_one())


def register(
    connection: Connection, worker_id: str, *, host: str, pid: int, device: str, model: str, revision: str, state: str
) -> None:
    """`state` is ready or sick; `device` is the name that users see."""
    values = {"id": worker_id, "host": host, "pid": pid, "device": device, "model": model}
    connection.execute(_REGISTER, values | {"model_revision": revision, "state": state})


def starts(connection: Connection, worker_id: str, *, host: str, pid: int, doing: str) -> None:
    """Records that the worker is starting, and what it does right now."""
    connection.execute(_STARTS, {"id": worker_id, "host": host, "pid": pid, "doing": doing})


def starting(connection: Connection) -> list[str]:
    """What each worker does that is starting, the oldest first."""
    return list(connection.execute(_STARTING).scalars())


def beat(connection: Connection, worker_id: str, state: str, doing: str = "") -> bool:
    """Records a heartbeat. `state` is ready, busy, sick, stopped or crashed. False: the worker is not registered."""
    return connection.execute(_BEAT, {"id": worker_id, "state": state, "doing": doing}).rowcount == 1


def forget(connection: Connection) -> None:
    """Deletes workers that were not seen for a day."""
    connection.execute(_FORGET)
