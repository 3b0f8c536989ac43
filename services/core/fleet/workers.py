"""Workers: seen while they start, registered when their pipeline has passed its canary, and seen with every heartbeat.

A worker's id belongs to one process and is never reused. Functions take an open transaction.
"""

from sqlalchemy import Connection

from services.core.db.statements import statement

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
_FORGET = statement("workers.forget")("DELETE FROM workers WHERE seen_at < now() - interval '1 day'")


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
